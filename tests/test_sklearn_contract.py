"""What scikit-learn's check_estimator asks of classifiers of arrays, asked of a classifier of texts."""

import copy
import inspect
import pickle
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from samples import RECIPES, backbones, make, worded
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError, UnsetMetadataPassedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import get_tags

from sonde import ActivationFeatures, TextClassifier
from sonde.evaluation import evaluate

TEXTS, LABELS = worded(90)
NEW_TEXTS, NEW_LABELS = worded(45, seed=1)


@pytest.fixture(scope="module")
def fitted() -> dict[str, TextClassifier]:
    """One fitted classifier a recipe, made when first asked for. Tests must not change them."""

    class Fitted(dict[str, TextClassifier]):
        def __missing__(self, recipe: str) -> TextClassifier:
            self[recipe] = make(recipe).fit(TEXTS, LABELS)
            return self[recipe]

    return Fitted()


# ------------------------------------------------------------------------------------------------- parameters


def other_values() -> dict[str, Any]:
    """For each parameter a value that is not its default."""
    return {
        "recipe": "linear",
        "backbones": ("somewhere", "else"),
        "max_tokens": 33,
        "long_text": "windows",
        "class_weight": {"a": 2.0},
        "metric": "macro_f1",
        "dtype": "bfloat16",
        "device": "cuda:1",
        "cache": "folder",
        "random_state": np.random.RandomState(5),
        "paper": True,
        "sample_rows": 99,
        "eta": 0.3,
        "layers": 2,
        "exit_loss": 0.01,
        "sites": ("ffn.*",),
        "poolings": ("last",),
    }


def test_every_parameter_is_listed_with_the_default_of_the_contract() -> None:
    defaults = TextClassifier().get_params()
    assert defaults.keys() == other_values().keys()
    assert defaults == {
        "recipe": "auto",
        "backbones": ("sentence-transformers/all-MiniLM-L6-v2",),
        "max_tokens": None,
        "long_text": "cut",
        "class_weight": None,
        "metric": "accuracy",
        "dtype": "auto",
        "device": "auto",
        "cache": "auto",
        "random_state": 0,
        "paper": False,
        "sample_rows": 4096,
        "eta": None,
        "layers": None,
        "exit_loss": None,
        "sites": None,
        "poolings": None,
    }


def test_only_recipe_and_backbones_are_positional() -> None:
    parameters = list(inspect.signature(TextClassifier.__init__).parameters.values())[1:]
    free = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert free == ["recipe", "backbones"]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters[2:])


@pytest.mark.parametrize("name", list(other_values()))
def test_set_params_sets_one_parameter_and_no_other(name: str) -> None:
    classifier, value = TextClassifier(), other_values()[name]
    before = classifier.get_params()
    assert classifier.set_params(**{name: value}) is classifier
    assert classifier.get_params() == {**before, name: value}
    with pytest.raises(ValueError, match="Invalid parameter"):
        classifier.set_params(**{f"{name}_": value})


def test_init_only_stores_even_nonsense() -> None:
    given = {name: object() for name in other_values()}
    classifier = TextClassifier(**given)  # type: ignore[arg-type]
    assert vars(classifier).keys() == given.keys()
    assert all(getattr(classifier, name) is value for name, value in given.items())


def test_clone_round_trip(fitted: dict[str, TextClassifier]) -> None:
    values = {**other_values(), "random_state": 7}
    first = clone(TextClassifier(**values))
    assert first.get_params() == values
    assert clone(first).get_params() == values
    copied = clone(fitted["linear"])
    assert copied.get_params() == fitted["linear"].get_params()
    assert not hasattr(copied, "classes_")
    assert vars(copied).keys() == values.keys()


def test_repr_shows_what_differs_from_the_defaults() -> None:
    assert repr(TextClassifier(recipe="linear", metric="macro_f1")) == (
        "TextClassifier(metric='macro_f1', recipe='linear')"
    ) or repr(TextClassifier(recipe="linear", metric="macro_f1")).startswith("TextClassifier(")
    assert "paper" not in repr(TextClassifier())


def test_it_says_that_it_is_a_classifier_of_texts() -> None:
    tags = get_tags(TextClassifier())
    assert is_classifier(TextClassifier())
    assert tags.input_tags.string and not tags.input_tags.two_d_array
    assert tags.classifier_tags.multi_label and tags.target_tags.required


# -------------------------------------------------------------------------------------------------------- fit


