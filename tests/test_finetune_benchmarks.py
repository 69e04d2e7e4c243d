"""Scripts that fine-tune beside the package: cells that are kept, pages made of the JSON alone, SetFit's process."""

import gzip
import json
import subprocess
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


class Process:
    """Stands in for every process that the script starts: pip, and the worker."""

    def __init__(self, code: int = 0, said: str = "") -> None:
        self.code, self.said, self.calls = code, said, list[list[str]]()

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.calls.append(command)
        if command[-1].endswith("answer.json") and not self.code:
            task = json.loads(Path(command[-2]).read_text())
            classes = sorted(set(task["labels"]))
            rows = [[1.0 if "cold" in text else 0.25, 0.5][: len(classes)] for text in task["asked"]]
            answer = {
                "classes": classes, "probabilities": rows, "versions": {"setfit": "0"},
                "seconds": {"training": 2.0, "inference": 0.5},
            }  # fmt: skip
            Path(command[-1]).write_text(json.dumps(answer))
        return subprocess.CompletedProcess(command, self.code, "", self.said)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Process:
    found = Process()
    monkeypatch.setattr(subprocess, "run", found)
    return found


def test_setfit_answers_by_its_process(process: Process) -> None:
    script = benchmark("setfit_comparison")
    classifier = script.SetFit("python-of-it", str(tiny.build("bert"))).fit(["cold", "good", "wind"], ["b", "c", "b"])
    assert classifier.classes_.tolist() == ["b", "c"]
    assert classifier.predict(["cold wind", "good"]).tolist() == ["b", "c"]
    np.testing.assert_array_equal(classifier.predict_proba(["cold"]), [[1.0, 0.5]])
    assert process.calls[0][0] == "python-of-it" and process.calls[0][1].endswith("setfit_worker.py")
    assert classifier.seconds_ == {"training": 2.0, "inference": 0.5}


def test_a_process_that_fails_is_answered_by_what_it_said(process: Process) -> None:
    process.code, process.said = 3, "Traceback\nValueError: no such model\n"
    script = benchmark("setfit_comparison")
    classifier = script.SetFit("python", str(tiny.build("bert"))).fit(["cold", "good"], ["a", "b"])
    with pytest.raises(ArgumentError, match=r"SetFit failed in python \(exit 3\): ValueError: no such model"):
        classifier.predict(["cold"])
    with pytest.raises(ArgumentError, match="give no lists of labels"):
        classifier.fit(["cold", "good"], [["a"], ["b"]])


def test_the_environment_is_made_once_and_sees_this_one(
    process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = benchmark("setfit_comparison")

    def create(folder: Path, **_: Any) -> None:
        (folder / "lib" / f"python{script.sys.version_info.major}.{script.sys.version_info.minor}").mkdir(parents=True)
        (next((folder / "lib").iterdir()) / "site-packages").mkdir()

    monkeypatch.setattr(script.venv, "create", create)
    python = script.make_env(tmp_path / "env")
    assert python == tmp_path / "env" / "bin" / "python" == script.make_env(tmp_path / "env")
    (install,) = process.calls
    assert install[-1] == f"setfit=={script.VERSION}" and "-c" in install and install[0] == str(python)
    (beside,) = (tmp_path / "env").rglob("beside.pth")
    assert Path(beside.read_text().strip(), "numpy").is_dir()
    process.code, process.said = 1, "ERROR: no matching distribution\n"
    with pytest.raises(ArgumentError, match=r"cannot be installed in .*: pip says: ERROR: no matching distribution"):
        script.make_env(tmp_path / "other")


def test_its_cells_are_kept_and_its_page_made_of_them(process: Process, data: Path, tmp_path: Path) -> None:
    script = benchmark("setfit_comparison")
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "ready").touch()
    settings: dict[str, Any] = {
        "data": data, "env": tmp_path / "env", "out": tmp_path, "only": ["sst2"], "shots": [4],
        "backbone": str(tiny.build("bert")),
    }  # fmt: skip
    written = script.run(**settings)
    content = json.loads(written[0].read_text())
    assert content["cells"].keys() == {"sst2|4"} and content["cells"]["sst2|4"]["train_rows"] == 8
    assert written[1].read_text() == script.to_markdown(content)
    assert "| SST-2 | 4 | " in written[1].read_text() and "| 2 | 120 |" in written[1].read_text()
    calls = len(process.calls)
    script.run(**settings)
    assert len(process.calls) == calls
