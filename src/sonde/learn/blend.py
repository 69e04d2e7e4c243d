"""Several learners as one: their calibrated log-probabilities, averaged with weights chosen out of fold.

    fit      a problem and named learners -> fitted blend
    Blend    the fitted model

Each learner is calibrated by a temperature of its own; then log-probabilities are averaged with weights that sum to one
(a logarithmic opinion pool; Genest and Zidek 1986, "Combining Probability Distributions", section 3.3), for multi-label
data the log-odds of each label. Opinions that err independently are surer together than their average: the pool has a
temperature too. A learner of weight 0 is left out of the model, so that nothing is read for it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from sonde.learn.calibration import decide, fit_temperature, to_probabilities
from sonde.learn.learning import describe, restore
from sonde.learn.metrics import accuracy, log_loss, macro_f1
from sonde.learn.problem import Blocks, Fitted, Outcome, Problem, Record
from sonde.learn.targets import Targets

# Weights are tried in steps of 1/20: around its minimum the loss is flat, half a step away it differs in the 4th digit.
STEPS = 20
# Every learner of a blend is one more thing to read and to keep: it must lower the log loss by this fraction.
WORTH = 0.005


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
        return _pool([child.logits(blocks, texts) for child in self.children], self.scales)

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
        Weights are chosen by log loss on the rows that choose, also when accuracy is aimed at; by macro F1 if that is
        aimed at, and log loss among equals. If no row chooses, all weights are equal.
    """
    assert len({name for name, _ in parts}) == len(parts), "two parts have one name"
    outcomes = {name: learner(problem) for name, learner in parts}
    held_out = [outcome.held_out for outcome in outcomes.values()]
    choosing = problem.folds.choosing & (problem.weights > 0)
    targets, sample_weights = problem.targets.take(choosing), problem.weights[choosing]
    opinions = [logits[choosing] for logits in held_out]
    temperatures = [fit_temperature(logits, targets, sample_weights) for logits in opinions]
    calibrated = [logits / temperature for logits, temperature in zip(opinions, temperatures, strict=True)]
    weights, temperature, tried = _weigh(calibrated, targets, sample_weights, problem.metric)
    scales = [weight / (own * temperature) for weight, own in zip(weights, temperatures, strict=True)]
    used = [
        (name, outcome.model, scale) for (name, outcome), scale in zip(outcomes.items(), scales, strict=True) if scale
    ]
    summary = {
        "weights": dict(zip(outcomes, weights, strict=True)),
        "temperatures": dict(zip(outcomes, temperatures, strict=True)),
        "temperature": temperature,
        "path": tried,
        "parts": {name: outcome.summary for name, outcome in outcomes.items()},
    }
    return Outcome(Blend(*zip(*used, strict=True)), _pool(held_out, scales), summary)


def _weigh(
    opinions: Sequence[Float[np.ndarray, "row class"]],
    targets: Targets,
    sample_weights: Float64[np.ndarray, " row"],
    metric: str,
) -> tuple[tuple[float, ...], float, list[dict[str, object]]]:
    """The best weights, the temperature of their pool, and what was measured for all."""
    if not len(sample_weights):
        return tuple(1 / len(opinions) for _ in opinions), 1.0, []
    tried: list[dict[str, object]] = []
    best: tuple[tuple[float, float], tuple[float, ...], float] | None = None
    for weights in _simplex(len(opinions), STEPS):
        pooled = _pool(opinions, weights)
        temperature = fit_temperature(pooled, targets, sample_weights)
        probabilities = to_probabilities(pooled / temperature, targets.multilabel)
        predicted = decide(probabilities, targets.multilabel)
        loss = log_loss(targets.indicator, probabilities, multilabel=targets.multilabel, weights=sample_weights)
        f1 = macro_f1(targets.indicator, predicted, weights=sample_weights)
        right = accuracy(targets.indicator, predicted, weights=sample_weights)
        tried.append({"weights": list(weights), "log_loss": loss, "accuracy": right, "macro_f1": f1})
        price = 1 + WORTH * np.count_nonzero(weights)
        found = ((-f1 if metric == "macro_f1" else 0.0, loss * price), weights, temperature)
        best = found if best is None or found < best else best
    assert best is not None
    return best[1], best[2], tried


def _simplex(parts: int, steps: int) -> Iterator[tuple[float, ...]]:
    """All weights in multiples of 1/steps that sum to one."""
    if parts == 1:
        yield (1.0,)
        return
    for first in range(steps, -1, -1):
        rest = (steps - first) / steps
        tail = _simplex(parts - 1, steps - first) if first < steps else iter([(0.0,) * (parts - 1)])
        yield from ((first / steps, *(rest * weight for weight in weights)) for weights in tail)


def _pool(
    logits: Sequence[Float[np.ndarray, "row class"]], scales: Sequence[float]
) -> Float32[np.ndarray, "row class"]:
    terms = [np.float32(scale) * part for part, scale in zip(logits, scales, strict=True) if scale]
    return np.asarray(sum(terms), dtype=np.float32)


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
