"""The comparison page: every candidate on the same rows, and what the default loses stands first."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from loopback import Loopback, Reply
from samples import worded
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sonde.bench import comparison, comparison_page, datasets, machine
from sonde.bench.candidates import Candidate, Setting
from sonde.bench.datasets import DataSet
from sonde.bench.tables import pack
from sonde.errors import ArgumentError, ModelError
from sonde.read.store import opened


def words(_: Setting) -> Any:
    return make_pipeline(TfidfVectorizer(), LogisticRegression())


def refused(_: Setting) -> Any:
    raise ModelError("It cannot be done.")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    texts, labels = worded(150)
    folder = tmp_path / "data" / "r8"
    folder.mkdir(parents=True)
    for split, rows in (("train", slice(0, 100)), ("test", slice(100, 150))):
        with gzip.open(folder / f"{split}.csv.gz", "wt", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *zip(texts[rows], labels[rows], strict=True)])
    return tmp_path / "data"


def test_every_cell_is_measured_once_on_so_many_rows(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: Candidate(name, name, make) for name, make in (("auto", words), ("lora", words), ("no", refused))}
    monkeypatch.setattr(comparison, "CANDIDATES", found)
    monkeypatch.setattr(comparison_page, "CANDIDATES", found)
    monkeypatch.setattr(comparison, "MOST_ROWS", {"lora": 60})
    monkeypatch.setattr(comparison, "MOST_TEST_ROWS", {"lora": 20})
    settings: dict[str, Any] = {
        "data": data,
        "models": None,
        "out": tmp_path,
        "rows": None,
        "only": ["r8"],
        "cache": None,
    }
    figures, page = (path.read_text() for path in comparison.run(**settings))
    cells = json.loads(figures)["cells"]
    assert {key: cell["train_rows"] for key, cell in cells.items() if "no" not in key} == {
        "r8|8|auto": 24, "r8|32|auto": 96, "r8|128|auto": 100, "r8|all|auto": 100,
        "r8|8|lora": 24, "r8|32|lora": 60, "r8|128|lora": 60, "r8|all|lora": 60,
    }  # fmt: skip
    assert cells["r8|8|no"]["failed"] == "It cannot be done."
    assert "`no` on R8, 8 rows a class: It cannot be done." in page and "] (60, 20) |" in page
    assert "- R8: 100 training and 50 test texts" in page and "- `setfit`: not measured everywhere" in page
    assert "- SST-2, IMDb, AG News, R52: not measured" in page
    monkeypatch.setattr(comparison, "fit_and_measure", lambda *_: pytest.fail("a finished cell was fitted again"))
    without = [name for name in found if name != "no"]  # what was refused is tried again
    assert comparison.run(**settings, recipes=without)[1].read_text() == page
    with pytest.raises(ArgumentError, match="candidate"):
        comparison.run(**settings, recipes=["lorax"])


def cell(right: int, **more: Any) -> dict[str, Any]:
    stage = {"seconds": 2.0, "energy": {"kwh": 0.001, "estimated": True}}
    share = right / 100
    return {
        "accuracy": share, "low": share - 0.1, "high": share + 0.1, "macro_f1": share, "ece": 0.02, "n": 100,
        "correct": pack(np.arange(100) < right), "train_rows": 500, "all_rows": 500, "texts_per_second": 70.0,
        "bytes": 2_000_000, "texts_per_cpu_second": 50.0, "fit_cpu_seconds": 3.0, "ece_95": 0.04,
        "machine": machine.describe(),
        "cost": {"stages": {"training": stage}}, **more,
    }  # fmt: skip


def page(cells: dict[str, Any]) -> str:
    setting = {"backbone": "some", "seed": 0, "limit": None, "dtype": "float32"}
    return comparison_page.to_markdown({"setting": setting, "cells": cells})


def test_what_the_default_loses_stands_first() -> None:
    lost = page({"r8|all|auto": cell(80), "r8|all|lora": cell(90), "r8|all|svm": cell(82), "r8|8|auto": cell(50)})
    first = lost[lost.index("## Where the default loses") : lost.index("## 8 rows")]
    assert "- R8, all rows: `lora` .900 against .800 (p 0.002)" in first and "- R8, all rows: `svm`" not in first
    assert "| `svm` | 1 of 1 | 1 of 1 | 0 of 1 | 0 of 1 | 0 of 1 | 0 of 1 |" in first
    assert lost.index("## Where the default loses") < lost.index("## All rows")
    assert "Nothing here is more accurate" in page({"r8|all|auto": cell(90), "r8|all|lora": cell(80)})


def test_lines_hold_figures_and_costs() -> None:
    svm = cell(60, ece=None, bytes=None)
    shown = page({"r8|all|auto": cell(80), "sst2|all|auto": cell(70), "r8|all|svm": svm})
    assert "| `auto` | .700 [.600, .800] | .800 [.700, .900] | .750 |" in shown
    assert "| `svm` |  | .600 [.500, .700] |  |" in shown, "no mean where a set is missing"
    assert "| `auto` | .020 (.040) | .020 (.040) | .020 |" in shown and "| `svm` |  |  |  |" in shown
    assert "| `auto` | 2.0 (3.0) | 2.0 (3.0) |" in shown and "| `auto` | 70 (50) | 70 (50) |" in shown
    assert "| `auto` | 2.0 | ~1 |" in shown and "| `svm` (1) |  | ~1 |" in shown


def test_those_that_were_asked_about_fewer_rows_are_judged_on_these() -> None:
    """Of the last 30 rows `auto` has none right, of all it has 70."""
    asked = {"n": 30, "correct": pack(np.arange(30) < 20), "asked": pack(np.arange(100) >= 70), "test_rows": 100}
    lost = page({"r8|all|auto": cell(70), "r8|all|lora": cell(20, **asked)})
    assert "- R8, all rows: `lora` .667 against .000 (p 0.000)" in lost
    assert "| `lora` | 1 of 1 |  |  | 0 of 1 | 0 of 1 | 0 of 1 |" in lost and "[.100, .300] (500, 30)" in lost


def test_cells_of_two_machines_and_days_are_told() -> None:
    here = {**machine.describe(), "units": ""}
    days = [{**here, "date": f"2026-01-0{day}"} for day in (3, 1, 2)]
    cells = {f"{name}|8|auto": cell(80, machine=day) for name, day in zip(("r8", "r52", "imdb"), days, strict=True)}
    shown = page({**cells, "sst2|8|auto": cell(70, machine={**here, "processor": "Q", "date": "2026-01-01"})})
    assert "Measured on 2026-01-01 to 2026-01-03: " in shown and "Measured on 2026-01-01: Q, " in shown


def test_a_sample_holds_every_class_and_each_as_often_as_it_has_rows() -> None:
    labels = np.array(["a"] * 600 + ["b"] * 300 + ["c"] * 99 + ["d"])
    whole = DataSet([str(row) for row in range(1000)], labels)
    some = whole.at(whole.sampled(100, seed=3))
    counts = dict(zip(*np.unique(some.labels, return_counts=True), strict=True))
    assert counts["d"] == 1 and abs(counts["a"] - 60) <= 1 and abs(counts["b"] - 30) <= 1
    assert some.texts == sorted(some.texts, key=int) and len(some.texts) == len(set(some.texts)) == 100
    assert whole.sampled(1000).tolist() == whole.sampled(5000).tolist() == list(range(1000))
    assert set(labels[whole.sampled(4)]) == {"a", "b", "c", "d"}


def test_long_texts_are_a_sample_of_every_class_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "AFFORDABLE", {"imdb": (30, 10)})
    monkeypatch.setattr(datasets, "choose_device", lambda _: torch.device("cpu"))
    train, test = (DataSet([str(row) for row in range(n)], np.array(["a", "b"] * (n // 2))) for n in (100, 40))
    some, asked = datasets.affordable("imdb", train, test)
    assert np.unique(some.labels, return_counts=True)[1].tolist() == [15, 15] and len(asked.texts) == 10
    assert datasets.affordable("r8", train, test) == (train, test)
    monkeypatch.setattr(datasets, "choose_device", lambda _: torch.device("cuda"))
    assert datasets.affordable("imdb", train, test) == (train, test)


def test_a_cell_of_a_sampled_set_says_so(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "CANDIDATES", {"auto": Candidate("auto", "auto", words)})
    monkeypatch.setattr(datasets, "AFFORDABLE", {"r8": (90, 20)})
    monkeypatch.setattr(datasets, "choose_device", lambda _: torch.device("cpu"))
    asked: dict[str, Any] = {"data": data, "models": None, "only": None, "cache": None, "rows": None, "out": tmp_path}
    shown = comparison.run(**asked)[1].read_text()
    assert "- R8: 90 of 100 training and 20 of 50 test texts" in shown
    assert shown.count("] (24, 20) |") == 1 and shown.count("] (90, 20) |") == 3, "8 a class; 32, 128 and all"


def test_cells_of_other_rows_are_made_again_and_never_compared(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun without a GPU, and gone on with where there is one."""
    found = {name: Candidate(name, name, words) for name in ("auto", "svm", "lora")}
    monkeypatch.setattr(comparison, "CANDIDATES", found)
    monkeypatch.setattr(comparison, "MOST_TEST_ROWS", {"lora": 15})
    monkeypatch.setattr(comparison, "SHOTS", (8,))
    monkeypatch.setattr(datasets, "AFFORDABLE", {"r8": (90, 20)})
    monkeypatch.setattr(datasets, "choose_device", lambda _: torch.device("cpu"))
    asked: dict[str, Any] = {"data": data, "models": None, "only": None, "cache": None, "rows": None, "out": tmp_path}
    shown = comparison.run(**asked)[1].read_text()
    assert "| `svm` | 0 of 1 | 0 of 1 |" in shown and "| `lora` | " in shown
    monkeypatch.setattr(datasets, "choose_device", lambda _: torch.device("cuda"))
    figures, page = comparison.run(**asked, recipes=["auto"])
    cells = json.loads(figures.read_text())["cells"]
    assert {name: cells[f"r8|8|{name}"]["n"] for name in found} == {"auto": 50, "svm": 20, "lora": 15}
    assert "In how many cells" not in page.read_text(), "nobody else was tested on all rows"
    figures, page = comparison.run(**asked)
    cells = json.loads(figures.read_text())["cells"]
    assert {name: cells[f"r8|8|{name}"]["n"] for name in found} == {"auto": 50, "svm": 50, "lora": 15}
    assert cells["r8|8|lora"]["test_rows"] == 50 and "| `svm` | 0 of 1 | 0 of 1 |" in page.read_text()
    monkeypatch.setattr(comparison, "fit_and_measure", lambda *_: pytest.fail("a finished cell was fitted again"))
    comparison.run(**asked)


