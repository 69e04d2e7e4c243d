"""The script that measures long files: what it counts, what it estimates, a page made of the JSON alone."""

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
from samples import make, worded

from scripts import benchmark as script
from sonde.errors import ArgumentError, DataError

SCALE = script("scale")


def test_a_steady_run_and_one_that_slows_down() -> None:
    steady = [(float(second), 500.0, 4096 * (second // 2)) for second in range(21)]
    assert SCALE.steadiness(steady) == {
        "rows_a_second": 2048.0,
        "later_rate": 1.0,
        "later_mb": 1.0,
    }
    slowing = [(float(n * n), 500.0 + 100 * n, 4096 * n) for n in range(1, 10)]
    found = SCALE.steadiness(slowing)
    assert found["later_rate"] < 0.6 and found["later_mb"] == pytest.approx(1400 / 1100, abs=1e-3)
    nothing = {"rows_a_second": None, "later_rate": None, "later_mb": None}
    assert SCALE.steadiness([(0.0, 1.0, 0), (1.0, 1.0, 4096)]) == SCALE.steadiness([]) == nothing


def test_texts_are_different_and_as_many_as_asked_for(tmp_path: Path) -> None:
    from sonde.tables import read_table

    path = SCALE.write_texts(tmp_path / "in.csv", ["a b c d e f g", "one"], 25_000)
    texts = [str(text) for text in read_table(path).columns["text"]]
    assert len(set(texts)) == 25_000 and texts[:2] == ["a b c d e f g 0", "one 1"]
    assert texts[2] != "a b c d e f g 2" and sorted(texts[2].split()) == ["2", *"abcdefg"]


def test_memory_is_that_of_a_process_and_what_it_started() -> None:
    mine = SCALE.resident(os.getpid())
    assert 20 < mine < 20_000
    assert SCALE.resident(2**22 + 1) == 0  # nobody


SUSTAINED, BASE = 1e12, 5e-4
"""Operations a second; seconds that a core takes for a text, but for its tokens."""


def rate(layer: int | None, tokens: float) -> float:
    """Rows a second of a machine of two cores that keeps to the cost model."""
    layers = 6 if layer is None else layer
    of = SCALE.Backbone("b", 10.6e6 * layers / 6, layers, 384)
    return 1 / ((BASE + tokens / 100_000) / 2 + SCALE.flops_of(of, tokens) / SUSTAINED)


def content(layer: int | None = None) -> dict[str, Any]:
    other = 1 if layer is None else None
    lines = [("other", other, 20), ("long|model", layer, 60), ("long|other", other, 60)]
    one = {"rows": 10, "seconds": 4.0, "peak_mb": 500.0, "rows_a_second": 1000.0, "later_rate": 1.0, "later_mb": 1.0}
    one["rows_a_second"] = rate(layer, 20)
    return {
        "setting": {"backbone": "tiny", "layer": layer, "note": "A trial."},
        "machine": {
            "processor": "p", "cores": 2, "memory_gb": 8, "system": "s", "python": "3", "versions": {}, "date": "today",
        },
        "cells": {
            "rows|1000": {**one, "peak_mb": 600.0},
            "rows|10": one,  # measured later
            "beside|one process": {**one, "sha256": "a"},
            "beside|killed half-way, and again": {**one, "sha256": "b"},
            **{key: {**one, "rows_a_second": rate(of, tokens)} for key, of, tokens in lines},
            "tokens": {"tokens": {"sst2": 20.0, "ag_news": 60.0}, "tokens_a_core_second": 100_000},
        },
    }  # fmt: skip


def test_the_estimate_follows_from_what_was_measured() -> None:
    assert SCALE.flops_of(SCALE.Backbone("b", 1e6, 2, 10), 3) == 2 * 1e6 * 3 + 4 * 2 * 10 * 9
    for layer in (None, 2):  # the first model is the deeper one, or the other
        cost = SCALE.gathered(content(layer))["cost"]
        here, there = cost["hardware"]
        assert here["flops"] == pytest.approx(SUSTAINED) and cost["handling_core_seconds"] == pytest.approx(BASE)
        assert [one["ratio"] for one in cost["check"].values()] == [1.0, 1.0]
        assert [one["layers"] for one in cost["check"].values()] == [layer or 6, 1 if layer is None else 6]
        mine = next(one for one in cost["estimated"] if one["hardware"].startswith("this machine"))
        assert mine["hours"] == pytest.approx(1e9 / rate(None, 16) / 3600, rel=1e-3)
        small = [one for one in cost["estimated"] if one["backbone"].startswith("22M") and "H100" in one["hardware"]]
        assert small[0]["bound"] == "handling"
        assert small[0]["hours"] == pytest.approx(1e9 * (BASE + 16 / 100_000) / there["cores"] / 3600, abs=0.1)
        large = [one for one in cost["estimated"] if one["backbone"].startswith("7B")]
        assert [one["tokens"] for one in large] == list(SCALE.TOKENS)
        assert {one["bound"] for one in large} == {"computing"} and large[0]["dollars"] < large[2]["dollars"] / 30


def test_a_rate_that_is_not_what_was_foretold_shows() -> None:
    slow = content(2)
    slow["cells"]["long|other"]["rows_a_second"] /= 2
    assert SCALE.gathered(slow)["cost"]["check"]["other"]["ratio"] == 2.0
    assert "6 layers, where" in SCALE.to_markdown(slow) and "(a ratio of 2.00)" in SCALE.to_markdown(slow)
    slow["cells"]["other"]["rows_a_second"] = 1e9  # deeper, and yet faster: chance
    cost = SCALE.gathered(slow)["cost"]
    assert cost["hardware"][0]["flops"] == float("inf") and cost["estimated"][0]["bound"] == "handling"


def test_the_page_names_the_layers_that_are_read() -> None:
    assert "on layer 2 (none above it is read) of tiny" in SCALE.to_markdown(content(2))
    assert "on the last layer of tiny" in SCALE.to_markdown(content())


def test_the_page_says_what_is_estimated_and_what_is_not_kept() -> None:
    page = SCALE.to_markdown(content())
    assert "## A billion texts, estimated" in page and "Estimated, not measured" in page and "A trial." in page
    assert "1,000 rows hold 1.200 times the memory of 10, **not within** 1.10" in page
    assert page.index("| 10 | 4 |") < page.index("| 1,000 | 4 |")
    assert "| killed half-way, and again | 10 | 4 |  | 500 | **no** |" in page


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("sst2", "ag_news"):
        (tmp_path / name).mkdir()
        rows = [(f"{tiny.SENTENCES[i % 2]} {i}", str(i % 2)) for i in range(60)]
        for split in ("train", "test"):
            with gzip.open(tmp_path / name / f"{split}.csv.gz", "wt", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("text", "label"), *rows])
    return tmp_path


def test_every_command_of_the_script(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, tuple[str, ...], bool]] = []

    def pretended(model: Path, source: Path, out: Path, more: Any = (), kill: bool = False) -> dict[str, Any]:
        asked.append((len(source.read_text().splitlines()) - 1, tuple(more), kill))
        one = {"rows": asked[-1][0], "seconds": 2.0, "peak_mb": 9.0, "rows_a_second": None}
        return {**one, "later_rate": None, "later_mb": None, "sha256": "other" if "ray" in more else "same"}

    monkeypatch.setattr(SCALE, "command_of", pretended)
    options = {"rows": [100, 300], "beside": 200, "ray": True, "backbone": str(tiny.build("bert"))}
    written = SCALE.run(data=data, out=data / "out", **options)
    two, ray = ("--workers", "2"), ("--engine", "ray", "--workers", "2")
    plain = [(rows, (), False) for rows in (100, 300)]
    assert asked == [
        *plain,
        (200, (), False),
        (200, two, False),
        (200, ray, False),
        (200, (), True),
        (200, (), False),
        *[(100, (), False)] * 3,
    ]
    found = SCALE.gathered(json.loads(written[0].read_text(encoding="utf-8")))
    assert [one["equal"] for one in found["beside"].values()] == [True, True, False, True]
    assert found["beside"]["killed half-way, and again"]["seconds"] == 4.0
    assert [path.name for path in written] == ["scale.json", "scale.md"]
    asked.clear()
    SCALE.run(data=data, out=data / "out", **{**options, "rows": [100, 300, 400]})
    assert asked == [(400, (), False)]  # the others are kept
    with pytest.raises(ArgumentError, match="holds cells of other backbones, rows or settings"):
        SCALE.run(data=data, out=data / "out", **options, layer=1)


@pytest.mark.slow
def test_a_command_is_watched(tmp_path: Path) -> None:
    make("linear").fit(*worded(30)).save(tmp_path / "model")
    source = SCALE.write_texts(tmp_path / "in.csv", worded(30)[0], 300)
    found = SCALE.command_of(tmp_path / "model", source, tmp_path / "out.csv")
    assert found["rows"] == 300 and found["seconds"] > 1 and found["peak_mb"] > 100 and len(found["sha256"]) == 64
    with pytest.raises(DataError, match="sonde predict stopped with 2; run it: "):
        SCALE.command_of(tmp_path / "nowhere", source, tmp_path / "out.csv")
