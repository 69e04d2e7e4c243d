"""Sparsify-then-Classify: which neurons are kept, how deep it reads, what the head sees."""

import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from sklearn.linear_model import LogisticRegression

from sonde import fitting
from sonde.classifier import TextClassifier
from sonde.errors import ArgumentError, DataError, ModelError
from sonde.features import ActivationFeatures
from sonde.learn import lasso, learning, sparse, sparsify
from sonde.learn.calibration import to_probabilities
from sonde.learn.logistic import Logistic
from sonde.learn.problem import Problem, Record
from sonde.learn.selection import Ranking, depth, importance, keep
from sonde.learn.splitting import draw, make_folds
from sonde.learn.targets import encode
from sonde.loading import load
from sonde.progress import watching
from sonde.read.store import Store

NAMES = tuple(f"0/hidden.{layer}/mean" for layer in range(4))


def a_problem(rows: int = 240, told: int = 2, classes: int = 3, seed: int = 0) -> Problem:
    """Four layers of 12 neurons; from layer `told` on, neurons 3 and 7 tell the classes apart, no other does."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(classes, size=rows)
    centres = 4 * np.array([[1.0, 0.5], [-1.0, 1.0], [0.0, -1.0]])[:classes]
    blocks = {name: rng.normal(size=(rows, 12)).astype(np.float32) for name in NAMES}
    signal = centres[ids] + rng.normal(size=(rows, 2))  # the same in every layer: depth adds nothing to it
    for name in NAMES[told:]:
        blocks[name][:, [3, 7]] = signal
    texts = [f"text {i}" for i in range(rows)]
    targets = encode([f"class {i}" for i in ids])
    return Problem(blocks, texts, targets, np.ones(rows), make_folds(texts, targets, seed=0), "accuracy", seed)


def accuracy(model: sparse.Sparse, problem: Problem) -> float:
    logits = model.logits(problem.blocks, problem.texts)
    return float((logits.argmax(axis=1) == problem.targets.ids).mean())


# Importance


def test_every_class_shares_out_one_among_the_neurons() -> None:
    coefficients = np.zeros((1, 4, 2), dtype=np.float32)
    coefficients[0, 0, 0] = 10  # one strong neuron for the first class
    coefficients[0, 1:3, 1] = 0.1  # two weak ones for the second
    np.testing.assert_allclose(importance(coefficients), [[0.5, 0.25, 0.25, 0]])


def test_a_class_without_weights_has_no_say() -> None:
    coefficients = np.zeros((2, 3, 2), dtype=np.float32)
    coefficients[0, 1, 0] = 1
    np.testing.assert_allclose(importance(coefficients), [[0, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize(("eta", "kept"), [(0.001, [2]), (0.5, [2]), (0.51, [0, 2]), (0.8, [0, 2]), (1.0, [0, 1, 2])])
def test_the_smallest_set_that_reaches_eta_is_kept(eta: float, kept: list[int]) -> None:
    assert np.flatnonzero(keep(np.array([0.3, 0.2, 0.5, 0.0]), eta)).tolist() == kept


@pytest.mark.parametrize("eta", [0, -0.1, 1.01])
def test_eta_out_of_range_is_refused(eta: float) -> None:
    with pytest.raises(ArgumentError, match="the share of importance that is kept, above 0 and at most 1"):
        keep(np.ones(3), eta)


def test_nothing_is_kept_where_nothing_matters() -> None:
    assert not keep(np.zeros(3), 0.5).any()


@pytest.mark.parametrize(
    ("name", "layer"), [("0/hidden.0/mean", 0), ("1/ffn.12/max", 12), ("0/decoder.hidden.3/last", 3)]
)
def test_the_layer_of_a_block(name: str, layer: int) -> None:
    assert depth(name) == layer


# The model


def test_it_finds_the_neurons_that_matter_and_stops_where_they_do() -> None:
    found = sparse.fit(a_problem(), NAMES, etas=(0.01, 0.9))
    assert isinstance(found.model, sparse.Sparse)
    assert found.summary["layers"] == 2 and found.model.needs[-1] == NAMES[2]
    assert set(found.model.columns[NAMES[2]]) >= {3, 7}
    assert accuracy(found.model, a_problem(seed=0)) > 0.95
    seen = ~np.isnan(found.held_out[:, 0])
    assert (found.held_out[seen].argmax(axis=1) == a_problem().targets.ids[seen]).mean() > 0.9


def test_a_given_depth_is_kept() -> None:
    found = sparse.fit(a_problem(), NAMES, layers=3)
    assert found.summary["layers"] == 3 and NAMES[3] in found.model.needs


def test_two_classes_and_several_labels() -> None:
    two = a_problem(classes=2)
    assert accuracy(sparse.fit(two, NAMES).model, two) > 0.9
    three = a_problem()
    labels = [[f"a{i}"] if i % 2 else [f"a{i}", "even"] for i in three.targets.ids]
    targets = encode(labels)
    many = Problem(three.blocks, three.texts, targets, three.weights, three.folds, "accuracy", 0)
    logits = sparse.fit(many, NAMES).model.logits(many.blocks, many.texts)
    assert ((logits > 0) == (targets.indicator > 0)).mean() > 0.9


def test_the_neurons_of_a_fold_are_chosen_without_its_rows() -> None:
    problem = a_problem(rows=200)
    order = np.random.default_rng(1).permutation(200)
    blocks = {name: block[order] for name, block in problem.blocks.items()}
    shuffled = Problem(blocks, problem.texts, problem.targets, problem.weights, problem.folds, "accuracy", 0)
    found = sparse.fit(shuffled, NAMES)
    seen = ~np.isnan(found.held_out[:, 0])
    right = (found.held_out[seen].argmax(axis=1) == problem.targets.ids[seen]).mean()
    share = problem.targets.indicator.mean(axis=0).max()
    assert right < share + 0.1, "picked with the rows it is judged on"


def test_the_head_is_a_logistic_regression_on_the_kept_neurons() -> None:
    problem = a_problem()
    found = sparse.fit(problem, NAMES)
    model = found.model
    assert isinstance(model, sparse.Sparse)
    x = np.concatenate([problem.blocks[name][:, model.columns[name]] for name in model.needs], axis=1)
    standard = (x - model.mean) * model.scale
    np.testing.assert_allclose(standard.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(standard.std(axis=0), 1, atol=1e-3)
    logits = standard @ model.coefficients + model.intercept
    np.testing.assert_allclose(model.logits(problem.blocks, problem.texts), logits, atol=1e-4)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    gradient = found.summary["head"]["C"] * standard.T @ (p - problem.targets.indicator) + model.coefficients
    assert np.abs(gradient).max() < 1e-2 * np.abs(model.coefficients).max() * found.summary["head"]["rows"] ** 0.5


def test_bad_input_is_refused() -> None:
    with pytest.raises(ArgumentError, match="layers is 4; layers 0 to 3 are read"):
        sparse.fit(a_problem(), NAMES, layers=4)
    blank = a_problem()
    for block in blank.blocks.values():
        block[:] = 1.0
    with pytest.raises(DataError, match="every probe kept nothing"):
        sparse.fit(blank, NAMES)
    with pytest.raises(ArgumentError, match=r"eta is 2"):
        sparse.fit(a_problem(), NAMES, etas=(2.0,))


def test_a_record_comes_back_as_it_was_and_damage_is_refused() -> None:
    problem = a_problem()
    model = sparse.fit(problem, NAMES).model
    record = learning.describe(model)
    again = learning.restore(record)
    np.testing.assert_array_equal(
        again.logits(problem.blocks, problem.texts), model.logits(problem.blocks, problem.texts)
    )
    for name, damaged in {
        "columns": record.arrays["columns"][:-1],
        "mean": record.arrays["mean"][1:],
        "intercept": record.arrays["intercept"][:1],
    }.items():
        with pytest.raises(ModelError, match="the model is damaged"):
            learning.restore(Record(record.settings, {**record.arrays, name: damaged}))


# The paper's setting


def test_the_paper_tries_every_eta_with_every_k_and_has_an_l1_head() -> None:
    problem = a_problem()
    selection = sparsify.select(problem, NAMES, etas=(0.01, 0.3, 0.8), paper=True)
    tried = selection.summary["tried"]
    assert {(one["eta"], one["layers"]) for one in tried} == {(e, k) for e in (0.01, 0.3, 0.8) for k in range(4)}
    best = max(one["accuracy"] for one in tried)
    first = next(one for one in tried if one["accuracy"] == best)
    assert (selection.summary["eta"], selection.summary["layers"]) == (first["eta"], first["layers"])
    assert selection.summary["layers"] >= 2, "shallower layers tell nothing"
    found = sparse.train(problem, selection)
    assert isinstance(found.model, sparse.Sparse) and accuracy(found.model, problem) > 0.95
    seen = ~np.isnan(found.held_out[:, 0])
    assert (found.held_out[seen].argmax(axis=1) == problem.targets.ids[seen]).mean() > 0.9


def test_the_papers_head_is_the_l1_regression_of_scikit_learn() -> None:
    problem = a_problem(rows=150, classes=2)
    kept = {name: np.ones((problem.folds.n_folds + 1, 12), dtype=bool) for name in NAMES[2:]}
    for masks in kept.values():
        masks[:, 9:] = False  # features that no model may use
    model = lasso.fit(problem, kept).model
    assert isinstance(model, Logistic)
    x = np.concatenate([problem.blocks[name] for name in kept], axis=1)
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    used = np.concatenate([masks[-1] for masks in kept.values()])
    found = lasso.fit(problem, kept).summary["C"]
    reference = LogisticRegression(l1_ratio=1.0, C=found, solver="saga", tol=1e-8, max_iter=20_000)
    reference.fit(standard[:, used], problem.targets.ids)
    theirs = reference.predict_proba(standard[:, used])
    ours = to_probabilities(model.logits(problem.blocks, problem.texts), multilabel=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
    assert not model.coefficients[~used].any()


@pytest.mark.parametrize("recipe", ["stc-hidden", "stc-ffn"])
def test_the_papers_recipes_choose_on_all_rows(recipe: str) -> None:
    texts = [f"{tiny.SENTENCES[i % 5]} {'good' if i % 2 else 'cold'}" for i in range(60)]
    classifier = TextClassifier(recipe, (str(tiny.build("bert")),), cache=None, paper=True, sample_rows=30, eta=0.5)
    learner = classifier.fit(texts, ["a", "b"] * 30).summary_["learner"]
    assert learner["sampled_rows"] == 60 and "losses" in learner["head"]


# On a sample of the rows


def test_some_rows_choose_and_all_rows_train() -> None:
    problem = a_problem(rows=600)
    found = sparse.fit(problem, NAMES, sample_rows=200)
    assert found.summary["sampled_rows"] == 200 and found.summary["head"]["rows"] == 600
    assert accuracy(found.model, problem) > 0.95  # type: ignore[arg-type]


def test_many_rows_keep_as_few_neurons_as_memory_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here .8 (10 neurons) is far better than .3 (6): it is taken up to the row that would be too many."""
    monkeypatch.setattr(sparsify, "KEPT_BYTES", 4 * 1000 * 10)

    def chosen(rows: int, etas: tuple[float, ...] = (0.3, 0.8)) -> float:
        eta: float = sparsify.select(a_problem(), NAMES, etas=etas, layers=3, rows=rows).summary["eta"]
        return eta

    assert [chosen(0), chosen(1000), chosen(1001)] == [0.8, 0.8, 0.3]
    assert chosen(1001, (0.8,)) == 0.8, "the smallest is tried whatever it takes"


