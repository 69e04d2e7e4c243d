"""Heads at several depths: a row leaves at the first that is sure enough, so that easy texts run few layers.

    fit          a problem and a selection of neurons -> fitted cascade
    Cascade      the fitted model

Each exit is calibrated by a temperature of its own, so that one threshold of confidence serves them all. Out of fold it
is the threshold with the lowest mean depth among those that lose no more of the metric against the deepest head than
may be lost. What is lost counts with its standard error, a row at least: of many thresholds that seem to lose little,
the one that saves most is the one whose luck was best, and on new texts it loses more.

Source: early exits by confidence after BranchyNet (Teerapittayanon, McDanel and Kung 2016, section III-C); a threshold
that bounds the loss against the whole model after Schuster et al. 2021, "Consistent Accelerated Inference via Confident
Adaptive Transformers".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from sonde.errors import ModelError
from sonde.learn import sparse
from sonde.learn.calibration import decide, fit_temperature, to_probabilities
from sonde.learn.logistic import GRID
from sonde.learn.metrics import accuracy, difference, macro_f1
from sonde.learn.problem import Blocks, Outcome, Problem, Record
from sonde.learn.selection import depth
from sonde.learn.sparse import Sparse
from sonde.learn.sparsify import Selection
from sonde.progress import tracked

# Heads beside the deepest: every one is trained, kept and asked, and neighbouring layers of a deep model say the same.
EARLY_EXITS = 6
# Thresholds that are tried, as quantiles of the confidences: half a percent of the rows lie between neighbours.
THRESHOLDS = 200
NEVER = 2.0  # a confidence that no row has


@dataclass(frozen=True)
class Cascade:
    """Heads at several depths."""

    exits: tuple[Sparse, ...]
    """The heads, shallowest first; each reads what the ones before it read, and more."""
    temperatures: tuple[float, ...]
    """What the logits of each are divided by."""
    threshold: float
    """Confidence at which a row leaves, of its label or its least sure decision (multi-label); above 1 none does."""
    multilabel: bool
    """Whether labels are decided one by one."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the blocks that any exit reads, shallowest first."""
        return tuple(dict.fromkeys(name for one in self.exits for name in one.needs))

    @property
    def columns(self) -> Mapping[str, Int64[np.ndarray, " _"]]:
        """The neurons of each block that are kept: the same at every exit."""
        return {name: own for one in self.exits for name, own in one.columns.items()}

    @property
    def reads_text(self) -> bool:
        """False: only blocks are read."""
        return False

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """The blocks that each exit reads beyond those of the exits before it."""
        known: set[str] = set()
        found = []
        for one in self.exits:
            found.append(tuple(name for name in one.needs if name not in known))
            known.update(one.needs)
        return tuple(found)

    @property
    def depths(self) -> Int64[np.ndarray, " exit"]:
        """Layers that must run for each exit."""
        return np.array([max(depth(name) for name in one.needs) for one in self.exits])

    def at(
        self, stage: int, blocks: Blocks, rows: int
    ) -> tuple[Float32[np.ndarray, "row class"], Bool[np.ndarray, " row"]]:
        """What an exit says of some rows, and which of them go on."""
        logits = self.exits[stage].logits(blocks, [""] * rows) / np.float32(self.temperatures[stage])  # row class
        last = stage == len(self.exits) - 1
        return logits, np.zeros(rows, dtype=bool) if last else _confidence(logits, self.multilabel) < self.threshold

    def logits(self, blocks: Blocks, texts: Sequence[str]) -> Float32[np.ndarray, "row class"]:
        """Of each row, the logits of the exit at which it leaves."""
        return self.leave(blocks, len(texts))[0]

    def leave(self, blocks: Blocks, rows: int) -> tuple[Float32[np.ndarray, "row class"], Int64[np.ndarray, " row"]]:
        """The logits of rows that were read to the end, and the exit at which each leaves."""
        logits, _ = self.at(len(self.exits) - 1, blocks, rows)
        reached = np.full(rows, len(self.exits) - 1)
        left = np.zeros(rows, dtype=bool)
        for stage in range(len(self.exits) - 1):
            own, goes_on = self.at(stage, blocks, rows)
            leaves = ~left & ~goes_on
            logits[leaves], reached[leaves] = own[leaves], stage
            left |= leaves
        return logits, reached

    def record(self) -> Record:
        """The model as plain data; the arrays of each exit stand under its number."""
        records = [one.record() for one in self.exits]
        settings = {
            "exits": [record.settings for record in records],
            "temperatures": list(self.temperatures),
            "threshold": self.threshold,
            "multilabel": self.multilabel,
        }
        arrays = {f"{i}/{name}": array for i, record in enumerate(records) for name, array in record.arrays.items()}
        return Record(settings, arrays)

    @classmethod
    def from_record(cls, record: Record) -> "Cascade":
        """The model from plain data.

        Raises
        ------
        ModelError
            If its exits disagree.
        """
        exits = []
        for i, settings in enumerate(record.settings["exits"]):
            own = {k.removeprefix(f"{i}/"): array for k, array in record.arrays.items() if k.startswith(f"{i}/")}
            exits.append(Sparse.from_record(Record(settings, own)))
        temperatures, threshold = tuple(record.settings["temperatures"]), float(record.settings["threshold"])
        if len({len(one.intercept) for one in exits}) != 1 or len(temperatures) != len(exits):
            raise ModelError("The exits of the model disagree: the model is damaged.")
        if not all(temperature > 0 for temperature in temperatures) or not 0 <= threshold <= NEVER:
            raise ModelError("The temperatures or the threshold of the model are impossible: the model is damaged.")
        if any(set(one.needs) - set(more.needs) for one, more in pairwise(exits)):
            raise ModelError("An exit of the model reads what a deeper one does not: the model is damaged.")
        return cls(tuple(exits), temperatures, threshold, bool(record.settings["multilabel"]))


