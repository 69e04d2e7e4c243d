"""The report on labelled rows: its figures against scikit-learn's, and what it warns about."""

import warnings

import numpy as np
import pytest
from samples import make, worded
from sklearn import metrics

from sonde import TextClassifier
from sonde.errors import ArgumentError, DataError, SondeWarning
from sonde.evaluation import evaluate

TEXTS, LABELS = worded(90)
NEW_TEXTS, NEW_LABELS = worded(120, seed=1)
KEYS = ["n", "accuracy", "macro_f1", "log_loss", "ece", "ece_95", "truncated_rows", "mean_depth"]
RANKED = ["mean_average_precision", "roc_auc"]
SINGLE = [*KEYS, "aurc", "risk_coverage", *RANKED, "per_class"]


@pytest.fixture(scope="module")
def fitted() -> TextClassifier:
    return make().fit(TEXTS, LABELS)


def warned(code: str, call: object, *arguments: object) -> tuple[object, SondeWarning]:
    """The result of a call that warns once of this kind, and the warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call(*arguments)  # type: ignore[operator]
    found = [w.message for w in caught if isinstance(w.message, SondeWarning) and w.message.code == code]
    assert len(found) == 1, [str(w.message) for w in caught]
    return result, found[0]


def test_figures_are_those_of_scikit_learn(fitted: TextClassifier) -> None:
    report = evaluate(fitted, NEW_TEXTS, NEW_LABELS)
    predicted, probabilities = fitted.predict(NEW_TEXTS), fitted.predict_proba(NEW_TEXTS)
    assert list(report) == SINGLE
    assert (
        report["n"] == 120 and report["truncated_rows"] == 0 and report["mean_depth"] == 3
    )  # all layers of the tiny model
    assert report["accuracy"] == pytest.approx(metrics.accuracy_score(NEW_LABELS, predicted))
    assert report["macro_f1"] == pytest.approx(metrics.f1_score(NEW_LABELS, predicted, average="macro"))
    assert report["log_loss"] == pytest.approx(metrics.log_loss(NEW_LABELS, probabilities), rel=1e-5)
    assert 0 <= report["ece"] < 0.3 and 0.02 < report["ece_95"] < 0.2
    assert report["roc_auc"] == pytest.approx(metrics.roc_auc_score(NEW_LABELS, probabilities, multi_class="ovr"))
    table = metrics.classification_report(NEW_LABELS, predicted, output_dict=True)
    for row in report["per_class"]:
        theirs = table[row["label"]]
        expected = [theirs["precision"], theirs["recall"], theirs["f1-score"], theirs["support"]]
        assert [row["precision"], row["recall"], row["f1"], row["support"]] == pytest.approx(expected)
    assert [row["label"] for row in report["per_class"]] == ["post", "rail", "weather"]


def test_several_labels_add_three_figures() -> None:
    lists = [[label, "late"] if "late" in text else [label] for text, label in zip(TEXTS, LABELS, strict=True)]
    new = [[label, "late"] if "late" in text else [label] for text, label in zip(NEW_TEXTS, NEW_LABELS, strict=True)]
    classifier = make().fit(TEXTS, lists)
    report = evaluate(classifier, NEW_TEXTS, new)
    assert list(report) == [*KEYS, "micro_f1", "subset_accuracy", *RANKED, "per_class"]
    truth = np.array([[name in row for name in classifier.classes_] for row in new])
    said = np.array([[name in row for name in classifier.classes_] for row in classifier.predict(NEW_TEXTS)])
    scores = classifier.predict_proba(NEW_TEXTS)
    assert report["micro_f1"] == pytest.approx(metrics.f1_score(truth, said, average="micro"))
    assert report["macro_f1"] == pytest.approx(metrics.f1_score(truth, said, average="macro"))
    assert report["subset_accuracy"] == pytest.approx(metrics.accuracy_score(truth, said))
    expected = metrics.average_precision_score(truth, scores, average="macro")
    assert report["mean_average_precision"] == pytest.approx(expected)
    assert report["micro_f1"] > 0.6


def test_of_several_labels_one_never_seen_makes_the_row_wrong() -> None:
    lists = [[label] for label in LABELS]
    classifier = make().fit(TEXTS, lists)
    said = classifier.predict(NEW_TEXTS[:20])
    strange = [[*labels, "never"] for labels in said]
    right = evaluate(classifier, NEW_TEXTS[:20], [list(labels) for labels in said])
    with pytest.warns(SondeWarning, match="20 rows have labels that the model never saw; counted as wrong: 'never'"):
        wrong = evaluate(classifier, NEW_TEXTS[:20], strange)
    assert (right["accuracy"], right["micro_f1"]) == (1, 1)
    assert (wrong["accuracy"], wrong["subset_accuracy"]) == (0, 0)
    given = sum(map(len, said))
    assert wrong["micro_f1"] == pytest.approx(2 * given / (given + given + 20))
    with pytest.warns(SondeWarning, match="labels that the model never saw"):
        twice = evaluate(classifier, NEW_TEXTS[:20], [[*labels, "nor this"] for labels in strange])
    assert twice["micro_f1"] == pytest.approx(2 * given / (given + given + 40))
    assert classifier.score(NEW_TEXTS[:20], strange) == 0
    one = [*said[:19], strange[19]]
    assert classifier.score(NEW_TEXTS[:20], one) == pytest.approx(0.95)


def test_a_matrix_of_labels_is_measured_too() -> None:
    def matrix(labels: list[str]) -> np.ndarray:
        return np.array([[label == name for name in ("post", "rail", "weather")] for label in labels]).astype(int)

    classifier = make().fit(TEXTS, matrix(LABELS))
    report = evaluate(classifier, NEW_TEXTS, matrix(NEW_LABELS))
    assert report["n"] == 120 and [row["label"] for row in report["per_class"]] == [0, 1, 2]
    with pytest.raises(DataError, match="has 2 columns, but the model has 3 classes"):
        evaluate(classifier, NEW_TEXTS, matrix(NEW_LABELS)[:, :2])


def test_labels_never_seen_count_as_wrong_and_are_named(fitted: TextClassifier) -> None:
    labels = ["sail" if i < 7 else "mail" if i < 10 else label for i, label in enumerate(NEW_LABELS)]
    report, warning = warned("unseen_labels", evaluate, fitted, NEW_TEXTS, labels)
    assert warning.count == 10
    assert str(warning) == ("10 rows have labels that the model never saw; counted as wrong: 'sail' (7), 'mail' (3).")
    right = (fitted.predict(NEW_TEXTS)[10:] == np.array(NEW_LABELS[10:])).sum()
    assert report["n"] == 120 and report["accuracy"] == pytest.approx(right / 120)  # type: ignore[index]
    assert report["log_loss"] > evaluate(fitted, NEW_TEXTS, NEW_LABELS)["log_loss"] + 0.5  # type: ignore[index]
    score, again = warned("unseen_labels", fitted.score, NEW_TEXTS, labels)
    assert score == report["accuracy"] and str(again) == str(warning)  # type: ignore[index]


def test_macro_f1_counts_labels_never_seen_as_scikit_learn_does(fitted: TextClassifier) -> None:
    labels = ["other" if row % 2 else label for row, label in enumerate(NEW_LABELS)]
    expected = metrics.f1_score(labels, fitted.predict(NEW_TEXTS), average="macro")
    with pytest.warns(SondeWarning, match="counted as wrong"):
        assert evaluate(fitted, NEW_TEXTS, labels)["macro_f1"] == pytest.approx(expected)
    aimed = make("lexical", metric="macro_f1").fit(TEXTS, LABELS)
    expected = metrics.f1_score(labels, aimed.predict(NEW_TEXTS), average="macro")
    assert aimed.score(NEW_TEXTS, labels) == pytest.approx(expected)


def test_a_warning_names_five_unseen_labels_and_counts_the_rest(fitted: TextClassifier) -> None:
    labels = [f"new {i}" if i < 8 else label for i, label in enumerate(NEW_LABELS)]
    _, warning = warned("unseen_labels", evaluate, fitted, NEW_TEXTS, labels)
    assert str(warning).endswith("'new 4' (1) and 3 more.") and warning.count == 8


@pytest.mark.parametrize("missing", [None, float("nan"), "", " "])
def test_rows_without_a_label_are_left_out(missing: object, fitted: TextClassifier) -> None:
    labels = [missing if i % 10 == 0 else label for i, label in enumerate(NEW_LABELS)]
    report, warning = warned("missing_labels", evaluate, fitted, NEW_TEXTS, labels)
    assert warning.count == 12 and str(warning) == "12 rows have no label and are left out."
    kept = [i for i in range(120) if i % 10]
    assert report == evaluate(fitted, [NEW_TEXTS[i] for i in kept], [NEW_LABELS[i] for i in kept])
    weights = np.arange(1.0, 121)
    score, warning = warned("missing_labels", fitted.score, NEW_TEXTS, labels, weights)
    assert warning.count == 12
    assert score == fitted.score([NEW_TEXTS[i] for i in kept], [NEW_LABELS[i] for i in kept], weights[kept])
    for measure in (evaluate, TextClassifier.score):
        with pytest.raises(DataError, match="There are no labelled rows to evaluate on"):
            measure(fitted, NEW_TEXTS, [missing] * 120)
    with pytest.raises(ArgumentError, match="sample_weight is 0 for every row that has a label"):
        fitted.score(NEW_TEXTS, labels, [float(i % 10 == 0) for i in range(120)])


def test_texts_of_the_training_rows_are_counted_however_they_are_written(fitted: TextClassifier) -> None:
    texts = [TEXTS[0].upper(), f"  {TEXTS[1]} ", *NEW_TEXTS[2:]]
    _, warning = warned("seen_in_training", evaluate, fitted, texts, NEW_LABELS)
    assert warning.count == 2
    assert str(warning).startswith("2 of 120 texts stand in the training or validation rows too")


def test_a_saved_model_still_knows_its_training_texts(fitted: TextClassifier, tmp_path: object) -> None:
    import sonde

    fitted.save(f"{tmp_path}/model")
    _, warning = warned("seen_in_training", evaluate, sonde.load(f"{tmp_path}/model", cache=None), TEXTS, LABELS)
    assert warning.count == 90


def test_texts_on_which_the_model_was_chosen_are_counted_too(tmp_path: object) -> None:
    import sonde

    make("lexical").fit(TEXTS, LABELS, validation=(NEW_TEXTS, NEW_LABELS)).save(f"{tmp_path}/model")
    classifier = sonde.load(f"{tmp_path}/model", cache=None)
    texts, labels = [*NEW_TEXTS[:7], "the hills"], [*NEW_LABELS[:7], "rail"]
    _, warning = warned("seen_in_training", evaluate, classifier, texts, labels)
    assert warning.count == 7


def test_truncated_rows_are_counted(fitted: TextClassifier) -> None:
    texts = [f"{text} {'the ' * 100}" if i < 9 else text for i, text in enumerate(NEW_TEXTS)]
    assert evaluate(fitted, texts, NEW_LABELS)["truncated_rows"] == 9


def test_names_and_the_labels_they_stand_for_are_both_understood() -> None:
    classifier = make().fit(TEXTS, LABELS)
    classifier.label_names_ = {"0": "post", "1": "rail", "2": "weather"}
    numbers = [["post", "rail", "weather"].index(label) for label in NEW_LABELS]
    named = evaluate(classifier, NEW_TEXTS, NEW_LABELS)
    for same in (numbers, list(map(str, numbers)), list(map(float, numbers)), np.array(numbers, dtype=np.float64)):
        assert evaluate(classifier, NEW_TEXTS, same) == named
        assert classifier.score(NEW_TEXTS, same) == named["accuracy"]


def test_names_of_several_labels_are_understood_too() -> None:
    classifier = make("lexical").fit(TEXTS, [[label] for label in LABELS])
    classifier.label_names_ = {"0": "post", "1": "rail", "2": "weather"}
    score = classifier.score(NEW_TEXTS, [[label] for label in NEW_LABELS])
    numbers = [["post", "rail", "weather"].index(label) for label in NEW_LABELS]
    for container in (list, tuple, set, np.array):
        assert classifier.score(NEW_TEXTS, [container([number]) for number in numbers]) == score > 0


def test_numbers_as_text_and_as_numbers_are_the_same_labels() -> None:
    numbers = [["post", "rail", "weather"].index(label) for label in LABELS]
    new = [["post", "rail", "weather"].index(label) for label in NEW_LABELS]
    classifier = make().fit(TEXTS, numbers)
    assert evaluate(classifier, NEW_TEXTS, [str(label) for label in new]) == evaluate(classifier, NEW_TEXTS, new)


def test_sorts_of_labels_are_not_mixed(fitted: TextClassifier) -> None:
    with pytest.raises(DataError, match="The model was trained on one label per row, but these labels are lists"):
        evaluate(fitted, NEW_TEXTS, [[label] for label in NEW_LABELS])


def test_the_report_is_plain_data(fitted: TextClassifier) -> None:
    import json

    report = evaluate(fitted, NEW_TEXTS, NEW_LABELS)
    assert json.loads(json.dumps(report)) == report


def test_the_metric_of_the_classifier_is_what_score_returns() -> None:
    for metric in ("accuracy", "macro_f1"):
        classifier = make(metric=metric).fit(TEXTS, LABELS)
        assert classifier.score(NEW_TEXTS, NEW_LABELS) == evaluate(classifier, NEW_TEXTS, NEW_LABELS)[metric]
    weights = np.linspace(0, 1, 120)
    expected = metrics.f1_score(NEW_LABELS, classifier.predict(NEW_TEXTS), average="macro", sample_weight=weights)
    assert classifier.score(NEW_TEXTS, NEW_LABELS, sample_weight=weights) == pytest.approx(expected)


@pytest.mark.parametrize("written", ["Weather", "weather ", "weather.0"])
def test_a_label_that_is_written_otherwise_is_recognised_in_the_warning(written: str) -> None:
    texts, labels = worded(90)
    classifier = make("lexical").fit(texts, labels)
    with pytest.warns(SondeWarning, match=f"The model knows 'weather': write '{written}' as in training"):
        evaluate(classifier, ["the cold wind"], [written])
