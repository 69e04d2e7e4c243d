"""Label sets with a guarantee: split conformal prediction.

conformal_scores       what is remembered of the calibration rows
conformal_threshold    the score that a label set of a given error rate reaches
predict_sets           label sets that hold the truth with probability 1 - alpha
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Float64

from sonde.errors import ArgumentError, warn
from sonde.learn.calibration import decide
from sonde.learn.targets import Targets


def conformal_scores(probabilities: Float[np.ndarray, "row class"], targets: Targets) -> Float64[np.ndarray, " row"]:
    """One minus the probability of the truth on the conformal rows, in ascending order.

    Kept whole so that sets of any error rate can be made later. Multi-label: the least probable true label counts, so
    that a set must hold all of them. Sample weights play no part: the guarantee is about rows.

    Source: Sadinle, Lei and Wasserman 2019, "Least Ambiguous Set-Valued Classifiers with Bounded Error Levels",
    section 2; the finite-sample form is split conformal prediction (Vovk et al. 2005).
    """
    of_truth = np.where(targets.indicator > 0, probabilities.astype(np.float64), 1.0).min(axis=1)  # row class -> row
    if not targets.multilabel:
        of_truth[~targets.indicator.any(axis=1)] = 0.0  # a label never seen is in no set
    return np.sort(1.0 - of_truth)


def conformal_threshold(sorted_scores: Float64[np.ndarray, " scored"], alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest of n scores; infinity if n is too small for this alpha.

    Raises
    ------
    ArgumentError
        If alpha is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ArgumentError(f"alpha is {alpha}; it must lie between 0 and 1, for example .05 for sets that err in 5%.")
    n = len(sorted_scores)
    rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)  # 10 * (1 - .1) is 9, also in binary fractions
    return float(sorted_scores[rank - 1]) if rank <= n else math.inf


def predict_sets(
    probabilities: Float[np.ndarray, "row class"], sorted_scores: Float64[np.ndarray, " scored"], alpha: float
) -> Bool[np.ndarray, "row class"]:
    """Label sets that hold the truth of a fraction 1 - alpha of new rows like the conformal ones.

    Parameters
    ----------
    probabilities : ndarray (row, class)
    sorted_scores : ndarray (scored,)
        From `conformal_scores`, on rows that chose nothing.
    alpha : float
        Error rate, between 0 and 1.

    Returns
    -------
    ndarray (row, class) of bool
        Never empty: the most probable class is always in.

    Warns
    -----
    SondeWarning
        few_conformal_rows: too few rows for this alpha; the sets then hold every class.
    """
    threshold = conformal_threshold(sorted_scores, alpha)
    if threshold == math.inf:
        warn(
            f"Label sets with alpha={alpha} need at least {math.ceil(1 / alpha - 1 - 1e-9)} rows held out for them, "
            f"but there are {len(sorted_scores)}: every set holds all classes. Train on more rows, or raise alpha.",
            "few_conformal_rows",
            len(probabilities),
        )
    sets = 1.0 - probabilities.astype(np.float64) <= threshold
    return np.asarray(sets | decide(probabilities, multilabel=False))
