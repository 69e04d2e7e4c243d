import json

import numpy as np
import pytest
from scipy.stats import binom
from sklearn import metrics as reference

from sonde.errors import ArgumentError
from sonde.learn.metrics import (
    accuracy,
    calibrated_error,
    difference,
    expected_calibration_error,
    holm,
    log_loss,
    macro_f1,
    macro_roc_auc,
    mcnemar,
    mean_average_precision,
    micro_f1,
    per_class,
    ranking,
)
from sonde.learn.targets import encode_against

RNG = np.random.default_rng(0)
IDS, SAID, WEIGHTS = RNG.integers(0, 4, 200), RNG.integers(0, 4, 200), RNG.uniform(0.1, 3, 200)
TRUTH, PREDICTED = np.eye(4)[IDS], np.eye(4)[SAID]
MANY, MANY_SAID, SCORES = RNG.random((200, 5)) < 0.3, RNG.random((200, 5)) < 0.3, RNG.random((200, 5))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_single_label_metrics_equal_scikit_learn(weights):
    assert accuracy(TRUTH, PREDICTED, weights) == pytest.approx(
        reference.accuracy_score(IDS, SAID, sample_weight=weights)
    )
    for ours, average in ((macro_f1, "macro"), (micro_f1, "micro")):
        expected = reference.f1_score(IDS, SAID, average=average, sample_weight=weights)
        assert ours(TRUTH, PREDICTED, weights) == pytest.approx(expected)
    probabilities = RNG.dirichlet(np.ones(4), 200)
    assert log_loss(TRUTH, probabilities, weights=weights) == pytest.approx(
        reference.log_loss(IDS, probabilities, sample_weight=weights)
    )


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_multilabel_metrics_equal_scikit_learn(weights):
    assert accuracy(MANY, MANY_SAID, weights) == pytest.approx(
        reference.accuracy_score(MANY, MANY_SAID, sample_weight=weights)
    )
    for ours, average in ((macro_f1, "macro"), (micro_f1, "micro")):
        expected = reference.f1_score(MANY, MANY_SAID, average=average, sample_weight=weights)
        assert ours(MANY, MANY_SAID, weights) == pytest.approx(expected)
    assert mean_average_precision(MANY, SCORES, weights) == pytest.approx(
        reference.average_precision_score(MANY, SCORES, average="macro", sample_weight=weights)
    )
    expected = np.mean([reference.log_loss(MANY[:, k], SCORES[:, k], sample_weight=weights) for k in range(5)])
    assert log_loss(MANY, SCORES, multilabel=True, weights=weights) == pytest.approx(expected)


def test_a_label_never_seen_counts_as_wrong():
    truth = np.array([[1, 0], [0, 0]])
    predicted = np.array([[1, 0], [1, 0]])
    assert accuracy(truth, predicted) == 0.5
    assert macro_f1(truth, predicted) == pytest.approx(2 / 3)
    assert log_loss(truth, np.array([[1.0, 0.0], [1.0, 0.0]])) == pytest.approx(-np.log(1e-7) / 2, rel=1e-6)


@pytest.mark.parametrize("weights", [None, np.array([1.0, 2.5])])
def test_every_label_that_nobody_can_give_is_missed(weights):
    truth = encode_against([["a", "x", "y", "x"], ["b"]], np.array(["a", "b"]), multilabel=True)
    assert truth.unknown.tolist() == [2, 0] and truth.strange.tolist() == [True, False]
    assert truth.take(np.array([1])).strange.tolist() == [False]
    said = np.array([[1, 0, 0, 0], [1, 1, 0, 0]])
    theirs = reference.f1_score([[1, 0, 1, 1], [0, 1, 0, 0]], said, average="micro", sample_weight=weights)
    assert micro_f1(truth.indicator, said[:, :2], weights, truth.unknown) == pytest.approx(theirs)
    assert micro_f1(truth.indicator[:1], said[:1, :2], None, truth.unknown[:1]) == 0.5


