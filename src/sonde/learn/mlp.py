"""Fit LLMEmbed's rows (arXiv 2406.03725, Table 1): learning rate and epochs on validation, then the final model.

fit           blocks -> fitted model
FusionHead    the fitted model (`sonde.learn.head`)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from sonde.errors import ReadingError
from sonde.learn.fusion import Roles, assign, row_of
from sonde.learn.head import DEFAULT, PAPER, FusionHead, FusionNetwork, Setting, predict
from sonde.learn.problem import Outcome, Problem
from sonde.learn.splitting import Folds
from sonde.learn.training import Data, Loss, Run, batch_rows, cross_entropy, train

__all__ = ["FusionHead", "fit"]

UNWATCHED_EPOCHS = 20  # where nothing can be held out: about what validation chooses on R8, R52, AG News and SST-2
SEARCH_ROWS = 8192  # the order of learning rates shows on as many; a search then costs the same for any data set
# Where rows are many an epoch is long, and the loss on held-out rows is flat long before 100 of them: up to 100,000
# rows have them all, 500,000 have 20.
MOST_STEPS = 10_000
SEARCH_EPOCHS = 15  # on those rows the moving average has passed its steep part by then


def fit(
    problem: Problem,
    deep: Sequence[str],
    sentences: Sequence[str],
    row: int,
    *,
    paper: bool = False,
    setting: Setting | None = None,
    loss: Loss = cross_entropy,
    held_rows: int = 1,
) -> Outcome:
    """Fit one row of LLMEmbed's Table 1.

    Parameters
    ----------
    problem : Problem
    deep : sequence of str
        Names of the deep backbone's blocks, the last layer first.
    sentences : sequence of str
        Names of the sentence embeddings: B, then R.
    row : int
        1 to 15.
    paper : bool
        Take `PAPER` in place of `DEFAULT`.
    setting : Setting, optional
        Overrides `paper`.
    loss : callable
        Logits, indicator, multilabel -> loss of each row.
    held_rows : int
        Further folds are held out, at the learning rate and epochs chosen, until so many rows that choose were.

    Returns
    -------
    Outcome
        Out-of-fold logits for the rows of the conformal and of the first choosing fold, NaN for others: a head is
        trained once for validation, not once a fold, unless `held_rows` asks for it. The final model trains on all
        trainable rows with the learning rate and the number of epochs that had the lowest validation loss.

    Raises
    ------
    ArgumentError
        If there is no such row.
    RecipeError
        If a role is missing, or deep blocks of different widths are to be averaged.
    ReadingError
        If training gives NaN or infinity at every learning rate, or at the one that was chosen.
    """
    setting = setting or (PAPER if paper else DEFAULT)
    task = _Task(problem, assign(row_of(row), deep, sentences), row, setting, loss)
    plans = _plans(problem.folds, held_rows)
    held_out = np.full((problem.rows, problem.targets.n_classes), np.nan, dtype=np.float32)
    searched, chosen = task.choose(plans[0]) if plans else ([], None)
    rate = chosen.learning_rate if chosen else setting.learning_rates[0]
    epochs = chosen.epochs if chosen else setting.epochs if setting.patience is None else UNWATCHED_EPOCHS
    for place, plan in enumerate(plans):
        run = chosen if place == 0 and chosen else task.run(task.rows(plan.trained), rate, epochs)
        held_out[plan.unseen] = task.logits(_sound(run).network, plan.unseen)
    final = _sound(task.run(task.rows(problem.folds.trainable), rate, epochs))
    summary = _summary(row, setting, searched, chosen or final, final)
    return Outcome(FusionHead(task.names, row, problem.targets.n_classes, final.network, setting), held_out, summary)


@dataclass(frozen=True)
class _Plan:
    """A model that validates: what it trains on, what stops it, what it predicts."""

    trained: Bool[np.ndarray, " row"]
    watched: Bool[np.ndarray, " row"]
    unseen: Bool[np.ndarray, " row"]


def _plans(folds: Folds, held_rows: int) -> list[_Plan]:
    """One model blind to the first choosing fold and the conformal rows, or one for each if that leaves too few.

    Then one for each further fold, until `held_rows` rows that choose are held out.
    """
    if not folds.choosing.any():
        return []
    first = int(folds.held[folds.choosing].min())
    watched = folds.choosing & (folds.held == first)
    unseen = watched | folds.conformal
    if folds.n_folds != 2:
        plans, held = [_Plan(folds.trainable & ~unseen, watched, unseen)], int(watched.sum())
        for fold in range(first + 1, folds.n_folds):
            if held < held_rows:
                rows = folds.held_out(fold)
                plans.append(_Plan(folds.train(fold), rows, rows))
                held += int(rows.sum())
        return plans
    return [
        _Plan(folds.train(first), watched, watched),
        _Plan(folds.trainable & ~folds.conformal, folds.conformal, folds.conformal),
    ]


class _Task:
    """The training runs of one fit."""

    def __init__(self, problem: Problem, names: Roles[str], row: int, setting: Setting, loss: Loss) -> None:
        self.names, self.setting, self.loss = names, setting, loss
        blocks = tuple(_tensor(problem.blocks[name]) for name in names.deep + names.sentences)
        targets = problem.targets
        self.data = Data(blocks, _tensor(targets.indicator), _tensor(problem.weights), targets.multilabel)
        self.seed = problem.seed
        n_deep = len(names.deep)
        widths = [block.shape[1] for block in blocks]
        self.shape = (row, Roles(tuple(widths[:n_deep]), tuple(widths[n_deep:])), targets.n_classes)

    def rows(self, mask: Bool[np.ndarray, " row"]) -> Tensor:
        """Indices of the rows of a mask that have a weight."""
        return torch.from_numpy(np.flatnonzero(mask)).masked_select(self.data.weights[torch.from_numpy(mask)] > 0)

    def run(self, rows: Tensor, rate: float, epochs: int | None = None, watch: Tensor | None = None) -> Run:
        """Train a new network; the same seed gives the same network, and nobody else's randomness changes."""
        setting = replace(self.setting, epochs=epochs or self._epochs(len(rows)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = FusionNetwork(*self.shape, setting)
            network.measure(self.data.blocks, self.data.weights, rows)
            return train(network, self.data, rows, setting, rate, watch, self.loss)

    def _epochs(self, rows: int) -> int:
        """All that the setting has, or as many as take `MOST_STEPS` where it may stop before."""
        if self.setting.patience is None:  # the paper's
            return self.setting.epochs
        steps = math.ceil(rows / (self.setting.batch or batch_rows(rows)))
        return min(self.setting.epochs, max(1, MOST_STEPS // max(steps, 1)))

    def choose(self, plan: _Plan) -> tuple[list[Run], Run]:
        """All learning rates on at most `SEARCH_ROWS` rows, and the run of the best one on all."""
        rows, watch, rates = self.rows(plan.trained), self.rows(plan.watched), self.setting.learning_rates
        if len(rates) == 1:
            return [], self.run(rows, rates[0], watch=watch)
        if len(rows) <= SEARCH_ROWS:
            runs = [self.run(rows, rate, watch=watch) for rate in rates]
            return runs, min(runs, key=lambda run: run.loss)
        some = _sample(rows, self.seed)
        runs = [self.run(some, rate, SEARCH_EPOCHS, _sample(watch, self.seed)) for rate in rates]
        return runs, self.run(rows, min(runs, key=lambda run: run.loss).learning_rate, watch=watch)

    def logits(self, network: FusionNetwork, mask: Bool[np.ndarray, " row"]) -> Float32[np.ndarray, "unseen class"]:
        """Logits of the rows of a mask."""
        rows = torch.from_numpy(np.flatnonzero(mask))
        return predict(network, self.data.blocks, rows).numpy()


def _sound(run: Run) -> Run:
    """The run, if it came to numbers; a learning rate that did not has lost, unless all of them did so."""
    lost = bool(run.validation_losses) and not math.isfinite(run.loss)
    if lost or not all(bool(one.isfinite().all()) for one in run.network.parameters()):
        raise ReadingError(
            f"Training a network gave NaN or infinity (learning rate {run.learning_rate:g}). Look for extreme sample "
            "or class weights, leave out paper=True, or take another recipe."
        )
    return run


def _sample(rows: Tensor, seed: int) -> Tensor:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows[order[:SEARCH_ROWS]]


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _summary(row: int, setting: Setting, searched: list[Run], chosen: Run, final: Run) -> dict[str, Any]:
    return {
        "row": row,
        "paper": setting == PAPER,
        "learning_rate": final.learning_rate,
        "epochs": chosen.epochs,
        "validation_loss": _finite(chosen.loss),
        "searched": {f"{run.learning_rate:g}": _finite(run.loss) for run in searched},
        "history": {"train": chosen.train_losses, "validation": [_finite(x) for x in chosen.validation_losses]},
        "final_history": {"train": final.train_losses},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no infinity
