"""The scripts that time training, starting and growth, on tiny models: what they compare, refuse and judge."""

import csv
import gzip
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from scripts import benchmark as script
from sonde.learn.fusion import Dropout
from sonde.learn.targets import encode


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    words = " ".join(tiny.SENTENCES).split()
    draw = np.random.default_rng(0)
    for name in ("ag_news", "sst2"):
        (folder / name).mkdir()
        for split in ("train", "test"):
            rows = [(" ".join(draw.choice(words, 9)) + (" good" * (i % 2)), str(i % 2)) for i in range(80)]
            with gzip.open(folder / name / f"{split}.csv.gz", "wt", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("text", "label"), *rows])
    return folder


def times(*seconds: float) -> list[dict[str, float]]:
    return [{"seconds": one, "cpu_seconds": one} for one in seconds]


def separable(rows: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    x = draw.normal(size=(rows, 6)) * np.arange(1, 7) + 5
    x[np.arange(rows), labels] += 2
    return x.astype(np.float32), labels.astype(str)


# ------------------------------------------------------------------ training


@pytest.mark.slow
def test_the_released_loop_and_ours_learn_the_same_from_the_same_features() -> None:
    training = script("training")
    x, labels = separable(64, 2)
    targets = encode(labels.tolist())
    blocks = tuple(torch.from_numpy(x) for _ in range(3))
    given = training.Features(blocks, targets)
    setting = training.replace(training.PAPER, epochs=6, batch=8, dropout=0.0, map_dropout=0.0)
    for network in (training.released(given, setting, 1e-2), training.ours(given, setting, 1e-2)):
        found = training.predict(network, blocks).argmax(dim=1).numpy()
        assert (found == targets.ids).mean() > 0.8


def test_the_released_loop_has_torchs_own_dropout_everywhere() -> None:
    training = script("training")
    given = training.Features((torch.ones(4, 6), torch.ones(4, 5)), encode(["a", "b", "a", "b"]))
    network = given.network(training.PAPER)
    ours = [module.rate for module in network.modules() if isinstance(module, Dropout)]
    plain = training.with_plain_dropout(network)
    assert not any(isinstance(module, Dropout) for module in plain.modules())
    assert [module.p for module in plain.modules() if isinstance(module, torch.nn.Dropout)] == ours == [0.5] * 3


def test_repeated_rows_keep_their_labels() -> None:
    training = script("training")
    given = training.Features((torch.tensor([[1.0], [2.0]]),), encode(["a", "b"])).repeated(5)
    assert given.blocks[0][:, 0].tolist() == [1, 2, 1, 2, 1] and given.targets.ids.tolist() == [0, 1, 0, 1, 0]


def a_training(**changes: Any) -> dict[str, Any]:
    accuracy = {"released": 0.8, "sonde": 0.79, "recipe": 0.82}
    found = {
        "setting": {"rows": 1000, "epochs": 50, "timed_epochs": 1},
        "fusion": {
            "timed_rows": 100, "times": {"released": times(12, 12, 12), "sonde": times(1, 1, 1)},
            "accuracy": {"train_rows": 9, "test_rows": 9, "batch": 4, "rate": 0.1, "accuracy": accuracy,
                         "seconds": dict.fromkeys(accuracy, 1.0), "p": {"sonde": 0.4, "recipe": 0.2}},
        },
    }  # fmt: skip
    found["fusion"].update(changes)
    return found


def test_what_the_whole_set_takes_is_estimated_and_said_to_be() -> None:
    training = script("training")
    page = training.loops_table(a_training())
    assert "50 epochs of 1,000 rows, minutes (estimated)" in page
    assert "| released | 12.00 | 100.0 |" in page and "| sonde | 1.00 | 8.3 |" in page
    assert page.endswith("12.00 (12.00 to 12.00); at least 10 is asked: reached.")
    slow = a_training(times={"released": times(9), "sonde": times(1)})
    assert training.loops_table(slow).endswith("**missed**.")


def test_a_loop_that_learns_less_is_said_to() -> None:
    training = script("training")
    content = a_training()
    assert "McNemar p = 0.400: equal." in training.accuracy_sentence(content)
    content["fusion"]["accuracy"]["p"]["sonde"] = 0.01
    assert "McNemar p = 0.010: **not equal**." in training.accuracy_sentence(content)
    content["fusion"]["accuracy"]["accuracy"]["sonde"] = 0.9
    assert "McNemar p = 0.010: equal." in training.accuracy_sentence(content)


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_heads_are_compared_at_one_loss(classes: int) -> None:
    heads = script("heads")
    x, labels = separable(90, classes)
    found = heads.compared(x, labels, 60, 1, 0)
    assert set(found["gaps"]) == {"sonde", *found["tolerances"]}
    assert found["gaps"]["sonde"] <= heads.GAP and min(found["gaps"].values()) == 0
    assert found["path"]["rows"] == 60 and found["path"]["folds"] == 5
    assert max(found["path"]["gap"], found["path"]["gap_sklearn"]) < 1e-4
    page = heads.heads_table({"sst2": found})
    assert f"SST-2, 5 folds, {len(found['path']['tried'])} values of C" in page
    assert f"({found['best']})" in page and "tol" in heads.solvers_sentence({"sst2": found})


def test_heads_of_unequal_loss_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = script("heads")
    monkeypatch.setattr(heads, "ours_at", lambda _: 1e6)
    x, labels = separable(40, 2)
    with pytest.raises(heads.DataError, match="above the lowest, more than 1e-05: times of unequal work"):
        heads.compared(x, labels, 20, 1, 0)


@pytest.mark.slow
def test_training_is_measured_end_to_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = script("training")
    monkeypatch.setattr(training, "DEPTHS", "hidden.-2:")
    training.main([
        "--data", str(data), "--model", str(tiny.build("llama")), "--backbone", str(tiny.build("bert")),
        "--scale", "0.005", "--rounds", "2", "--epochs", "2", "--threads", "1", "--out", str(tmp_path),
        "--cache", str(tmp_path / "store"),
    ])  # fmt: skip
    content = json.loads((tmp_path / "training.json").read_text())
    assert content["fusion"]["widths"] == [32, 32, 32] and content["fusion"]["timed_rows"] == 81
    assert set(content["heads"]) == {"ag_news", "sst2"} and (tmp_path / "store").is_dir()
    page = (tmp_path / "training.md").read_text()
    assert page == training.to_markdown(content)
    assert training.loops_table(content) in page and "minutes (estimated)" in capsys.readouterr().out


# --------------------------------------------------------------------- start


def a_start(helped: float, predicted: float, second: float) -> dict[str, Any]:
    return {
        "setting": {"rows": 1000},
        "times": {
            "help": times(helped, helped), "loading": times(2, 2), "predict": times(2 * predicted, 2 * predicted),
            "first": times(10, 10), "second": times(10 * second, 10 * second),
        },
    }  # fmt: skip


def test_starts_are_judged_one_by_one() -> None:
    start_table = script("start").start_table
    within = start_table(a_start(0.5, 1.5, 0.15))
    assert within.count("| within |") == 3
    for worse in (a_start(0.6, 1, 0.1), a_start(0.1, 1.6, 0.1), a_start(0.1, 1, 0.2)):
        assert start_table(worse).count("**not within**") == 1


def test_a_command_that_fails_says_why() -> None:
    start = script("start")
    with pytest.raises(start.DataError, match=r"-m sonde predict stopped with 2: .*"):
        start.sonde(["predict", "nowhere", "nothing.csv", "--out", "x.csv"], ())


@pytest.mark.slow
def test_starts_are_those_of_processes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = script("start")
    start.main([
        "--data", str(data), "--backbone", str(tiny.build("bert")), "--scale", "0.04", "--rounds", "1",
        "--threads", "1", "--out", str(tmp_path),
    ])  # fmt: skip
    content = json.loads((tmp_path / "start.json").read_text())
    assert {name: len(one) for name, one in content["times"].items()} == dict.fromkeys(
        ("help", "loading", "predict", "first", "second"), 1
    )
    assert content["times"]["predict"][0]["seconds"] > content["times"]["help"][0]["seconds"]
    assert content["times"]["first"][0]["process_seconds"] > content["times"]["first"][0]["seconds"]
    page = (tmp_path / "start.md").read_text()
    assert page == start.to_markdown(content) and start.start_table(content) in capsys.readouterr().out


# -------------------------------------------------------------------- growth


def test_the_slope_is_that_of_the_logarithms() -> None:
    slope = script("growth").slope
    assert slope([(x, 3 * x**1.5) for x in (1, 10, 100)]) == {"slope": 1.5, "low": 1.5, "high": 1.5}
    noisy = slope([(1, 1), (1, 1.2), (10, 9), (10, 11), (100, 100), (100, 90)])
    assert noisy["low"] < noisy["slope"] < noisy["high"] and noisy["slope"] == pytest.approx(0.97, abs=0.02)


def a_growth(power: float = 1.0) -> dict[str, Any]:
    sizes = ("10", "20", "40")
    return {
        "rows": {"times": {size: times(int(size) ** power, 1.01 * int(size) ** power) for size in sizes}},
        "tokens": {
            "rows": {"10": 4, "20": 2, "40": 1},
            "times": {size: times(4.0, 4.04) for size in sizes},
            "attention": {"10": 0.0, "20": 0.0, "40": 0.5},
        },
    }


def test_growth_is_judged_with_and_without_attention() -> None:
    growth = script("growth")
    lines = growth.slopes_table(a_growth()).splitlines()[2:]
    assert [line.endswith("| within |") for line in lines] == [True] * 4 + [False] * 2
    assert lines[2].startswith("| time of a text over its tokens, wall clock | 1.000 (0.9")
    assert lines[4].startswith("| the same without attention, wall clock | 0.500 (")
    steep = growth.slopes_table(a_growth(1.2)).splitlines()[2]
    assert steep.startswith("| time over rows, wall clock | 1.200 (") and steep.endswith("**not within** |")


def test_attention_that_is_not_found_is_not_said_to_be_free() -> None:
    growth = script("growth")
    content = a_growth()
    assert growth.attention_sentence(content).endswith("0.0% at 10, 0.0% at 20, 50.0% at 40.")
    content["tokens"]["attention"] = dict.fromkeys(content["tokens"]["attention"], 0.0)
    assert "an attention of its own" in growth.attention_sentence(content)


@pytest.mark.parametrize("what", ["rows", "tokens"])
def test_a_picture_stands_alone(what: str) -> None:
    root = ET.fromstring(script("growth").picture(a_growth(), what))
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.find("{*}style") is not None
    assert len(root.findall("{*}circle")) == 2 * 3 * 2  # clocks, sizes, rounds


def test_texts_have_exactly_the_length_that_is_timed() -> None:
    growth = script("growth")
    source = growth.open_sources(
        {0: str(tiny.build("bert"))}, max_tokens=32, long_text="cut", dtype="float32", device="cpu"
    )[0]
    words = growth.single_words(tiny.SENTENCES, source)
    texts = growth.of_length(words, 7, 3, source)
    assert len(set(texts)) == 3 and all(len(text.split()) == 5 for text in texts)
    with pytest.raises(growth.DataError, match="texts of 7 tokens for this tokenizer, of 99 that are needed"):
        growth.of_length(words, 7, 99, source)


@pytest.mark.slow
def test_growth_is_measured_end_to_end(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    growth = script("growth")
    monkeypatch.setattr(growth, "LENGTHS", (8, 16, 32))
    monkeypatch.setattr(growth, "TOKENS", 128)
    growth.main([
        "--data", str(data), "--backbone", str(tiny.build("bert")), "--scale", "0.001", "--rounds", "2",
        "--threads", "1", "--out", str(tmp_path),
    ])  # fmt: skip
    content = json.loads((tmp_path / "growth.json").read_text())
    assert list(content["rows"]["times"]) == ["2", "4", "16", "64"]
    assert content["tokens"]["rows"] == {"8": 8, "16": 4, "32": 2}
    assert all(0 < share < 1 for share in content["tokens"]["attention"].values())
    assert (tmp_path / "growth.md").read_text() == growth.to_markdown(content)
    assert growth.slopes_table(content) in capsys.readouterr().out
    for name in growth.PICTURES.values():
        assert name in (tmp_path / "growth.md").read_text() and ET.parse(tmp_path / name)
