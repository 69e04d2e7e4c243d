"""SetFit (Tunstall et al. 2022) on the data sets of the papers: for comparison only, in an environment of its own.

    python benchmarks/setfit_comparison.py --data path/to/data --env path/to/env [--only r8] [--shots 8 32]

The environment is made at the first call. It sees the packages of the interpreter that runs this script, so that torch
is neither fetched nor stored twice, and adds setfit at the version below with what it requires, at the versions of
`constraints.txt` where these say so. SetFit runs there, in a process of its own: its head is a pickle on disk, so
nothing that it saves is ever read.

run       fill every cell, write docs/results/setfit.{json,md}
SetFit    the classifier: fit, predict, predict_proba, classes_
make_env  the environment -> its interpreter
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from sonde.bench import machine
from sonde.bench.cells import Cells, write_page
from sonde.bench.datasets import TITLES, chosen, read_split
from sonde.bench.few import draw
from sonde.errors import ArgumentError
from sonde.plan import BUNDLE
from sonde.read.location import find_checkpoint
from sonde.rows import as_labelled

VERSION = "1.2.0"
"""Tried beside the pins of `constraints.txt`."""
SHOTS = (8, 32)
TEST_ROWS = 1000
"""A seeded sample: the comparison is one of tens of points."""
MAX_STEPS = 500
"""Pairs of the contrastive training grow with the square of the rows; SetFit's own bound is none."""
WORKER = Path(__file__).with_name("setfit_worker.py")
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"


def make_env(folder: Path) -> Path:
    """Make the environment if it is not there; its interpreter.

    Raises
    ------
    ArgumentError
        If setfit cannot be installed, with the last line of what pip said.
    """
    python = folder / "bin" / "python"
    if (folder / "ready").is_file():
        return python
    venv.create(folder, with_pip=True)
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    (Path(site) / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    install = [str(python), "-m", "pip", "install", "--quiet", "-c", str(CONSTRAINTS), f"setfit=={VERSION}"]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ArgumentError(f"setfit {VERSION} cannot be installed in {folder}: pip says: {said}")
    (folder / "ready").write_text(VERSION + "\n", encoding="utf-8")
    return python


class SetFit(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """SetFit in another process, which trains anew for every call of `predict` or `predict_proba`.

    Parameters
    ----------
    python : str
        Interpreter of the environment that `make_env` made.
    backbone : str
        Hub id or folder of a sentence-transformers model.
    max_steps : int
        Steps of the contrastive training, at most.
    random_state : int
    """

    def __init__(
        self, python: str, backbone: str = BUNDLE, *, max_steps: int = MAX_STEPS, random_state: int = 0
    ) -> None:
        self.python = python
        self.backbone = backbone
        self.max_steps = max_steps
        self.random_state = random_state

    def fit(self, texts: Any, labels: Any) -> Self:
        """Keep the rows; SetFit sees them when something is asked."""
        rows = as_labelled(texts, labels, None, None)
        if rows.targets.multilabel:
            raise ArgumentError("This comparison is of one label a text; give no lists of labels.")
        self.classes_ = rows.targets.classes
        self.texts_, self.ids_ = rows.texts, rows.targets.ids
        return self

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities (row, class), columns in the order of `classes_`."""
        with tempfile.TemporaryDirectory() as folder:
            task = {
                "backbone": str(find_checkpoint(self.backbone)), "texts": self.texts_, "labels": self.ids_.tolist(),
                "asked": list(texts), "seed": self.random_state, "max_steps": self.max_steps, "folder": folder,
            }  # fmt: skip
            answer = _ask(self.python, task, Path(folder))
        self.seconds_, self.versions_ = answer["seconds"], answer["versions"]
        probabilities = np.zeros((len(texts), len(self.classes_)))  # row class
        probabilities[:, answer["classes"]] = np.array(answer["probabilities"])
        return probabilities

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """The most probable label of each text."""
        found: np.ndarray = self.classes_[self.predict_proba(texts).argmax(axis=1)]
        return found


def _ask(python: str, task: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the worker answers to a task."""
    paths = [folder / "task.json", folder / "answer.json"]
    paths[0].write_text(json.dumps(task), encoding="utf-8")
    done = subprocess.run([python, str(WORKER), *map(str, paths)], capture_output=True, text=True, check=False)
    if done.returncode or not paths[1].is_file():
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ArgumentError(f"SetFit failed in {python} (exit {done.returncode}): {said}")
    answer: dict[str, Any] = json.loads(paths[1].read_text(encoding="utf-8"))
    return answer


def run(
    *, data: Path, env: Path, out: Path, only: list[str] | None = None, shots: Sequence[int] = SHOTS,
    backbone: str = BUNDLE, max_steps: int = MAX_STEPS,
) -> list[Path]:  # fmt: skip
    """Fill every cell and write the page.

    Parameters
    ----------
    data, out : as in `sonde.bench`
    env : Path
        Folder of the environment, made if absent.
    only : names of data sets, or None for all
    shots : training rows a class
    backbone, max_steps : as in `SetFit`
    """
    python = str(make_env(env))
    setting = {"backbone": backbone, "max_steps": max_steps, "test_rows": TEST_ROWS, "seed": 0, "setfit": VERSION}
    cells = Cells(out / "setfit.json", setting)
    for rows in shots:
        for name in chosen(only):
            if f"{name}|{rows}" not in cells:
                train, test = draw(read_split(data, name, "train"), rows, 0), read_split(data, name, "test")
                cells.put(f"{name}|{rows}", _cell(SetFit(python, backbone, max_steps=max_steps), train, test))
    return write_page(cells.path, to_markdown(cells.content))


def _cell(classifier: SetFit, train: Any, test: Any) -> dict[str, Any]:
    test = test.take(TEST_ROWS)
    said = classifier.fit(train.texts, train.labels).predict(test.texts)
    return {
        "train_rows": len(train.texts),
        "test_rows": len(test.texts),
        "accuracy": float(np.mean(said == test.labels)),
        "seconds": classifier.seconds_,
        "versions": classifier.versions_,
    }


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting, cells = content["setting"], content["cells"]
    lines = ["| set | rows a class | accuracy | training seconds | texts per second |", f"|{' --- |' * 5}"]
    for key, cell in cells.items():
        name, shots = key.split("|")
        speed = cell["test_rows"] / cell["seconds"]["inference"]
        lines.append(
            f"| {TITLES[name]} | {shots} | {100 * cell['accuracy']:.1f} | {cell['seconds']['training']:.0f} | "
            f"{speed:.0f} |"
        )
    about = (
        f"SetFit {setting['setfit']}, {setting['backbone']}, at most {setting['max_steps']} steps of contrastive "
        f"training, one draw of the training rows, at most {setting['test_rows']:,} test rows."
    )
    parts = [
        "# SetFit, for comparison",
        "Written by `python benchmarks/setfit_comparison.py`; every figure comes from `setfit.json` beside this page.",
        machine.sentence(content["machine"]),
        about,
        "\n".join(lines),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--env", type=Path, required=True, help="folder of SetFit's environment, made if absent")
    parser.add_argument("--only", nargs="+", help="only these data sets")
    parser.add_argument("--shots", nargs="+", type=int, default=list(SHOTS), help="training rows a class")
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS, help="contrastive steps, at most (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="where the page goes (%(default)s)")
    parser.add_argument("--backbone", default=BUNDLE, help="folder or id (%(default)s)")
    written = run(**vars(parser.parse_args(arguments)))
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
