"""Benches of depth and of samples: what they measure, what is resumed, what the page says."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from sonde.bench import BENCHES, depth, sample
from sonde.bench.datasets import DataSet, read_split


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A folder with SST-2 made of short and long texts, and a tiny backbone."""
    rng = np.random.default_rng(0)
    words = sorted({word for sentence in tiny.SENTENCES for word in sentence.split() if word.isalpha()})
    texts = [" ".join(rng.choice(words, size=rng.integers(2, 12))) for _ in range(120)]
    labels = [str(int(len(text.split()) > 6)) for text in texts]
    folder = tmp_path / "data" / "sst2"
    folder.mkdir(parents=True)
    for split in ("train", "test", "test1821"):
        lines = ["text,label", *(f"{text},{label}" for text, label in zip(texts, labels, strict=True))]
        with gzip.open(folder / f"{split}.csv.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    monkeypatch.setattr(sample, "BACKBONE", str(tiny.build("bert")))
    return {
        "data": tmp_path / "data",
        "models": None,
        "out": tmp_path / "out",
        "rows": None,
        "only": ["sst2"],
        "cache": tmp_path / "store",
    }


def test_every_depth_has_an_accuracy_and_the_cascade_its_mean(settings: dict[str, Any]) -> None:
    json_path, page = BENCHES["depth"](**settings, backbone=str(tiny.build("bert")))
    cell = json.loads(json_path.read_text())["cells"]["sst2"]
    assert cell["depths"] == [0, 1, 2, 3] and len(cell["test"]) == 4 and cell["test_rows"] == 240
    assert cell["test"][-1] > 0.8
    best = max(cell["out_of_fold"])
    enough = cell["depths"].index(cell["enough"]["depth"])
    assert best - cell["out_of_fold"][enough] <= depth.LOSS
    assert all(best - one > depth.LOSS for one in cell["out_of_fold"][:enough])
    own = cell["cascade"]
    assert own["out_of_fold"]["accuracy"] >= cell["out_of_fold"][-1] - depth.LOSS - 1e-4
    assert 0 <= own["test"]["mean_depth"] <= 3 and sum(own["shares"]) == pytest.approx(1, abs=1e-3)
    text = page.read_text()
    assert "| SST-2 | 120 |" in text and f"{own['test']['mean_depth']:.2f}" in text
    before = json_path.read_bytes()
    BENCHES["depth"](**settings, backbone=str(tiny.build("bert")))
    assert json_path.read_bytes() == before, "finished cells are not measured again"


def test_a_label_that_no_row_trained_with_is_never_right(settings: dict[str, Any]) -> None:
    """It stands before all others, where a search for its place finds the first class."""
    train = read_split(settings["data"], "sst2", "train")
    strange = DataSet(train.texts, np.array([" a label"] * len(train.texts)))
    found = depth.measure(train, strange, None, recipe="stc-hidden", backbone=str(tiny.build("bert")))
    assert found["test"] == [0.0] * 4 and found["cascade"]["test"]["accuracy"] == 0.0


def test_samples_grow_and_the_head_sees_all_rows(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "SIZES", (60, 120))
    json_path, page = BENCHES["sample"](**settings)
    cells = json.loads(json_path.read_text())["cells"]
    assert list(cells) == ["sst2|60", "sst2|120"]
    assert all(cell["accuracy"] > 0.7 and cell["neurons"] > 0 for cell in cells.values())
    assert "| 60 | ." in page.read_text() and "The default is 4,096." in page.read_text()
