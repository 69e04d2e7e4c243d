"""Answers only where the model is sure: risk against coverage, and thresholds that keep a promised error rate.

RiskCoverage         the curve: how often the answers are wrong when only the surest texts are answered
risk_coverage        confidences, and whether the answers are right -> the curve
answers_of           what is remembered of the rows that were held out
error_threshold      the lowest confidence to answer at, so that at most a target share of the answers is wrong
check_threshold      whether a threshold is one
withhold             labels -> labels, None where the confidence is below the threshold
check_answers        whether saved answers can be what `answers_of` gave
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped
from scipy.stats import binom

from sonde.errors import ArgumentError, ModelError, warn
from sonde.learn.targets import Targets

# A threshold for a target error is wrong for at most one in twenty draws of the held-out rows, as usual for a bound.
CERTAINTY = 0.95
# Shares of the rows, the surest first, from which thresholds are lowered. A walk ends where it first fails; with a
# single start an early error near the top would end it, and each further start makes all of them a little stricter.
STARTS = (0.25, 0.5, 0.75, 1.0)
DOUBT = (1 - CERTAINTY) / len(STARTS)
"""What each start may spend of the doubt that is allowed."""


@dataclass(frozen=True)
class RiskCoverage:
    """One point for each different confidence, the highest first."""

    coverage: Float64[np.ndarray, " point"]
    """Share of the rows that are answered."""
    risk: Float64[np.ndarray, " point"]
    """Share of these answers that are wrong."""
    thresholds: Float64[np.ndarray, " point"]
    """Rows are answered whose confidence is at least this."""
    area: float
    """Mean risk over all coverages; 0 is perfect, the risk at coverage 1 is what random confidences give."""

    def at(self, coverage: float) -> dict[str, float]:
        """The point that answers at least this share of the rows and no more than it must, JSON-able."""
        i = min(int(np.searchsorted(self.coverage, coverage - 1e-12)), len(self.coverage) - 1)  # 9 / 10 reaches .9
        return {
            "coverage": float(self.coverage[i]),
            "error": float(self.risk[i]),
            "threshold": float(self.thresholds[i]),
        }


def risk_coverage(confidence: Float[np.ndarray, " row"], right: Bool[np.ndarray, " row"]) -> RiskCoverage:
    """The risk-coverage curve; rows of equal confidence are answered together, so their order does not matter.

    Parameters
    ----------
    confidence : ndarray (row,)
        Higher is surer; one row at least.
    right : ndarray (row,)
        Whether the answer is right.

    Source: El-Yaniv and Wiener 2010, "On the Foundations of Noise-free Selective Classification"; the area:
    Geifman, Uziel and El-Yaniv 2019, "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers".
    """
    assert len(confidence), "a curve needs a row"
    falling, last, wrong = _ranked(confidence, right)
    answered = last + 1  # row -> point
    risk = wrong[last] / answered
    area = float(np.average(risk, weights=np.diff(answered, prepend=0)))
    return RiskCoverage(answered / len(falling), risk, falling[last], area)


def answers_of(probabilities: Float[np.ndarray, "row class"], targets: Targets) -> Float32[np.ndarray, "row 2"]:
    """Confidence of each row's most probable class, and 1 if that is the truth, else 0; the surest row first."""
    top = probabilities.argmax(axis=1)[:, None]
    both = [
        np.take_along_axis(array, top, axis=1) for array in (probabilities, targets.indicator)
    ]  # row class -> row 1
    answers = np.concatenate(both, axis=1).astype(np.float32)  # row 2
    return answers[np.lexsort((answers[:, 1], -answers[:, 0]))]


