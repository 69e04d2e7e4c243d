"""One training run: what the recipe needs is read, in one step or two, and trained on.

fit        a recipe, rows and backbones -> Fit
Fit        the outcome, and what reading gave and took

Recipes that choose neurons do it on a sample of the rows, read at every site; then all rows are read for the neurons
that were kept alone. All sites of a 7B model take a megabyte a text.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sonde.errors import DataError
from sonde.learn import learning
from sonde.learn.problem import Outcome, Problem
from sonde.learn.recipes import Recipe, Sparsity
from sonde.learn.splitting import draw
from sonde.plan import groups
from sonde.saving import memory_bytes

if TYPE_CHECKING:
    from sonde.read.blocks import Block, Source, Window
    from sonde.read.store import Store


@dataclass(frozen=True)
class Fit:
    """What a training run gave."""

    outcome: Outcome
    """The fitted model, its held-out logits, its summary."""
    window: "Window | None"
    """All rows, as they were read last; None for recipes that read no backbone."""
    reading_seconds: float
    """Of the time that it took."""


def fit(
    recipe: Recipe,
    problem: Problem,
    sources: "Mapping[int, Source]",
    store: "Store | None",
    *,
    paper: bool,
    sparsity: Sparsity,
) -> Fit:
    """Read and train.

    Parameters
    ----------
    recipe : Recipe
    problem : Problem
        Without blocks.
    sources : mapping of int to Source
        The backbones that the recipe reads.
    store : Store, optional
    paper : bool
        The exact setting of the recipe's paper.
    sparsity : Sparsity
        How neurons are chosen, by recipes that do.

    Raises
    ------
    DataError
        If what has to be held at once is more than the machine's memory.
    ArgumentError, StoreError, ReadingError, RecipeError
    """
    if not sources:
        return Fit(learning.fit(recipe, problem, [], paper), None, 0.0)
    found = groups(recipe, sources)
    names = learning.used(recipe, problem, [[block.name for block in group] for group in found])
    wanted = {name for group in names for name in group}
    blocks = list(dict.fromkeys(block for group in found for block in group if block.name in wanted))
    run = _Reading(problem, sources, store)
    if not learning.selects(recipe):
        early = learning.early(recipe, problem)
        window = run.read(blocks)
        outcome = learning.fit(recipe, replace(problem, blocks=window.blocks), names, paper, early)
        return Fit(outcome, window, run.seconds)
    learning.check(names, sparsity)
    limit = problem.rows if paper else sparsity.sample_rows  # the paper knows no sample
    rows = draw(problem.targets, problem.folds, limit, problem.seed)
    window = run.read(blocks, rows)
    sample = replace(problem.take(rows), blocks=window.blocks)
    selection = learning.select(recipe, sample, names, sparsity, paper, problem.rows)
    if len(rows) < problem.rows:
        columns = selection.columns
        window = run.read([replace(block, columns=columns[block.name]) for block in blocks if block.name in columns])
    outcome = learning.train(replace(problem, blocks=window.blocks), selection, sparsity.exit_loss)
    return Fit(outcome, window, run.seconds)


class _Reading:
    """Reads rows of a problem and takes the time."""

    def __init__(self, problem: Problem, sources: "Mapping[int, Source]", store: "Store | None") -> None:
        self.problem, self.sources, self.store, self.seconds = problem, sources, store, 0.0

    def read(self, blocks: "Sequence[Block]", rows: np.ndarray | None = None) -> "Window":
        """The blocks of all rows, or of some."""
        from sonde.read.extract import read
        from sonde.read.sources import prepare

        started = time.perf_counter()
        texts = list(self.problem.texts) if rows is None else [self.problem.texts[row] for row in rows]
        self._check_memory(len(texts), blocks)
        prepare(len(texts), self.sources, blocks, self.store, texts=texts)
        window = read(texts, self.sources, blocks, self.store)
        self.seconds += time.perf_counter() - started
        return window

    def _check_memory(self, rows: int, blocks: "Sequence[Block]") -> None:
        widths = [
            self.sources[b.backbone].backbone.width(b.site) if b.columns is None else len(b.columns) for b in blocks
        ]
        needed, there = 4 * rows * sum(widths), memory_bytes()  # float32
        if needed > there:
            raise DataError(
                f"The activations of {rows:,} rows in {len(blocks)} blocks ({sum(widths):,} numbers a row) take "
                f"{needed / 1e9:.1f} GB at once; this machine has {there / 1e9:.1f} GB. Give fewer rows, a recipe that "
                "reads less (sonde recipes), or for stc fewer rows to choose neurons on (sample_rows)."
            )