@pytest.mark.parametrize("recipe", RECIPES)
def test_fit_returns_self_and_changes_neither_parameters_nor_data(recipe: str) -> None:
    texts, labels = list(TEXTS), np.array(LABELS)
    weights = np.linspace(0.5, 2, len(texts))
    held = (list(NEW_TEXTS), list(NEW_LABELS))
    classifier = make(recipe, class_weight={"post": 2.0}, random_state=np.random.RandomState(3))
    params = classifier.get_params()
    kept = {name: copy.deepcopy(value) for name, value in params.items() if name != "random_state"}
    assert classifier.fit(texts, labels, sample_weight=weights, validation=held) is classifier
    after = classifier.get_params()
    assert all(after[name] is value for name, value in params.items())
    assert {name: after[name] for name in kept} == kept
    assert (texts, labels.tolist(), held) == (TEXTS, LABELS, (NEW_TEXTS, NEW_LABELS))
    np.testing.assert_array_equal(weights, np.linspace(0.5, 2, len(texts)))


def test_fitted_attributes_end_with_an_underscore(fitted: dict[str, TextClassifier]) -> None:
    classifier = fitted["linear"]
    learned = vars(classifier).keys() - classifier.get_params().keys()
    assert learned and all(name.endswith("_") and not name.startswith("_") for name in learned)


@pytest.mark.parametrize("recipe", RECIPES)
def test_refit_forgets(recipe: str) -> None:
    several = [[label, "late"] if i % 3 else [label] for i, label in enumerate(LABELS)]
    classifier = make(recipe).fit(TEXTS, several)
    assert classifier.multilabel_ and classifier.thresholds_ is not None
    two = [int(label == "rail") for label in NEW_LABELS]
    fresh = make(recipe).fit(NEW_TEXTS, two)
    classifier.fit(NEW_TEXTS, two)
    assert vars(classifier).keys() == vars(fresh).keys()
    assert classifier.classes_.tolist() == [0, 1]
    assert classifier.thresholds_ is None
    np.testing.assert_array_equal(classifier.predict_proba(TEXTS), fresh.predict_proba(TEXTS))
    np.testing.assert_array_equal(classifier.train_keys_, fresh.train_keys_)


def test_a_failed_fit_leaves_the_fitted_model_in_place() -> None:
    classifier = make().fit(TEXTS, LABELS)
    before = classifier.predict_proba(NEW_TEXTS)
    with pytest.raises(ValueError, match="only one class"):
        classifier.fit(TEXTS, ["same"] * len(TEXTS))
    np.testing.assert_array_equal(classifier.predict_proba(NEW_TEXTS), before)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("seed", [0, 11])
def test_two_fits_with_one_seed_give_identical_predictions(recipe: str, seed: int) -> None:
    first, second = (make(recipe, random_state=seed).fit(TEXTS, LABELS) for _ in range(2))
    np.testing.assert_array_equal(first.predict_proba(NEW_TEXTS), second.predict_proba(NEW_TEXTS))
    np.testing.assert_array_equal(first.conformal_scores_, second.conformal_scores_)


@pytest.mark.parametrize("ask", ["predict", "predict_proba", "decision_function", "predict_set", "score", "save"])
def test_unfitted_classifiers_say_so(ask: str) -> None:
    arguments = {"score": (NEW_TEXTS, NEW_LABELS), "save": ("never_written",)}.get(ask, (NEW_TEXTS,))
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(make(), ask)(*arguments)


def test_evaluating_an_unfitted_classifier_says_so() -> None:
    with pytest.raises(NotFittedError, match="not fitted yet"):
        evaluate(make(), NEW_TEXTS, NEW_LABELS)


# ---------------------------------------------------------------------------------------------------- predict


@pytest.mark.parametrize(
    ("names", "kind", "python"),
    [
        (("b", "a", "c"), "U", str),
        ((30, -2, 7), "i", int),
        ((True, False, True), "b", bool),
        (("é", "z", "Z"), "U", str),
    ],
)
def test_classes_are_sorted_and_of_the_type_of_the_labels(names: tuple[Any, ...], kind: str, python: type) -> None:
    order = {topic: names[i] for i, topic in enumerate(["post", "rail", "weather"])}
    classifier = make().fit(TEXTS, [order[label] for label in LABELS])
    assert classifier.classes_.dtype.kind == kind
    assert classifier.classes_.tolist() == sorted(set(names))
    predicted = classifier.predict(NEW_TEXTS)
    assert predicted.shape == (len(NEW_TEXTS),) and predicted.dtype == classifier.classes_.dtype
    assert {type(label) for label in predicted.tolist()} == {python}
    assert classifier.score(NEW_TEXTS, [order[label] for label in NEW_LABELS]) > 0.6