def test_blocks_may_hold_the_kept_neurons_alone() -> None:
    problem = a_problem(rows=300)
    selection = sparsify.select(problem, NAMES)
    whole = sparse.train(problem, selection)
    blocks = {name: problem.blocks[name][:, list(columns)] for name, columns in selection.columns.items()}
    few = sparse.train(replace(problem, blocks=blocks), selection)
    np.testing.assert_array_equal(few.held_out, whole.held_out)
    model = whole.model
    kept = {name: problem.blocks[name][:, own] for name, own in model.columns.items()}
    np.testing.assert_allclose(
        model.logits(kept, problem.texts), model.logits(problem.blocks, problem.texts), atol=1e-6
    )


def test_a_sample_holds_rows_of_every_class() -> None:
    labels = ["common"] * 5000 + ["rare"] * 30 + ["single"]
    targets = encode(labels)
    folds = make_folds([f"text {i}" for i in range(5031)], targets, seed=0)
    rows = draw(targets, folds, 500, seed=0)
    assert len(rows) == 500 == len(set(rows.tolist())) and (np.diff(rows) > 0).all()
    counts = dict(zip(targets.classes.tolist(), targets.indicator[rows].sum(axis=0).tolist(), strict=True))
    assert counts["single"] == 1 and counts["rare"] >= 20
    assert draw(targets, folds, 9999, seed=0).tolist() == list(range(5031))
    with pytest.raises(ArgumentError, match=r"sample_rows is 30, too few for 3 classes: .* they take 41"):
        draw(targets, folds, 30, seed=0)


