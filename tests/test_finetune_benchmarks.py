"""Scripts that fine-tune beside the package: cells that are kept, pages made of the JSON alone, SetFit's process."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from samples import worded

from scripts import benchmark
from sonde.baselines import stepping
from sonde.errors import ArgumentError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """SST-2 with the texts of two topics."""
    folder = tmp_path / "data" / "sst2"
    folder.mkdir(parents=True)
    for seed, split in enumerate(("train", "test", "test1821")):
        rows = [(text, label) for text, label in zip(*worded(90, seed), strict=True) if label != "rail"]
        lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
        with gzip.open(folder / f"{split}.csv.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    return tmp_path / "data"


@pytest.mark.slow
def test_every_cell_is_filled_kept_and_shown(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "LEAST_STEPS", 1)
    script, out, work = benchmark("finetune"), tmp_path / "out", tmp_path / "work"
    settings: dict[str, Any] = {"data": data, "out": out, "work": work, "rows": 50, "backbone": str(tiny.build("bert"))}
    written = script.run(**settings)
    content = json.loads(written[0].read_text())
    assert list(content["cells"]) == script._names()
    assert written[1].read_text() == script.to_markdown(content)
    tuned = content["cells"]["lora|own head"]
    assert tuned["parameters"]["trained"] < tuned["parameters"]["all"] and tuned["test_rows"] == 120
    assert tuned["accuracy"] == pytest.approx(np.mean(list(tuned["splits"].values())))
    assert sorted(path.name for path in work.iterdir()) == ["full", "lora"]  # states are deleted

    monkeypatch.setattr(script, "FineTuning", None)  # it is not needed any more
    del content["cells"]["full|linear"]
    written[0].write_text(json.dumps(content))
    assert script.run(**settings)[1].read_text().count("`linear`") == 3


def test_a_page_with_missing_cells_says_so() -> None:
    cell = {
        "accuracy": 0.8, "splits": {"test": 0.7, "test1821": 0.9}, "test_rows": 100,
        "fit": {"cpu_seconds": 3.0}, "predict": {"cpu_seconds": 0.5},
    }  # fmt: skip
    script = benchmark("finetune")
    described = script.machine.describe()
    content = {
        "setting": {"rows": 50, "backbone": "a"}, "machine": described, "cells": {"pretrained|linear": cell},
    }  # fmt: skip
    page = script.to_markdown(content)
    assert "**7 cells are still empty" in page and "standard error is 4.0 points" in page
    assert "| pretrained | last layer (`linear`) | 80.0 | 70.0 | 90.0 | 3.0 | 0.5 |" in page


# ------------------------------------------------------------------ SetFit


SETFIT = """
import sys
import numpy as np

class SetFitModel:
    @classmethod
    def from_pretrained(cls, backbone, local_files_only):
        assert local_files_only
        return cls()

    def predict_proba(self, texts, as_numpy):
        print("chatter")
        return np.array([[0.0 if "cold" in text else 0.75, *[0.5] * (self.classes - 1)] for text in texts])

class TrainingArguments:
    def __init__(self, **given):
        self.given = given

class Trainer:
    def __init__(self, model, args, train_dataset):
        self.model, self.args, self.rows = model, args, train_dataset

    def train(self):
        print("more chatter")
        if "break" in self.rows["text"]:
            sys.exit("ValueError: no such model")
        assert 0 < self.args.given["max_steps"] <= 500 and self.args.given["batch_size"] == 16
        self.model.classes = len(set(self.rows["label"]))
        sum(range(10**6))  # work that a processor's clock shows
