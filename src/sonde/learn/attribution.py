"""Why a fitted model gives a text its logits: what each neuron and each n-gram adds.

    attributor    a fitted model -> a function from (direction, blocks, text) to an Attribution
    Attribution   a score as bias + neurons + n-grams
    Part          what the neurons of one block add
    Gram          what one n-gram adds, and where it stands
    Direction     class -> the number that its logit is multiplied by; the sum is the score

Neurons are measured from their mean over the training rows: the bias is what the model says of the average training
text, and what a neuron adds is how far it moves this text away from there. Through linear models that is exact. A
network gives its average gradient on the straight way from there (`sonde.learn.gradients`).

A new kind of fitted model needs one entry in `ATTRIBUTORS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Float64

from sonde.errors import ModelError
from sonde.learn.occurrences import occurrences
from sonde.learn.problem import Blocks, Fitted

if TYPE_CHECKING:
    from sonde.learn.blend import Blend
    from sonde.learn.cascade import Cascade
    from sonde.learn.head import FusionHead
    from sonde.learn.lexical import Lexical
    from sonde.learn.logistic import Logistic
    from sonde.learn.sparse import Sparse

Direction: TypeAlias = Float64[np.ndarray, " class"]
Attributor: TypeAlias = Callable[[Direction, Blocks, str], "Attribution"]


@dataclass(frozen=True)
class Part:
    """What the neurons of one block add: (value - centre) * weight each."""

    block: str
    """Name of the block."""
    weights: Float64[np.ndarray, " dim"]
    """Effective weight of each neuron for this row and direction; 0 for neurons that the model does not use."""
    centre: Float64[np.ndarray, " dim"]
    """The value at which a neuron adds nothing."""


@dataclass(frozen=True)
class Gram:
    """What one n-gram adds."""

    gram: str
    """As the model knows it: lower case, words joined by a blank."""
    kind: str
    """`word` or `char`."""
    places: tuple[tuple[int, ...], ...]
    """For each time that it stands in the text, the indices of the characters it covers, blanks left out."""
    contribution: float
    """Of all these times together."""


@dataclass(frozen=True)
class Attribution:
    """A score = bias + what the parts add + what the n-grams add."""

    bias: float
    """What is said of every text."""
    parts: tuple[Part, ...] = ()
    """A block may have several, one for each learner of a blend that reads it."""
    grams: tuple[Gram, ...] = ()
    """The n-grams of the text that the model knows."""
    exact: bool = True
    """Whether the sum is the score up to rounding; else a network was approximated."""


def attributor(model: Fitted) -> Attributor:
    """Prepare the explanation of a fitted model's logits.

    Returns
    -------
    function (direction, blocks, text) -> Attribution
        `direction` (class,) weights the logits; `blocks` are those of the one row, (1, dim) each; `text` is what the
        model read. A function, so that what is the same for all texts is done once.

    Raises
    ------
    ModelError
        If this kind of model has no explanation.
    """
    kind = type(model).__name__
    if kind not in ATTRIBUTORS:
        raise ModelError(f"A model of kind {kind} cannot be explained; these can: {', '.join(ATTRIBUTORS)}.")
    return ATTRIBUTORS[kind](model)


def _linear(model: "Logistic | Sparse") -> Attributor:
    """`Logistic`, which uses every neuron of its blocks, and `Sparse`, which names those it uses."""
    coefficients = model.scale.astype(np.float64)[:, None] * model.coefficients  # feature class
    centre, intercept = model.mean.astype(np.float64), model.intercept.astype(np.float64)
    known = getattr(model, "columns", {})

    def attribute(direction: Direction, blocks: Blocks, text: str) -> Attribution:
        weights = coefficients @ direction  # feature class -> feature
        widths = [blocks[name].shape[1] for name in model.needs]
        kept = [known.get(name, np.arange(width)) for name, width in zip(model.needs, widths, strict=True)]
        edges = np.cumsum([0, *map(len, kept)]).tolist()
        parts = []
        for name, width, columns, (start, stop) in zip(model.needs, widths, kept, pairwise(edges), strict=True):
            part = Part(name, np.zeros(width), np.zeros(width))
            part.weights[columns], part.centre[columns] = weights[start:stop], centre[start:stop]
            parts.append(part)
        return Attribution(float(intercept @ direction), tuple(parts))

    return attribute


def _lexical(model: "Lexical") -> Attributor:
    """TF-IDF is what the text says, the classifier is linear in it: every n-gram adds value times coefficient."""
    coefficients, intercept = model.coefficients.astype(np.float64), model.intercept.astype(np.float64)
    edges = np.cumsum([0, *(len(block.columns) for block in model.blocks)]).tolist()
    names = [block.strings() for block in model.blocks]

    def attribute(direction: Direction, blocks: Blocks, text: str) -> Attribution:
        grams: list[Gram] = []
        for block, strings, start in zip(model.blocks, names, edges[:-1], strict=True):
            features = block.features(block.vocabulary.count([text]))  # 1 feature
            added = features.data * (coefficients[start + features.indices] @ direction)  # feature
            kind, places = block.vocabulary.kind, occurrences(text, block.vocabulary.kind)
            for column, contribution in zip(features.indices.tolist(), added.tolist(), strict=True):
                gram = strings[column]
                grams.append(Gram(gram, kind.name, places[gram], contribution))
        return Attribution(float(intercept @ direction), (), tuple(grams))

    return attribute


def _blend(model: "Blend") -> Attributor:
    """The logits of a blend are a sum: so is its explanation."""
    children = [attributor(child) for child in model.children]

    def attribute(direction: Direction, blocks: Blocks, text: str) -> Attribution:
        found = [one(scale * direction, blocks, text) for one, scale in zip(children, model.scales, strict=True)]
        return Attribution(
            sum(one.bias for one in found),
            tuple(part for one in found for part in one.parts),
            tuple(gram for one in found for gram in one.grams),
            all(one.exact for one in found),
        )

    return attribute


def _fusion(model: "FusionHead") -> Attributor:
    """A network: integrated gradients from the average training text to this one."""
    from sonde.learn.gradients import integrated  # torch is imported only where it is used

    def attribute(direction: Direction, blocks: Blocks, text: str) -> Attribution:
        return replace(integrated(model, direction, blocks), exact=False)

    return attribute


def _cascade(model: "Cascade") -> Attributor:
    """The exit at which the row leaves says it all."""
    exits = [attributor(one) for one in model.exits]

    def attribute(direction: Direction, blocks: Blocks, text: str) -> Attribution:
        reached = int(model.leave(blocks, 1)[1][0])
        return exits[reached](direction / model.temperatures[reached], blocks, text)

    return attribute


ATTRIBUTORS: dict[str, Callable[[Any], Attributor]] = {
    "Logistic": _linear,
    "Sparse": _linear,
    "Lexical": _lexical,
    "Blend": _blend,
    "FusionHead": _fusion,
    "Cascade": _cascade,
}
"""Name of the class of a fitted model -> how to explain it; by name, so that no learner is imported for another."""
