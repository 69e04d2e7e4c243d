"""LLMEmbed's head: what it learns, what it leaves alone, and what is kept of it."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from sonde import precision as precisions
from sonde.errors import ArgumentError, ModelError, ReadingError, RecipeError, SondeWarning
from sonde.learn import mlp, training
from sonde.learn.calibration import softmax
from sonde.learn.fusion import Dropout
from sonde.learn.head import DEFAULT, PAPER, FusionHead
from sonde.learn.problem import Problem, Record
from sonde.learn.splitting import Folds, make_folds, validation_folds
from sonde.learn.targets import Targets, encode
from sonde.learn.training import batch_rows, cross_entropy

DEEP = ("0/hidden.3/mean", "0/hidden.2/mean", "0/hidden.1/mean")
SENTENCES = ("1/sentence", "2/sentence")
QUICK = dataclasses.replace(DEFAULT, hidden=(32,), epochs=25, learning_rates=(1e-2,))


def clusters(rows=240, classes=3, seed=0, spread=1.0, scale=1.0):
    """Blocks in which each class has a centre of its own; labels; texts."""
    rng = np.random.default_rng(seed)
    ids = np.arange(rows) % classes
    blocks = {}
    for name, width in zip((*DEEP, *SENTENCES), (8, 8, 8, 6, 5), strict=True):
        centres = np.random.default_rng(99 + len(blocks)).normal(size=(classes, width))
        blocks[name] = (scale * (centres[ids] + spread * rng.normal(size=(rows, width)))).astype(np.float32)
    return blocks, ids, [f"text {i}" for i in range(rows)]


def a_problem(blocks, ids, texts, *, weights=None, folds=None, targets=None, seed=0):
    targets = targets or encode([f"c{i}" for i in ids])
    weights = np.ones(len(texts)) if weights is None else weights
    folds = folds or make_folds(texts, targets, seed=seed)
    return Problem(blocks, texts, targets, weights, folds, "accuracy", seed)


def accuracy(model: FusionHead, blocks, ids) -> float:
    return float(np.mean(model.logits(blocks, [""] * len(ids)).argmax(axis=1) == ids))


@pytest.fixture(scope="module")
def outcome():
    return mlp.fit(a_problem(*clusters()), DEEP, SENTENCES, 15, setting=QUICK)


@pytest.mark.parametrize("row", range(1, 16))
def test_every_row_learns(row):
    fitted = mlp.fit(a_problem(*clusters()), DEEP, SENTENCES, row, setting=QUICK)
    blocks, ids, _ = clusters(seed=1)
    assert accuracy(fitted.model, blocks, ids) > 0.8
    assert fitted.summary["row"] == row


@pytest.mark.parametrize("row", [14, 15])
def test_rows_with_maps_learn_what_is_linear_in_a_sentence_embedding(row):
    """Blocks without their means: .86 to .95."""

    def drawn(rows: int, seed: int):
        rng, fixed, ids = np.random.default_rng(seed), np.random.default_rng(7), np.arange(rows) % 2
        way = fixed.normal(size=24)
        blocks = {name: rng.normal(size=(rows, 16)) + 2 * fixed.normal(size=16) for name in DEEP}
        for name in SENTENCES:
            blocks[name] = rng.normal(size=(rows, 24)) / 2 + np.outer(2 * ids - 1, way / np.linalg.norm(way))
        return {k: b.astype(np.float32) for k, b in blocks.items()}, ids, [f"text {i}" for i in range(rows)]

    fitted = mlp.fit(a_problem(*drawn(400, 0)), DEEP, SENTENCES, row, setting=QUICK)
    blocks, ids, _ = drawn(1000, 9)
    assert accuracy(fitted.model, blocks, ids) > 0.97


def test_permuted_labels_give_chance():
    blocks, ids, texts = clusters(rows=400)
    permuted = np.random.default_rng(5).permutation(ids)
    fitted = mlp.fit(a_problem(blocks, permuted, texts), DEEP, SENTENCES, 15, setting=QUICK)
    seen = ~np.isnan(fitted.held_out[:, 0])
    assert abs(np.mean(fitted.held_out[seen].argmax(axis=1) == permuted[seen]) - 1 / 3) < 0.13  # 3.5 deviations


def test_features_of_any_scale_and_offset_give_the_same_predictions(monkeypatch):
    # Coarser products turn the last bits of the standardised features into another, equally good, training run.
    monkeypatch.setattr(training, "reported_dtype", lambda device: torch.float32)
    blocks, ids, texts = clusters()
    for row, offset in ((4, 500), (14, 0)):  # a product of two blocks says something about their offsets
        moved = {name: 1000 * block + offset for name, block in blocks.items()}
        plain = mlp.fit(a_problem(blocks, ids, texts), DEEP, SENTENCES, row, setting=QUICK).held_out
        other = mlp.fit(a_problem(moved, ids, texts), DEEP, SENTENCES, row, setting=QUICK).held_out
        seen = ~np.isnan(plain[:, 0])
        np.testing.assert_allclose(softmax(plain[seen]), softmax(other[seen]), atol=0.02)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_training_in_either_precision_learns_and_leaves_float32_weights(monkeypatch, precision):
    monkeypatch.setattr(training, "reported_dtype", lambda device: precision)
    fitted = mlp.fit(a_problem(*clusters()), DEEP, SENTENCES, 15, setting=QUICK)
    blocks, ids, texts = clusters(seed=1)
    assert accuracy(fitted.model, blocks, ids) > 0.8
    assert {p.dtype for p in fitted.model.network.state_dict().values()} == {torch.float32}
    assert fitted.model.logits(blocks, texts).dtype == np.float32


def test_the_precision_of_training_is_not_measured(monkeypatch):
    """A measurement comes out differently on a busy machine: the same seed would train another head."""
    monkeypatch.setattr(precisions, "_has", lambda features: "avx512_bf16" in features)
    monkeypatch.setattr(precisions, "_bfloat16_gain", lambda: pytest.fail("a clock decides"))
    mlp.fit(a_problem(*clusters()), DEEP, SENTENCES, 2, setting=QUICK)


# Determinism


def test_two_fits_are_identical_and_leave_global_randomness_alone(outcome):
    torch.manual_seed(123)
    np.random.seed(4)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(123)
    np.random.seed(4)
    again = mlp.fit(a_problem(*clusters()), DEEP, SENTENCES, 15, setting=QUICK)
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])
    np.testing.assert_array_equal(again.held_out, outcome.held_out)
    blocks, _, texts = clusters(seed=3)
    np.testing.assert_array_equal(again.model.logits(blocks, texts), outcome.model.logits(blocks, texts))
    assert again.summary == outcome.summary


def test_blocks_too_large_for_a_second_copy_are_standardised_batch_by_batch(outcome, monkeypatch):
    monkeypatch.setattr(training, "PREPARED_BYTES", 0)
    other = mlp.fit(a_problem(*clusters()), DEEP, SENTENCES, 15, setting=QUICK)
    assert other.summary == outcome.summary
    np.testing.assert_array_equal(other.held_out, outcome.held_out)


def test_the_seed_matters(outcome):
    blocks, ids, texts = clusters()
    folds = make_folds(texts, encode([f"c{i}" for i in ids]), seed=0)
    other = mlp.fit(a_problem(blocks, ids, texts, folds=folds, seed=1), DEEP, SENTENCES, 15, setting=QUICK)
    assert not np.array_equal(other.model.logits(blocks, texts), outcome.model.logits(blocks, texts))


def test_fitting_changes_neither_blocks_nor_weights():
    blocks, ids, texts = clusters()
    before = {name: block.copy() for name, block in blocks.items()}
    weights = np.linspace(0.5, 2, len(ids))
    mlp.fit(a_problem(blocks, ids, texts, weights=weights), DEEP, SENTENCES, 14, setting=QUICK)
    assert all(np.array_equal(before[name], blocks[name]) for name in blocks)
    np.testing.assert_array_equal(weights, np.linspace(0.5, 2, len(ids)))


# Validation


def test_held_out_logits_are_those_of_folds_0_and_1(outcome):
    problem = a_problem(*clusters())
    seen = np.isin(problem.folds.held, (0, 1))
    assert not np.isnan(outcome.held_out[seen]).any()
    assert np.isnan(outcome.held_out[~seen]).all()
    assert outcome.held_out.dtype == np.float32
    assert np.mean(outcome.held_out[seen].argmax(axis=1) == problem.targets.ids[seen]) > 0.8


def test_held_out_labels_do_not_reach_the_model_that_predicts_them():
    blocks, ids, texts = clusters()
    folds = make_folds(texts, encode([f"c{i}" for i in ids]), seed=0)
    conformal = folds.conformal
    wrong = np.where(conformal, (ids + 1) % 3, ids)
    right = mlp.fit(a_problem(blocks, ids, texts, folds=folds), DEEP, SENTENCES, 2, setting=QUICK)
    changed = mlp.fit(a_problem(blocks, wrong, texts, folds=folds), DEEP, SENTENCES, 2, setting=QUICK)
    np.testing.assert_array_equal(right.held_out, changed.held_out)
    assert not np.array_equal(right.model.logits(blocks, texts), changed.model.logits(blocks, texts))


def test_standardisation_of_the_validating_model_ignores_rows_it_does_not_see():
    blocks, ids, texts = clusters()
    folds = make_folds(texts, encode([f"c{i}" for i in ids]), seed=0)
    shifted = {name: block.copy() for name, block in blocks.items()}
    for block in shifted.values():
        block[folds.conformal] += 50
    plain = mlp.fit(a_problem(blocks, ids, texts, folds=folds), DEEP, SENTENCES, 2, setting=QUICK).held_out
    moved = mlp.fit(a_problem(shifted, ids, texts, folds=folds), DEEP, SENTENCES, 2, setting=QUICK).held_out
    choosing = folds.held == 1
    np.testing.assert_array_equal(plain[choosing], moved[choosing])


def test_a_validation_set_chooses_and_does_not_train():
    blocks, ids, texts = clusters()
    targets = encode([f"c{i}" for i in ids])
    folds = validation_folds(180, targets, seed=0)
    fitted = mlp.fit(a_problem(blocks, ids, texts, folds=folds), DEEP, SENTENCES, 5, setting=QUICK)
    assert np.isnan(fitted.held_out[:180]).all() and not np.isnan(fitted.held_out[180:]).any()
    spoiled = {name: np.where(np.arange(240)[:, None] < 180, block, block + 9) for name, block in blocks.items()}
    others = mlp.fit(a_problem(spoiled, ids, texts, folds=folds), DEEP, SENTENCES, 5, setting=QUICK)
    same = dataclasses.replace(QUICK, epochs=others.summary["epochs"], patience=None)
    clean = mlp.fit(a_problem(blocks, ids, texts, folds=folds), DEEP, SENTENCES, 5, setting=same)
    np.testing.assert_array_equal(others.model.logits(blocks, texts), clean.model.logits(blocks, texts))


def test_two_folds_give_each_fold_a_model_that_did_not_see_it():
    blocks, ids, texts = clusters()
    targets = encode([f"c{i}" for i in ids])
    folds = make_folds(texts, targets, seed=0, n_folds=2)
    fitted = mlp.fit(a_problem(blocks, ids, texts, folds=folds), DEEP, SENTENCES, 2, setting=QUICK)
    assert not np.isnan(fitted.held_out).any()
    assert np.mean(fitted.held_out.argmax(axis=1) == ids) > 0.8


def test_without_held_out_rows_the_defaults_train():
    blocks, ids, texts = clusters()
    folds = Folds(np.full(240, -1), np.ones(240, dtype=bool), np.zeros(240, dtype=bool), 0)
    setting = dataclasses.replace(QUICK, learning_rates=(1e-2, 1e-5))
    fitted = mlp.fit(a_problem(blocks, ids, texts, folds=folds), DEEP, SENTENCES, 2, setting=setting)
    assert np.isnan(fitted.held_out).all()
    assert fitted.summary["learning_rate"] == 1e-2
    assert fitted.summary["epochs"] == mlp.UNWATCHED_EPOCHS
    assert fitted.summary["validation_loss"] is None
    assert accuracy(fitted.model, blocks, ids) > 0.8


def test_the_learning_rate_with_the_lowest_validation_loss_is_taken():
    setting = dataclasses.replace(QUICK, learning_rates=(1e-7, 1e-2, 1e-6))
    summary = mlp.fit(a_problem(*clusters()), DEEP, SENTENCES, 2, setting=setting).summary
    assert summary["learning_rate"] == 1e-2 == float(min(summary["searched"], key=summary["searched"].get))
    assert set(summary["searched"]) == {"1e-07", "0.01", "1e-06"}


def test_a_rate_at_which_training_gives_no_numbers_is_left_out():
    setting = dataclasses.replace(QUICK, learning_rates=(1e38, 1e-2))
    summary = mlp.fit(a_problem(*clusters()), DEEP, SENTENCES, 2, setting=setting).summary
    assert summary["learning_rate"] == 1e-2 and summary["searched"]["1e+38"] is None


@pytest.mark.parametrize("patience", [6, None])
@pytest.mark.parametrize("folds", [5, 0])
def test_training_that_gives_no_numbers_at_any_rate_is_refused(folds, patience):
    blocks, ids, texts = clusters()
    none = Folds(np.full(240, -1), np.ones(240, dtype=bool), np.zeros(240, dtype=bool), 0)
    problem = a_problem(blocks, ids, texts, folds=None if folds else none)
    setting = dataclasses.replace(QUICK, learning_rates=(1e38, 1e37), patience=patience)
    with pytest.raises(ReadingError, match=r"Training a network gave NaN or infinity \(learning rate 1e\+38\)"):
        mlp.fit(problem, DEEP, SENTENCES, 2, setting=setting)


def test_a_large_set_searches_on_a_sample_and_trains_on_all(monkeypatch):
    monkeypatch.setattr(mlp, "SEARCH_ROWS", 60)
    setting = dataclasses.replace(QUICK, learning_rates=(1e-7, 1e-2))
    problem = a_problem(*clusters())
    fitted = mlp.fit(problem, DEEP, SENTENCES, 2, setting=setting)
    assert fitted.summary["learning_rate"] == 1e-2
    seen = ~np.isnan(fitted.held_out[:, 0])
    assert np.mean(fitted.held_out[seen].argmax(axis=1) == problem.targets.ids[seen]) > 0.8


def test_many_rows_have_fewer_epochs(monkeypatch):
    """As many steps as 100,000 rows have; the paper's setting, and few rows, have all their epochs."""
    monkeypatch.setattr(mlp, "MOST_STEPS", 7 * 20)
    problem = a_problem(*clusters())
    patient = dataclasses.replace(QUICK, epochs=25, patience=1000)
    summary = mlp.fit(problem, DEEP, SENTENCES, 13, setting=patient).summary
    assert len(summary["history"]["train"]) in (6, 7) and summary["epochs"] <= 7
    fixed = dataclasses.replace(QUICK, epochs=25, patience=None)
    assert len(mlp.fit(problem, DEEP, SENTENCES, 13, setting=fixed).summary["history"]["train"]) == 25


