"""Label sets: the promise is kept, ties and few rows included."""

import numpy as np
import pytest

from sonde.errors import ArgumentError, ModelError, SondeWarning
from sonde.learn.calibration import sigmoid, softmax
from sonde.learn.conformal import check_scores, conformal_scores, conformal_threshold, predict_sets
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
    with pytest.warns(SondeWarning, match="alpha=0.05 need at least 19 texts.*there are 18") as caught:
        assert predict_sets(probabilities, np.full(18, 0.01), 0.05).all()
    assert caught[0].message.code == "few_conformal_rows"


def test_empty_sets_are_left_empty_on_demand_and_nothing_else_changes():
    probabilities = np.array([[0.5, 0.3, 0.2], [0.95, 0.04, 0.01]])
    scores = np.full(99, 0.2)
    assert predict_sets(probabilities, scores, 0.5, allow_empty=True).tolist() == [[False] * 3, [True, False, False]]
    assert predict_sets(probabilities, scores, 0.5).tolist() == [[True, False, False]] * 2


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.4])
def test_coverage_is_exact_where_sets_may_be_empty(alpha):
    """Within 1 / (n + 1) above 1 - alpha, on average over the draws: of a model far better than alpha, too."""
    covered = []
    for _ in range(150):
        logits, labels = _draw(500, 4, sharpness=8.0)
        probabilities, targets = softmax(logits), encode([*labels.tolist()])
        scores = conformal_scores(probabilities[:250], targets.take(np.arange(250)))
        sets = predict_sets(probabilities[250:], scores, alpha, allow_empty=True)
        covered.append(sets[np.arange(250), labels[250:]].mean())
    error = np.std(covered) / np.sqrt(150)
    assert 1 - alpha - 3 * error < np.mean(covered) < 1 - alpha + 1 / 251 + 3 * error


def test_ties_only_make_sets_larger():
    """Half of the rows share a score: a threshold cannot part them, and errs on the side of the promise."""
    scores = np.sort(np.repeat([0.1, 0.3], 50))
    assert conformal_threshold(scores, 0.6) == 0.1
    for alpha in (0.5, 0.3, 0.1):
        assert conformal_threshold(scores, alpha) == 0.3


def test_a_label_never_seen_is_in_no_set_and_counts():
    targets = encode(["a", "b"]).take(np.array([0, 1]))
    unknown = type(targets)(targets.classes, np.array([[1, 0], [0, 0]], dtype=np.float32), False)
    assert conformal_scores(np.array([[0.75, 0.25], [0.5, 0.5]]), unknown).tolist() == [0.25, 1.0]


def _draw_several(rows, labels=6):
    """Logits of labels that come together, and labels drawn from them; some rows have none."""
    logits = RNG.normal(size=(rows, labels)) * 2 - 1 + RNG.normal(size=(rows, 1))
    return logits, (RNG.random((rows, labels)) < sigmoid(logits)).astype(int)


def _missed(sets, truth):
    """The share of each row's labels that its set misses; rows without labels miss nothing."""
    there = truth.sum(axis=1)
    return np.where(there > 0, (truth & ~sets).sum(axis=1) / np.maximum(there, 1), 0.0)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_multilabel_sets_miss_as_few_labels_as_promised(alpha):
    """Over all draws at most alpha, and hardly less: with the wrong temperature, too."""
    missed = []
    for _ in range(120):
        logits, truth = _draw_several(400)
        probabilities = sigmoid(logits * 3)
        scores = conformal_scores(probabilities[:200], encode(truth).take(np.arange(200)))
        sets = predict_sets(probabilities[200:], scores, alpha, allow_empty=True)
        labelled = truth[200:].any(axis=1)
        missed.append(_missed(sets, truth[200:])[labelled].mean())
    error = np.std(missed) / np.sqrt(120)
    assert alpha - 2 / 150 - 3 * error < np.mean(missed) < alpha + 3 * error


@pytest.mark.parametrize("alpha", [0.02, 0.1, 0.5, 0.9])
def test_the_threshold_is_the_one_that_a_plain_search_finds(alpha):
    """The definition: the smallest threshold at which (n risk + 1) / (n + 1) <= alpha, tried one by one."""
    logits, truth = _draw_several(90)
    probabilities = np.round(sigmoid(logits), 2)  # with ties
    labelled = truth.any(axis=1)
    n = labelled.sum()
    found = conformal_threshold(conformal_scores(probabilities, encode(truth)), alpha)
    for threshold in np.unique(1 - probabilities):
        risk = _missed(1 - probabilities <= threshold, truth)[labelled].mean()
        if (n * risk + 1) / (n + 1) <= alpha + 1e-9:
            break
    assert found == threshold


def test_one_label_a_row_is_the_same_either_way():
    logits, labels = _draw(300, 4)
    probabilities, single = softmax(logits), encode([*labels.tolist()])
    several = encode(single.indicator.astype(int))
    assert several.multilabel
    for alpha in (0.01, 0.1, 0.37):
        found = [conformal_threshold(conformal_scores(probabilities, targets), alpha) for targets in (single, several)]
        assert found[0] == found[1]


def test_scores_of_multilabel_rows_know_the_share_of_each_label():
    targets = encode([["a", "b"], ["a"], []])
    probabilities = np.array([[0.9, 0.6], [0.8, 0.1], [0.5, 0.5]])
    scores = conformal_scores(probabilities, targets)
    np.testing.assert_allclose(scores, [[0.1, 0.5], [0.2, 1.0], [0.4, 0.5]])
    with pytest.warns(SondeWarning, match="alpha=0.2 need at least 4 texts.*there are 2: every set holds all"):
        assert predict_sets(probabilities, scores, 0.2).all()


def test_scores_of_no_rows_are_read_as_such():
    for labels in (["a", "b"], [["a"], ["b"]]):
        scores = conformal_scores(np.empty((0, 2)), encode(labels).take(np.array([], dtype=np.int64)))
        assert conformal_threshold(scores, 0.5) == np.inf
        check_scores(scores, isinstance(labels[0], list))


GOOD = np.array([[0.1, 1.0], [0.2, 1 / 3], [0.3, 1 / 3], [0.4, 1 / 3]])


@pytest.mark.parametrize(
    ("scores", "multilabel", "sentence"),
    [
        (GOOD, False, "must have one dimension"),
        (GOOD[:, 0], True, "must have two columns"),
        (GOOD[:, :1], True, "must have two columns"),
        (GOOD.astype(np.float32), True, "in float64"),
        (GOOD[:, 0].astype(np.float32), False, "in float64"),
        (GOOD[::-1], True, "do not rise from 0 to 1"),
        (GOOD[:, 0] + 0.7, False, "do not rise from 0 to 1"),
        (GOOD[:, 0] - 0.2, False, "do not rise from 0 to 1"),
        (GOOD[:, 0] * np.nan, False, "do not rise from 0 to 1"),
        (GOOD[:3], True, "are not of whole rows"),
        (GOOD * [1, 0.9], True, "are not of whole rows"),
        (GOOD * [1, 0], True, "are not of whole rows"),
        (GOOD * [1, 2], True, "are not of whole rows"),
    ],
)
def test_scores_that_no_calibration_gives_are_refused(scores, multilabel, sentence):
    check_scores(GOOD if multilabel else GOOD[:, 0], multilabel)
    with pytest.raises(ModelError, match=f"The conformal scores .*{sentence}.* the model is damaged"):
        check_scores(scores, multilabel)
