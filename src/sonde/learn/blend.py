"""Several learners as one: their calibrated log-probabilities, averaged with weights chosen out of fold.

    fit      a problem and named learners -> fitted blend
    Blend    the fitted model

Each learner is calibrated by a temperature of its own; then log-probabilities are averaged with weights that sum to one
(a logarithmic opinion pool; Genest and Zidek 1986, "Combining Probability Distributions", section 3.3), for multi-label
data the log-odds of each label. Opinions that err independently are surer together than their average: the pool has a
temperature too. A learner of weight 0 is left out of the model, so that nothing is read for it.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from sonde.learn.calibration import fit_temperature
from sonde.learn.learning import describe, restore
from sonde.learn.opinions import pool, weigh
from sonde.learn.problem import Blocks, Fitted, Outcome, Problem, Record


@dataclass(frozen=True)
class Blend:
    """Fitted learners whose logits are added up."""

    names: tuple[str, ...]
    """What the learners are called, for summaries and records."""
    children: tuple[Fitted, ...]
    """The learners that have a weight."""
    scales: tuple[float, ...]
    """What the logits of each are multiplied by: its weight over its temperature and that of the blend."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the blocks that any of the learners reads."""
        return tuple(dict.fromkeys(name for child in self.children for name in child.needs))

    @property
    def columns(self) -> Mapping[str, Int64[np.ndarray, " _"]]:
        """Those of blocks that one learner alone reads; the others are read whole."""
        readers = Counter(name for child in self.children for name in child.needs)
        return {name: own for child in self.children for name, own in child.columns.items() if readers[name] == 1}

    @property
    def reads_text(self) -> bool:
        """Whether any of the learners reads the texts themselves."""
        return any(child.reads_text for child in self.children)

    def logits(self, blocks: Blocks, texts: Sequence[str]) -> Float32[np.ndarray, "row class"]:
        """Weighted sum of the learners' logits."""
        return pool([child.logits(blocks, texts) for child in self.children], self.scales)

    def record(self) -> Record:
        """The model as plain data; the arrays of each learner stand under its name."""
        records = {name: describe(child) for name, child in zip(self.names, self.children, strict=True)}
        settings = {
            "scales": dict(zip(self.names, self.scales, strict=True)),
            "children": {name: record.settings for name, record in records.items()},
        }
        arrays = {f"{name}/{key}": array for name, record in records.items() for key, array in record.arrays.items()}
        return Record(settings, arrays)

    @classmethod
    def from_record(cls, record: Record) -> "Blend":
        """The model from plain data."""
        scales: Mapping[str, float] = record.settings["scales"]
        children = {
            name: restore(Record(record.settings["children"][name], _under(f"{name}/", record.arrays)))
            for name in scales
        }
        return cls(tuple(scales), tuple(children.values()), tuple(scales.values()))


def fit(problem: Problem, parts: Sequence[tuple[str, Callable[[Problem], Outcome]]]) -> Outcome:
    """Train learners on the same problem and weight them.

    Parameters
    ----------
    problem : Problem
    parts : sequence of (name, learner)
        A learner takes the problem and returns its outcome, with held-out logits of the same folds. Names differ and
        hold no "/".

    Returns
    -------
    Outcome
        Weights are chosen by `opinions.weigh` on the rows that choose and that every learner held out.
    """
    assert len({name for name, _ in parts}) == len(parts), "two parts have one name"
    outcomes = {name: learner(problem) for name, learner in parts}
    held_out = [outcome.held_out for outcome in outcomes.values()]
    rows = _choosing(problem, held_out)
    targets, sample_weights = problem.targets.take(np.flatnonzero(rows)), problem.weights[rows]
    temperatures = [fit_temperature(logits[rows], targets, sample_weights) for logits in held_out]
    calibrated = [logits[rows] / own for logits, own in zip(held_out, temperatures, strict=True)]
    found = weigh(calibrated, targets, sample_weights, problem.metric)
    temperature = fit_temperature(pool(calibrated, found.weights), targets, sample_weights)
    scales = [weight / (own * temperature) for weight, own in zip(found.weights, temperatures, strict=True)]
    used = [
        (name, outcome.model, scale) for (name, outcome), scale in zip(outcomes.items(), scales, strict=True) if scale
    ]
    summary = {
        "weights": dict(zip(outcomes, found.weights, strict=True)),
        "temperatures": dict(zip(outcomes, temperatures, strict=True)),
        "temperature": temperature,
        "rows": int(rows.sum()),
        "path": found.tried,
        "parts": {name: outcome.summary for name, outcome in outcomes.items()},
    }
    return Outcome(Blend(*zip(*used, strict=True)), pool(held_out, scales), summary)


def _choosing(problem: Problem, held_out: Sequence[Float[np.ndarray, "row class"]]) -> Bool[np.ndarray, " row"]:
    """Rows that choose and of which every learner said something: some hold out fewer than others."""
    said = np.all([np.isfinite(logits).all(axis=1) for logits in held_out], axis=0)  # row
    return np.asarray(problem.folds.choosing & (problem.weights > 0) & said)


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
