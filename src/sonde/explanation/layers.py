"""The layers and neurons that a saved model uses, without any text.

map_layers   a saved model -> its neurons, block by block, as plain data
layers_of    the same of a classifier in memory
STRETCHES    equal parts of a layer whose weight is given
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sonde import saving
from sonde.classifier import TextClassifier
from sonde.learn import learning
from sonde.learn.importance import BlockImportance, importance, lacks_widths
from sonde.learn.problem import Fitted, Record
from sonde.loading import load, named

STRETCHES = 128
"""Three neurons each of a small encoder, 32 of a 7B decoder: as fine as a picture shows, and bounded for any model."""


def map_layers(folder: Path | str) -> list[dict[str, Any]]:
    """The neurons that a saved model weighs, and how much.

    Backbones are opened only if a model reads several kinds of site in full, where their widths must be asked for.

    Returns
    -------
    list of dict
        One entry a block, in the order of the model: `backbone`, `site`, `pooling`; `width`, the neurons of the layer
        (None where only the kept ones are known), and `kept`, how many have a weight; `share` of the squared weights of
        the whole model; `stretches`, the same for `STRETCHES` equal parts of the layer; `axis`, the neurons that these
        cover: the width, or where it is unknown up to the last one kept in any layer of its kind; `neurons`, the
        indices of those kept, None where most are. Empty for networks and for models that read no backbone.

    Raises
    ------
    ModelError, BackboneError
        If the folder is no whole saved model, or a backbone that has to be asked is not there.
    """
    content, arrays = saving.load(folder)
    learner = {name.removeprefix("learner/"): a for name, a in arrays.items() if name.startswith("learner/")}
    with named(folder):
        model = learning.restore(Record(content["learner"], learner))
        return _mapped(model, _widths(load(folder, cache=None)) if lacks_widths(model) else {})


def layers_of(classifier: TextClassifier) -> list[dict[str, Any]]:
    """The neurons that a fitted classifier weighs, as `map_layers` gives them for a saved one."""
    model = classifier.model_
    return _mapped(model, _widths(classifier) if lacks_widths(model) else {})


def _mapped(model: Fitted, widths: Mapping[str, int]) -> list[dict[str, Any]]:
    found = importance(model, widths)
    return [_described(one, _axis(one, found)) for one in found]


def _described(one: BlockImportance, axis: int) -> dict[str, Any]:
    index, site, *pooling = one.block.split("/")
    stretches = np.bincount(one.neurons * STRETCHES // axis, one.shares, minlength=STRETCHES)  # kept -> stretch
    return {
        "backbone": int(index),
        "site": site,
        "pooling": "".join(pooling),
        "width": one.width,
        "kept": len(one.neurons),
        "share": float(one.shares.sum()),
        "axis": axis,
        "stretches": np.round(stretches, 6).tolist(),
        "neurons": one.neurons.tolist() if len(one.neurons) <= axis / 2 else None,
    }


def _axis(one: BlockImportance, found: Sequence[BlockImportance]) -> int:
    """Neurons of the layer, as far as they are known."""
    if one.width is not None:
        return one.width
    kind = _kind(one.block)
    return 1 + max(int(other.neurons.max(initial=0)) for other in found if _kind(other.block) == kind)


def _kind(block: str) -> tuple[str, str]:
    """Backbone and kind of site."""
    index, site, *_ = block.split("/")
    return index, site.rpartition(".")[0] or site


def _widths(classifier: TextClassifier) -> Mapping[str, int]:
    """How wide the backbones of a model are at each of its blocks."""
    from sonde.read.sources import block_of

    sources = classifier.sources()
    blocks = [block_of(name, sources) for name in classifier.model_.needs]
    return {block.name: sources[block.backbone].backbone.width(block.site) for block in blocks}
