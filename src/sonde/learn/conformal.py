"""Label sets with a guarantee, from rows that chose nothing.

conformal_scores       what is remembered of the calibration rows
conformal_threshold    the score that a label set of a given error rate reaches
predict_sets           label sets that hold the truth with probability 1 - alpha
check_scores           whether saved scores can be what `conformal_scores` gave

The score of a label is one minus its probability; a set holds every label whose score is at most a threshold.
Single-label data: split conformal prediction, the sets of at most a fraction alpha of rows miss the truth (Vovk et al.
2005; this score: Sadinle, Lei and Wasserman 2019, "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels",
section 2). Multi-label data: conformal risk control, of the labels of a row at most a fraction alpha is missed in
expectation (Angelopoulos, Bates, Fisch, Lei and Schuster 2022, "Conformal Risk Control", theorem 1, with the
false-negative rate as the loss). The first is the second with one label a row.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Float64

from sonde.errors import ArgumentError, ModelError, warn
from sonde.learn.calibration import decide
from sonde.learn.targets import Targets

# Sums of thirds and 10 * (1 - .1) are not exact in binary fractions; no share of a label is as small.
ROUNDING = 1e-9
TINY_ALPHA = 1e-15  # of the least floats the reciprocal is infinite, and has no ceiling


def conformal_scores(probabilities: Float[np.ndarray, "row class"], targets: Targets) -> Float64[np.ndarray, "..."]:
    """What sets of any error rate need to know of the calibration rows.

    Parameters
    ----------
    probabilities : ndarray (row, class)
    targets : Targets
        Of the same rows, one for each text. Sample weights play no part: the guarantee is about texts.

    Returns
    -------
    ndarray (row,), or (label, 2) for multi-label data
        Scores of the truth, ascending. Multi-label: of every true label, beside the share of its row that it is; rows
        without a label have none to be missed and are left out. A label never seen has score 1: it is in no set.
    """
    score = 1.0 - probabilities.astype(np.float64)  # row class
    if not targets.multilabel:
        return np.sort(np.where(targets.indicator > 0, score, 1.0).min(axis=1))  # row class -> row
    row, column = np.nonzero(targets.indicator > 0)  # label
    share = 1.0 / np.bincount(row, minlength=targets.rows)[row]
    order = np.argsort(score[row, column], kind="stable")
    return np.stack([score[row, column], share], axis=1)[order]  # label 2


def conformal_threshold(scores: Float64[np.ndarray, "..."], alpha: float) -> float:
    """The smallest score up to which labels must be taken; infinity if there are too few rows for this alpha.

    With n rows, the loss of those left out plus one (the most that the new row may lose) is at most alpha (n + 1). For
    single-label data that is the ceil((n + 1)(1 - alpha))-th smallest score.

    Raises
    ------
    ArgumentError
        If alpha is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ArgumentError(f"alpha is {alpha}; it must lie between 0 and 1, for example .05 for sets that err in 5%.")
    score, share = (scores, np.ones(len(scores))) if scores.ndim == 1 else (scores[:, 0], scores[:, 1])
    taken = np.cumsum(share)
    rows = _rows(scores)
    enough = np.flatnonzero(rows - taken + 1 <= alpha * (rows + 1) + ROUNDING)
    return float(score[enough[0]]) if len(enough) else math.inf


def predict_sets(
    probabilities: Float[np.ndarray, "row class"],
    scores: Float64[np.ndarray, "..."],
    alpha: float,
    allow_empty: bool = False,
) -> Bool[np.ndarray, "row class"]:
    """Label sets that hold the truth of a fraction 1 - alpha of new rows like the conformal ones.

    Parameters
    ----------
    probabilities : ndarray (row, class)
    scores : ndarray
        From `conformal_scores`, on rows that chose nothing.
    alpha : float
        Between 0 and 1. Single-label: share of rows whose set misses the truth. Multi-label: expected share of a row's
        labels that its set misses.
    allow_empty : bool
        Leave sets empty where no label reaches the threshold, and nothing else; without it the most probable label is
        always in, which can only lower the error.

    Returns
    -------
    ndarray (row, class) of bool

    Warns
    -----
    SondeWarning
        few_conformal_rows: too few rows for this alpha; the sets then hold every class.
    """
    threshold = conformal_threshold(scores, alpha)
    if threshold == math.inf:
        needed = math.ceil(1 / max(alpha, TINY_ALPHA) - 1 - ROUNDING)
        warn(
            f"Label sets with alpha={alpha} need at least {needed} texts held out for them, but there are "
            f"{_rows(scores)}: every set holds all classes. Train on more texts, or raise alpha.",
            "few_conformal_rows",
            len(probabilities),
        )
    sets = 1.0 - probabilities.astype(np.float64) <= threshold
    return np.asarray(sets if allow_empty else sets | decide(probabilities, multilabel=False))


def check_scores(scores: np.ndarray, multilabel: bool) -> None:
    """Refuse saved scores that `conformal_scores` cannot have given.

    Raises
    ------
    ModelError
        If shape, type, range, order or the shares of labels are wrong.
    """
    wanted = "two columns, scores and shares of labels" if multilabel else "one dimension"
    if scores.ndim != 1 + multilabel or scores.dtype != np.float64 or scores.shape[1:] not in ((), (2,)):
        raise ModelError(f"The conformal scores must have {wanted}, in float64; the model is damaged.")
    score = scores[:, 0] if multilabel else scores
    if not ((score >= 0) & (score <= 1)).all() or (np.diff(score) < 0).any():
        raise ModelError("The conformal scores do not rise from 0 to 1; the model is damaged.")
    if multilabel and not _are_shares(scores[:, 1]):
        raise ModelError("The conformal scores are not of whole rows; the model is damaged.")


def _rows(scores: Float64[np.ndarray, "..."]) -> int:
    return len(scores) if scores.ndim == 1 else round(float(scores[:, 1].sum()))


def _are_shares(shares: np.ndarray) -> bool:
    """Of every size 1/k there is a multiple of k."""
    if not ((shares > 0) & (shares <= 1)).all():
        return False
    sizes, counts = np.unique(shares, return_counts=True)
    labels = np.rint(1 / sizes)
    return bool((1 / labels == sizes).all() and (counts % labels == 0).all())