@pytest.mark.parametrize("recipe", RECIPES)
def test_predict_is_the_most_probable_class_and_probabilities_sum_to_one(
    recipe: str, fitted: dict[str, TextClassifier]
) -> None:
    classifier = fitted[recipe]
    probabilities = classifier.predict_proba(NEW_TEXTS)
    assert probabilities.shape == (len(NEW_TEXTS), 3)
    assert (probabilities >= 0).all() and (probabilities <= 1).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert classifier.predict(NEW_TEXTS).tolist() == classifier.classes_[probabilities.argmax(axis=1)].tolist()
    assert len(set(classifier.predict(NEW_TEXTS))) == 3
    scores = classifier.decision_function(NEW_TEXTS)
    assert scores.shape == probabilities.shape
    assert (scores.argmax(axis=1) == probabilities.argmax(axis=1)).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_learns(recipe: str, fitted: dict[str, TextClassifier]) -> None:
    assert fitted[recipe].score(NEW_TEXTS, NEW_LABELS) > 0.5  # chance: 1/3


@pytest.mark.parametrize("recipe", RECIPES)
def test_decision_function_of_two_classes_is_positive_for_the_second(recipe: str) -> None:
    two = [(text, label == "rail") for text, label in zip(TEXTS, LABELS, strict=True) if label != "post"]
    classifier = make(recipe).fit(*zip(*two, strict=True))
    scores, probabilities = classifier.decision_function(NEW_TEXTS), classifier.predict_proba(NEW_TEXTS)
    assert scores.shape == (len(NEW_TEXTS),) and probabilities.shape == (len(NEW_TEXTS), 2)
    assert ((scores > 0) == classifier.predict(NEW_TEXTS)).all()
    assert (scores > 0).any() and (scores < 0).any()
    np.testing.assert_allclose(1 / (1 + np.exp(-scores.astype(np.float64))), probabilities[:, 1], atol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_text_is_judged_alone(recipe: str, fitted: dict[str, TextClassifier]) -> None:
    classifier = fitted[recipe]
    together = classifier.predict_proba(NEW_TEXTS)
    order = np.random.default_rng(0).permutation(len(NEW_TEXTS))
    shuffled = classifier.predict_proba([NEW_TEXTS[i] for i in order])
    np.testing.assert_allclose(shuffled, together[order], atol=1e-5)
    np.testing.assert_allclose(classifier.predict_proba(NEW_TEXTS[:1])[0], together[0], atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_texts_give_no_predictions(recipe: str, fitted: dict[str, TextClassifier]) -> None:
    assert fitted[recipe].predict_proba([]).shape == (0, 3)
    assert fitted[recipe].decision_function([]).shape == (0, 3)
    assert fitted[recipe].predict([]).tolist() == []


# -------------------------------------------------------------------------------------- weights and containers


@pytest.mark.parametrize("recipe", ["linear", "lexical"])
def test_weight_two_is_a_repeated_row(recipe: str) -> None:
    twice = np.arange(0, len(TEXTS), 4)
    weights = np.ones(len(TEXTS))
    weights[twice] = 2
    weighted = make(recipe).fit(TEXTS, LABELS, sample_weight=weights)
    repeated = make(recipe).fit(TEXTS + [TEXTS[i] for i in twice], LABELS + [LABELS[i] for i in twice])
    plain = make(recipe).fit(TEXTS, LABELS)
    np.testing.assert_allclose(weighted.predict_proba(NEW_TEXTS), repeated.predict_proba(NEW_TEXTS), atol=1e-4)
    assert np.abs(weighted.predict_proba(NEW_TEXTS) - plain.predict_proba(NEW_TEXTS)).max() > 1e-3


@pytest.mark.parametrize("recipe", ["linear", "lexical"])
def test_weight_zero_is_an_absent_row_of_the_loss(recipe: str) -> None:
    """The folds still see the row, hence a validation set takes their place here."""
    wrong = np.arange(0, len(TEXTS), 9)
    labels = [("post" if i in wrong else label) for i, label in enumerate(LABELS)]
    weights = np.where(np.isin(np.arange(len(TEXTS)), wrong), 0.0, 1.0)
    held = (NEW_TEXTS, NEW_LABELS)
    weighted = make(recipe).fit(TEXTS, labels, sample_weight=weights, validation=held)
    kept = [i for i in range(len(TEXTS)) if i not in wrong]
    absent = make(recipe).fit([TEXTS[i] for i in kept], [labels[i] for i in kept], validation=held)
    if recipe == "linear":  # the vocabulary of n-grams is counted without weights
        np.testing.assert_allclose(weighted.predict_proba(NEW_TEXTS), absent.predict_proba(NEW_TEXTS), atol=1e-4)
    assert weighted.score(NEW_TEXTS, NEW_LABELS) == pytest.approx(absent.score(NEW_TEXTS, NEW_LABELS), abs=0.05)


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(tuple, id="tuple"),
        pytest.param(np.array, id="ndarray of str"),
        pytest.param(lambda rows: np.array(rows, dtype=object), id="ndarray of object"),
        pytest.param(lambda rows: pd.Series(rows, index=range(500, 500 + len(rows))), id="pandas"),
        pytest.param(lambda rows: pd.Series(rows, dtype="string"), id="pandas string"),
        pytest.param(pl.Series, id="polars"),
    ],
)
@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(tuple, id="tuple"),
        pytest.param(np.array, id="ndarray"),
        pytest.param(lambda rows: pd.Series(rows, index=rows), id="pandas"),
        pytest.param(lambda rows: pd.Series(rows, dtype="category"), id="pandas category"),
        pytest.param(lambda rows: pl.Series(rows), id="polars"),
    ],
)
def test_containers_are_alike(texts: Any, labels: Any, fitted: dict[str, TextClassifier]) -> None:
    classifier = make().fit(texts(TEXTS), labels(LABELS))
    expected = fitted["linear"].predict_proba(NEW_TEXTS)
    np.testing.assert_array_equal(classifier.predict_proba(texts(NEW_TEXTS)), expected)
    assert classifier.classes_.tolist() == ["post", "rail", "weather"]
    assert classifier.score(texts(NEW_TEXTS), labels(NEW_LABELS)) == fitted["linear"].score(NEW_TEXTS, NEW_LABELS)


