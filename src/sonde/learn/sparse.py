"""Sparsify-then-Classify: the few neurons of each layer that matter, of the first k layers, and one head on them.

    fit       a problem and the blocks of all layers -> fitted model
    train     the same from a selection of neurons that was made before (`sonde.learn.sparsify`)
    Sparse    the fitted model

The head is the L2 logistic regression of `sonde.learn.logistic`, multinomial, its C by folds; in the paper's setting
the L1 regression of `sonde.learn.lasso`.

Source: Sparsify-then-Classify (arXiv 2311.15983), step 4.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from sonde.errors import ModelError
from sonde.learn import lasso, logistic
from sonde.learn.logistic import Logistic
from sonde.learn.problem import Blocks, Outcome, Problem, Record
from sonde.learn.recipes import SAMPLE_ROWS
from sonde.learn.sparsify import Kept, Selection, narrow, select
from sonde.learn.splitting import draw


@dataclass(frozen=True)
class Sparse:
    """A linear model on some neurons of some layers."""

    needs: tuple[str, ...]
    """Names of the blocks that it reads, shallowest first."""
    columns: Mapping[str, Int64[np.ndarray, " _"]]
    """The neurons of each block that it keeps, ascending. Features are these, block after block."""
    mean: Float32[np.ndarray, " feature"]
    """Subtracted from each feature."""
    scale: Float32[np.ndarray, " feature"]
    """Then multiplied: one over the standard deviation."""
    coefficients: Float32[np.ndarray, "feature class"]
    """Of the standardised features. With two classes the columns are -w/2 and w/2."""
    intercept: Float32[np.ndarray, " class"]
    """Added last."""

    @property
    def reads_text(self) -> bool:
        """False: only blocks are read."""
        return False

    def logits(self, blocks: Blocks, texts: Sequence[str]) -> Float32[np.ndarray, "row class"]:
        """Log-odds up to a constant per row, -z/2 and z/2 for two classes; blocks hold all neurons or the kept ones."""
        logits, start = np.tile(self.intercept, (len(texts), 1)), 0  # row class
        for name in self.needs:
            columns = self.columns[name]
            some = slice(start, start := start + len(columns))
            block = blocks[name] if blocks[name].shape[1] == len(columns) else blocks[name][:, columns]  # row kept
            standard = (block.astype(np.float32) - self.mean[some]) * self.scale[some]  # row kept
            logits += standard @ self.coefficients[some]
        return logits

    def record(self) -> Record:
        """The model as plain data."""
        arrays = {name: getattr(self, name) for name in ("mean", "scale", "coefficients", "intercept")}
        arrays["columns"] = np.concatenate([self.columns[name] for name in self.needs])
        return Record({"needs": list(self.needs), "kept": [len(self.columns[name]) for name in self.needs]}, arrays)

    @classmethod
    def from_record(cls, record: Record) -> "Sparse":
        """The model from plain data.

        Raises
        ------
        ModelError
            If its arrays disagree.
        """
        needs, kept, arrays = tuple(record.settings["needs"]), record.settings["kept"], dict(record.arrays)
        columns = arrays.pop("columns")
        widths = {len(columns), sum(kept), *(len(arrays[name]) for name in ("mean", "scale", "coefficients"))}
        if len(widths) > 1 or len(needs) != len(kept) or columns.dtype != np.int64 or (columns < 0).any():
            raise ModelError("The kept neurons of the model and their weights disagree: the model is damaged.")
        if arrays["coefficients"].shape[1:] != arrays["intercept"].shape:
            raise ModelError("The weights of the model and its classes disagree: the model is damaged.")
        parts = np.split(columns, np.cumsum(kept)[:-1])
        return cls(needs, dict(zip(needs, parts, strict=True)), **arrays)


def fit(problem: Problem, names: Sequence[str], *, sample_rows: int = SAMPLE_ROWS, **settings: Any) -> Outcome:
    """Select neurons on a sample of the rows, then train the head on all; settings as in `sparsify.select`."""
    rows = draw(problem.targets, problem.folds, sample_rows, problem.seed)
    sample = problem if len(rows) == problem.rows else problem.take(rows)
    return train(problem, select(sample, names, **settings))


def train(problem: Problem, selection: Selection, grid: Sequence[float] = logistic.GRID) -> Outcome:
    """Train the head on the neurons that are kept; blocks hold all neurons, or those alone that any fold keeps.

    `grid` are the values of C that are tried; the paper's setting has its own.
    """
    few, masks = narrow(problem, selection.kept)
    outcome = lasso.fit(few, masks) if selection.paper else logistic.fit(few, list(masks), grid=grid, kept=masks)
    model = _sparse(outcome, selection.kept)
    kept = {name: len(columns) for name, columns in model.columns.items()}
    summary = {**selection.summary, "neurons": sum(kept.values()), "kept": kept, "head": outcome.summary}
    return Outcome(model, outcome.held_out, summary)


def _sparse(outcome: Outcome, kept: Kept) -> Sparse:
    """The head's weights of the neurons that the final model keeps."""
    head = outcome.model
    assert isinstance(head, Logistic)
    final = np.concatenate([masks[-1][masks.any(axis=0)] for masks in kept.values()])  # feature
    columns = {name: np.flatnonzero(masks[-1]) for name, masks in kept.items() if masks[-1].any()}
    mean, scale, coefficients = (array[final].copy() for array in (head.mean, head.scale, head.coefficients))
    return Sparse(tuple(columns), columns, mean, scale, coefficients, head.intercept)
