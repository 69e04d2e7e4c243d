"""What several learners say of the rows that choose -> how much each counts.

    weigh       calibrated logits of each learner, the truth -> weights
    Weighing    the weights, and what was measured on the way
    pool        logits of each learner, scales -> logits

The log loss of a weighted sum of log-probabilities is convex in the weights, whatever their sum: weights and the
temperature of the pool are found together by one descent, for any number of learners.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64
from scipy.optimize import minimize

from sonde.learn.calibration import decide, log_softmax, sigmoid, to_probabilities
from sonde.learn.metrics import accuracy, difference, log_loss, macro_f1
from sonde.learn.targets import Targets

# Every learner of a blend is one more thing to read and to keep: it must lower the log loss by this fraction.
WORTH = 0.001
# It must be surer than chance of telling more than nothing: so many nats in all are a likelihood ratio that its one
# temperature reaches by chance in 5% of cases (half the chi-square quantile).
SPEAKING = 1.92
# Nor is one kept whose share is smaller: what it says changes no decision but the closest.
NEGLIGIBLE = 0.025
# Few rows tell weights apart by noise alone: each scale starts from an equal share, with the certainty that this many
# rows give. With thousands of rows that is nothing.
PRIOR = 1.0
# Nor is a learner of few rows left out for want of proof: that it is worth less must be known to this many nats.
PROOF = 1.0
SMALLEST = 1e-6  # of a scale: its logarithm stands in the prior
# Where macro F1 is aimed at, weights are tried in so many steps from the best by log loss to each learner alone.
STEPS = 10
# Macro F1 hangs on a few rows of rare classes, and the best of many is best by luck: taken at its word it cost a point
# of test macro F1 (AG News; 32 rows a class). So many standard errors must lie between.
SURE = 2.0

Scales = Float64[np.ndarray, " part"]
Opinions = Sequence[Float[np.ndarray, "row class"]]


@dataclass(frozen=True)
class Weighing:
    """How much each learner counts."""

    weights: tuple[float, ...]
    """The share of each; they sum to one, 0 = left out."""
    tried: list[dict[str, Any]]
    """Weights, log loss, accuracy and macro F1 of each learner alone and of each blend that was tried; JSON-able."""


def pool(logits: Opinions, scales: Sequence[float]) -> Float32[np.ndarray, "row class"]:
    """The sum of the logits, each times its scale; those of scale 0 are not looked at."""
    terms = [np.float32(scale) * part for part, scale in zip(logits, scales, strict=True) if scale]
    return np.asarray(sum(terms), dtype=np.float32)


def weigh(
    opinions: Opinions, targets: Targets, sample_weights: Float64[np.ndarray, " row"], metric: str = "accuracy"
) -> Weighing:
    """Find the weights that minimise the log loss of the pool, at the temperature that suits it best.

    Parameters
    ----------
    opinions : sequence of (row, class)
        Out-of-fold logits of each learner, calibrated, of the rows that choose.
    targets : Targets
        Of the same rows.
    sample_weights : (row,)
    metric : {"accuracy", "macro_f1"}
        For accuracy log loss chooses, too: it is the smoother measure. For macro F1, the best by macro F1 of points on
        the straight ways from there to each learner alone, if it is better by more than chance.

    Returns
    -------
    Weighing
        Learners that say nothing, or nothing that the others do not say, are left out. Without rows all count the same.
    """
    count = len(opinions)
    if not sample_weights.sum() > 0:
        return Weighing((1 / count,) * count, [])
    rows = _Rows(opinions, targets, sample_weights)
    each = np.eye(count)
    alone = [rows.measured(scales) for scales in each]
    speaking = [k for k in range(count) if rows.count * (rows.silence - alone[k]["log_loss"]) > SPEAKING]
    scales = rows.prune(speaking or list(range(count)))
    ways = [scales]
    if metric == "macro_f1":
        ways += [_between(scales, end, step / STEPS) for end in each for step in range(1, STEPS + 1)]
    tried = [rows.measured(way) for way in ways]
    best = min(range(len(ways)), key=lambda i: (-tried[i]["macro_f1"], tried[i]["log_loss"]))
    if best and not rows.surely_better(ways[best], scales):
        best = 0
    return Weighing(tuple(tried[best]["weights"]), alone + tried)


def _between(scales: Scales, end: Scales, share: float) -> Scales:
    """Scales whose shares lie so far on the way; their sum, which is one over the temperature, is kept."""
    total = scales.sum()
    return np.asarray(total * ((1 - share) * scales / total + share * end))


class _Rows:
    """The rows that choose, and what learners say of them."""

    def __init__(self, opinions: Opinions, targets: Targets, sample_weights: Float64[np.ndarray, " row"]) -> None:
        self.opinions, self.targets, self.sample_weights = opinions, targets, sample_weights
        self.share = sample_weights / sample_weights.sum()  # row
        self.count = float(sample_weights.sum())  # a row of weight 2 counts as two
        self.silence, _ = self.loss(np.zeros(0), [])

    def prune(self, used: list[int]) -> Scales:
        """The best scales, after leaving out one learner after another as long as that costs too little."""
        scales, loss = self.solve(used)
        while len(used) > 1:
            rest = {k: self.solve([other for other in used if other != k]) for k in used}
            least = min(used, key=lambda k: rest[k][1])
            enough = rest[least][1] - loss <= WORTH * loss - PROOF / self.count
            if not enough and scales[least] >= NEGLIGIBLE * scales.sum():
                break
            used = [k for k in used if k != least]
            scales, loss = rest[least]
        return scales

    def solve(self, used: list[int]) -> tuple[Scales, float]:
        """The best scales of some learners, 0 for the others, and their log loss."""
        strength, size = PRIOR / self.count, len(used)

        def objective(scales: Scales) -> tuple[float, Scales]:
            loss, gradient = self.loss(scales, used)
            prior = strength * (size * scales - np.log(size * scales) - 1)
            return loss + float(prior.sum()), gradient + strength * (size - 1 / scales)

        start = np.full(size, 1 / size)
        found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=[(SMALLEST, None)] * size)
        scales = np.zeros(len(self.opinions))
        scales[used] = found.x
        return scales, self.loss(found.x, used)[0]

    def loss(self, scales: Scales, used: list[int]) -> tuple[float, Scales]:
        """Log loss of a pool of the learners used, and its gradient."""
        truth = self.targets.indicator.astype(np.float64)
        parts = [self.opinions[k] for k in used]
        logits = sum((scale * part for scale, part in zip(scales, parts, strict=True)), start=np.zeros(truth.shape))
        if self.targets.multilabel:
            losses = np.logaddexp(0, np.where(truth > 0, -logits, logits)).mean(axis=1)  # row class -> row
            slope = (sigmoid(logits) - truth) / truth.shape[1]  # row class
        else:
            logs = log_softmax(logits)
            losses = -(truth * logs).sum(axis=1)  # row class -> row
            slope = np.exp(logs) * truth.sum(axis=1, keepdims=True) - truth  # row class
        slope *= self.share[:, None]
        return float(self.share @ losses), np.array([(slope * part).sum() for part in parts])

    def surely_better(self, scales: Scales, other: Scales) -> bool:
        """Whether the gain in macro F1 is larger than what another draw of the rows may take away."""
        pools = [pool(self.opinions, one.tolist()) for one in (scales, other)]
        one, two = (decide(to_probabilities(one, self.targets.multilabel), self.targets.multilabel) for one in pools)
        gain, error = difference(macro_f1, self.targets.indicator, one, two, self.sample_weights)
        return gain > SURE * error

    def measured(self, scales: Scales) -> dict[str, Any]:
        """Weights, log loss, accuracy and macro F1 of a pool."""
        targets, weights = self.targets, self.sample_weights
        probabilities = to_probabilities(pool(self.opinions, scales.tolist()), targets.multilabel)
        predicted = decide(probabilities, targets.multilabel)
        return {
            "weights": (scales / scales.sum()).tolist(),
            "log_loss": log_loss(targets.indicator, probabilities, multilabel=targets.multilabel, weights=weights),
            "accuracy": accuracy(targets.indicator, predicted, weights=weights),
            "macro_f1": macro_f1(targets.indicator, predicted, weights=weights),
        }