def fit(problem: Problem, selection: Selection, loss: float) -> Outcome:
    """Train a head at several depths and choose the confidence at which rows leave.

    Parameters
    ----------
    problem : Problem
        Blocks hold all neurons, or those alone that any fold keeps.
    selection : Selection
        Neurons of the first k layers.
    loss : float
        How much of the metric may be lost against the deepest head, as a share: .002 = .2 points.

    Returns
    -------
    Outcome
        If no row could be held out, no row leaves early.
    """
    parts = _exits(problem, selection)
    outcomes = _train(problem, parts)
    choosing = problem.folds.choosing & (problem.weights > 0)
    targets, weights = problem.targets.take(choosing), problem.weights[choosing]
    temperatures = tuple(fit_temperature(one.held_out[choosing], targets, weights) for one in outcomes)
    opinions = [one.held_out / np.float32(t) for one, t in zip(outcomes, temperatures, strict=True)]  # row class
    depths = np.array([max(depth(name) for name in part.kept) for part in parts])
    search = _Search([one[choosing] for one in opinions], depths, targets.multilabel)
    threshold, measured = search.choose(targets.indicator, weights, problem.metric, loss)
    models = [one.model for one in outcomes]
    assert all(isinstance(model, Sparse) for model in models)
    cascade = Cascade(tuple(models), temperatures, threshold, targets.multilabel)  # type: ignore[arg-type]
    reached = _first(np.stack([_confidence(one, targets.multilabel) for one in opinions]), threshold)
    held_out = np.stack(opinions)[reached, np.arange(problem.rows)]  # row class
    summary = {**outcomes[-1].summary, "exits": measured, "exit_threshold": threshold, "exit_loss": loss}
    return Outcome(cascade, held_out, summary)


