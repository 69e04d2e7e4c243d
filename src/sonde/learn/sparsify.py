"""Sparsify-then-Classify, first half: how many neurons of how many layers are kept, chosen on some of the rows.

    check_layers whether a number of layers can be had
    select       a problem and the blocks of all layers -> Selection: neurons by probes, eta and k by folds
    Selection    the neurons that each fold keeps
    narrow       a problem -> the same with the kept neurons alone

Neurons are chosen by the probes of each fold, so that no fold's head reads neurons that were picked with the help of
rows it is judged on. What is kept is told by the probes of a bounded sample: the rest of the rows are then read for
these neurons alone.

Source: Sparsify-then-Classify (arXiv 2311.15983), steps 3 and 4.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Bool

from sonde.errors import ArgumentError, DataError
from sonde.learn import lasso, logistic
from sonde.learn.calibration import decide, to_probabilities
from sonde.learn.metrics import accuracy, macro_f1
from sonde.learn.problem import Problem
from sonde.learn.selection import ETAS, TOLERANCE, Ranking, depth, keep, rank
from sonde.learn.splitting import Folds
from sonde.progress import tracked

SEARCH_GRID = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # where the best is not among them, more features look better than they are
# Held-out rows on which eta and k are compared, at least: losses then differ by more than their noise, and each fold
# more is as much work again.
ENOUGH_ROWS = 1500
# Every layer more is time at every prediction: it must lower the log loss by this fraction, as a part of a blend must,
# and by one nat over all rows that choose: less is a matter of single rows.
WORTH = 0.005
WEAK = "Are the labels right, are there enough rows of each class, are the layers deep enough?"
PATIENCE = 2  # sets of neurons without a lower loss after which larger ones are not tried
# The kept neurons of all rows take so much at most, twice while a head is trained on them: 13,000 neurons of 40,000
# rows, 1,000 of 500,000. Where rows are that many, the few that matter most are nearly as good, and train in minutes.
KEPT_BYTES = 2**31


Kept = Mapping[str, Bool[np.ndarray, "fold _"]]
"""Block name -> the neurons that each fold keeps; the last fold is the final model."""


@dataclass(frozen=True)
class Selection:
    """Which neurons are kept."""

    kept: Kept
    """The blocks of which some are, shallowest first."""
    summary: dict[str, Any]
    """eta, k, what was tried, what the probes said; JSON-able."""
    paper: bool = False
    """Whether the head is the paper's."""

    @property
    def columns(self) -> dict[str, tuple[int, ...]]:
        """Block name -> the neurons that any fold keeps, ascending: what has to be read."""
        return {name: tuple(np.flatnonzero(masks.any(axis=0)).tolist()) for name, masks in self.kept.items()}


def check_layers(names: Sequence[str], layers: int | None) -> None:
    """`ArgumentError` if no such layer is among these blocks."""
    shallowest, deepest = min(map(depth, names)), max(map(depth, names))
    if layers is not None and not shallowest <= layers <= deepest:
        raise ArgumentError(
            f"layers is {layers}; layers {shallowest} to {deepest} are read (0: embeddings): give one of these."
        )


