"""Sparsify-then-Classify: the few neurons of each layer that matter, of the first k layers, and one head on them.

    fit       a problem and the blocks of all layers -> fitted model: eta and k by folds
    Sparse    the fitted model

Neurons are chosen by the probes of each fold, so that no fold's head reads neurons that were picked with the help of
rows it is judged on. The head is the L2 logistic regression of `sonde.learn.logistic`, multinomial, its C by folds.

Source: Sparsify-then-Classify (arXiv 2311.15983), steps 3 and 4.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Int64

from sonde.errors import ArgumentError, DataError, ModelError
from sonde.learn import logistic
from sonde.learn.logistic import Logistic
from sonde.learn.problem import Blocks, Outcome, Problem, Record
from sonde.learn.selection import ETAS, Ranking, depth, keep, rank
from sonde.progress import tracked

# eta and k are chosen on so many rows at most, with these values of C: heads that differ by more than the noise of
# their choice differ on them too, and a search then costs the same for any data set.
SEARCH_ROWS = 4096
SEARCH_GRID = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # where the best is not among them, more features look better than they are
# Every layer more is time at every prediction: it must lower the log loss by this fraction, as a part of a blend must,
# and by one nat over all rows that choose: less is a matter of single rows.
WORTH = 0.005
PATIENCE = 2  # sets of neurons without a lower loss after which larger ones are not tried

Kept = dict[str, Bool[np.ndarray, "fold _"]]
"""Block name -> the neurons that each fold keeps; the last fold is the final model."""


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
        """Log-odds up to a constant per row; with two classes -z/2 and z/2."""
        logits, start = np.tile(self.intercept, (len(texts), 1)), 0  # row class
        for name in self.needs:
            columns = self.columns[name]
            some = slice(start, start := start + len(columns))
            standard = (blocks[name][:, columns].astype(np.float32) - self.mean[some]) * self.scale[some]  # row kept
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


def fit(problem: Problem, names: Sequence[str], *, etas: Sequence[float] = ETAS, layers: int | None = None) -> Outcome:
    """Rank the neurons of every block, choose eta and k by folds, train the head.

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

    Returns
    -------
    Outcome

    Raises
    ------
    ArgumentError
        If eta is out of range, or k is beyond the model.
    DataError
        If no probe of any block has a weight: nothing in the layers tells the classes apart.
    """
    names = sorted(names, key=depth)
    deepest = max(depth(name) for name in names)
    if layers is not None and not 0 <= layers <= deepest:
        raise ArgumentError(f"k is {layers}; the backbone has {deepest} layers: give 0 (embeddings only) to {deepest}.")
    rankings = [rank(problem, name) for name in tracked(names, "probing", "blocks")]
    if not any(ranking.importance[-1].any() for ranking in rankings):
        raise DataError(
            "No neuron of any layer tells the classes apart: every probe kept nothing. Are the labels right, and are "
            "there enough rows of each class?"
        )
    search = _Search(problem, rankings)
    eta, k = search.choose(sorted(etas), layers)
    kept = search.kept(eta, k)
    narrow, masks = _narrow(problem, kept)
    outcome = logistic.fit(narrow, list(masks), kept=masks)
    model = _sparse(outcome, kept)
    summary = {
        "eta": eta,
        "layers": k,
        "neurons": int(sum(len(columns) for columns in model.columns.values())),
        "kept": {name: len(columns) for name, columns in model.columns.items()},
        "tried": search.tried,
        "probes": {ranking.name: ranking.summary for ranking in rankings},
        "head": outcome.summary,
    }
    return Outcome(model, outcome.held_out, summary)


class _Search:
    """Out-of-fold losses of heads for some eta and k."""

    def __init__(self, problem: Problem, rankings: Sequence[Ranking]) -> None:
        rows = np.random.default_rng(problem.seed).permutation(problem.rows)[:SEARCH_ROWS]
        self.problem, self.rankings = problem.take(np.sort(rows)), rankings
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
        worth = max(WORTH * abs(lowest), 1 / int(self.problem.folds.choosing.sum()))
        return eta, next(k for loss, k in by_depth if loss - lowest <= worth)

    def _share(self, etas: Sequence[float], k: int) -> tuple[float, float]:
        """The share with the lowest loss, and that loss."""
        best, lowest, since, last = etas[-1], np.inf, 0, None
        for eta in tracked(etas, "choosing eta", "shares"):
            neurons = sum(int(masks.sum()) for masks in self.kept(eta, k).values())
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
        kept = self.kept(eta, k)
        if not all(any(masks[fold].any() for masks in kept.values()) for fold in range(self.problem.folds.n_folds)):
            return np.inf
        narrow, masks = _narrow(self.problem, kept)
        path = logistic.choose(narrow, list(masks), grid=SEARCH_GRID, kept=masks)
        losses = [one["log_loss"] if self.problem.metric == "accuracy" else -one["macro_f1"] for one in path]
        best = path[int(np.argmin(losses))]
        self.tried.append({"eta": eta, "layers": k, "log_loss": best["log_loss"], "macro_f1": best["macro_f1"]})
        return float(min(losses))

    def kept(self, eta: float, k: int) -> Kept:
        """The neurons that each fold keeps of the blocks of the first k layers; blocks of which none is left out."""
        masks = {
            ranking.name: np.stack([keep(one, eta) for one in ranking.importance])  # fold feature
            for ranking in self.rankings
            if depth(ranking.name) <= k
        }
        return {name: mask for name, mask in masks.items() if mask.any()}


def _narrow(problem: Problem, kept: Kept) -> tuple[Problem, Kept]:
    """The problem with the neurons that any fold keeps, and which of these each keeps."""
    unions = {name: masks.any(axis=0) for name, masks in kept.items()}
    blocks = {name: problem.blocks[name][:, union] for name, union in unions.items()}  # row kept
    return replace(problem, blocks=blocks), {name: masks[:, unions[name]] for name, masks in kept.items()}


def _sparse(outcome: Outcome, kept: Kept) -> Sparse:
    """The head's weights of the neurons that the final model keeps."""
    head = outcome.model
    assert isinstance(head, Logistic)
    final = np.concatenate([masks[-1][masks.any(axis=0)] for masks in kept.values()])  # feature
    columns = {name: np.flatnonzero(masks[-1]) for name, masks in kept.items() if masks[-1].any()}
    mean, scale, coefficients = (array[final].copy() for array in (head.mean, head.scale, head.coefficients))
    return Sparse(tuple(columns), columns, mean, scale, coefficients, head.intercept)