def _train(problem: Problem, parts: Sequence[Selection]) -> list[Outcome]:
    """The head of each part, the deepest first: the others need not go far from its C."""
    outcomes: list[Outcome] = []
    grid: Sequence[float] = GRID
    for part in tracked(parts[::-1], "training exits", "exits"):
        outcomes.append(sparse.train(problem, part, grid))
        chosen = outcomes[0].summary["head"].get("C")
        if chosen in GRID:  # the paper's head has a grid of its own
            place = GRID.index(chosen)
            grid = GRID[max(place - 1, 0) : place + 2]
    return outcomes[::-1]


def _exits(problem: Problem, selection: Selection) -> list[Selection]:
    """The selection, cut at some depths at which every fold keeps a neuron; the last is the whole."""
    depths = sorted({depth(name) for name in selection.kept})
    found = []
    for k in depths[:-1]:
        kept = {name: masks for name, masks in selection.kept.items() if depth(name) <= k}
        if np.concatenate(list(kept.values()), axis=1).any(axis=1).all():  # fold feature -> fold
            found.append(Selection(kept, selection.summary))
    if len(found) > EARLY_EXITS:
        found = [found[int(i)] for i in np.linspace(0, len(found) - 1, EARLY_EXITS).round()]
    return [*found, selection]


def _confidence(logits: Float[np.ndarray, "row class"], multilabel: bool) -> Float[np.ndarray, " row"]:
    probabilities = to_probabilities(logits, multilabel)
    if multilabel:
        return np.asarray(np.maximum(probabilities, 1 - probabilities).min(axis=1))
    return np.asarray(probabilities.max(axis=1))


def _first(sure: Float[np.ndarray, "exit row"], threshold: float) -> Int64[np.ndarray, " row"]:
    """The first exit that is sure enough; the last one always is."""
    enough = sure >= threshold
    enough[-1] = True
    return np.asarray(enough.argmax(axis=0))


class _Search:
    """What cascades with different thresholds would have done out of fold."""

    def __init__(
        self, opinions: Sequence[Float[np.ndarray, "row class"]], depths: Int64[np.ndarray, " exit"], multilabel: bool
    ) -> None:
        self.depths, self.multilabel = depths, multilabel
        self.sure = np.stack([_confidence(one, multilabel) for one in opinions])  # exit row
        self.decided = np.stack([decide(to_probabilities(one, multilabel), multilabel) for one in opinions])

    def choose(
        self, truth: Float[np.ndarray, "row class"], weights: Float[np.ndarray, " row"], metric: str, loss: float
    ) -> tuple[float, dict[str, object]]:
        """The threshold, and what it does to depth and metric."""
        if not len(weights):
            return NEVER, {"depths": self.depths.tolist(), "mean_depth": float(self.depths[-1])}
        measure = macro_f1 if metric == "macro_f1" else accuracy
        whole = measure(truth, self.decided[-1], weights)
        early = self.sure[:-1] if len(self.depths) > 1 else np.array([NEVER])
        tried = [NEVER, *np.unique(np.quantile(early, np.linspace(0, 1, THRESHOLDS + 1)))]
        ways = [_first(self.sure, threshold) for threshold in tried]
        mean_depths = [float(np.average(self.depths[reached], weights=weights)) for reached in ways]
        for place in sorted(range(len(tried)), key=lambda i: (mean_depths[i], tried[i])):
            threshold, reached, mean_depth = float(tried[place]), ways[place], mean_depths[place]
            said = self.decided[reached, np.arange(len(reached))]  # row class
            kept = measure(truth, said, weights)
            if whole - kept > loss:
                continue
            lost, error = difference(measure, truth, self.decided[-1], said, weights)
            if lost + max(error, 1 / weights.sum()) <= loss:  # heads that agree on few rows have shown little
                break  # if none passes, the last is taken, NEVER: no row leaves early
        shares = np.bincount(reached, weights, minlength=len(self.depths)) / weights.sum()  # exit
        return threshold, {
            "depths": self.depths.tolist(),
            "shares": [round(share, 4) for share in shares.tolist()],
            "mean_depth": mean_depth,
            metric: kept,
            f"{metric}_of_each": [round(measure(truth, one, weights), 4) for one in self.decided],
        }