"""


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the libraries of SetFit's environment; the process and what passes to and fro are real."""
    folder = tmp_path / "libraries"
    (folder / "setfit-0.0.dist-info").mkdir(parents=True)
    (folder / "setfit-0.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: setfit\nVersion: 0.0\n")
    (folder / "sentence_transformers-0.0.dist-info").mkdir()
    (folder / "sentence_transformers-0.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: sentence-transformers\nVersion: 0.0\n"
    )
    (folder / "setfit.py").write_text(SETFIT)
    (folder / "datasets.py").write_text(
        "class Dataset:\n    @staticmethod\n    def from_dict(rows):\n        return rows\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.usefixtures("libraries")
def test_setfit_trains_once_and_answers_by_its_process() -> None:
    script = benchmark("setfit_comparison")
    classifier = script.SetFit(sys.executable, str(tiny.build("bert")))
    classifier.fit(["cold", "good", "wind"], ["b", "c", "b"])
    process, worked = classifier._worker.process, classifier.worker_cpu_seconds_
    assert classifier.classes_.tolist() == ["b", "c"] and classifier.versions_["setfit"] == "0.0" and worked > 0
    assert classifier.predict(["cold wind", "good"]).tolist() == ["c", "b"]
    np.testing.assert_array_equal(classifier.predict_proba(["cold"]), [[0.0, 0.5]])
    assert classifier._worker.process is process and process.poll() is None, "one process for all of it"
    assert classifier.worker_cpu_seconds_ > worked
    del classifier
    assert process.poll() is not None, "it ends with the classifier"


@pytest.mark.parametrize("ids", [[0, 1, 0], [0] * 8 + [1] * 8, [0, 0, 0, 1, 2, 3, 4], [0] * 30])
def test_setfit_takes_no_more_steps_than_an_epoch_has(ids: list[int]) -> None:
    """Each of the rarer kind of pairs is repeated until there are as many as of the other; 16 pairs a step."""
    pairs = [ids[one] == ids[other] for one in range(len(ids)) for other in range(one, len(ids))]
    epoch = 2 * max(sum(pairs), len(pairs) - sum(pairs))
    assert benchmark("setfit_comparison").epoch_steps(np.array(ids)) == -(-epoch // 16)


@pytest.mark.usefixtures("libraries")
def test_a_process_that_fails_is_answered_by_what_it_said() -> None:
    script = benchmark("setfit_comparison")
    classifier = script.SetFit(sys.executable, str(tiny.build("bert")))
    with pytest.raises(ArgumentError, match=r"SetFit failed in .* \(exit 1\): ValueError: no such model"):
        classifier.fit(["break", "good"], ["a", "b"])
    with pytest.raises(ArgumentError, match="give no lists of labels"):
        classifier.fit(["cold", "good"], [["a"], ["b"]])


def test_the_environment_is_made_once_and_sees_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, calls, code = benchmark("setfit_comparison"), list[list[str]](), [0]

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, code[0], "", "ERROR: no matching distribution\n")

    def create(folder: Path, **_: Any) -> None:
        (folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}").mkdir(parents=True)
        (next((folder / "lib").iterdir()) / "site-packages").mkdir()

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(script.venv, "create", create)
    python = script.make_env(tmp_path / "env")
    assert python == tmp_path / "env" / "bin" / "python" == script.make_env(tmp_path / "env")
    (install,) = calls
    assert install[-1] == f"setfit=={script.VERSION}" and "-c" in install and install[0] == str(python)
    (beside,) = (tmp_path / "env").rglob("beside.pth")
    assert Path(beside.read_text().strip(), "numpy").is_dir()
    code[0] = 1
    with pytest.raises(ArgumentError, match=r"cannot be installed in .*: pip says: ERROR: no matching distribution"):
        script.make_env(tmp_path / "other")


@pytest.mark.usefixtures("libraries")
def test_its_cells_stand_in_the_comparison(data: Path, tmp_path: Path) -> None:
    script = benchmark("setfit_comparison")
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "ready").touch()
    python = tmp_path / "env" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    settings: dict[str, Any] = {"data": data, "env": tmp_path / "env", "out": tmp_path, "only": ["sst2"]}
    figures, page = script.run(**settings, backbone=str(tiny.build("bert")))
    cells = json.loads(figures.read_text())["cells"]
    assert cells.keys() == {f"sst2|{shots}|setfit" for shots in (8, 32, 128, "all")}
    assert cells["sst2|8|setfit"]["train_rows"] == 16 and cells["sst2|8|setfit"]["n"] > 50
    # More than this process took: its own clock hardly moved, the other one's did.
    assert cells["sst2|8|setfit"]["fit_cpu_seconds"] > 0.01
    assert "| `setfit` |" in page.read_text() and "SetFit" in cells["sst2|8|setfit"]["title"]