def test_texts_are_read_before_the_first_fit_and_the_page_is_written_when_it_is_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "BACKBONE", str(tiny.build("bert")))
    asked: dict[str, Any] = {"data": data, "models": None, "only": None, "out": tmp_path, "rows": None}
    with pytest.raises(ArgumentError, match="needs a store"):
        comparison.run(**asked, cache=None, recipes=["linear"])
    ready: list[int] = []

    def fit(*given: Any) -> dict[str, Any]:
        if ready:
            raise KeyboardInterrupt
        ready.append(min(column["rows"] for column in opened(tmp_path / "store").describe()))
        return cell(80)

    monkeypatch.setattr(comparison, "fit_and_measure", fit)
    with pytest.raises(KeyboardInterrupt):
        comparison.run(**asked, cache=tmp_path / "store", recipes=["linear", "knn"])
    assert ready == [len(set(worded(150)[0]))]
    assert "| `linear` | .800" in (tmp_path / "comparison.md").read_text()


def test_language_models_are_asked_on_few_rows(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(prompt: str, _: int) -> Reply:
        return Reply("" if "cold" in prompt.rpartition("Text")[2] else "rail")

    monkeypatch.setattr(comparison, "BACKBONE", str(tiny.build("bert")))
    monkeypatch.setattr(comparison, "MOST_TEST_ROWS", {"io": 20, "carp": 20})
    out, asked = tmp_path / "docs" / "results", {"data": data, "models": None, "only": None, "cache": None}
    with Loopback(first) as server:
        figures, page = comparison.run(
            **{**asked, "only": ["r8"]}, out=out, rows=40, recipes=["io", "carp"], prompt_url=server.url
        )
    assert page == out.parent / "comparison.md" and figures == out / "comparison.json"
    cells = json.loads(figures.read_text())["cells"]
    assert cells.keys() == {f"r8|{shots}|{line}" for shots in (8, 32, 128, "all") for line in ("io", "carp")}
    for cell in cells.values():
        assert cell["n"] == 20 and 0 <= cell["failure_rate"] < 1 and cell["texts_per_second"] < 10_000
        assert cell["made_with"] == server.url
    said = page.read_text()
    assert "exercise of the machinery" in said and "names no label" in said and "| `carp` |" in said
    with pytest.raises(ArgumentError, match="candidate"):
        comparison.run(**asked, out=out, rows=40, recipes=["io"])


def test_answers_without_a_label_are_told() -> None:
    shown = page({"r8|all|auto": cell(60), "r8|all|io": cell(50, failure_rate=0.125, made_with="some model")})
    assert "`io` and `carp` ask some model" in shown and "| `io` | .125 |" in shown


def test_a_cell_of_another_language_model_is_made_again_and_costs_of_endpoints_are_unknown(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "BACKBONE", str(tiny.build("bert")))
    monkeypatch.setattr(comparison, "SHOTS", (8,))
    asked: dict[str, Any] = {
        "data": data, "models": None, "only": ["r8"], "cache": tmp_path / "store", "out": tmp_path, "rows": 40,
        "recipes": ["io"],
    }  # fmt: skip
    with Loopback(lambda prompt, number: Reply("rail")) as server:
        comparison.run(**asked, prompt_url=server.url, prompt_model="small")
        questions = len(server.requests)
        comparison.run(**asked, prompt_url=server.url, prompt_model="small")
        assert len(server.requests) == questions
        _, page = comparison.run(**asked, prompt_url=server.url, prompt_model="large")
        assert len(server.requests) == 2 * questions
        (cell,) = json.loads((tmp_path / "comparison.json").read_text())["cells"].values()
        assert cell["made_with"].startswith("large at") and cell["stored_share"] == 0
        assert cell["cost"]["stages"]["training"]["energy"] is None
        assert "| `io` |  |\n" in page.read_text(), "neither seconds nor rates"
        (tmp_path / "comparison.json").unlink()
        comparison.run(**asked, prompt_url=server.url, prompt_model="large")
        assert len(server.requests) == 2 * questions, "what was paid for is kept"
        with pytest.raises(ArgumentError, match="A budget is for an endpoint"):
            comparison.run(**asked, prompt_model="x", budget_tokens=0)
        failed, _ = comparison.run(**asked, prompt_url=server.url, prompt_model="new", budget_tokens=0)
        assert "The budget of 0 tokens ends here" in failed.read_text() and len(server.requests) == 2 * questions
