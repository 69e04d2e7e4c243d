"""The benchmarks on small data of our own: every line is filled, runs go on where they stopped."""

import csv
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from samples import worded

from sonde.bench import BENCHES, datasets, depth, long_text, machine, reasons, sample, tables
from sonde.bench.paper import SETS, TABLE_2
from sonde.errors import DataError

EDGES = {"train": (0, 44), "test": (44, 60)}


def write_split(
    folder: Path, texts: list[str], labels: list[str], split: str, edges: dict[str, tuple[int, int]] = EDGES
) -> None:
    start, stop = edges[split]
    with gzip.open(folder / f"{split}.csv.gz", "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts[start:stop], labels[start:stop], strict=True)])


@pytest.fixture
def data(tmp_path: Path, texts: list[str], labels: list[str]) -> Path:
    """A folder with r8 and imdb made of the sixty texts."""
    for name in ("r8", "imdb"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for split in EDGES:
            write_split(folder, texts, labels, split)
    return tmp_path / "data"


def telling(data: Path, train: int = 44, test: int = 16) -> None:
    """Give r8 texts in whose words stc finds a neuron, even of a random model."""
    texts, labels = worded(train + test, noise=0.1)
    edges = {"train": (0, train), "test": (train, train + test)}
    for split in edges:
        write_split(data / "r8", texts, labels, split, edges)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiny random models under the names of the real ones."""
    for name in (tables.LLAMA, tables.STORIES):
        shutil.copytree(tiny.build("llama"), tmp_path / "models" / name)
    monkeypatch.setattr(tables, "BUNDLE", str(tiny.build("bert")))
    monkeypatch.setattr(tables, "LLAMA_TOKENS", 32)
    monkeypatch.setattr(tables, "SEEDS", (0,))
    monkeypatch.setattr(tables, "READINGS", tuple(
        tables.Reading(r.place, 32 if r.max_tokens else None, r.sites) for r in tables.READINGS))  # fmt: skip
    return tmp_path / "models"


@pytest.mark.slow
def test_every_line_is_filled_and_a_second_run_fits_nothing(
    data: Path, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    telling(data)
    settings = {"data": data, "models": models, "rows": None, "only": ["r8"], "cache": tmp_path / "store"}
    written = tables.run(**settings, out=tmp_path / "out")
    content = json.loads((tmp_path / "out" / "tables.json").read_text())
    wanted = {f"r8|{line.name}" for line in tables.columns(True)}
    assert set(content["cells"]) == wanted and len(wanted) == 6 + 1 + 3 + 15
    page = written[1].read_text()
    assert all(f"`llmembed-{row} [" in page for row in range(1, 16))
    assert "other backbones" in page and machine.sentence(content["machine"]) in page
    monkeypatch.setattr(tables, "_fit", lambda *_: pytest.fail("a finished cell was fitted again"))
    tables.run(**settings, out=tmp_path / "out")
    assert written[1].read_text() == page


def test_accuracy_in_the_page_is_that_of_the_bits() -> None:
    correct = np.array([1, 1, 0, 1, 0, 1, 1, 1, 1, 0], dtype=bool)
    packed = tables.pack(correct)
    test = {"n": 10, "accuracy": 0.7, "correct": packed, "inference": {"seconds": 1.0, "cpu_seconds": 1.0}}
    cells = {"r8|lexical": {"seeds": [{"seed": 0, "tests": {"test": test}}], "train_rows": 3}}
    content = {"cells": cells}
    assert tables._score(content, "r8", "lexical", ("test",)) == pytest.approx(0.7)
    np.testing.assert_array_equal(tables._bits(content, "r8", "lexical"), correct)


def test_auto_is_compared_with_every_recipe_that_was_run() -> None:
    auto, better, worse = (np.ones(40, dtype=bool) for _ in range(3))
    auto[:6], worse[:20] = False, False

    def cell(correct: np.ndarray) -> dict[str, Any]:
        test = {"n": 40, "accuracy": float(correct.mean()), "correct": tables.pack(correct)}
        return {"seeds": [{"seed": 0, "tests": {"test": test}}], "train_rows": 3}

    cells = {"auto [bundle]": cell(auto), "lexical": cell(better), "stc-hidden [bundle]": cell(worse)}
    page = tables._significance({"cells": {f"r8|{line}": one for line, one in cells.items()}})
    assert "| `lexical` | -15.00 (0.016, 0.031) |" in page, "all six that differ: one half to the sixth"
    assert "| `stc-hidden [bundle]` | +35.00 (1.000, 1.000) |" in page
    assert "`linear" not in page
    assert tables._significance({"cells": {"r8|lexical": cell(better)}}) == ""


@pytest.mark.slow
def test_depth_and_sample_are_measured(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    telling(data, train=120)
    monkeypatch.setattr(sample, "BACKBONE", str(tiny.build("bert")))
    settings: dict[str, Any] = {
        "data": data,
        "models": None,
        "rows": None,
        "only": ["r8"],
        "cache": None,
        "out": tmp_path,
    }
    figures, page = (path.read_text() for path in depth.run(**settings, backbone=str(tiny.build("bert"))))
    cell = json.loads(figures)["cells"]["r8"]
    assert cell["depths"] == sorted(cell["depths"]) and len(cell["test"]) == len(cell["depths"])
    assert cell["enough"]["test"] == cell["test"][cell["depths"].index(cell["enough"]["depth"])]
    assert cell["cascade"]["out_of_fold"]["mean_depth"] <= cell["depths"][-1]
    assert "| R8 | 120 |" in page and "which nobody can know beforehand" in page

    monkeypatch.setattr(sample, "SETS", ("r8",))
    monkeypatch.setattr(sample, "SIZES", (60, 120))
    figures, page = (path.read_text() for path in sample.run(**settings))
    assert set(json.loads(figures)["cells"]) == {"r8|60", "r8|120"} and "| 60 |" in page
    monkeypatch.setattr(sample, "_cell", lambda *_: pytest.fail("a finished cell was fitted again"))
    sample.run(**settings)


def test_long_text_compares_three_ways(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_text, "BACKBONE", str(tiny.build("bert")))
    monkeypatch.setattr(long_text, "MAX_TOKENS", 8)
    paths = long_text.run(data=data, models=None, out=tmp_path, rows=None, only=["r8"], cache=None)
    cells = {cell["long_text"]: cell for cell in json.loads(paths[0].read_text())["cells"]}
    assert set(cells) == {"cut", "head_tail", "windows"}
    assert cells["windows"]["lost_tokens"] == 0 < cells["cut"]["lost_tokens"] == cells["head_tail"]["lost_tokens"]
    assert all(f"`{way}`" in paths[1].read_text() for way in cells)


def test_reasons_are_checked_on_every_set_and_recipe(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reasons, "BACKBONE", str(tiny.build("bert")))
    paths = reasons.run(data=data, models=None, out=tmp_path, rows=12, only=["r8"], cache=None)
    cells = json.loads(paths[0].read_text())["cells"]
    assert [(cell["set"], cell["recipe"]) for cell in cells] == [("r8", name) for name in reasons.RECIPES]
    assert all(cell["texts"] == 12 and cell["train_rows"] == 12 and cell["margin_error"] >= 0 for cell in cells)
    assert all(cell["margin"] == pytest.approx(cell["top"] - cell["random"]) for cell in cells)
    page = paths[1].read_text()
    assert page.count("| R8 |") == len(reasons.RECIPES) and "20% of its tokens" in page


def test_benches_exist_and_data_sets_are_named(tmp_path: Path) -> None:
    assert set(BENCHES) == {"tables", "collapse", "long_text", "trust", "reasons", "ablation", "few"} | {
        "depth",
        "sample",
        "comparison",
        "llmembed",
        "stc",
    }
    with pytest.raises(DataError, match=r"does not exist. --data must hold one folder a data set, such as sst2"):
        datasets.read_split(tmp_path, "r8", "train")
    with pytest.raises(DataError, match="holds no data set; it must hold a folder a set"):
        datasets.chosen(tmp_path, None)
    for name in ("mine", "imdb", "also"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv.gz").touch()
    assert datasets.chosen(tmp_path, None) == ["imdb", "also", "mine"], "those of the papers first"
    assert datasets.chosen(tmp_path, ["mine"]) == ["mine"]
    with pytest.raises(DataError, match=r"'mr' is not in .*; there are: imdb, also, mine"):
        datasets.chosen(tmp_path, ["mr"])
    assert datasets.of_papers(["r8"]) == ["r8"]
    with pytest.raises(DataError, match="The papers have no data set 'mine'"):
        datasets.of_papers(["mine"])


@pytest.mark.parametrize(
    ("row", "mean"), [("llmembed-1", 0.9572), ("llmembed-2", 0.9594), ("llmembed-14", 0.9465), ("llmembed-15", 0.9620)]
)
def test_the_papers_figures_have_the_papers_means(row: str, mean: float) -> None:
    scores = next(scores for (method, _), scores in TABLE_2.items() if method == row)
    assert len(scores) == len(SETS)
    assert np.mean([s for s in scores if s is not None]) == pytest.approx(mean, abs=1e-4)


def test_real_sets_have_their_published_sizes(data_dir: Path) -> None:
    split = datasets.read_split(data_dir, "r8", "test")
    assert len(split.texts) == 2189 and len(datasets.label_names(data_dir, "r8")) == 8
    few = split.take(50)
    assert len(few.texts) == 50 and few.texts == split.take(50).texts
