"""Scores taken apart: why a classifier gives a text its label.

explain   classifier, texts -> an Explanation each
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from sonde.classifier import TextClassifier
from sonde.errors import ArgumentError, DataError
from sonde.explanation.records import APPROXIMATE, EXACT, NGRAMS, Explanation, Gram, Layer, Neuron
from sonde.explanation.tokens import tokens_of
from sonde.inputs import as_texts
from sonde.learn.attribution import Attribution, Part, attributor
from sonde.learn.contrast import Contrast, contrast
from sonde.progress import tracked

if TYPE_CHECKING:
    from sonde.read.tokens import Reading

NAMED_LABELS = 12
"""Labels that an error names."""


def explain(
    classifier: TextClassifier, texts: Any, *, label: Any = None, against: Any = None, top: int = 10
) -> list[Explanation]:
    """Take the log-odds of a label apart.

    Parameters
    ----------
    classifier : TextClassifier
        Fitted or loaded.
    texts : sequence of str
        Blank texts are refused.
    label : optional
        The label to explain; by default the most probable one of each text.
    against : optional
        Another label: the score is then the log-odds between the two. By default all others together: the log-odds
        of the label, taken apart along their gradient, in which each other label counts by its probability among the
        others. Multi-label models explain one label by itself and take no `against`.
    top : int
        Neurons and n-grams that are listed.

    Returns
    -------
    list of Explanation

    Raises
    ------
    DataError
        If a text is blank, or has nothing that the backbone's tokenizer keeps.
    ArgumentError
        If a label is unknown, or `top` negative.
    ModelError
        If this kind of model has no explanation.

    Notes
    -----
    Contributions are exact through linear models: in float32 they sum to the score within 1e-4. A token is a position
    of the backbone: its hidden state holds what the model gathered there from the whole text. For the mean each token
    adds its own state's part; for the maximum a neuron's part goes to the token that won it.
    """
    check_is_fitted(classifier, "classes_")
    rows = as_texts(texts)
    for row, text in enumerate(rows):
        if not text.strip():
            raise DataError(f"Text {row + 1} is blank: nothing in it can speak for a label. Leave it out.")
    if isinstance(top, bool) or not isinstance(top, int | np.integer) or top < 0:
        raise ArgumentError(f"top is {top!r}; it must be a whole number that is not negative.")
    if against is not None and classifier.multilabel_:
        raise ArgumentError(
            "against compares two labels of which one is true; this model is multi-label: leave it out."
        )
    asked = _ask(classifier, rows, label, against)
    attribute = attributor(classifier.model_)
    reader = _Reader(classifier)
    found = []
    for row, (text, one) in enumerate(zip(tracked(rows, "explaining", "texts"), asked, strict=True)):
        readings = reader.read(text, row)
        pooled = {name: values.pooled()[None] for read in readings.values() for name, values in read.blocks.items()}
        parts = attribute(one.direction / classifier.temperature_, pooled, text)
        found.append(_explained(classifier, text, one, readings, parts, top))
    return found


def _ask(classifier: TextClassifier, rows: list[str], label: Any, against: Any) -> list[Contrast]:
    """The score of each text that is to be explained."""
    wanted, other = (None if one is None else _index(classifier, one) for one in (label, against))
    logits = np.asarray(classifier.decision_function(rows), dtype=np.float64)  # row class
    if logits.ndim == 1:
        logits = np.stack([-logits / 2, logits / 2], axis=1)  # row -> row class
    asked = []
    for row, own in enumerate(logits):
        column = int(own.argmax()) if wanted is None else wanted
        if column == other:
            raise ArgumentError(f"against is {against!r}, the label of text {row + 1} itself; give another label.")
        asked.append(contrast(own, column, other, multilabel=classifier.multilabel_))
    return asked


def _index(classifier: TextClassifier, label: Any) -> int:
    known = classifier.classes_.tolist()
    for column, one in enumerate(known):
        if one == label or str(one) == str(label):  # a command line knows no numbers
            return column
    more = ", ..." if len(known) > NAMED_LABELS else ""
    named = ", ".join(map(str, known[:NAMED_LABELS])) + more
    raise ArgumentError(f"The label {label!r:.80} is unknown to this model; it knows {len(known)}: {named}.")


class _Reader:
    """Reads the blocks that a model needs, token by token."""

    def __init__(self, classifier: TextClassifier) -> None:
        self.sources = classifier.sources()
        self.needs = classifier.model_.needs

    def read(self, text: str, row: int) -> "dict[int, Reading]":
        """What each backbone makes of a text; `DataError` if it drops all of it."""
        if not self.sources:
            return {}
        from sonde.read.sources import block_of
        from sonde.read.tokens import read_tokens

        blocks = [block_of(name, self.sources) for name in self.needs]
        found = {}
        for index, source in self.sources.items():
            found[index] = read_tokens(text, source, [block for block in blocks if block.backbone == index])
            if not found[index].has_content:
                raise DataError(
                    f"Text {row + 1} ({text!r:.40}) has no token: the tokenizer of {source.backbone.name} drops all "
                    "of it. Leave it out."
                )
        return found


def _explained(
    classifier: TextClassifier,
    text: str,
    asked: Contrast,
    readings: "Mapping[int, Reading]",
    found: Attribution,
    top: int,
) -> Explanation:
    tokens = tuple(tokens_of(text, readings, found))
    bias = found.bias + asked.constant
    neurons = _by_neuron(readings, found.parts)
    classes = classifier.classes_.tolist()
    return Explanation(
        text=text,
        label=classes[asked.label],
        against=None if asked.against is None else classes[asked.against],
        probability=asked.probability,
        score=asked.score,
        bias=bias,
        remainder=asked.score - bias - math.fsum(token.contribution for token in tokens),
        method=EXACT if found.exact else APPROXIMATE,
        tokens=tokens,
        layers=tuple(_layers(neurons, found)),
        neurons=tuple(_largest_neurons(neurons, top)),
        grams=tuple(_largest_grams(found, top)),
    )


def _by_neuron(readings: "Mapping[int, Reading]", parts: Sequence[Part]) -> dict[str, np.ndarray]:
    """Block name -> what each neuron adds."""
    added: dict[str, np.ndarray] = {}
    for part in parts:
        block = readings[int(part.block.split("/")[0])].blocks[part.block]
        own = (block.pooled() - part.centre) * part.weights  # dim
        added[part.block] = added.get(part.block, 0.0) + own
    return added


def _layers(neurons: Mapping[str, np.ndarray], found: Attribution) -> Iterator[Layer]:
    added: dict[tuple[int | None, str], float] = {}
    for name, own in neurons.items():
        index, site, *_ = name.split("/")
        added[int(index), site] = added.get((int(index), site), 0.0) + float(own.sum())
    if found.grams:
        added[None, NGRAMS] = math.fsum(gram.contribution for gram in found.grams)
    total = math.fsum(map(abs, added.values())) or 1.0
    yield from (Layer(*place, own, abs(own) / total) for place, own in added.items())


def _largest_neurons(neurons: Mapping[str, np.ndarray], top: int) -> Iterator[Neuron]:
    if not neurons:
        return
    names = [name for name, own in neurons.items() for _ in own]
    index = np.concatenate([np.arange(len(own)) for own in neurons.values()])
    added = np.concatenate(list(neurons.values()))
    for i in np.argsort(-np.abs(added), kind="stable")[:top].tolist():
        if added[i]:
            backbone, site, *pooling = names[i].split("/")
            layer = site.rpartition(".")[2]
            number = int(layer) if layer.isdecimal() else None
            yield Neuron(int(backbone), site, number, "".join(pooling), int(index[i]), float(added[i]))


def _largest_grams(found: Attribution, top: int) -> Iterator[Gram]:
    for one in sorted(found.grams, key=lambda gram: -abs(gram.contribution))[:top]:
        yield Gram(one.gram, one.kind, len(one.places), one.contribution)