def test_training_stops_early_and_refits_for_the_best_number_of_epochs():
    noisy = clusters(spread=6.0)  # little to learn, much to learn by heart
    setting = dataclasses.replace(QUICK, epochs=80, patience=3, averaging=0.0, dropout=0.0)
    summary = mlp.fit(a_problem(*noisy), DEEP, SENTENCES, 4, setting=setting).summary
    validation = summary["history"]["validation"]
    assert len(validation) < 80
    assert summary["epochs"] == int(np.argmin(validation)) + 1 == len(validation) - 3
    assert summary["validation_loss"] == min(validation)
    assert len(summary["final_history"]["train"]) == summary["epochs"]


# Losses and weights


def test_loss_history_falls_and_is_json(outcome):
    history = outcome.summary["history"]
    assert len(history["train"]) == len(history["validation"])
    assert history["train"][-1] < 0.7 * history["train"][0]
    assert json.loads(json.dumps(outcome.summary)) == outcome.summary


def test_cross_entropy_is_on_logits():
    logits, indicator = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]]), torch.eye(3)[[0, 2]]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2]), reduction="none")
    torch.testing.assert_close(cross_entropy(logits, indicator, False), expected)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    p = torch.sigmoid(logits)
    by_hand = -(labels * p.log() + (1 - labels) * (1 - p).log()).sum(dim=1)
    torch.testing.assert_close(cross_entropy(logits, labels, True), by_hand)