def error_threshold(answers: Float32[np.ndarray, "row 2"], target_error: float) -> float:
    """The lowest threshold at which at most `target_error` of the answers are wrong, with 95% certainty.

    The thresholds tried are the confidences of the rows. From each of four starts they are lowered row by row for as
    long as the exact binomial test refutes, at a quarter of 5%, that the answers are wrong more often than the target.
    Where an answer is wrong more often the less sure it is, the threshold breaks the promise for at most 5% of all
    draws of the rows: given the first confidence at which the risk is too high, the rows above it are independent
    draws, and a walk that passes it has wrongly refuted there.

    Parameters
    ----------
    answers : ndarray (row, 2)
        From `answers_of`, of rows that chose nothing, one for each text: the proof counts them as independent draws.
    target_error : float
        Between 0 and 1.

    Returns
    -------
    float
        0 if everything may be answered, infinity if nothing.

    Raises
    ------
    ArgumentError
        If `target_error` is not between 0 and 1.

    Warns
    -----
    SondeWarning
        target_error_not_reached: no threshold can be shown to keep the target.

    Source: Angelopoulos, Bates, Candes, Jordan and Lei 2021, "Learn then Test" (fixed-sequence testing with
    several starts); Geifman and El-Yaniv 2017, "Selective Classification for Deep Neural Networks" (binomial
    bounds at the confidences of the rows).
    """
    _check_target(target_error)
    reached = _surest_rows(answers, target_error)
    if reached:
        return 0.0 if reached == len(answers) else float(answers[reached - 1, 0])
    warn(
        f"No threshold can be shown, with {CERTAINTY:.0%} certainty, to keep the error at or below {target_error:g}: "
        f"nothing is answered. {len(answers)} texts were held out for it ({_fewest(target_error)} are needed if none "
        "is wrong). Allow a larger error, give a threshold, or train on more texts.",
        "target_error_not_reached",
    )
    return math.inf


def check_threshold(threshold: float) -> float:
    """The threshold, if it is a probability; `ArgumentError` else."""
    if not 0 <= threshold <= 1:
        raise ArgumentError(
            f"The threshold (--abstain-below) is {threshold}; it must lie between 0 and 1: a text is answered if its "
            "label has at least this probability."
        )
    return float(threshold)


def withhold(
    labels: Shaped[np.ndarray, " row"], confidence: Float[np.ndarray, " row"], threshold: float
) -> Shaped[np.ndarray, " row"]:
    """Labels as Python values in an array of objects, None where the confidence is below the threshold."""
    kept = np.empty(len(labels), dtype=object)
    kept[:] = labels.tolist()
    kept[confidence.astype(np.float64) < threshold] = None
    return kept


def check_answers(answers: np.ndarray | None, multilabel: bool) -> None:
    """Refuse saved answers that `answers_of` cannot have given.

    Raises
    ------
    ModelError
        If they are there for multi-label data or missing otherwise, or shape, type, range or order are wrong.
    """
    if answers is None or multilabel:
        if (answers is None) != multilabel:
            raise ModelError("Held-out answers belong to models of one label a text; the model is damaged.")
        return
    if answers.ndim != 2 or answers.shape[1] != 2 or answers.dtype != np.float32:
        raise ModelError("The held-out answers must have two columns in float32; the model is damaged.")
    confidence, right = answers.T
    sound = (confidence > 0).all() and (confidence <= 1).all() and np.isin(right, (0, 1)).all()
    if not sound or (np.diff(confidence) > 0).any():
        raise ModelError("The held-out answers do not fall from 1 to 0; the model is damaged.")


def _check_target(target_error: float) -> None:
    if not 0 < target_error < 1:
        raise ArgumentError(
            f"The target error (--target-error) is {target_error}; it must lie between 0 and 1, for example .05 for "
            "answers of which at most 5% are wrong."
        )


def _fewest(target_error: float) -> int:
    """Rows that refute a risk as high as the target where none of them is wrong."""
    return math.ceil(math.log(DOUBT) / math.log1p(-target_error))


def _surest_rows(answers: Float32[np.ndarray, "row 2"], target_error: float) -> int:
    """How many rows, the surest first, can be answered; 0 if none."""
    if len(answers) < _fewest(target_error):
        return 0
    _, last, wrong = _ranked(answers[:, 0], answers[:, 1] > 0)
    chance = binom.cdf(wrong[last], last + 1, target_error)  # of so few errors, were the risk as high as the target
    failed = np.append(np.flatnonzero(chance > DOUBT), len(last))
    reached = 0
    for share in STARTS:
        start = int(np.searchsorted(last + 1, max(_fewest(target_error), math.ceil(share * len(answers)))))
        end = int(failed[np.searchsorted(failed, start)])  # the first failure from there on
        reached = max(reached, int(last[end - 1]) + 1) if end > start else reached
    return reached


def _ranked(
    confidence: Float[np.ndarray, " row"], right: Bool[np.ndarray, " row"]
) -> tuple[Float64[np.ndarray, " row"], Int64[np.ndarray, " point"], Int64[np.ndarray, " row"]]:
    """Confidences in falling order, the last place of each different one, and how many are wrong up to each place."""
    order = np.argsort(-confidence, kind="stable")
    falling = confidence[order].astype(np.float64)
    last = np.flatnonzero(np.append(falling[:-1] > falling[1:], True))
    return falling, last, np.cumsum(~right[order])