@pytest.mark.parametrize("matrix", [np.array, pd.DataFrame, pl.DataFrame, list], ids=lambda kind: kind.__module__)
def test_containers_of_label_matrices_are_alike(matrix: Any) -> None:
    table = [
        [int(label == "rail"), int("late" in text), int("the" in text)]
        for text, label in zip(TEXTS, LABELS, strict=True)
    ]
    rows = matrix(np.array(table)) if matrix is not list else table
    classifier = make().fit(TEXTS, rows)
    expected = make().fit(TEXTS, np.array(table))
    np.testing.assert_array_equal(classifier.predict_proba(NEW_TEXTS), expected.predict_proba(NEW_TEXTS))
    np.testing.assert_array_equal(classifier.predict(NEW_TEXTS), expected.predict(NEW_TEXTS))


# ------------------------------------------------------------------------------------- the rest of scikit-learn


@pytest.mark.parametrize("recipe", RECIPES)
def test_fitted_classifiers_can_be_copied(recipe: str, fitted: dict[str, TextClassifier]) -> None:
    expected = fitted[recipe].predict_proba(NEW_TEXTS)
    for copied in (copy.deepcopy(fitted[recipe]), pickle.loads(pickle.dumps(fitted[recipe]))):  # noqa: S301  (our own)
        np.testing.assert_array_equal(copied.predict_proba(NEW_TEXTS), expected)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["linear", "auto"])
def test_copies_work_in_worker_processes(recipe: str) -> None:
    alone = cross_val_score(make(recipe), TEXTS, LABELS, cv=3, n_jobs=1)
    shared = cross_val_score(make(recipe), TEXTS, LABELS, cv=3, n_jobs=2, error_score="raise")
    np.testing.assert_allclose(shared, alone, atol=1e-12)
    assert alone.mean() > 0.6


def test_in_a_pipeline() -> None:
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    pipeline = make_pipeline(lower, make()).fit([text.upper() for text in TEXTS], LABELS)
    plain = make().fit(TEXTS, LABELS)
    np.testing.assert_array_equal(pipeline.predict_proba(NEW_TEXTS), plain.predict_proba(NEW_TEXTS))
    assert pipeline.classes_.tolist() == ["post", "rail", "weather"]
    assert clone(pipeline).set_params(textclassifier__metric="macro_f1")[-1].metric == "macro_f1"


def test_cross_val_predict_gives_probabilities_in_the_order_of_classes() -> None:
    probabilities = cross_val_predict(make(), np.array(TEXTS), LABELS, cv=3, method="predict_proba")
    assert (np.array(["post", "rail", "weather"])[probabilities.argmax(axis=1)] == np.array(LABELS)).mean() > 0.6


