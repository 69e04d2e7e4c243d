"""What a learner is given, what it returns, and what a fitted model can do.

Blocks     block name -> array (row, dim) float32
Problem    blocks, texts, targets, weights and folds of one training run
Outcome    a fitted model, its out-of-fold logits, and a summary
Fitted     the protocol of fitted models
Record     a fitted model as plain data: JSON settings and named arrays
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from sonde.learn.splitting import Folds
from sonde.learn.targets import Targets

Blocks: TypeAlias = Mapping[str, np.ndarray]
Metric: TypeAlias = Literal["accuracy", "macro_f1"]


@dataclass(frozen=True)
class Problem:
    """One training run, the same for every learner."""

    blocks: Blocks
    """Block name -> (row, dim) float32. A name is "<backbone index>/<site>/<pooling>", e.g. "0/hidden.6/mean"."""
    texts: Sequence[str]
    """The text of each row, for learners that read text themselves."""
    targets: Targets
    """The labels of each row."""
    weights: Float64[np.ndarray, " row"]
    """Sample weight of each row, not negative; class weights are multiplied in already."""
    folds: Folds
    """Which rows train, choose and calibrate."""
    metric: Metric
    """What the choice of settings aims at."""
    seed: int
    """Seed of everything random in the learner."""

    def __post_init__(self) -> None:
        assert len(self.texts) == len(self.weights) == self.targets.rows == len(self.folds.held), "row counts disagree"
        assert all(len(block) == self.rows for block in self.blocks.values()), "a block has another number of rows"

    @property
    def rows(self) -> int:
        """Number of rows, those of a validation file included."""
        return len(self.weights)

    def take(self, rows: Int64[np.ndarray, " taken"]) -> "Problem":
        """The same for some of the rows, each in the fold that it was in."""
        blocks = {name: block[rows] for name, block in self.blocks.items()}
        texts, targets, weights = [self.texts[i] for i in rows], self.targets.take(rows), self.weights[rows]
        return Problem(blocks, texts, targets, weights, self.folds.take(rows), self.metric, self.seed)


class Fitted(Protocol):
    """A fitted model: blocks and texts in, logits out."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the blocks that `logits` reads."""
        ...

    @property
    def columns(self) -> Mapping[str, Int64[np.ndarray, " _"]]:
        """Block name -> its features that `logits` reads, ascending; it takes the whole block or these alone.

        A block without an entry is read whole.
        """
        ...

    @property
    def reads_text(self) -> bool:
        """Whether `logits` reads the texts themselves."""
        ...

    def logits(self, blocks: Blocks, texts: Sequence[str]) -> Float32[np.ndarray, "row class"]:
        """Softmax of these (sigmoid if multi-label) gives probabilities."""
        ...

    def record(self) -> "Record":
        """The model as plain data."""
        ...

    @classmethod
    def from_record(cls, record: "Record") -> Self:
        """The model from plain data."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a learner returns."""

    model: Fitted
    """The final model, trained on all trainable rows."""
    held_out: Float[np.ndarray, "row class"]
    """float32 logits of each row by the model of the fold that did not see it; NaN where a row is never held out."""
    summary: dict[str, Any]
    """What was chosen and measured, JSON-able."""


@dataclass(frozen=True)
class Record:
    """A fitted model as plain data, ready for a folder."""

    settings: dict[str, Any]
    """JSON values."""
    arrays: dict[str, np.ndarray]
    """Named arrays; the names of a nested model's arrays start with "<child>/"."""