def test_a_row_without_a_known_label_has_no_loss():
    assert cross_entropy(torch.tensor([[2.0, -1.0]]), torch.zeros(1, 2), False).tolist() == [0.0]


def test_rows_of_weight_0_do_not_train():
    blocks, ids, texts = clusters()
    weights = (np.arange(240) % 4 > 0).astype(float)
    folds = make_folds(texts, encode([f"c{i}" for i in ids]), seed=0)
    wrong = np.where(weights == 0, (ids + 1) % 3, ids)
    fits = [
        mlp.fit(a_problem(blocks, labels, texts, weights=weights, folds=folds), DEEP, SENTENCES, 4, setting=QUICK)
        for labels in (ids, wrong)
    ]
    np.testing.assert_array_equal(fits[0].model.logits(blocks, texts), fits[1].model.logits(blocks, texts))


def test_weights_move_the_decision():
    blocks, ids, texts = clusters(classes=2, spread=5.0)
    folds = make_folds(texts, encode([f"c{i}" for i in ids]), seed=0)
    predicted = []
    for heavy in (0, 1):
        weights = np.where(ids == heavy, 10.0, 1.0)
        model = mlp.fit(a_problem(blocks, ids, texts, weights=weights, folds=folds), DEEP, (), 2, setting=QUICK).model
        predicted.append(model.logits(blocks, texts).argmax(axis=1).mean())
    assert predicted[0] < 0.3 and predicted[1] > 0.7


