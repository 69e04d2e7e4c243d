"""Which layers and neurons a fitted linear model uses, and how much: the picture of Sparsify-then-Classify.

    importance       a fitted model -> the neurons of each block with their weight
    lacks_widths     whether it must be told how wide its blocks are
    BlockImportance  the neurons of one block

The importance of a neuron is the sum over classes of its squared coefficients on standardised activations, over that
of all neurons of the model (arXiv 2311.15983, section 3, where it is taken layer by layer). It needs no text; what a
neuron adds to the logits of one text is `sonde.learn.attribution`'s to say.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64, Int64

from sonde.learn.problem import Fitted

if TYPE_CHECKING:
    from sonde.learn.blend import Blend
    from sonde.learn.cascade import Cascade
    from sonde.learn.logistic import Logistic
    from sonde.learn.sparse import Sparse

Widths = Mapping[str, int]
"""Neurons of each block, the unused ones included."""


@dataclass(frozen=True)
class BlockImportance:
    """What a model uses of one block."""

    block: str
    """Its name."""
    width: int | None
    """Neurons it has; None where the model remembers only those that it uses."""
    neurons: Int64[np.ndarray, " kept"]
    """Those that have a weight, ascending."""
    shares: Float64[np.ndarray, " kept"]
    """Of the squared weights of the whole model: all blocks together sum to 1."""


def importance(model: Fitted, widths: Widths) -> list[BlockImportance]:
    """The neurons that a model uses, block by block in the order of its needs.

    Parameters
    ----------
    model : Fitted
    widths : mapping of block name to int
        Needed for models that `lacks_widths` names; else it may be empty.

    Returns
    -------
    list of BlockImportance
        Empty for models that are not linear in their blocks, or read none; of a cascade, those of its deepest head.
        N-grams have no part in it: their features are not standardised, so that their weights do not compare.
    """
    found = _squares(model, widths)
    total = sum(float(one.shares.sum()) for one in found)
    return [replace(one, shares=one.shares / total) for one in found] if total > 0 else []


def lacks_widths(model: Fitted) -> bool:
    """Whether a model does not tell where one block ends and the next begins.

    A dense model is as wide as its blocks together: that tells if they lie at one kind of site of one backbone.
    """
    if type(model).__name__ == "Blend":
        return any(lacks_widths(child) for child in model.children)  # type: ignore[attr-defined]
    return type(model).__name__ == "Logistic" and len({_place(name) for name in model.needs}) > 1


def _place(name: str) -> tuple[str, str]:
    """Backbone and kind of site, of which every layer has one width."""
    index, site, *_ = name.split("/")
    return index, site.rpartition(".")[0] or site


def _squares(model: Fitted, widths: Widths) -> list[BlockImportance]:
    kind = type(model).__name__
    return SQUARES[kind](model, widths) if kind in SQUARES else []


def _dense(model: "Logistic", widths: Widths) -> list[BlockImportance]:
    known = {name: widths.get(name, len(model.mean) // len(model.needs)) for name in model.needs}
    return _split(model, {name: np.arange(width) for name, width in known.items()}, known)


def _sparse(model: "Sparse", widths: Widths) -> list[BlockImportance]:
    return _split(model, model.columns, widths)


def _cascade(model: "Cascade", widths: Widths) -> list[BlockImportance]:
    return _sparse(model.exits[-1], widths)


def _split(model: Any, columns: Mapping[str, np.ndarray], widths: Widths) -> list[BlockImportance]:
    squares = np.square(model.coefficients.astype(np.float64)).sum(axis=1)  # feature class -> feature
    squares *= model.scale > 0
    edges = np.cumsum([0, *(len(columns[name]) for name in model.needs)]).tolist()
    assert edges[-1] == len(squares), "the columns of all blocks are the features"
    found = []
    for name, (start, stop) in zip(model.needs, pairwise(edges), strict=True):
        own, where = squares[start:stop], np.asarray(columns[name], dtype=np.int64)  # kept
        order = np.argsort(where)[own[np.argsort(where)] > 0]
        found.append(BlockImportance(name, widths.get(name), where[order], own[order]))
    return found


def _blend(model: "Blend", widths: Widths) -> list[BlockImportance]:
    """Learners that read the same block add up, each by its scale."""
    together: dict[str, tuple[int | None, dict[int, float]]] = {}
    for child, scale in zip(model.children, model.scales, strict=True):
        for one in _squares(child, widths):
            width, shares = together.get(one.block, (None, {}))
            for neuron, share in zip(one.neurons.tolist(), one.shares.tolist(), strict=True):
                shares[neuron] = shares.get(neuron, 0.0) + scale**2 * share
            together[one.block] = (one.width or width, shares)
    return [
        BlockImportance(
            name, width, np.array(sorted(shares), dtype=np.int64), np.array([shares[i] for i in sorted(shares)])
        )
        for name, (width, shares) in together.items()
    ]


SQUARES: dict[str, Callable[[Any, Widths], list[BlockImportance]]] = {
    "Logistic": _dense,
    "Sparse": _sparse,
    "Cascade": _cascade,
    "Blend": _blend,
}
"""Name of the class of a fitted model -> its squared weights, by block."""
