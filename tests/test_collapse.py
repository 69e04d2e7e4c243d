"""The defects of the released code: each is what its name says, they cost what they should, nobody else has them."""

import csv
import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from samples import worded
from transformers import AutoModel

from sonde.bench import collapse
from sonde.bench.collapse import VARIANTS, Cell, Collapse, measure, padded_means, softmax_first, to_markdown
from sonde.bench.datasets import DataSet
from sonde.errors import DataError
from sonde.learn import mlp
from sonde.learn.problem import Problem
from sonde.learn.recipes import RECIPES
from sonde.learn.splitting import make_folds
from sonde.learn.targets import encode
from sonde.learn.training import cross_entropy
from sonde.read.extract import read
from sonde.read.sources import expand_blocks, open_sources


def test_softmax_first_equals_a_loop_and_hides_confident_errors():
    logits = torch.tensor([[9.0, 0.0, 0.0], [1.0, 2.0, 0.5]], requires_grad=True)
    indicator = torch.eye(3)[[1, 0]]
    expected = []
    for row, label in zip(logits.tolist(), (1, 0), strict=True):
        exponents = np.exp(row)
        twice = np.exp(exponents / exponents.sum())
        expected.append(-np.log(twice[label] / twice.sum()))
    np.testing.assert_allclose(softmax_first(logits, indicator, False).detach().numpy(), expected, rtol=1e-5)

    def pull(loss):
        (gradient,) = torch.autograd.grad(loss(logits, indicator, False)[0], logits)
        return float(gradient.abs().max())

    assert pull(softmax_first) < 1e-3 < 0.9 < pull(cross_entropy)


def test_padded_means_run_over_the_pads():
    texts = [*tiny.SENTENCES, "good"]
    sources = open_sources({0: str(tiny.build("llama"))}, max_tokens=12, long_text="cut", dtype="float32", device="cpu")
    layers = expand_blocks(0, sources[0], "hidden.*", "mean")
    padded = padded_means(texts, sources[0], layers)
    clean = read(texts, sources, layers).blocks

    tokenizer, model = sources[0].backbone.tokenizer, AutoModel.from_pretrained(tiny.build("llama"))
    for row, text in enumerate(texts):
        ids = tokenizer(text)["input_ids"][:12]
        short = len(ids) < 12
        pad = collapse.filler_id(tokenizer)
        with torch.inference_mode():
            states = model(torch.tensor([ids + [pad] * (12 - len(ids))]), output_hidden_states=True).hidden_states
        for block, state in zip(layers, states, strict=True):
            np.testing.assert_allclose(padded[block.name][row], state[0].mean(dim=0).numpy(), rtol=1e-3, atol=1e-4)
            same = np.allclose(padded[block.name][row], clean[block.name][row], rtol=1e-3, atol=1e-4)
            assert same is not short


def test_all_defects_together_collapse_where_the_clean_setting_learns():
    rng = np.random.default_rng(0)
    ids = np.concatenate([np.zeros(84, dtype=int), 1 + np.arange(116) % 9])  # 42% in the largest class, as R52
    deep = ("0/hidden.2/mean", "0/hidden.1/mean")
    centres = rng.normal(size=(10, 16))
    # small values, which the clean setting scales and the released code does not
    blocks = {name: (0.1 * centres[ids] + 0.03 * rng.normal(size=(200, 16))).astype(np.float32) for name in deep}
    texts, targets = [f"text {i}" for i in range(200)], encode([f"c{i}" for i in ids])
    problem = Problem(blocks, texts, targets, np.ones(200), make_folds(texts, targets, seed=0), "accuracy", 0)
    accuracy = {}
    for key in ("clean", "all"):
        variant = VARIANTS[key]
        setting = dataclasses.replace(variant.setting, epochs=min(variant.setting.epochs, 40))
        model = mlp.fit(problem, deep, (), 4, setting=setting, loss=variant.loss).model
        accuracy[key] = np.mean(model.logits(blocks, texts).argmax(axis=1) == ids)
    assert accuracy["clean"] > 0.9
    assert accuracy["all"] < 0.6  # answering the largest class gives .42


