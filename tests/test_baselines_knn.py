"""k nearest neighbours by any features: who votes, what votes count, who wins a tie."""

from typing import Any

import numpy as np
import pytest
import tiny
from samples import worded
from sklearn.base import clone
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from sonde import ActivationFeatures
from sonde.baselines import KNN
from sonde.errors import ArgumentError

TEXTS, LABELS = worded(90)
NEW_TEXTS, NEW_LABELS = worded(60, seed=1)


@pytest.fixture
def block() -> ActivationFeatures:
    return ActivationFeatures("hidden.2", "mean", (str(tiny.build("bert")),), dtype="float32", cache=None)


@pytest.mark.parametrize("k", [1, 7])
def test_it_votes_as_scikit_learns_does(k: int, block: ActivationFeatures) -> None:
    ours = KNN(block, k).fit(TEXTS, LABELS)
    theirs = KNeighborsClassifier(k, metric="cosine").fit(block.fit_transform(TEXTS), LABELS)
    shares = theirs.predict_proba(block.transform(NEW_TEXTS))
    np.testing.assert_allclose(ours.predict_proba(NEW_TEXTS), shares, atol=1e-5)
    np.testing.assert_allclose(ours.predict_proba(NEW_TEXTS).sum(axis=1), 1)
    clear = np.sort(shares, axis=1)[:, -1] > np.sort(shares, axis=1)[:, -2]
    assert (ours.predict(NEW_TEXTS) == theirs.predict(block.transform(NEW_TEXTS)))[clear].all() and clear.any()
    assert ours.predict([]).shape == (0,)


def test_words_serve_as_features_too() -> None:
    classifier = KNN(TfidfVectorizer(), 5).fit(TEXTS, LABELS)
    assert classifier.score(NEW_TEXTS, NEW_LABELS) > 0.6
    assert classifier.predict(TEXTS[:1]).tolist() == LABELS[:1]


def test_of_as_many_votes_the_nearer_win() -> None:
    known = ["wind wind wind cold", "wind hills hills hills", "trains", "platform"]
    classifier = KNN(CountVectorizer(), 2).fit(known, ["z", "a", "b", "b"])
    assert classifier.predict(["wind wind cold"]).tolist() == ["z"]  # a stands before z in the alphabet
    np.testing.assert_allclose(classifier.predict_proba(["wind wind cold"]), [[0.5, 0, 0.5]], atol=1e-6)


def test_votes_count_by_sample_weight_and_texts_of_none_are_no_neighbours() -> None:
    known, labels = ["cold wind", "cold wind hills", "trains left"], ["a", "b", "a"]
    weighed = KNN(CountVectorizer(), 2).fit(known, labels, sample_weight=[1.0, 3.0, 1.0])
    np.testing.assert_allclose(weighed.predict_proba(["cold wind"]), [[0.25, 0.75]], atol=1e-6)
    without = KNN(CountVectorizer(), 1).fit(known, labels, sample_weight=[0.0, 3.0, 1.0])
    assert without.predict(["cold wind"]).tolist() == ["b"]


def test_several_labels_a_text() -> None:
    lists = [["a", "b"], ["a"], ["b"], []]
    classifier = KNN(CountVectorizer(), 1).fit(["cold wind", "trains", "letters", "hills"], lists)
    assert classifier.predict(["wind", "trains", "hills"]) == [["a", "b"], ["a"], []]


def test_parameters_are_stored_and_copied(block: ActivationFeatures) -> None:
    copy = clone(KNN(block, 3))
    assert copy.k == 3 and copy.features.get_params() == block.get_params() and copy.features is not block


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"k": 0}, "k is 0; it must be a whole number of at least 1"),
        ({"k": 91}, "k is 91, but there are 90 training texts. Give a smaller k."),
        ({"features": "sentence"}, "features is 'sentence'; give a transformer such as ActivationFeatures"),
    ],
)
def test_mistakes_are_answered_by_sentences(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        KNN(**{"features": CountVectorizer(), **settings}).fit(TEXTS, LABELS)


def test_a_text_without_a_known_word_is_near_to_nothing() -> None:
    classifier = KNN(TfidfVectorizer(), 1).fit(["!!", "red apples fall", "blue trains go"], ["junk", "fruit", "rail"])
    assert classifier.predict(["a red kite", "slow blue smoke"]).tolist() == ["fruit", "rail"]


def test_features_may_learn_from_labels() -> None:
    chosen = make_pipeline(TfidfVectorizer(), SelectKBest(f_classif, k=12))
    assert KNN(chosen, 5).fit(TEXTS, LABELS).score(NEW_TEXTS, NEW_LABELS) > 0.6