def test_multi_label():
    blocks, ids, texts = clusters(classes=4)
    indicator = np.stack([ids % 2 == 0, ids >= 2, ids == 3], axis=1).astype(np.float32)
    targets = Targets(np.array(["even", "high", "three"]), indicator, True)
    fitted = mlp.fit(a_problem(blocks, ids, texts, targets=targets), DEEP, SENTENCES, 15, setting=QUICK)
    new, new_ids, _ = clusters(classes=4, seed=1)
    expected = np.stack([new_ids % 2 == 0, new_ids >= 2, new_ids == 3], axis=1)
    assert np.mean((fitted.model.logits(new, texts) > 0) == expected) > 0.9


def test_batch_rows():
    assert [batch_rows(n) for n in (10, 160, 6532, 67349)] == [8, 8, 326, 1024]


# Roles and the paper's setting


def test_needs_are_the_blocks_of_the_row(outcome):
    assert outcome.model.needs == (*DEEP, *SENTENCES)
    assert not outcome.model.reads_text
    row_1 = mlp.fit(a_problem(*clusters()), DEEP, SENTENCES, 1, setting=QUICK).model
    assert row_1.needs == DEEP[:1]


def test_missing_roles_and_unknown_rows_are_refused():
    problem = a_problem(*clusters(rows=30))
    with pytest.raises(RecipeError, match="row 12 needs the sentence role R beside B"):
        mlp.fit(problem, DEEP, SENTENCES[:1], 12)
    with pytest.raises(RecipeError, match="row 15 needs the sentence role B: pass a second backbone"):
        mlp.fit(problem, DEEP, (), 15)
    with pytest.raises(ArgumentError, match="row 16 is unknown"):
        mlp.fit(problem, DEEP, SENTENCES, 16)


