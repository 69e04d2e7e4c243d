"""The scripts of benchmarks/ on a few rows: every figure is there and adds up, and a page is made of the JSON alone."""

import csv
import gzip
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from scripts import BENCHMARKS
from scripts import benchmark as script
from sonde.bench.datasets import DataSet
from sonde.errors import DataError

ROWS = 60


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """SST-2 of 100 rows: 60 train, 30% are validation."""
    folder = tmp_path / "data" / "sst2"
    folder.mkdir(parents=True)
    rows = [(f"{tiny.SENTENCES[i % 2]} {tiny.SENTENCES[3 + i % 3]} {i}", str(i % 2)) for i in range(100)]
    with gzip.open(folder / "train.csv.gz", "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return tmp_path / "data"


def test_the_probe_benchmark_measures_every_layer_and_prints_both_ratios(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark, out = script("probe"), tmp_path / "out"
    monkeypatch.setattr(benchmark, "VALIDATION", 0.3)
    monkeypatch.setattr(benchmark, "RESTARTS", 2)
    benchmark.main([
        "--data", str(data), "--rows", str(ROWS), "--cache", str(tmp_path / "store"),
        "--backbone", str(tiny.build("bert")), "--out", str(out),
    ])  # fmt: skip
    content = json.loads((out / "probe.json").read_text())
    assert list(content["layers"]) == [f"0/hidden.{layer}/mean" for layer in range(tiny.LAYERS + 1)]
    assert content["setting"]["rows"] == ROWS and content["setting"]["validation_rows"] == 30
    for layer in content["layers"].values():
        grid = layer["released"]
        assert 0.5 <= grid["best"] <= 1 and grid["first"]["cpu_seconds"] <= grid["total"]["cpu_seconds"]
        assert [step["C"] for step in layer["path"]] == [0.1, 0.2, 1.0, 10.0, 100.0]
    page, printed = (out / "probe.md").read_text(), capsys.readouterr().out
    assert page == benchmark.to_markdown(content)
    assert (
        printed.count("times shorter than the whole grid") == 2 == printed.count("until the grid first was at its best")
    )
    assert "`--libraries` was not given" in page


def a_layer(best: float, accuracies: list[float]) -> dict[str, Any]:
    def seconds(value: float) -> dict[str, float]:
        return {"seconds": value, "cpu_seconds": value}

    steps = [
        {"C": 0.1 * 10**i, "accuracy": accuracy, "iterations": 3, "unfinished": 0, **seconds(i + 1)}
        for i, accuracy in enumerate(accuracies)
    ]
    grid = {"best": best, "first": {"C": 1, "restart": 2, **seconds(30)}, "total": seconds(60)}
    return {"released": grid, "path": steps, "finer": steps}


def test_a_path_that_is_never_as_accurate_counts_whole_and_its_gap_is_kept() -> None:
    layers = {"0/hidden.0/mean": a_layer(0.8, [0.7, 0.8, 0.9]), "0/hidden.1/mean": a_layer(0.85, [0.7, 0.84, 0.8])}
    benchmark = script("probe")
    found = benchmark.summary({"layers": layers})
    assert found["cpu_seconds"]["path"]["until"] == 2 + 3
    assert found["cpu_seconds"]["path"]["times_shorter_than_whole_grid"] == 120 / 5
    assert found["cpu_seconds"]["path"]["times_shorter_than_first_reached"] == 60 / 5
    assert found["never_reached"]["path"] == {"0/hidden.1/mean": 1.0}
    assert "hidden.1 (1.00 points missing)" in benchmark._sentence(found, "path")


def test_too_many_rows_are_refused() -> None:
    few = DataSet(["text"] * 50, np.array(["0", "1"] * 25))
    with pytest.raises(DataError, match="The training file has 50 rows: too few for 49 and 3% of it"):
        script("probe").sampled(few, 49)


def test_libraries_that_are_not_installed_are_named(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    benchmark = script("probe")
    monkeypatch.setattr(benchmark, "VALIDATION", 0.3)
    monkeypatch.setattr(benchmark, "RESTARTS", 1)
    libraries = importlib.import_module("libraries")
    monkeypatch.setattr(libraries, "LIBRARIES", {"no_such_library": (libraries._skglm, (0.1,))})
    written = benchmark.run(
        data=data, out=tmp_path, rows=ROWS, cache=None, backbone=str(tiny.build("bert")), libraries=True
    )
    page = written[1].read_text()
    assert "no_such_library is not installed: not measured." in page
    fits = json.loads(written[0].read_text())["libraries"]["fits"]
    assert [(one["solver"], one["C"], one["within"]) for one in fits] == [("sonde", 0.1, True), ("sonde", 10.0, True)]