def select(
    problem: Problem,
    names: Sequence[str],
    *,
    etas: Sequence[float] = ETAS,
    layers: int | None = None,
    paper: bool = False,
    rows: int = 0,
) -> Selection:
    """Rank the neurons of every block, choose eta and k by folds.

    Parameters
    ----------
    problem : Problem
    names : sequence of str
        Blocks at layers, of one or several backbones, sites and poolings.
    etas : sequence of float
        Shares of importance to try, above 0 and at most 1: from the smallest up, on all layers, until the out-of-fold
        loss has stopped falling.
    layers : int, optional
        k: read this many layers; by default the fewest that are as good as any, within .5% of the loss or one nat in
        all.
    paper : bool
        Try every eta with every k, by the paper's head, and take the pair with the best metric out of fold; of equals
        the one with fewer layers, then fewer neurons.
    rows : int
        How many the head will be trained on: of several etas those are tried whose neurons, of so many rows, take no
        more than `KEPT_BYTES`; the smallest is in any case. The paper's setting knows no bound.

    Raises
    ------
    ArgumentError
        If eta is out of range, or k is beyond the model.
    DataError
        If no probe of any block has a weight: nothing in the layers tells the classes apart.
    """
    check_layers(names, layers)
    names = sorted(names, key=depth)
    layers_of = [list(own) for _, own in groupby(names, key=depth)]
    rankings = [ranking for own in tracked(layers_of, "probing", "layers") for ranking in rank(problem, own)]
    if not any(ranking.importance[-1].any() for ranking in rankings):
        raise DataError(f"No neuron of any layer tells the classes apart: every probe kept nothing. {WEAK}")
    etas = sorted(etas)
    if not paper:
        etas = [etas[0], *(eta for eta in etas[1:] if _bytes(rankings, eta, layers, rows) <= KEPT_BYTES)]
    search = (_Grid if paper else _Search)(problem, rankings)
    eta, k = search.choose(etas, layers)
    kept = _kept(rankings, eta, k)
    if not any(masks[-1].any() for masks in kept.values()):
        raise DataError(f"No neuron of the first {k} layers tells the classes apart. {WEAK}")
    summary = {
        "eta": eta,
        "layers": k,
        "sampled_rows": problem.rows,
        "tried": search.tried,
        "probes": {ranking.name: ranking.summary for ranking in rankings},
    }
    return Selection(kept, summary, paper)


def narrow(problem: Problem, kept: Kept) -> tuple[Problem, Kept]:
    """The problem with the neurons that any fold keeps, and which of these each keeps.

    Blocks may hold all neurons, or already just these.
    """
    blocks, masks = {}, {}
    for name, own in kept.items():
        used = np.flatnonzero(own.any(axis=0))
        block = problem.blocks[name]
        blocks[name] = block[:, used] if block.shape[1] == own.shape[1] else block  # row kept
        assert blocks[name].shape[1] == len(used), "a block has other columns"
        masks[name] = own[:, used]  # fold kept
    return replace(problem, blocks=blocks), masks


class _Search:
    """Out-of-fold losses of heads for some eta and k."""

    def __init__(self, problem: Problem, rankings: Sequence[Ranking]) -> None:
        asked = _enough_folds(problem.folds)
        self.problem = replace(problem, folds=problem.folds.only(asked))
        self.rankings = [replace(one, importance=one.importance[[*asked, -1]]) for one in rankings]
        self.grid: Sequence[float] = SEARCH_GRID
        self.tried: list[dict[str, float]] = []

    def choose(self, etas: Sequence[float], layers: int | None) -> tuple[float, int]:
        """The share of all layers with the lowest loss, then the fewest layers that are as good."""
        depths = sorted({depth(ranking.name) for ranking in self.rankings})
        deepest = depths[-1] if layers is None else layers
        if not self.problem.folds.choosing.any():
            return etas[-1], deepest
        eta, lowest = self._share(etas, deepest)
        if layers is not None:
            return eta, layers
        shallower = [(self.loss(eta, k), k) for k in tracked(depths[:-1], "choosing depth", "layers")]
        by_depth = [*shallower, (lowest, deepest)]
        lowest = min(loss for loss, _ in by_depth)
        if not np.isfinite(lowest):  # in some fold no probe kept anything, whatever is asked: there is no choosing
            return etas[-1], deepest
        worth = max(WORTH * abs(lowest), 1 / int(self.problem.folds.choosing.sum()))
        return eta, next(k for loss, k in by_depth if loss - lowest <= worth)

    def _share(self, etas: Sequence[float], k: int) -> tuple[float, float]:
        """The share with the lowest loss, and that loss."""
        best, lowest, since, last = etas[-1], np.inf, 0, None
        for eta in tracked(etas, "choosing eta", "shares"):
            neurons = sum(int(masks.sum()) for masks in _kept(self.rankings, eta, k).values())
            if neurons == last:  # the same neurons tell nothing new, nor that the loss has stopped falling
                continue
            loss, last, since = self.loss(eta, k), neurons, since + 1
            if loss < lowest:
                best, lowest, since = eta, loss, 0
            if since == PATIENCE:
                break
        return best, lowest

    def loss(self, eta: float, k: int) -> float:
        """Log loss (or minus macro F1, if that is aimed at) of rows that choose; infinity if nothing is kept."""
        kept = _kept(self.rankings, eta, k)
        if not self._whole(kept):
            return np.inf
        few, masks = narrow(self.problem, kept)
        path = logistic.choose(few, list(masks), grid=self.grid, kept=masks)
        losses = [one["log_loss"] if self.problem.metric == "accuracy" else -one["macro_f1"] for one in path]
        best = path[int(np.argmin(losses))]
        place = SEARCH_GRID.index(best["C"])
        self.grid = SEARCH_GRID[max(place - 1, 0) : place + 2]  # a little more or less of it asks for a similar C
        self.tried.append({"eta": eta, "layers": k, "log_loss": best["log_loss"], "macro_f1": best["macro_f1"]})
        return float(min(losses))

    def _whole(self, kept: Kept) -> bool:
        """Whether every fold keeps a neuron."""
        return all(any(masks[fold].any() for masks in kept.values()) for fold in range(self.problem.folds.n_folds))