# The recipe


def test_two_steps_read_all_rows_for_the_kept_neurons_alone(tmp_path: Path) -> None:
    backbone = str(tiny.build("bert"))
    rng = np.random.default_rng(0)
    words = sorted({word for sentence in tiny.SENTENCES for word in sentence.split()})
    texts = [" ".join(rng.choice(words, size=rng.integers(3, 12))) for _ in range(300)]
    labels = ["long" if len(text.split()) > 7 else "short" for text in texts]
    said: list[str] = []
    with watching(lambda *_: nullcontext(lambda _: None), said.append):
        classifier = TextClassifier("stc-hidden", (backbone,), cache=tmp_path, dtype="float32", sample_rows=120).fit(
            texts, labels
        )
    assert len(said) == 2 and said[0].startswith("plan: 120 texts, 4 sites in 4 blocks:")
    kept = sum(classifier.summary_["learner"]["kept"].values())
    assert re.match(r"plan: 300 texts, \d+ sites, \d+ neurons of them, in \d+ blocks: [\d.]+ MB to write to", said[1])
    assert classifier.summary_["learner"]["sampled_rows"] == 120 and kept > 0
    narrow = [one for one in Store(tmp_path).describe() if "columns" in one]
    assert {one["rows"] for one in narrow} == {300 - 120} and all(one["dim"] == one["columns"] for one in narrow)
    assert classifier.score(texts, labels) > 0.9
    no_store = TextClassifier("stc-hidden", (backbone,), cache=None, dtype="float32", sample_rows=120)
    np.testing.assert_allclose(
        no_store.fit(texts, labels).predict_proba(texts), classifier.predict_proba(texts), atol=1e-3
    )