def test_log_loss_of_certain_and_wrong_is_finite():
    assert log_loss(np.array([[1, 0]]), np.array([[0.0, 1.0]])) == pytest.approx(-np.log(1e-7))


def test_average_precision_leaves_out_labels_that_do_not_occur():
    truth = np.array([[1, 0], [0, 0]])
    assert mean_average_precision(truth, np.array([[0.9, 0.3], [0.1, 0.7]])) == 1.0
    assert mean_average_precision(np.zeros((2, 2)), np.ones((2, 2))) == 0.0


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    confidence = np.concatenate([np.full(500, 0.6), np.full(500, 0.9)])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    right = np.concatenate([np.arange(500) < 300, np.arange(500) < 400])  # .6 and .8 of the rows
    truth = np.stack([right, ~right], axis=1)
    assert expected_calibration_error(truth, probabilities) == pytest.approx(0.05)
    shuffled = RNG.permutation(1000)
    assert expected_calibration_error(truth[shuffled], probabilities[shuffled]) == pytest.approx(0.05)
    weights = np.concatenate([np.ones(500), np.full(500, 3.0)])
    assert expected_calibration_error(truth, probabilities, weights=weights) == pytest.approx(0.075)
    assert expected_calibration_error(truth, probabilities, multilabel=True) == pytest.approx(0.05)


def test_calibration_error_bins_hold_equally_many_rows():
    confidence = np.linspace(0.5, 1, 3000)
    truth = np.stack([np.arange(3000) % 2 == 0, np.arange(3000) % 2 == 1], axis=1)
    error = expected_calibration_error(truth, np.stack([confidence, 1 - confidence], axis=1))
    assert error == pytest.approx(np.mean(confidence) - 0.5, abs=1e-3)


def test_per_class_equals_scikit_learn_and_is_json():
    table = per_class(np.array(["a", "b", "c", "d"]), TRUTH, PREDICTED, PREDICTED.astype(float))
    precision, recall, f1, support = reference.precision_recall_fscore_support(IDS, SAID)
    assert [row["label"] for row in table] == ["a", "b", "c", "d"]
    assert [row["precision"] for row in table] == pytest.approx(precision.tolist())
    assert [row["recall"] for row in table] == pytest.approx(recall.tolist())
    assert [row["f1"] for row in table] == pytest.approx(f1.tolist())
    assert [row["support"] for row in table] == support.tolist()
    assert json.loads(json.dumps(table)) == table
    empty = per_class(np.array([True, False]), np.zeros((3, 2)), np.zeros((3, 2)), np.zeros((3, 2)))
    unranked = {"average_precision": None, "roc_auc": None}
    assert empty[0] == {"label": True, "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0, **unranked}


def test_ranking_is_that_of_scikit_learn_where_it_is_defined():
    rng = np.random.default_rng(0)
    ids = np.concatenate([np.arange(4), rng.integers(4, size=60)])
    scores = rng.dirichlet(np.ones(4), 64)
    truth = np.eye(4)[ids]
    assert macro_roc_auc(truth, scores) == pytest.approx(reference.roc_auc_score(ids, scores, multi_class="ovr"))
    areas = [one["roc_auc"] for one in ranking(truth, scores)]
    assert areas == pytest.approx([reference.roc_auc_score(ids == k, scores[:, k]) for k in range(4)])
    assert [one["roc_auc"] for one in ranking(np.ones((2, 1)), np.ones((2, 1)))] == [None]
    assert macro_roc_auc(np.zeros((2, 2)), np.ones((2, 2))) is None


def test_mcnemar_is_the_binomial_test_of_the_disagreements():
    a = np.array([True] * 50 + [True] * 9 + [False] * 2 + [False] * 10)
    b = np.array([True] * 50 + [False] * 9 + [True] * 2 + [False] * 10)
    assert mcnemar(a, b, "greater") == pytest.approx(binom.sf(8, 11, 0.5))
    assert mcnemar(a, b, "less") == pytest.approx(binom.cdf(9, 11, 0.5))
    assert mcnemar(a, b) == pytest.approx(2 * binom.sf(8, 11, 0.5))
    assert mcnemar(b, a, "less") == pytest.approx(mcnemar(a, b, "greater"))
    assert mcnemar(a, a) == 1.0
    with pytest.raises(ArgumentError, match="two-sided, greater, less"):
        mcnemar(a, b, "better")


def test_holm_multiplies_by_the_number_of_hypotheses_left():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]).tolist() == [1.0, 1.0]