class _Grid(_Search):
    """The same by the paper's head, for every eta and k."""

    def choose(self, etas: Sequence[float], layers: int | None) -> tuple[float, int]:
        """The pair with the best metric."""
        depths = sorted({depth(ranking.name) for ranking in self.rankings}) if layers is None else [layers]
        if not self.problem.folds.choosing.any():
            return etas[-1], depths[-1]
        pairs = [(eta, k) for k in depths for eta in etas]
        scores = [self.score(eta, k) for eta, k in tracked(pairs, "choosing eta and depth", "heads")]
        return pairs[int(np.argmax(scores))] if np.isfinite(scores).any() else pairs[-1]

    def score(self, eta: float, k: int) -> float:
        """Accuracy, or macro F1, of rows that choose; minus infinity if nothing is kept."""
        kept = _kept(self.rankings, eta, k)
        if not self._whole(kept):
            return -np.inf
        outcome = lasso.fit(*narrow(self.problem, kept), tolerance=TOLERANCE)
        rows, multilabel = self.problem.folds.choosing, self.problem.targets.multilabel
        decided = decide(to_probabilities(outcome.held_out[rows], multilabel), multilabel)
        measure = macro_f1 if self.problem.metric == "macro_f1" else accuracy
        score = measure(self.problem.targets.indicator[rows], decided, self.problem.weights[rows])
        self.tried.append({"eta": eta, "layers": k, self.problem.metric: score})
        return score


def _enough_folds(folds: Folds) -> list[int]:
    """The fewest folds whose rows choose, and are enough to choose on."""
    found, rows = [], 0
    for fold in range(folds.n_folds):
        own = int((folds.held_out(fold) & ~folds.conformal).sum())
        if own and rows < ENOUGH_ROWS:
            found.append(fold)
            rows += own
    return found


def _bytes(rankings: Sequence[Ranking], eta: float, k: int | None, rows: int) -> int:
    """What the neurons that any fold keeps take, as float32."""
    return 4 * rows * sum(int(masks.any(axis=0).sum()) for masks in _kept(rankings, eta, k).values())


def _kept(rankings: Sequence[Ranking], eta: float, k: int | None) -> Kept:
    """The neurons that each fold keeps of the first k layers, or of all; blocks of which it keeps none are left out."""
    masks = {
        ranking.name: np.stack([keep(one, eta) for one in ranking.importance])  # fold feature
        for ranking in rankings
        if k is None or depth(ranking.name) <= k
    }
    return {name: mask for name, mask in masks.items() if mask.any()}
