"""How good predictions are, and whether one model is better than another.

    accuracy                      share of rows labelled right
    is_right                      rows whose whole set of labels is right
    macro_f1, micro_f1            F1 averaged over classes, and of all decisions together
    log_loss, row_losses          mean negative log probability of the truth, and that of each row
    expected_calibration_error    gap between confidence and accuracy
    calibrated_error              the gap that chance alone leaves a perfectly calibrated model
    reliability                   confidence beside accuracy, bin by bin
    ranking                       how well scores put the rows of each class before others
    mean_average_precision, macro_roc_auc    the mean of that over classes; `mean_of`, where it is worked out already
    per_class                     precision, recall, F1, support and ranking of each class
    difference                    how much better one set of predictions is than another, and how sure that is
    mcnemar, holm                 paired test of two models, and its correction for many data sets

Truth and predictions are indicator matrices (row, class), as in `Targets.indicator`: the same functions serve
single- and multi-label data. An all-zero row of single-label truth is a label that the model never saw: whatever is
predicted there is wrong.
`weights` are sample weights, one per row; None counts every row once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64, Shaped
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

from sonde.errors import choose

Weights = Float[np.ndarray, " row"] | Int[np.ndarray, " row"] | None
Measure = Callable[[np.ndarray, np.ndarray, Weights], float]

# Probabilities are float32 somewhere on their way: below its resolution near 1 they carry no information.
SMALLEST_PROBABILITY = 1e-7
# Guo et al. 2017, "On Calibration of Modern Neural Networks", section 5 reports 15 bins; so do we.
BINS = 15
# Draws of rows: the standard error of a difference to about 7% of itself.
RESAMPLES = 100
# Draws of labels from the probabilities: the 95% value of 1,000 repeats to about 2% of itself.
DRAWS = 1000
# Decisions drawn at a time: 16 MB of random numbers.
DRAWN = 2**22


def is_right(
    truth: Shaped[np.ndarray, "row class"],
    predicted: Shaped[np.ndarray, "row class"],
    strange: Bool[np.ndarray, " row"] | None = None,
) -> Bool[np.ndarray, " row"]:
    """Rows labelled right; of multi-label data, with exactly the right set of labels.

    `strange` rows have labels beside the classes, which nobody can give: they are wrong.
    """
    right = (truth.astype(bool) == predicted.astype(bool)).all(axis=1)
    return np.asarray(right if strange is None else right & ~strange)


def accuracy(
    truth: Shaped[np.ndarray, "row class"],
    predicted: Shaped[np.ndarray, "row class"],
    weights: Weights = None,
    strange: Bool[np.ndarray, " row"] | None = None,
) -> float:
    """Share of rows that are right, as `is_right` says."""
    return float(np.average(is_right(truth, predicted, strange), weights=weights))


def macro_f1(
    truth: Shaped[np.ndarray, "row class"],
    predicted: Shaped[np.ndarray, "row class"],
    weights: Weights = None,
    foreign: int = 0,
) -> float:
    """Mean F1 over the classes that occur in the truth or are predicted; 0 if there are none.

    So counts scikit-learn for one label a row; of an indicator matrix it averages all columns, those that nobody has or
    is given with an F1 of 0.

    So many labels in the truth beside the classes are `foreign`, and never found: each is a class with an F1 of 0.
    """
    both, said, there = _counts(truth, predicted, weights)
    occurs = said + there > 0
    found = 2 * both[occurs] / (said + there)[occurs]
    return float(found.sum() / (len(found) + foreign)) if len(found) + foreign else 0.0


def micro_f1(
    truth: Shaped[np.ndarray, "row class"],
    predicted: Shaped[np.ndarray, "row class"],
    weights: Weights = None,
    unknown: Int[np.ndarray, " row"] | None = None,
) -> float:
    """F1 of all (row, class) decisions together; 0 if nothing is true and nothing predicted.

    So many labels of each row are `unknown`, beside the classes, and are missed.
    """
    both, said, there = (counts.sum() for counts in _counts(truth, predicted, weights))
    if unknown is not None:
        there += unknown.sum() if weights is None else weights @ unknown
    return float(2 * both / (said + there)) if said + there > 0 else 0.0


def log_loss(
    truth: Shaped[np.ndarray, "row class"],
    probabilities: Float[np.ndarray, "row class"],
    *,
    multilabel: bool = False,
    weights: Weights = None,
) -> float:
    """Mean negative log probability of the truth, in nats.

    Probabilities are clipped at 1e-7, which is also what a label never seen gets. Multi-label: the mean over all
    (row, class) decisions.
    """
    return float(np.average(row_losses(truth, probabilities, multilabel=multilabel), weights=weights))


def row_losses(
    truth: Shaped[np.ndarray, "row class"], probabilities: Float[np.ndarray, "row class"], *, multilabel: bool = False
) -> Float64[np.ndarray, " row"]:
    """What each row adds to `log_loss`."""
    clipped = np.clip(probabilities.astype(np.float64), SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)  # row class
    if multilabel:
        return np.asarray(-np.where(truth > 0, np.log(clipped), np.log1p(-clipped)).mean(axis=1))  # row class -> row
    of_truth = np.where(truth > 0, clipped, 0.0).sum(axis=1)  # row class -> row
    return np.asarray(-np.log(np.maximum(of_truth, SMALLEST_PROBABILITY)))


def expected_calibration_error(
    truth: Shaped[np.ndarray, "row class"],
    probabilities: Float[np.ndarray, "row class"],
    *,
    multilabel: bool = False,
    weights: Weights = None,
    bins: int = BINS,
) -> float:
    """Mean absolute gap between confidence and accuracy over bins that hold equally many rows.

    Single-label: of the most probable class. Multi-label: of every (row, class) probability. Rows of equal confidence
    share a bin, so the order of the rows does not matter.

    Source: Guo et al. 2017, section 2 (the error); Nguyen and O'Connor 2015, section 3 (equal-mass bins).
    """
    mass = np.ones(len(truth)) if weights is None else weights.astype(np.float64)
    if multilabel:
        mass = np.repeat(mass, truth.shape[1])  # row -> decision
    confidence = _confidence(probabilities, multilabel)
    gaps = np.bincount(_bins(confidence, bins), weights=mass * (confidence - _right(truth, probabilities, multilabel)))
    return float(np.abs(gaps).sum() / mass.sum())


def reliability(
    truth: Shaped[np.ndarray, "row class"],
    probabilities: Float[np.ndarray, "row class"],
    *,
    multilabel: bool = False,
    bins: int = BINS,
) -> list[dict[str, float]]:
    """Confidence beside accuracy in the bins of `expected_calibration_error`, the least sure first.

    Returns
    -------
    list of dict
        For each bin that holds any decision: `decisions`, `right` (how many of them are), `confidence` (their mean),
        `least` and `most` (the lowest and highest of it).
    """
    confidence, right = _confidence(probabilities, multilabel), _right(truth, probabilities, multilabel)
    bin_of = _bins(confidence, bins)
    table = []
    for own in (bin_of == i for i in np.unique(bin_of)):
        some = confidence[own]
        edges = {"confidence": float(some.mean()), "least": float(some.min()), "most": float(some.max())}
        table.append({"decisions": int(own.sum()), "right": int(right[own].sum()), **edges})
    return table


def calibrated_error(
    probabilities: Float[np.ndarray, "row class"],
    *,
    multilabel: bool = False,
    bins: int = BINS,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> float:
    """The value that the expected calibration error of a perfectly calibrated model stays below in 95% of all cases.

    The error is never 0 on a finite set, also where confidences are exactly right: chance leaves gaps.
    Whether each most probable class is right is drawn with its probability, `draws` times; the bins are those of
    `expected_calibration_error`, as they depend on the confidences alone. Multi-label: every (row, class) is drawn on
    its own; labels that come together would leave larger gaps.

    Source: Vaicenavicius et al. 2019, "Evaluating model calibration in classification" (consistency resampling,
    after Broecker and Smith 2007).
    """
    confidence = _confidence(probabilities, multilabel)
    order = np.argsort(confidence, kind="stable")  # bins lie side by side then
    ranked = confidence[order].astype(np.float32)
    starts = np.flatnonzero(np.diff(_bins(confidence[order], bins), prepend=-1))  # bin
    expected = np.add.reduceat(confidence[order], starts)
    rng, errors = np.random.default_rng(seed), []
    step = max(1, DRAWN // len(ranked))
    for start in range(0, draws, step):
        uniform = rng.random((min(step, draws - start), len(ranked)), dtype=np.float32)  # draw decision
        right = np.add.reduceat(uniform < ranked, starts, axis=1, dtype=np.int32)  # draw decision -> draw bin
        errors.append(np.abs(expected - right).sum(axis=1) / len(ranked))  # draw bin -> draw
    return float(np.quantile(np.concatenate(errors), level))


def ranking(
    truth: Shaped[np.ndarray, "row class"], scores: Float[np.ndarray, "row class"], weights: Weights = None
) -> list[dict[str, float | None]]:
    """`average_precision` of each class, None where it does not occur, and `roc_auc`, None also where all rows have it.

    Every class against all others, whatever is decided: what a threshold of one's own can make of the scores.
    """
    found: list[dict[str, float | None]] = []
    for there, score in zip((truth > 0).T, scores.T, strict=True):
        occurs = bool(there.any())
        precision = average_precision_score(there, score, sample_weight=weights) if occurs else None
        area = roc_auc_score(there, score, sample_weight=weights) if occurs and not there.all() else None
        found.append({"average_precision": _number(precision), "roc_auc": _number(area)})
    return found


def mean_average_precision(
    truth: Shaped[np.ndarray, "row class"], scores: Float[np.ndarray, "row class"], weights: Weights = None
) -> float:
    """Average precision of each label that occurs, averaged over labels; 0 if none occurs."""
    return mean_of(ranking(truth, scores, weights), "average_precision") or 0.0


def macro_roc_auc(
    truth: Shaped[np.ndarray, "row class"], scores: Float[np.ndarray, "row class"], weights: Weights = None
) -> float | None:
    """Area under the ROC curve of each class against all others, averaged over classes; None where none has one."""
    return mean_of(ranking(truth, scores, weights), "roc_auc")


def mean_of(classes: Sequence[Mapping[str, Any]], figure: str) -> float | None:
    """The mean of a figure of `ranking` or `per_class` over the classes that have it; None where none has."""
    told = [one[figure] for one in classes if one[figure] is not None]
    return float(np.mean(told)) if told else None


def _number(given: Any) -> float | None:
    return None if given is None else float(given)


def per_class(
    classes: Shaped[np.ndarray, " class"],
    truth: Shaped[np.ndarray, "row class"],
    predicted: Shaped[np.ndarray, "row class"],
    scores: Float[np.ndarray, "row class"],
    weights: Weights = None,
) -> list[dict[str, Any]]:
    """One JSON-able dict per class: label, precision, recall, f1 (0 where undefined), support (weight of its rows).

    And what `ranking` says of it.
    """
    table = []
    ranked = ranking(truth, scores, weights)
    for label, both, said, there, rank in zip(
        classes.tolist(), *_counts(truth, predicted, weights), ranked, strict=True
    ):
        table.append(
            {
                "label": label,
                "precision": _ratio(both, said),
                "recall": _ratio(both, there),
                "f1": _ratio(2 * both, said + there),
                "support": int(there) if float(there).is_integer() else float(there),
                **rank,
            }
        )
    return table


def difference(
    measure: Measure,
    truth: Shaped[np.ndarray, "row class"],
    one: Shaped[np.ndarray, "row class"],
    other: Shaped[np.ndarray, "row class"],
    weights: Float[np.ndarray, " row"],
) -> tuple[float, float]:
    """What `one` reaches more than `other` on the same rows, and the standard error of that.

    Parameters
    ----------
    measure : callable
        `accuracy` or another of this module that takes truth, predictions and weights.
    truth, one, other : ndarray (row, class)
    weights : ndarray (row,)

    Returns
    -------
    difference, error : float
        The error is the deviation over 100 other draws of the rows, each as often as a Poisson draw says (Efron 1979,
        "Bootstrap Methods"; the same draws at every call). 0 where both predict the same.
    """
    if measure is accuracy:  # whether a row is right is found once, not for every draw
        one, other = is_right(truth, one)[:, None], is_right(truth, other)[:, None]
        truth = np.ones_like(one)
    gain = measure(truth, one, weights) - measure(truth, other, weights)
    if np.array_equal(one, other):
        return 0.0, 0.0
    draw = np.random.default_rng(0)
    gains = []
    for _ in range(RESAMPLES):
        drawn = weights * draw.poisson(1.0, len(weights))  # row
        if drawn.any():
            gains.append(measure(truth, one, drawn) - measure(truth, other, drawn))
    return gain, float(np.std(gains)) if gains else 0.0


def mcnemar(
    a_correct: Bool[np.ndarray, " row"], b_correct: Bool[np.ndarray, " row"], alternative: str = "two-sided"
) -> float:
    """Exact p value of McNemar's paired test that two models are right equally often.

    Parameters
    ----------
    a_correct, b_correct : ndarray (row,)
        Whether each model is right on each row of the same test set.
    alternative : "two-sided", "greater" or "less"
        "greater": a is right more often than b; "less": a is right less often.

    Source: McNemar 1947; the exact form is the binomial test on the rows where the two disagree.
    """
    choose("The alternative", alternative, ("two-sided", "greater", "less"))
    a_alone = int((a_correct & ~b_correct).sum())
    b_alone = int((b_correct & ~a_correct).sum())
    if a_alone + b_alone == 0:
        return 1.0
    return float(binomtest(a_alone, a_alone + b_alone, 0.5, alternative=alternative).pvalue)


def holm(p_values: Sequence[float] | Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """P values corrected for testing several hypotheses, in the order given (Holm 1979)."""
    given = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    corrected = np.empty_like(given)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1)))
    return corrected


def _confidence(probabilities: Float[np.ndarray, "row class"], multilabel: bool) -> Float64[np.ndarray, " decision"]:
    """Probabilities of what is claimed: of every label, or of the most probable class."""
    return np.asarray(probabilities.ravel() if multilabel else probabilities.max(axis=1), dtype=np.float64)


def _right(
    truth: Shaped[np.ndarray, "row class"], probabilities: Float[np.ndarray, "row class"], multilabel: bool
) -> Bool[np.ndarray, " decision"]:
    """Whether what is claimed is true."""
    if multilabel:
        return np.asarray(truth.ravel() > 0)  # row class -> decision
    top = probabilities.argmax(axis=1)[:, None]
    return np.asarray(np.take_along_axis(truth, top, axis=1)[:, 0] > 0)  # row class -> row


def _bins(confidence: Float64[np.ndarray, " decision"], bins: int) -> Int64[np.ndarray, " decision"]:
    """The bin of each, with equally many in all; equal confidences share one."""
    edges = np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, confidence, side="left")


def _counts(
    truth: Shaped[np.ndarray, "row class"], predicted: Shaped[np.ndarray, "row class"], weights: Weights
) -> tuple[Float[np.ndarray, " class"], Float[np.ndarray, " class"], Float[np.ndarray, " class"]]:
    """Weight of the rows per class: true and predicted, predicted, true."""
    mass = np.ones(len(truth)) if weights is None else weights.astype(np.float64)
    there, said = truth > 0, predicted > 0  # row class
    return mass @ (there & said), mass @ said, mass @ there


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 0.0