def test_more_activations_than_memory_are_refused_before_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "memory_bytes", lambda: 10_000)
    classifier = TextClassifier("stc-hidden", (str(tiny.build("bert")),), cache=None)
    with pytest.raises(DataError, match=r"of 60 rows in 4 blocks \(128 numbers a row\) take 0.0 GB at once"):
        classifier.fit([f"text {i}" for i in range(60)], ["a", "b"] * 30)


@pytest.mark.parametrize("given", [0, -1, 2.5, True, "all"])
def test_sample_rows_must_be_a_number_of_rows(given: object) -> None:
    with pytest.raises(ArgumentError, match=r"sample_rows is .*; it must be a whole number of at least 1"):
        TextClassifier("stc", sample_rows=given).fit(["a", "b"], ["a", "b"])  # type: ignore[arg-type]


def test_the_recipe_reads_no_deeper_than_it_needs(texts: list[str], tmp_path) -> None:  # type: ignore[no-untyped-def]
    labels = ["long" if len(text) > np.median([len(t) for t in texts]) else "short" for text in texts]
    backbone = str(tiny.build("bert"))
    classifier = TextClassifier("stc", (backbone,), cache=None, dtype="float32").fit(texts, labels)
    layers = classifier.summary_["learner"]["layers"]
    assert all(depth(name) <= layers for name in classifier.model_.needs)
    classifier.save(tmp_path / "model")
    again = load(tmp_path / "model")
    np.testing.assert_allclose(again.predict_proba(texts), classifier.predict_proba(texts), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"eta": 0}, "eta is 0; it must be the share of importance that is kept, above 0 and at most 1"),
        ({"eta": 1.5}, "eta is 1.5; it must be"),
        ({"eta": "much"}, "eta is 'much'; it must be"),
        ({"layers": -1}, "layers is -1; it must be how many layers are read, a whole number of at least 0"),
        ({"layers": 2.0}, "layers is 2.0; it must be"),
    ],
)
def test_eta_and_layers_are_judged_before_anything_is_read(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        TextClassifier("stc", ("nowhere",), **settings).fit(["a", "b"], ["a", "b"])  # type: ignore[arg-type]


@pytest.mark.parametrize("search", [sparsify._Search, sparsify._Grid])
def test_where_the_probes_of_a_fold_keep_nothing_there_is_no_choosing(search: type[sparsify._Search]) -> None:
    problem = a_problem(60)
    importance = np.ones((problem.folds.n_folds + 1, 12))
    importance[:-1] = 0
    rankings = [Ranking(name, importance, {}) for name in NAMES]
    assert search(problem, rankings).choose((0.3, 0.8), None) == (0.8, 3)


def test_layers_above_what_is_read_are_refused() -> None:
    with pytest.raises(ArgumentError, match="layers is 1; layers 2 to 3 are read"):
        sparsify.select(a_problem(), NAMES[2:], layers=1)
    with pytest.raises(DataError, match=r"No neuron of the first 0 layers tells the classes apart\. Are"):
        dull = {**a_problem().blocks, NAMES[0]: np.zeros((240, 12), dtype=np.float32)}
        sparsify.select(replace(a_problem(), blocks=dull), NAMES, layers=0)


def test_eta_and_layers_are_what_the_user_says() -> None:
    backbone, labels = (str(tiny.build("bert")),), ["a", "b"] * 20
    texts = [f"{tiny.SENTENCES[i % 5]} {'good' if i % 2 else 'cold'}" for i in range(40)]
    settings: dict[str, object] = {"cache": None, "dtype": "float32"}
    found = TextClassifier("stc", backbone, eta=0.3, layers=1, **settings).fit(texts, labels).summary_["learner"]  # type: ignore[arg-type]
    assert found["eta"] == 0.3 and found["layers"] == 1
    with pytest.raises(ArgumentError, match="layers is 4; layers 0 to 3 are read"):
        TextClassifier("stc", backbone, layers=4, **settings).fit(texts, labels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "head"), [("bert", "BertForSequenceClassification"), ("llama", "LlamaForSequenceClassification")]
)
def test_a_fine_tuned_checkpoint_is_a_backbone(name: str, head: str, tmp_path: Path) -> None:
    """As a trainer saves it: the backbone's weights under a prefix, beside those of a head, which is left out."""
    torch.manual_seed(0)
    folder = tiny.build(name)
    tuned = getattr(transformers, head).from_pretrained(folder, num_labels=2)
    texts = [f"{tiny.SENTENCES[i % 5]} {'good' if i % 2 else 'cold'}" for i in range(60)]
    labels = ["a", "b"] * 30
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    optimiser = torch.optim.Adam(tuned.parameters(), 1e-3)
    for text, label in zip(texts[:10], labels, strict=False):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        tuned(input_ids=ids, labels=torch.tensor([int(label == "b")])).loss.backward()
        optimiser.step()
    tuned.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    settings: dict[str, object] = {"cache": None, "dtype": "float32"}
    classifier = TextClassifier("stc", (str(tmp_path / "tuned"),), **settings).fit(texts, labels)  # type: ignore[arg-type]
    assert classifier.score(texts, labels) > 0.8
    known = TextClassifier("linear", (str(folder),), **settings).fit(texts, labels).backbones_[0]["fingerprint"]  # type: ignore[arg-type]
    assert classifier.backbones_[0]["fingerprint"] != known
    state = tuned.base_model(input_ids=torch.tensor([tokenizer(texts[0])["input_ids"]]), output_hidden_states=True)
    own = ActivationFeatures("hidden.1", "mean", (str(tmp_path / "tuned"),), **settings).fit_transform(texts[:1])  # type: ignore[arg-type]
    np.testing.assert_allclose(own[0], state.hidden_states[1][0].mean(dim=0).detach().numpy(), atol=1e-5)
