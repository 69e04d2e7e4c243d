"""benchmarks/early_exit.py on a few rows: every figure is there, adds up, and a page is made of the JSON alone."""

import csv
import gzip
import json

import numpy as np
import pytest
import tiny

from scripts import benchmark as script
from sonde.read.stages import Staged

ROWS = 16


def test_every_depth_and_the_stages_are_timed(tmp_path, capsys):
    folder = tmp_path / "data" / "ag_news"
    folder.mkdir(parents=True)
    rows = [(f"{tiny.SENTENCES[i % 6]} {i}", str(i % 2)) for i in range(20)]
    with gzip.open(folder / "test.csv.gz", "wt", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    benchmark, out = script("early_exit"), tmp_path / "out"
    benchmark.main([
        "--data", str(tmp_path / "data"), "--rows", str(ROWS), "--rounds", "2", "--out", str(out),
        "--backbone", str(tiny.build("bert")), "--note", "Nothing else ran.",
    ])  # fmt: skip
    content = json.loads((out / "early_exit.json").read_text())
    assert content["setting"]["rows"] == ROWS and content["setting"]["layers"] == tiny.LAYERS
    assert content["times"].keys() == {*map(str, range(tiny.LAYERS + 1)), "blocks", "staged"}
    assert all(len(runs) == 2 and all(one["seconds"] >= 0 for one in runs) for runs in content["times"].values())
    assert content["shares"][0] == 1 and np.all(np.diff(content["shares"]) < 0)
    assert content["times"]["blocks"][0]["seconds"] > 0
    page, printed = (out / "early_exit.md").read_text(), capsys.readouterr().out
    assert page == benchmark.to_markdown(content)
    assert "Nothing else ran." in page and "| 3 |" in page
    assert str(out / "early_exit.md") in printed and "Reading depth k takes at most" in printed


def a_content(times):
    both = {name: [{"cpu_seconds": s, "seconds": 2 * s} for s in seconds] for name, seconds in times.items()}
    return {"setting": {"layers": 2}, "shares": [1.0, 0.5], "times": both}


def test_ratios_are_those_of_medians():
    benchmark = script("early_exit")
    content = a_content({"0": [9, 1, 1], "1": [3, 0, 9], "2": [5, 6, 7], "blocks": [4, 4, 5], "staged": [6, 8, 9]})
    content["summary"] = found = benchmark.summary(content)
    cpu = found["cpu_seconds"]
    assert (cpu["t0"], cpu["t1"]) == (1, 2)
    assert [row["ratio"] for row in cpu["depths"]] == [pytest.approx(1), pytest.approx(6 / 5)]
    assert cpu["largest"] == pytest.approx(1.2)
    assert cpu["staged"] == {"time": 8, "blocks": 1.5, "ratio": pytest.approx(2)}
    assert found["seconds"]["largest"] == pytest.approx(1.2)
    assert "at most 1.20 (t0 + k t1) processor seconds, not within the promised 1.15" in benchmark._sentence(content)


def test_shares_count_the_tokens_that_the_model_saw():
    staged = Staged(np.array([0, 1, 2]), np.array([5, 9, 1]), np.array([0, 5, 0]))
    assert script("early_exit").shares(staged, 3) == [1, 0.5, 0.1]


def test_rounds_run_forwards_and_backwards_after_one_that_does_not_count():
    order = []

    def contender(name):
        return lambda: order.append(name) or {"seconds": len(order)}

    times = script("early_exit").interleaved({name: contender(name) for name in "abc"}, 2)
    assert "".join(order) == "abc" + "abc" + "cba"
    assert times["a"] == [{"seconds": 4}, {"seconds": 9}]