def test_each_variant_switches_one_defect_on():
    clean = VARIANTS["clean"]
    assert (clean.setting, clean.loss, clean.pads) == (mlp.DEFAULT, cross_entropy, False)
    changed = {
        key: {
            *(f.name for f in dataclasses.fields(clean.setting)
              if getattr(variant.setting, f.name) != getattr(clean.setting, f.name)),
            *(["loss"] if variant.loss is not cross_entropy else []),
            *(["pads"] if variant.pads else []),
        }
        for key, variant in VARIANTS.items()
    }  # fmt: skip
    assert changed["pads"] == {"pads"}
    assert changed["softmax"] == {"loss"}
    assert changed["unscaled"] == {"standardise", "calibrated", "normalise"}
    assert changed["slow"] == {"learning_rates", "batch", "averaging", "patience"}
    assert changed["all"] > changed["pads"] | changed["softmax"] | changed["unscaled"] | changed["slow"]


def test_no_recipe_can_switch_a_defect_on():
    assert {key for recipe in RECIPES.values() for key in recipe.settings} == {"row"}


@pytest.fixture
def quick(monkeypatch):
    """Variants that train for two epochs."""
    short = {
        key: dataclasses.replace(v, setting=dataclasses.replace(v.setting, epochs=2, hidden=(16,)))
        for key, v in VARIANTS.items()
    }
    monkeypatch.setattr(collapse, "VARIANTS", short)


def test_measure_fills_every_cell(quick):
    texts, labels = worded(60)
    train, test = DataSet(texts[:45], np.array(labels[:45])), DataSet(texts[45:], np.array(labels[45:]))
    result = measure(train, test, str(tiny.build("llama")), str(tiny.build("bert")), table_rows=(4, 15), max_tokens=16)
    assert [(cell.row, cell.variant) for cell in result.cells] == [(r, v) for r in (4, 15) for v in VARIANTS]
    for cell in result.cells:
        assert 0 <= cell.accuracy <= 1 and 1 <= cell.predicted_classes <= 3
        clean = next(c for c in result.cells if c.row == cell.row and c.variant == "clean")
        assert cell.points_lost == pytest.approx(100 * (clean.accuracy - cell.accuracy), abs=0.01)
    assert (result.train_rows, result.test_rows) == (45, 15)
    assert result.largest_class == pytest.approx(1 / 3)


def some_result() -> Collapse:
    cells = [Cell(2, key, 0.8, 0.0, 40, 1.0) for key in VARIANTS]
    cells[-1] = Cell(2, "all", 0.4217, 37.83, 1, 1.0)
    described = {"date": "2026-01-01", "processor": "P", "cores": 2, "memory_gb": 8, "system": "S", "python": "3",
                 "versions": {"torch": "2"}}  # fmt: skip
    return Collapse(tuple(cells), 0.4217, 6532, 2568, 60.0, described)


def test_results_are_written_as_json_and_markdown(tmp_path):
    result = some_result()
    paths = result.write_results(tmp_path / "new")
    assert [path.name for path in paths] == ["collapse.json", "collapse.md"]
    assert json.loads(paths[0].read_text())["cells"][0] == dataclasses.asdict(result.cells[0])
    page = paths[1].read_text()
    assert page == to_markdown(result)
    assert "answers the largest class: 0.4217" in page
    assert "| (e) all four, with the paper's head | 0.4217 (-37.8), one class only |" in page
    assert "| none | 0.8000 |" in page
    assert "6,532 training rows, 2,568 test rows" in page and "Measured on 2026-01-01" in page


def test_run_reads_the_folder_and_keeps_the_row_limit(quick, tmp_path, monkeypatch):
    texts, labels = worded(90)
    folder = tmp_path / "data" / "r52"
    folder.mkdir(parents=True)
    for split, rows in (("train", slice(0, 60)), ("test", slice(60, 90))):
        with gzip.open(folder / f"{split}.csv.gz", "wt", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *zip(texts[rows], labels[rows], strict=True)])
    with pytest.raises(DataError, match="needs the folder of reviews-llama-8m: give --models"):
        collapse.run(data=tmp_path / "data", models=None, out=tmp_path / "out", rows=30, only=None, cache=None)

    shutil.copytree(tiny.build("llama"), tmp_path / "models" / collapse.DEEP)
    monkeypatch.setattr(collapse, "TABLE_ROWS", (2,))
    monkeypatch.setattr(collapse, "BUNDLE", str(tiny.build("bert")))
    monkeypatch.setattr(collapse, "MAX_TOKENS", 16)
    paths = collapse.run(data=tmp_path / "data", models=None, out=tmp_path / "out", rows=30, only=None, cache=None)
    content = json.loads(Path(paths[0]).read_text())
    assert (content["train_rows"], content["test_rows"]) == (30, 30)
    assert [cell["variant"] for cell in content["cells"]] == list(VARIANTS)
