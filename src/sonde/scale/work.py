"""Work: what a worker does, as data that travels to it; the worker opens its own model.

Predicting   texts -> labels and probabilities, by a saved model
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
    least: float | None = None
    """Where answers begin; None = every text is answered."""
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
        return lambda texts: (predicted(classifier, texts, self.least), {})


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


def predicted(classifier: "TextClassifier", texts: list[str], least: float | None) -> dict[str, list[Any]]:
    """The columns that predict adds: `label` and `probability`; None for a label less probable than `least`."""
    probabilities = classifier.predict_proba(texts)
    decided = classifier.decide(probabilities)
    if classifier.multilabel_:
        labels = [classifier.classes_[row].tolist() for row in decided]
        return {"label": labels, "probability": probabilities.astype(float).round(6).tolist()}
    named, sure = classifier.name_labels(decided), probabilities.max(axis=1)
    if least is not None:
        from sonde.learn.abstention import withhold

        named = withhold(named, sure, least)
    return {"label": named.tolist(), "probability": sure.astype(float).round(6).tolist()}