def _plain_calibrated_errors(probabilities, multilabel, draws):
    """Draw labels, measure, again and again."""
    rng, found = np.random.default_rng(1), []
    for _ in range(draws):
        if multilabel:
            truth = rng.random(probabilities.shape) < probabilities
        else:
            right = rng.random(len(probabilities)) < probabilities.max(axis=1)
            truth = np.zeros_like(probabilities)
            truth[
                np.arange(len(truth)), np.where(right, probabilities.argmax(axis=1), probabilities.argmin(axis=1))
            ] = 1
        found.append(expected_calibration_error(truth, probabilities, multilabel=multilabel))
    return np.array(found)


@pytest.mark.parametrize("multilabel", [False, True])
def test_what_chance_leaves_is_what_repeated_draws_show(multilabel):
    probabilities = np.round(RNG.dirichlet([3, 1, 0.5, 0.5], 400), 2)  # with ties
    plain = _plain_calibrated_errors(probabilities, multilabel, 1500)
    for level in (0.5, 0.95):
        found = calibrated_error(probabilities, multilabel=multilabel, level=level)
        assert found == pytest.approx(np.quantile(plain, level), rel=0.05)


def test_a_calibrated_model_exceeds_what_chance_leaves_in_one_case_of_twenty():
    over = 0
    for _ in range(400):
        probabilities = RNG.dirichlet([4, 1, 1], 150)
        truth = np.eye(3)[(probabilities.cumsum(axis=1) > RNG.random((150, 1))).argmax(axis=1)]
        over += expected_calibration_error(truth, probabilities) > calibrated_error(probabilities, draws=200)
    assert 0.02 < over / 400 < 0.09


def test_what_chance_leaves_does_not_depend_on_order_or_memory(monkeypatch):
    probabilities = RNG.dirichlet([4, 1, 1], 500)
    whole = calibrated_error(probabilities)
    assert calibrated_error(probabilities[::-1]) == whole == calibrated_error(probabilities, seed=0)
    assert calibrated_error(probabilities, seed=1) != whole
    monkeypatch.setattr("sonde.learn.metrics.DRAWN", 700)  # one draw at a time
    assert calibrated_error(probabilities) == whole
    assert calibrated_error(probabilities[:1]) > 0


def test_more_rows_leave_less_to_chance():
    found = [calibrated_error(RNG.dirichlet([4, 1, 1], rows)) for rows in (100, 1000, 10000)]
    assert found[0] > 2 * found[1] > 4 * found[2]


def test_a_difference_comes_with_its_standard_error():
    one, other = np.eye(2)[np.zeros(4000, int)], np.eye(2)[np.zeros(4000, int)]
    truth = one.copy()
    other[:100] = other[:100, ::-1]  # only `one` is right
    one[100:160] = one[100:160, ::-1]  # only `other` is right
    gain, error = difference(accuracy, truth, one, other, np.ones(4000))
    assert gain == pytest.approx(0.01)
    assert error == pytest.approx(np.sqrt((160 - 40**2 / 4000) / 4000**2), rel=0.25)
    assert difference(macro_f1, truth, one, one, np.ones(4000)) == (0.0, 0.0)
    assert difference(accuracy, truth, other, one, np.ones(4000)) == (pytest.approx(-0.01), error)
    plain = difference(lambda *of: accuracy(*of), truth, one, other, np.ones(4000))
    assert (gain, error) == pytest.approx(plain, rel=1e-9)
    once = difference(accuracy, truth[:200], one[:200], other[:200], np.ones(200))
    twice = difference(accuracy, truth[:200], one[:200], other[:200], np.full(200, 2.0))
    assert once == pytest.approx(twice), "what a row weighs counts against the other rows alone"
