"""The comparison page: every candidate on the same rows, and what the default loses stands first."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from loopback import Loopback, Reply
from samples import worded
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sonde.bench import comparison, machine
from sonde.bench.candidates import Candidate, Setting
from sonde.bench.tables import pack
from sonde.errors import ArgumentError, ModelError


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
    monkeypatch.setattr(comparison, "MOST_ROWS", {"lora": 60})
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
        "r8|8|lora": 24, "r8|32|lora": 96, "r8|128|lora": 100, "r8|all|lora": 60,
    }  # fmt: skip
    assert cells["r8|8|no"]["failed"] == "It cannot be done."
    assert "`no` on R8, 8 rows a class: It cannot be done." in page and "] (60) |" in page
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
        "correct": pack(np.arange(100) < right), "train_rows": 500, "texts_per_second": 70.0, "bytes": 2_000_000,
        "texts_per_cpu_second": 50.0, "fit_cpu_seconds": 3.0, "processor": "P",
        "cost": {"stages": {"training": stage}}, **more,
    }  # fmt: skip


def page(cells: dict[str, Any]) -> str:
    setting = {"backbone": "some", "seed": 0, "limit": None}
    return comparison.to_markdown({"setting": setting, "machine": machine.describe(), "cells": cells})


def test_what_the_default_loses_stands_first() -> None:
    lost = page({"r8|all|auto": cell(80), "r8|all|lora": cell(90), "r8|all|svm": cell(82), "r8|8|auto": cell(50)})
    first = lost[lost.index("## Where the default loses") : lost.index("## 8 rows")]
    assert "- R8, all rows: `lora` .900 against .800 (p 0.002)" in first and "svm" not in first
    assert lost.index("## Where the default loses") < lost.index("## All rows")
    assert "Nothing here is better" in page({"r8|all|auto": cell(90), "r8|all|lora": cell(80)})


def test_lines_hold_figures_and_costs() -> None:
    shown = page({"r8|all|auto": cell(80), "sst2|all|auto": cell(70), "r8|all|svm": cell(60, ece=None, bytes=None)})
    assert "| `auto` | .700 [.600, .800] | .800 [.700, .900] | .750 |" in shown
    assert "| `svm` |  | .600 [.500, .700] |  |" in shown, "no mean where a set is missing"
    assert "| `auto` | 3.0 | 50 | 2.0 | ~1 |" in shown and "| `svm` (1) | 3.0 | 50 |  | ~1 |" in shown


def test_language_models_are_asked_on_few_rows(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(prompt: str, _: int) -> Reply:
        return Reply("" if "cold" in prompt.rpartition("Text")[2] else "rail")

    monkeypatch.setattr(comparison, "BACKBONE", str(tiny.build("bert")))
    monkeypatch.setattr(comparison, "TEST_ROWS", 20)
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


def test_what_was_asked_of_fewer_rows_is_judged_by_no_test() -> None:
    lost = page({"r8|all|auto": cell(60), "r8|all|io": cell(99, n=90, failure_rate=0.125, made_with="some model")})
    assert "Nothing here is better" in lost and "`io` and `carp` ask some model" in lost
    assert "| `io` | .125 | .125 |" in lost


def test_cells_of_two_processors_and_of_fewer_sets_are_told() -> None:
    cells = {"r8|8|auto": cell(80), "r52|8|auto": cell(70, processor="Q"), "r8|8|svm": cell(60)}
    shown = page(cells)
    assert "Measured on P or Q" in shown and "| `svm` (1) | 3.0 |" in shown


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
        assert "| `io` |  |  |  |  |" in page.read_text()
        (tmp_path / "comparison.json").unlink()
        comparison.run(**asked, prompt_url=server.url, prompt_model="large")
        assert len(server.requests) == 2 * questions, "what was paid for is kept"
        with pytest.raises(ArgumentError, match="A budget is for an endpoint"):
            comparison.run(**asked, prompt_model="x", budget_tokens=0)
        failed, _ = comparison.run(**asked, prompt_url=server.url, prompt_model="new", budget_tokens=0)
        assert "The budget of 0 tokens ends here" in failed.read_text() and len(server.requests) == 2 * questions
