"""Work: what a worker does, as data that travels to it; the worker opens its own model.

Predicting   texts -> labels and probabilities, by a saved model
Added        which columns a prediction adds
Extracting   texts -> a store
Work         either of them

Opening is left to the worker: `open()` loads what is needed, once, and gives a function of texts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonde.errors import ModelError
from sonde.scale.attempt import Do, Found

if TYPE_CHECKING:
    from sonde.classifier import TextClassifier
    from sonde.read.blocks import Block, Source


DIGITS = 6
"""Of a probability in a file."""


@dataclass(frozen=True)
class Added:
    """The columns that a prediction adds beside `label` and `probability`."""

    least: float | None = None
    """Where answers begin; None = every text is answered."""
    alpha: float | None = None
    """Label sets of this error, in `label_set`; None = none."""
    probabilities: bool = False
    """One column a label, `probability_LABEL`."""

    def of(self, classifier: "TextClassifier", texts: list[str]) -> dict[str, list[Any]]:
        """Name -> a cell a text; None for a label less probable than `least`."""
        probabilities = classifier.predict_proba(texts)
        decided = classifier.decide(probabilities)
        if classifier.multilabel_:
            labels = [classifier.classes_[row].tolist() for row in decided]
            found = {"label": labels, "probability": probabilities.astype(float).round(DIGITS).tolist()}
        else:
            named, sure = classifier.name_labels(decided), probabilities.max(axis=1)
            if self.least is not None:
                from sonde.learn.abstention import withhold

                named = withhold(named, sure, self.least)
            found = {"label": named.tolist(), "probability": sure.astype(float).round(DIGITS).tolist()}
        if self.alpha is not None:
            found["label_set"] = classifier.sets_of(probabilities, self.alpha)
        if self.probabilities:
            columns = probabilities.T.astype(float).round(DIGITS).tolist()
            found |= dict(zip(self._named(classifier), columns, strict=True))
        return found

    def typical(self, classifier: "TextClassifier") -> dict[str, list[Any]]:
        """Cells as these columns hold them: the first thousands may hold nothing at all."""
        classes, one, several = classifier.classes_.tolist(), 0.5, classifier.multilabel_
        found = {
            "label": [classes] if several else classes,
            "probability": [[one] * len(classes)] if several else [one],
        }
        if self.alpha is not None:
            found["label_set"] = [classes]
        return found | ({name: [one] for name in self._named(classifier)} if self.probabilities else {})

    @staticmethod
    def _named(classifier: "TextClassifier") -> list[str]:
        return [f"probability_{label}" for label in classifier.classes_.tolist()]


@dataclass(frozen=True)
class Predicting:
    """Labels and probabilities, by a saved model."""

    model: str
    """Folder, or id on the model hub."""
    backbones: tuple[str, ...] | None = None
    """Where its backbones lie, if they moved."""
    dtype: str = "auto"
    """As in `load`."""
    device: str = "auto"
    """As in `load`."""
    cache: Any = "auto"
    """As in `load`."""
    added: Added = Added()
    """What is said of each text."""
    seal: str | None = None
    """`saving.seal` of the model that is meant; None = whatever lies there."""

    def open(self) -> Do:
        """Load the model.

        Raises
        ------
        ModelError
            Another lies there by now: one output never holds the labels of two.
        """
        from sonde import saving
        from sonde.loading import load, located

        options: dict[str, Any] = {"dtype": self.dtype, "device": self.device, "cache": self.cache}
        classifier = load(self.model, backbones=self.backbones, **options)
        if self.seal not in (None, saving.seal(located(self.model))):  # asked last: a change while it was loaded counts
            raise ModelError(
                f"{self.model} is another model than when this run began. Run the same command again: it begins anew, "
                "with that one."
            )
        return lambda texts: (self.added.of(classifier, texts), {})


@dataclass(frozen=True)
class Extracting:
    """Activations, into a store."""

    out: Path
    """The store."""
    backbones: tuple[str, ...]
    """Ids or folders."""
    sites: tuple[str, ...] = ("hidden.*",)
    """Specifications."""
    poolings: tuple[str, ...] = ("mean",)
    """Names."""
    max_tokens: int | tuple[int, ...] | None = None
    """As in `TextClassifier`."""
    long_text: str = "cut"
    """As in `TextClassifier`."""
    dtype: str = "auto"
    """As in `TextClassifier`."""
    device: str = "auto"
    """As in `TextClassifier`."""

    def sources(self) -> "dict[int, Source]":
        """The backbones, opened."""
        from sonde.read.sources import open_sources

        names = dict(enumerate(self.backbones))
        views: dict[str, Any] = {"max_tokens": self.max_tokens, "long_text": self.long_text}
        return open_sources(names, **views, dtype=self.dtype, device=self.device)

    def blocks(self, sources: "Mapping[int, Source]") -> "list[Block]":
        """What is read of them."""
        from sonde.read.sources import expand_blocks

        wanted = [(i, s, site, how) for i, s in sources.items() for site in self.sites for how in self.poolings]
        return list(dict.fromkeys(block for one in wanted for block in expand_blocks(*one)))

    def open(self) -> Do:
        """Load the backbones."""
        from sonde.read.extract import extract
        from sonde.read.sources import open_store

        sources = self.sources()
        blocks = self.blocks(sources)

        def do(texts: list[str]) -> Found:
            truncated = tokens = 0
            store = open_store(self.out)  # anew: it sees what other workers have written
            for window in extract(texts, sources, blocks, store, total=len(texts)):
                truncated += int((window.lost > 0).any(axis=0).sum())
                tokens += int(window.lost.sum())
            return {}, {"truncated_rows": truncated, "lost_tokens": tokens}

        return do


Work = Predicting | Extracting
