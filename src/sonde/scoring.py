"""Texts -> logits of a fitted learner, a stretch of texts after the other.

score    texts -> Scores, streamed
Scores   logits of consecutive texts, and what they took
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float32, Int64

from sonde.learn import learning
from sonde.learn.problem import Blocks, Fitted

if TYPE_CHECKING:
    from sonde.learn.cascade import Cascade
    from sonde.read.blocks import Block, Source
    from sonde.read.store import Store

CHUNK_ROWS = 4096
"""Rows scored together where nothing is read: bounds the sparse matrix of the lexical block."""


@dataclass(frozen=True)
class Scores:
    """Logits of consecutive texts."""

    logits: Float32[np.ndarray, "row class"]
    """Before the temperature of the classifier."""
    truncated: Bool[np.ndarray, " row"]
    """Whether a backbone did not see the whole of a text."""
    depths: Int64[np.ndarray, " row"]
    """Layers that each text ran through, of all backbones together; 0 where none is read."""


def score(model: Fitted, texts: list[str], sources: "Mapping[int, Source]", store: "Store | None") -> Iterator[Scores]:
    """Read what the model needs and score it; memory does not grow with the number of texts.

    Parameters
    ----------
    model : Fitted
    texts : list of str
    sources : mapping of int to Source
        The backbones that the model reads.
    store : Store, optional
        Cascades of one backbone pass it by: what they compute differs from text to text.
    """
    if not model.needs:
        for start in range(0, len(texts), CHUNK_ROWS):
            some = texts[start : start + CHUNK_ROWS]
            yield Scores(model.logits({}, some), np.zeros(len(some), bool), np.zeros(len(some), np.int64))
        return
    cascade = learning.as_cascade(model)
    if cascade is not None and len(sources) == 1:
        yield from _leaving(cascade, texts, sources)
    else:
        yield from _whole(model, texts, sources, store)


def blocks_of(model: Fitted, sources: "Mapping[int, Source]") -> "dict[str, Block]":
    """What a model reads, by name."""
    from sonde.read.sources import block_of

    columns = {name: tuple(own.tolist()) for name, own in model.columns.items()}
    return {name: replace(block_of(name, sources), columns=columns.get(name)) for name in model.needs}


def _whole(model: Fitted, texts: list[str], sources: "Mapping[int, Source]", store: "Store | None") -> Iterator[Scores]:
    """Every text as deep as the model reads."""
    from sonde.read.extract import extract
    from sonde.read.sources import layers_run

    blocks = list(blocks_of(model, sources).values())
    layers = layers_run(blocks, sources)
    for window in extract(texts, sources, blocks, store, total=len(texts)):
        logits = model.logits(window.blocks, texts[window.start : window.start + window.rows])
        yield Scores(logits, np.asarray((window.lost > 0).any(axis=0)), np.full(window.rows, layers))


def _leaving(cascade: "Cascade", texts: list[str], sources: "Mapping[int, Source]") -> Iterator[Scores]:
    """Every text until it is sure enough."""
    from sonde.read.stages import read_in_stages

    ((_, source),) = sources.items()
    blocks = blocks_of(cascade, sources)
    stages = [[blocks[name] for name in names] for names in cascade.stages]
    for start in range(0, len(texts), CHUNK_ROWS):
        some = texts[start : start + CHUNK_ROWS]
        run = _Run(cascade, len(some))
        staged = read_in_stages(some, source, stages, run.goes_on)
        yield Scores(run.logits, staged.lost > 0, cascade.depths[staged.reached])


class _Run:
    """Keeps what the exits of a cascade said of some texts."""

    def __init__(self, cascade: "Cascade", rows: int) -> None:
        self.cascade = cascade
        self.logits = np.empty((rows, len(cascade.exits[0].intercept)), dtype=np.float32)

    def goes_on(self, stage: int, rows: Int64[np.ndarray, " left"], blocks: Blocks) -> Bool[np.ndarray, " left"]:
        """Which of the rows that are left are not sure yet."""
        self.logits[rows], further = self.cascade.at(stage, blocks, len(rows))
        return further