def test_with_one_sentence_backbone_row_8_equals_row_5_and_says_so():
    problem = a_problem(*clusters())
    with pytest.warns(SondeWarning, match="repeats row 5"):
        row_8 = mlp.fit(problem, DEEP, SENTENCES[:1], 8, setting=QUICK)
    row_5 = mlp.fit(problem, DEEP, SENTENCES[:1], 5, setting=QUICK)
    np.testing.assert_array_equal(row_8.held_out, row_5.held_out)


def test_the_papers_setting():
    problem = a_problem(*clusters(rows=60, scale=3.0))
    fitted = mlp.fit(problem, DEEP, SENTENCES, 15, paper=True)
    network = fitted.model.network
    shapes = [tuple(layer.weight.shape) for layer in network.head if isinstance(layer, torch.nn.Linear)]
    assert shapes == [(1024, 25 + 8), (256, 1024), (3, 256)]
    assert [layer.rate for layer in network.head if isinstance(layer, Dropout)] == [0.5, 0.5]
    assert all(torch.equal(to.scale, torch.ones_like(to.scale)) for to in network.standardise)
    assert float(network.fusion.co.sigma) == pytest.approx(0.2)
    assert fitted.summary["paper"] and fitted.summary["learning_rate"] == 1e-4
    assert len(fitted.summary["final_history"]["train"]) == len(fitted.summary["history"]["train"]) == 100
    assert (PAPER.batch, PAPER.weight_decay, PAPER.averaging) == (1024, 0.0, 0.0)


