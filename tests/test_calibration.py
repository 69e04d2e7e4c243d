import numpy as np
import pytest
from sklearn.metrics import f1_score

from sonde.learn.calibration import (
    decide,
    fit_temperature,
    fit_thresholds,
    log_softmax,
    sigmoid,
    softmax,
    to_probabilities,
)
from sonde.learn.targets import encode

RNG = np.random.default_rng(0)


def _draw(rows, classes, sharpness=2.0):
    """Logits, and labels drawn from their softmax."""
    logits = RNG.normal(size=(rows, classes)) * sharpness
    return logits, (softmax(logits).cumsum(axis=1) > RNG.random((rows, 1))).argmax(axis=1)


def test_probabilities_do_not_overflow():
    logits = np.array([[1000.0, 0.0], [-1000.0, 0.0]], dtype=np.float32)
    assert softmax(logits).tolist() == [[1, 0], [0, 1]]
    assert log_softmax(logits).tolist() == [[0, -1000], [-1000, 0]]
    assert sigmoid(logits).tolist() == [[1, 0.5], [0, 0.5]]
    assert to_probabilities(logits, True).dtype == np.float32
    assert to_probabilities(logits, False).sum(axis=1).tolist() == [1, 1]


def test_decide_takes_the_most_probable_or_all_that_reach_their_threshold():
    probabilities = np.array([[0.4, 0.4, 0.2], [0.1, 0.2, 0.7]])
    assert decide(probabilities, False).tolist() == [[True, False, False], [False, False, True]]
    assert decide(probabilities, True).tolist() == [[False] * 3, [False, False, True]]
    assert decide(probabilities, True, np.array([0.4, 0.5, 0.1])).tolist() == [
        [True, False, True],
        [False, False, True],
    ]


@pytest.mark.parametrize("true", [0.25, 1.0, 4.0])
def test_temperature_undoes_overconfidence(true):
    logits, labels = _draw(20000, 4)
    found = fit_temperature(logits * true, encode(labels), np.ones(20000))
    assert found == pytest.approx(true, rel=0.05)


def test_temperature_of_multilabel_data():
    logits = RNG.normal(size=(8000, 3)) * 2
    labels = (RNG.random((8000, 3)) < sigmoid(logits)).astype(int)
    assert fit_temperature(logits * 3, encode(labels), np.ones(8000)) == pytest.approx(3, rel=0.05)


def test_temperature_follows_the_weights_and_keeps_to_its_bounds():
    logits, labels = _draw(4000, 3)
    both = np.concatenate([logits * 5, logits])
    targets = encode(np.concatenate([labels, labels]))
    first, second = np.repeat([1.0, 0.0], 4000), np.repeat([0.0, 1.0], 4000)
    assert fit_temperature(both, targets, first) == pytest.approx(5 * fit_temperature(both, targets, second), rel=2e-3)
    assert fit_temperature(both, targets, np.zeros(8000)) == 1.0
    perfect = 0.1 * np.eye(3)[labels]
    assert fit_temperature(perfect, encode(labels), np.ones(4000)) == pytest.approx(0.05, rel=1e-2)
    assert fit_temperature(-perfect, encode(labels), np.ones(4000)) == pytest.approx(20, rel=1e-2)


def test_a_few_rows_that_happen_to_be_separated_make_nobody_certain():
    truth = np.arange(20) % 2
    logits = np.stack([-truth, truth], axis=1) * 1.0
    first = fit_temperature(logits, encode(truth), np.ones(20))
    second = fit_temperature(logits / first, encode(truth), np.ones(20))
    third = fit_temperature(logits / first / second, encode(truth), np.ones(20))
    assert 0.2 < first < second < third < 1  # each has less to add; their bounds are .05
    many = fit_temperature(np.repeat(logits, 200, axis=0), encode(np.repeat(truth, 200)), np.ones(4000))
    assert many < 0.7 * first


def test_thresholds_are_the_best_of_all_possible_ones():
    truth = (RNG.random((300, 3)) < [0.1, 0.3, 0.6]).astype(int)
    probabilities = np.round(np.clip(truth * 0.15 + RNG.random((300, 3)) * 0.6, 0, 1), 2)  # rounded: with ties
    weights = RNG.uniform(0.5, 2, 300)
    thresholds = fit_thresholds(probabilities, encode(truth), weights)
    for k in range(3):
        reached = f1_score(truth[:, k], probabilities[:, k] >= thresholds[k], sample_weight=weights)
        possible = [
            f1_score(truth[:, k], probabilities[:, k] >= cut, sample_weight=weights, zero_division=0)
            for cut in np.unique(probabilities[:, k])
        ]
        assert reached == pytest.approx(max(possible))


def test_labels_with_hardly_any_positive_rows_keep_one_half():
    truth = np.zeros((50, 2), dtype=int)
    truth[:4, 0] = 1
    truth[:5, 1] = 1
    probabilities = np.where(truth == 1, 0.3, 0.1)
    assert fit_thresholds(probabilities, encode(truth), np.ones(50)).tolist() == pytest.approx([0.5, 0.2])
