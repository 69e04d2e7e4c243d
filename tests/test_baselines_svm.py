"""SVM on TF-IDF: scikit-learn's, with the face of the other classifiers."""

from typing import Any

import numpy as np
import pytest
from samples import worded
from sklearn.base import clone
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from sonde.baselines import SVM
from sonde.errors import ArgumentError, DataError
from sonde.learn.metrics import log_loss
from sonde.learn.targets import encode_against

TEXTS, LABELS = worded(120)
NEW_TEXTS, NEW_LABELS = worded(60, seed=1)


@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_scikit_learns_pipeline(classes: int) -> None:
    rows = [row for row, label in enumerate(LABELS) if label in sorted(set(LABELS))[:classes]]
    texts, labels = [TEXTS[row] for row in rows], [LABELS[row] for row in rows]
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    theirs = make_pipeline(features, LinearSVC(C=0.5, random_state=0)).fit(texts, labels)
    ours = SVM(0.5).fit(texts, labels)
    assert ours.predict(NEW_TEXTS).tolist() == theirs.predict(NEW_TEXTS).tolist()
    np.testing.assert_allclose(ours.decision_function(NEW_TEXTS), theirs.decision_function(NEW_TEXTS), atol=1e-9)
    assert ours.predict([]).shape == (0,)
    assert ours.score(texts, labels) > 0.9


def test_probabilities_are_to_be_had_where_asked_for_and_then_calibrated() -> None:
    plain, calibrated = SVM().fit(TEXTS, LABELS), SVM(probability=True).fit(TEXTS, LABELS)
    assert not hasattr(plain, "predict_proba")
    probabilities = calibrated.predict_proba(NEW_TEXTS)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert calibrated.predict(NEW_TEXTS).tolist() == plain.predict(NEW_TEXTS).tolist()
    truth = encode_against(NEW_LABELS, plain.classes_, False).indicator
    raw = np.exp(plain.decision_function(NEW_TEXTS))
    found, before = (log_loss(truth, one, multilabel=False) for one in (probabilities, raw / raw.sum(1, keepdims=True)))
    assert found < before


def test_several_labels_a_text() -> None:
    lists = [[label] if row % 2 else [label, "even"] for row, label in enumerate(LABELS)]
    classifier = SVM(probability=True).fit(TEXTS, lists)
    said = classifier.predict(NEW_TEXTS)
    chosen = classifier.predict_proba(NEW_TEXTS) >= 0.5
    assert said == [classifier.classes_[row].tolist() for row in chosen] and any(len(row) > 1 for row in said)
    matrix = np.array([[1, 0, int("cold" in text)] for text in TEXTS])  # the first always, the second never
    drawn = SVM().fit(TEXTS, matrix)
    found = drawn.predict(NEW_TEXTS)
    assert found[:, 0].all() and not found[:, 1].any() and drawn.score(TEXTS, matrix) > 0.9


def test_weights_count_and_rows_without_are_left_out() -> None:
    wrong = [*LABELS, *["rail"] * 20]
    texts = [*TEXTS, *worded(20, seed=2)[0]]
    without = SVM().fit(texts, wrong, sample_weight=[1.0] * 120 + [0.0] * 20)
    assert without.predict(NEW_TEXTS).tolist() == SVM().fit(TEXTS, LABELS).predict(NEW_TEXTS).tolist()
    heavy = SVM(class_weight={"rail": 100.0}).fit(TEXTS, LABELS).predict(NEW_TEXTS)
    assert (heavy == "rail").sum() > (SVM().fit(TEXTS, LABELS).predict(NEW_TEXTS) == "rail").sum()


def test_it_goes_through_a_grid_search() -> None:
    search = GridSearchCV(SVM(), {"C": [0.01, 1.0]}, cv=2).fit(TEXTS, LABELS)
    assert search.best_params_["C"] in (0.01, 1.0)
    assert clone(SVM(3.0, probability=True)).get_params() == SVM(3.0, probability=True).get_params()


@pytest.mark.parametrize(
    ("settings", "texts", "labels", "error", "sentence"),
    [
        ({"C": 0}, TEXTS, LABELS, ArgumentError, "C is 0; it must be a number above 0"),
        ({"class_weight": 3}, TEXTS, LABELS, ArgumentError, "class_weight is 3"),
        ({"random_state": -1}, TEXTS, LABELS, ArgumentError, "random_state is -1"),
        ({}, ["a", "b"], ["x", "x"], DataError, "have only one class, 'x'"),
        ({}, ["!", "?"], ["x", "y"], DataError, "No training text holds a word of two letters or more"),
    ],
)
def test_mistakes_are_answered_by_sentences(
    settings: dict[str, Any], texts: Any, labels: Any, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        SVM(**settings).fit(texts, labels)


@pytest.mark.parametrize("probability", [False, True])
@pytest.mark.parametrize("left", ["rail", "post"])
def test_a_class_that_weighs_nothing_is_never_said_and_mixes_up_no_other(probability: bool, left: str) -> None:
    texts, labels = worded(90)
    new, truth = worded(60, seed=1)
    classifier = SVM(probability=probability, class_weight={left: 0.0}).fit(texts, labels)
    said = classifier.predict(new)
    others = np.array(truth) != left
    assert left not in said and (said == truth)[others].mean() > 0.6
    if probability:
        assert classifier.predict_proba(new)[:, classifier.classes_.tolist().index(left)].max() < 1e-6
    only = {name: 0.0 for name in classifier.classes_ if name != left}
    assert set(SVM(probability=probability, class_weight=only).fit(texts, labels).predict(new)) == {left}
