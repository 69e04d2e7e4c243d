"""Label sets: the promise is kept, ties and few rows included."""

import numpy as np
import pytest

from sonde.errors import ArgumentError, SondeWarning
from sonde.learn.calibration import softmax
from sonde.learn.conformal import conformal_scores, conformal_threshold, predict_sets
from sonde.learn.targets import encode

RNG = np.random.default_rng(0)


def _draw(rows, classes, sharpness=2.0):
    """Logits, and labels drawn from their softmax."""
    logits = RNG.normal(size=(rows, classes)) * sharpness
    return logits, (softmax(logits).cumsum(axis=1) > RNG.random((rows, 1))).argmax(axis=1)


def test_conformal_threshold_is_the_corrected_quantile():
    scores = np.arange(1, 20) / 20  # 19 scores: (19 + 1) * .9 = 18th
    assert conformal_threshold(scores, 0.1) == pytest.approx(0.9)
    assert conformal_threshold(scores, 0.05) == pytest.approx(0.95)
    assert conformal_threshold(scores, 0.04) == np.inf


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 5.0])
def test_alpha_must_lie_between_0_and_1(alpha):
    with pytest.raises(ArgumentError, match="must lie between 0 and 1"):
        conformal_threshold(np.array([0.1]), alpha)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_sets_hold_the_truth_as_often_as_promised(alpha):
    covered, sizes = [], []
    for _ in range(60):
        logits, labels = _draw(600, 5)
        probabilities = softmax(logits * 2)  # overconfident: coverage must not depend on calibration
        scores = conformal_scores(probabilities[:200], encode([*labels.tolist()]).take(np.arange(200)))
        sets = predict_sets(probabilities[200:], scores, alpha)
        covered.append(sets[np.arange(400), labels[200:]].mean())
        sizes.append(sets.sum(axis=1).min())
    assert np.mean(covered) == pytest.approx(1 - alpha, abs=0.012)
    assert min(sizes) >= 1


def test_sets_are_never_empty_and_full_when_there_are_too_few_rows():
    probabilities = np.array([[0.5, 0.3, 0.2]])
    assert predict_sets(probabilities, np.full(99, 0.01), 0.5).tolist() == [[True, False, False]]
    with pytest.warns(SondeWarning, match="alpha=0.05 need at least 19 rows.*there are 18") as caught:
        assert predict_sets(probabilities, np.full(18, 0.01), 0.05).all()
    assert caught[0].message.code == "few_conformal_rows"


def test_scores_of_multilabel_rows_are_of_their_least_probable_label():
    targets = encode([["a", "b"], ["a"], []])
    probabilities = np.array([[0.9, 0.6], [0.8, 0.1], [0.5, 0.5]])
    assert conformal_scores(probabilities, targets).tolist() == pytest.approx([0.0, 0.2, 0.4])
