"""Abstention: the curve against a plain count, and thresholds that keep what they promise."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import make, worded
from scipy.stats import binom
from sklearn.exceptions import NotFittedError

import sonde
from sonde import TextClassifier
from sonde.errors import ArgumentError, ModelError, SondeWarning
from sonde.evaluation import evaluate
from sonde.learn.abstention import (
    CERTAINTY,
    DOUBT,
    STARTS,
    answers_of,
    check_answers,
    check_threshold,
    error_threshold,
    risk_coverage,
    withhold,
)
from sonde.learn.targets import Targets, encode

RNG = np.random.default_rng(0)
TEXTS, LABELS = worded(900)
NEW_TEXTS, NEW_LABELS = worded(400, seed=1)


def answers(confidence, right):
    """As `answers_of` gives them."""
    both = np.stack([confidence, right], axis=1).astype(np.float32)
    return both[np.lexsort((both[:, 1], -both[:, 0]))]


# --------------------------------------------------------------------------------------------------- the curve


@pytest.mark.parametrize("digits", [1, 8])
def test_the_curve_is_what_counting_gives(digits: int) -> None:
    confidence = np.round(RNG.random(200), digits)  # one digit: with many ties
    right = RNG.random(200) < confidence
    curve = risk_coverage(confidence, right)
    assert curve.thresholds.tolist() == sorted(set(confidence.tolist()), reverse=True)
    for coverage, risk, threshold in zip(curve.coverage, curve.risk, curve.thresholds, strict=True):
        kept = confidence >= threshold
        assert coverage == pytest.approx(kept.mean()) and risk == pytest.approx((~right[kept]).mean())
    of_rows = [(~right[confidence >= one]).mean() for one in confidence]
    assert curve.area == pytest.approx(np.mean(of_rows))


def test_the_order_of_rows_does_not_matter() -> None:
    confidence, right = np.round(RNG.random(100), 1), RNG.random(100) < 0.7
    order = RNG.permutation(100)
    assert risk_coverage(confidence, right).area == risk_coverage(confidence[order], right[order]).area


def test_surer_is_better_only_where_confidence_means_something() -> None:
    confidence = RNG.random(20000)
    honest = risk_coverage(confidence, RNG.random(20000) < confidence)
    random = risk_coverage(confidence, RNG.random(20000) < 0.5)
    assert honest.area == pytest.approx(0.25, abs=0.01)  # the mean over c of c / 2
    assert random.area == pytest.approx(0.5, abs=0.02)
    assert risk_coverage(confidence, np.ones(20000, dtype=bool)).area == 0


def test_points_answer_as_many_rows_as_asked_for() -> None:
    curve = risk_coverage(np.array([0.9, 0.8, 0.8, 0.6]), np.array([True, False, True, False]))
    assert curve.at(0.25) == {"coverage": 0.25, "error": 0.0, "threshold": 0.9}
    assert curve.at(0.5) == {"coverage": 0.75, "error": pytest.approx(1 / 3), "threshold": 0.8}
    assert curve.at(1.0) == {"coverage": 1.0, "error": 0.5, "threshold": 0.6}
    assert risk_coverage(np.arange(10) / 10, np.ones(10, dtype=bool)).at(0.9)["coverage"] == pytest.approx(0.9)


# -------------------------------------------------------------------------------------------------- thresholds


def plain_threshold(given: np.ndarray, target: float) -> float:
    """The same walk, one row after another."""
    rows, best = len(given), 0
    fewest = math.ceil(math.log(DOUBT) / math.log(1 - target))
    for share in STARTS:
        at = max(fewest, math.ceil(share * rows))
        while at <= rows:
            while at < rows and given[at, 0] == given[at - 1, 0]:
                at += 1
            wrong = int((given[:at, 1] == 0).sum())
            if binom.cdf(wrong, at, target) > DOUBT:
                break
            best, at = max(best, at), at + 1
    return 0.0 if best == rows else float(given[best - 1, 0]) if best else math.inf


@pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
@pytest.mark.parametrize("digits", [2, 9])
def test_the_threshold_is_that_of_a_plain_walk(digits: int) -> None:
    found = []
    for rows in (60, 200, 900):
        for target in (0.02, 0.05, 0.1, 0.3):
            confidence = np.round(RNG.beta(6, 1, rows), digits)
            given = answers(confidence, RNG.random(rows) < confidence)
            found.append(error_threshold(given, target))
            assert found[-1] == plain_threshold(given, target)
    assert 0.0 in found and math.inf in found and any(0 < one < 1 for one in found)


@pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
@pytest.mark.parametrize("target", [0.05, 0.1, 1 / 7])
def test_the_promise_is_kept_in_95_percent_of_all_draws(target: float) -> None:
    """Confidences with density 6 c^5, right with probability c: answers from c on are wrong at a known rate."""

    def risk(threshold: float) -> float:
        answered = 1 - threshold**6
        return 1 - 6 / 7 * (1 - threshold**7) / answered if answered else 0.0

    thresholds = []
    for _ in range(300):
        confidence = RNG.beta(6, 1, 1000)
        thresholds.append(error_threshold(answers(confidence, RNG.random(1000) < confidence), target))
    broken = [risk(one) > target + 1e-9 for one in thresholds if one < math.inf]
    assert sum(broken) / 300 < 1 - CERTAINTY
    if target > 0.05:
        assert np.mean([1 - one**6 for one in thresholds if one < math.inf]) > 0.6, "a promise that nothing uses"


def test_everything_is_answered_where_everything_is_right() -> None:
    assert error_threshold(answers(RNG.random(500) / 2 + 0.5, np.ones(500)), 0.05) == 0.0


def test_too_few_rows_promise_nothing() -> None:
    with pytest.warns(
        SondeWarning, match=r"to keep the error at or below 0\.05: nothing is answered\. 85 texts .*\(86 are"
    ):
        assert error_threshold(answers(np.linspace(0.5, 1, 85), np.ones(85)), 0.05) == math.inf
    assert error_threshold(answers(np.linspace(0.5, 1, 86), np.ones(86)), 0.05) == 0.0
    with pytest.warns(SondeWarning, match="0 texts were held out") as caught:
        assert error_threshold(np.empty((0, 2), dtype=np.float32), 0.05) == math.inf
    assert caught[0].message.code == "target_error_not_reached"  # type: ignore[union-attr]


@pytest.mark.parametrize("target", [0, 1, -0.1, 5.0, float("nan")])
def test_a_target_error_lies_between_0_and_1(target: float) -> None:
    with pytest.raises(ArgumentError, match=r"target error \(--target-error\) is .*; it must lie between 0 and 1"):
        error_threshold(np.empty((0, 2), dtype=np.float32), target)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_threshold_lies_between_0_and_1(threshold: float) -> None:
    with pytest.raises(ArgumentError, match=r"threshold \(--abstain-below\) is .*; it must lie between 0 and 1"):
        check_threshold(threshold)
    assert check_threshold(0) == 0 and check_threshold(1) == 1


def test_answers_are_confidences_and_whether_they_are_right() -> None:
    targets = encode(["a", "b", "c", "a"])
    probabilities = np.array([[0.5, 0.25, 0.25], [0.75, 0.25, 0], [0, 0, 1], [0.5, 0.5, 0]])
    assert answers_of(probabilities, targets).tolist() == [[1, 1], [0.75, 0], [0.5, 1], [0.5, 1]]
    unknown = Targets(targets.classes, np.zeros((4, 3), dtype=np.float32), False)
    assert not answers_of(probabilities, unknown)[:, 1].any()


def test_labels_below_the_threshold_are_withheld() -> None:
    kept = withhold(np.array([3, 5, 7]), np.array([0.5, 0.4, 0.6], dtype=np.float32), 0.5)
    assert kept.tolist() == [3, None, 7] and type(kept[0]) is int
    assert withhold(np.array(["a"]), np.array([1.0]), math.inf).tolist() == [None]


GOOD = np.array([[0.9, 1], [0.8, 0], [0.8, 1]], dtype=np.float32)


@pytest.mark.parametrize(
    ("given", "multilabel", "sentence"),
    [
        (None, False, "belong to models of one label a text"),
        (GOOD, True, "belong to models of one label a text"),
        (GOOD[:, 0], False, "must have two columns"),
        (GOOD[:, :1], False, "must have two columns"),
        (GOOD.astype(np.float64), False, "in float32"),
        (GOOD[::-1], False, "do not fall from 1 to 0"),
        (GOOD + np.float32(0.2), False, "do not fall from 1 to 0"),
        (GOOD * np.float32([0, 1]), False, "do not fall from 1 to 0"),
        (GOOD * np.float32([1, 0.5]), False, "do not fall from 1 to 0"),
    ],
)
def test_answers_that_no_training_gives_are_refused(given: np.ndarray, multilabel: bool, sentence: str) -> None:
    check_answers(GOOD, False)
    check_answers(None, True)
    with pytest.raises(ModelError, match=f"answers .*{sentence}.*; the model is damaged"):
        check_answers(given, multilabel)


# -------------------------------------------------------------------------------------------------- classifier


@pytest.fixture(scope="module")
def fitted() -> TextClassifier:
    return make("lexical").fit(TEXTS, LABELS)


def test_unsure_texts_have_no_label(fitted: TextClassifier) -> None:
    probabilities, labels = fitted.predict_proba(NEW_TEXTS).max(axis=1), fitted.predict(NEW_TEXTS)
    given = fitted.predict_or_abstain(NEW_TEXTS, threshold=0.7)
    assert 0 < sum(label is None for label in given) < 400
    expected = [label if sure >= 0.7 else None for label, sure in zip(labels.tolist(), probabilities, strict=True)]
    assert given.tolist() == expected
    assert fitted.predict_or_abstain(NEW_TEXTS, threshold=0).tolist() == labels.tolist()
    assert fitted.predict_or_abstain([], threshold=0.5).tolist() == []


def test_answers_under_a_target_error_are_better(fitted: TextClassifier) -> None:
    assert len(fitted.held_answers_) == len(fitted.conformal_scores_) == 180
    everything = np.mean(fitted.predict(NEW_TEXTS) != np.array(NEW_LABELS))
    target = 0.15
    assert everything > target
    given = fitted.predict_or_abstain(NEW_TEXTS, target_error=target)
    answered = np.array([label is not None for label in given])
    assert 0.1 < answered.mean() < 1
    assert (given[answered] != np.array(NEW_LABELS)[answered]).mean() < target
    with pytest.warns(SondeWarning, match="to keep the error at or below 0.001: nothing is answered"):
        assert fitted.predict_or_abstain(NEW_TEXTS, target_error=0.001).tolist() == [None] * 400


def test_exactly_one_way_to_abstain_is_given(fitted: TextClassifier) -> None:
    for wrong in ({}, {"threshold": 0.5, "target_error": 0.1}):
        with pytest.raises(ArgumentError, match=r"Give either a threshold .* or a target error .*, and not both"):
            fitted.predict_or_abstain(NEW_TEXTS, **wrong)
    for wrong in ({"threshold": 2}, {"target_error": 0}):
        with pytest.raises(ArgumentError, match="it must lie between 0 and 1"):
            fitted.predict_or_abstain(NEW_TEXTS, **wrong)


def test_models_of_several_labels_do_not_abstain() -> None:
    several = make("lexical").fit(TEXTS, [[label] for label in LABELS])
    assert several.held_answers_ is None
    with pytest.raises(ArgumentError, match="this model is multi-label: use predict_proba or predict_set"):
        several.predict_or_abstain(NEW_TEXTS, threshold=0.5)


@pytest.mark.parametrize("labels", [["weather", "post"], [["weather"], ["post"]]])
def test_a_model_that_held_nothing_out_is_saved_and_promises_nothing(labels: list[Any], tmp_path: Path) -> None:
    with pytest.warns(SondeWarning, match="No rows can be held out"):
        make("lexical").fit(["the cold wind", "three letters late"], labels).save(tmp_path / "model")
    classifier = sonde.load(tmp_path / "model", cache=None)
    assert len(classifier.conformal_scores_) == 0
    with pytest.warns(SondeWarning, match="need at least 9 texts held out for them, but there are 0"):
        assert classifier.predict_set(["wind"], alpha=0.1, allow_empty=True) == [["post", "weather"]]
    if isinstance(labels[0], str):
        assert classifier.predict_or_abstain(["cold wind"], threshold=0).tolist() == ["weather"]
        with pytest.warns(SondeWarning, match="0 texts were held out for it"):
            assert classifier.predict_or_abstain(["cold wind"], target_error=0.5).tolist() == [None]


def test_an_unfitted_classifier_says_so() -> None:
    with pytest.raises(NotFittedError, match="not fitted yet"):
        make().predict_or_abstain(NEW_TEXTS, threshold=0.5)


def test_rows_without_weight_calibrate_nothing() -> None:
    weights = np.where(np.arange(900) % 3 == 0, 0.0, 2.0)
    classifier = make("lexical").fit(TEXTS, [str(i % 2) for i in range(900)], sample_weight=weights)
    assert len(classifier.held_answers_) == len(classifier.conformal_scores_) < 140


def test_copies_of_a_text_calibrate_once() -> None:
    texts = [*TEXTS[:300], *(text.upper() for text in TEXTS[:300])]
    copied = make("lexical").fit(texts, LABELS[:300] * 2)
    assert len(copied.held_answers_) == len(copied.conformal_scores_) == 60
    several = make("lexical").fit(texts, [[label, "all"] for label in LABELS[:300] * 2])
    assert several.conformal_scores_[:, 1].sum() == 60
    judged = make("lexical").fit(TEXTS[:300], LABELS[:300], validation=(NEW_TEXTS * 2, NEW_LABELS * 2))
    assert len(judged.held_answers_) == len(judged.conformal_scores_) == 200


def test_the_report_has_the_curve(fitted: TextClassifier) -> None:
    report = evaluate(fitted, NEW_TEXTS, NEW_LABELS)
    points = report["risk_coverage"]
    assert [round(point["coverage"], 3) for point in points] == pytest.approx(
        [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1], abs=0.02
    )
    assert points[-1]["error"] == pytest.approx(1 - report["accuracy"])
    assert points[0]["error"] < points[-1]["error"] and 0 < report["aurc"] < 1 - report["accuracy"]
    given = fitted.predict_or_abstain(NEW_TEXTS, threshold=points[0]["threshold"])
    assert np.mean([label is not None for label in given]) == pytest.approx(points[0]["coverage"])