# Records


def test_a_record_gives_the_same_model(outcome):
    record = outcome.model.record()
    settings = json.loads(json.dumps(record.settings))
    assert all(array.dtype == np.float32 for array in record.arrays.values())
    restored = FusionHead.from_record(Record(settings, record.arrays))
    blocks, _, texts = clusters(seed=2)
    np.testing.assert_array_equal(restored.logits(blocks, texts), outcome.model.logits(blocks, texts))
    assert restored.needs == outcome.model.needs
    assert restored.record().settings == record.settings


def test_a_record_whose_co_occurrence_was_another_is_refused_and_others_are_read(outcome):
    def of_before(model: FusionHead) -> FusionHead:
        settings = json.loads(json.dumps((record := model.record()).settings))
        settings["setting"]["scaled"] = settings["setting"].pop("calibrated")
        return FusionHead.from_record(Record(settings, record.arrays))

    with pytest.raises(ModelError, match="row 14 or 15 of an earlier sonde, whose co-occurrence was another"):
        of_before(outcome.model)
    blocks, ids, texts = clusters()
    simple = mlp.fit(a_problem(blocks, ids, texts), DEEP, SENTENCES, 2, setting=QUICK).model
    np.testing.assert_array_equal(of_before(simple).logits(blocks, texts), simple.logits(blocks, texts))


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "setting", "widths"])
def test_a_damaged_record_is_refused(outcome, damage):
    record = outcome.model.record()
    settings, arrays = json.loads(json.dumps(record.settings)), dict(record.arrays)
    name = next(name for name in arrays if name.endswith("head.1.weight"))
    if damage == "missing":
        del arrays[name]
    elif damage == "extra":
        arrays["other"] = np.zeros(1, dtype=np.float32)
    elif damage == "shape":
        arrays[name] = arrays[name][:, :-1]
    elif damage == "setting":
        del settings["setting"]["dropout"]
    else:
        settings["widths"].append(3)
    with pytest.raises(ModelError, match="The saved fusion head is damaged: "):
        FusionHead.from_record(Record(settings, arrays))


def test_logits_do_not_depend_on_the_other_rows(outcome):
    blocks, _, texts = clusters(seed=2)
    whole = outcome.model.logits(blocks, texts)
    alone = outcome.model.logits({name: block[7:8] for name, block in blocks.items()}, texts[7:8])
    np.testing.assert_allclose(alone[0], whole[7], rtol=1e-4, atol=1e-5)
    order = np.argsort([hash(text) for text in texts])
    shuffled = outcome.model.logits({name: block[order] for name, block in blocks.items()}, texts)
    np.testing.assert_allclose(shuffled, whole[order], rtol=1e-4, atol=1e-5)
    empty = outcome.model.logits({name: block[:0] for name, block in blocks.items()}, [])
    assert empty.shape == (0, 3)


@pytest.mark.parametrize("rate", [0.25, 0.5])
def test_dropout_drops_its_share_keeps_the_mean_and_rests_in_evaluation(rate: float) -> None:
    torch.manual_seed(0)
    given, dropout = torch.ones(999, 401), Dropout(rate)
    dropped = dropout.train()(given)
    assert float((dropped == 0).float().mean()) == pytest.approx(rate, abs=5e-3)
    assert float(dropped.mean()) == pytest.approx(1, abs=1e-2)
    assert sorted(set(dropped.flatten().tolist())) == [0, pytest.approx(1 / (1 - rate))]
    assert not torch.equal(dropped, dropout(given))
    assert dropout.eval()(given) is given
    assert Dropout(0.0).train()(given) is given