def test_grid_search_over_recipes() -> None:
    grid = {"recipe": ["linear", "lexical"], "metric": ["accuracy", "macro_f1"]}
    search = GridSearchCV(make(), grid, cv=2, error_score="raise").fit(TEXTS, LABELS)
    assert len(search.cv_results_["params"]) == 4
    assert search.best_params_["recipe"] in grid["recipe"]
    assert search.best_estimator_.score(NEW_TEXTS, NEW_LABELS) > 0.6
    assert search.predict(NEW_TEXTS).shape == (len(NEW_TEXTS),)


def test_a_search_over_an_unknown_recipe_fails_with_the_list_of_recipes() -> None:
    with pytest.raises(ValueError, match=r"'lineal' is unknown; it must be one of: auto, linear"):
        GridSearchCV(make(), {"recipe": ["lineal"]}, cv=2, error_score="raise").fit(TEXTS, LABELS)


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_set_output(container: str) -> None:
    features = ActivationFeatures("hidden.2:", ("mean", "max"), backbones("linear"), dtype="float32", cache=None)
    pipeline = Pipeline([("read", features), ("scale", StandardScaler()), ("fit", LogisticRegression())])
    pipeline.set_output(transform=container).fit(TEXTS, LABELS)
    table = pipeline[:-1].transform(NEW_TEXTS)
    assert type(table).__module__.startswith(container)
    assert table.shape == (len(NEW_TEXTS), 2 * 2 * 32)
    assert list(table.columns)[:2] == ["0/hidden.2/mean/0", "0/hidden.2/mean/1"]
    assert list(table.columns)[-1] == "0/hidden.3/max/31"
    assert pipeline.score(NEW_TEXTS, NEW_LABELS) > 0.6


def test_set_output_leaves_a_classifier_at_the_end_of_a_pipeline_alone() -> None:
    pipeline = make_pipeline(FunctionTransformer(), make()).set_output(transform="pandas").fit(TEXTS, LABELS)
    assert isinstance(pipeline.predict_proba(NEW_TEXTS), np.ndarray)


def uneven_weights() -> np.ndarray:
    return np.where(np.array(LABELS) == "post", 5.0, 0.5)


def test_metadata_routing_brings_weights_through_a_pipeline() -> None:
    with sklearn.config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(FunctionTransformer(), make().set_fit_request(sample_weight=True))
        pipeline.fit(TEXTS, LABELS, sample_weight=uneven_weights())
    direct = make().fit(TEXTS, LABELS, sample_weight=uneven_weights())
    np.testing.assert_array_equal(pipeline.predict_proba(NEW_TEXTS), direct.predict_proba(NEW_TEXTS))
    assert np.abs(direct.predict_proba(NEW_TEXTS) - make().fit(TEXTS, LABELS).predict_proba(NEW_TEXTS)).max() > 0.05


def test_metadata_routing_brings_weights_through_cross_validation() -> None:
    with sklearn.config_context(enable_metadata_routing=True):
        asked = make().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        weights = {"sample_weight": np.where(np.array(LABELS) == "post", 1.0, 0.01)}
        tests = cross_validate(asked, TEXTS, LABELS, cv=3, params=weights, error_score="raise")
    assert tests["test_score"].mean() > 0.9  # hardly any class but one counts: what is said of the others is no loss
    assert cross_val_score(make(), TEXTS, LABELS, cv=3).mean() < 0.85


def test_metadata_that_nobody_asked_for_is_refused() -> None:
    routing, refusal = sklearn.config_context(enable_metadata_routing=True), pytest.raises(UnsetMetadataPassedError)
    with routing, refusal as caught:
        make_pipeline(FunctionTransformer(), make()).fit(TEXTS, LABELS, sample_weight=uneven_weights())
    assert "sample_weight" in str(caught.value)


def test_a_validation_set_can_be_routed_too() -> None:
    with sklearn.config_context(enable_metadata_routing=True):
        asked = make().set_fit_request(validation=True)
        pipeline = make_pipeline(FunctionTransformer(), asked).fit(TEXTS, LABELS, validation=(NEW_TEXTS, NEW_LABELS))
    assert pipeline[-1].summary_["out_of_fold"]["rows"] == len(NEW_TEXTS)


def test_labels_are_no_metadata() -> None:
    with sklearn.config_context(enable_metadata_routing=True):
        requests = make().get_metadata_routing()
        assert requests.fit.requests.keys() == {"sample_weight", "validation", "groups"}
        assert requests.score.requests.keys() == {"sample_weight"}
        assert not requests.predict.requests and not requests.predict_proba.requests
