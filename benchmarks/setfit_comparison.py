"""SetFit (Tunstall et al. 2022) on the data sets of the papers: for comparison only, in an environment of its own.

    python benchmarks/setfit_comparison.py --data path/to/data --env path/to/env [--only r8] [--out docs/results]

Fills the cells `setfit` of `sonde bench comparison`, beside those of the others. The environment is made at the first
call. It sees the packages of the interpreter that runs this script, so that torch is neither fetched nor stored twice,
and adds setfit at the version below with what it requires, at the versions of `constraints.txt` where these say so.
SetFit runs there, in a process of its own: its head is a pickle on disk, so nothing that it saves is ever read.

run          fill every cell, write comparison.json and its page
epoch_steps  steps in which every pair is met once
SetFit       the classifier: fit, predict, predict_proba, classes_
make_env     the environment -> its interpreter
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
import venv
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from sonde.bench import comparison
from sonde.bench.candidates import Candidate, Setting
from sonde.errors import ArgumentError
from sonde.plan import BUNDLE
from sonde.read.location import find_checkpoint
from sonde.rows import as_labelled

VERSION = "1.2.0"
"""Tried beside the pins of `constraints.txt`."""
MAX_STEPS = 500
"""Pairs of the contrastive training grow with the square of the rows; SetFit's own bound is none."""
BATCH_ROWS = 16
"""Pairs of a step, SetFit's default."""
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


def epoch_steps(ids: np.ndarray) -> int:
    """Steps in which every pair is met once: of the same label (a text with itself too) and of two labels, the fewer
    repeated until they are as many (`sampling_strategy="oversampling"`, SetFit's default).

    Told to take more steps than that, SetFit goes on with the next epoch.
    """
    counts = np.bincount(ids)
    same = int((counts * (counts + 1) // 2).sum())
    other = (len(ids) ** 2 - int((counts**2).sum())) // 2
    return -(-2 * max(same, other) // BATCH_ROWS)


class SetFit(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """SetFit in another process, which lives as long as this object.

    Parameters
    ----------
    python : str
        Interpreter of the environment that `make_env` made.
    backbone : str
        Hub id or folder of a sentence-transformers model.
    max_steps : int
        Steps of the contrastive training, at most.
    random_state : int

    Attributes
    ----------
    worker_cpu_seconds_ : float
        Of the processor, in that process, so far.
    """

    def __init__(
        self, python: str, backbone: str = BUNDLE, *, max_steps: int = MAX_STEPS, random_state: int = 0
    ) -> None:
        self.python = python
        self.backbone = backbone
        self.max_steps = max_steps
        self.random_state = random_state

    def fit(self, texts: Any, labels: Any) -> Self:
        """Start the process, and train there."""
        rows = as_labelled(texts, labels, None, None)
        if rows.targets.multilabel:
            raise ArgumentError("This comparison is of one label a text; give no lists of labels.")
        self.classes_, self.worker_cpu_seconds_ = rows.targets.classes, 0.0
        self._worker = _Worker(self.python)
        task = {
            "backbone": str(find_checkpoint(self.backbone)), "texts": rows.texts, "labels": rows.targets.ids.tolist(),
            "seed": self.random_state, "max_steps": min(self.max_steps, epoch_steps(rows.targets.ids)),
            "batch_rows": BATCH_ROWS,
        }  # fmt: skip
        self.versions_ = self._ask(task)["versions"]
        return self

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities (row, class), columns in the order of `classes_`."""
        return np.array(self._ask({"asked": list(texts)})["probabilities"])

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """The most probable label of each text."""
        found: np.ndarray = self.classes_[self.predict_proba(texts).argmax(axis=1)]
        return found

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """Of each row the most probable class, bool (row, class)."""
        found: np.ndarray = np.eye(len(self.classes_), dtype=bool)[probabilities.argmax(axis=1)]
        return found

    def _ask(self, task: Mapping[str, Any]) -> dict[str, Any]:
        answer = self._worker.ask(task)
        self.worker_cpu_seconds_ += answer["cpu_seconds"]
        return answer


class _Worker:
    """The process; it ends with this object."""

    def __init__(self, python: str) -> None:
        self.python, self.folder = python, tempfile.TemporaryDirectory()
        self.said = Path(self.folder.name) / "said.txt"
        with self.said.open("w", encoding="utf-8") as said:
            self.process = subprocess.Popen(
                [python, str(WORKER), self.folder.name],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8",
            )  # fmt: skip
        weakref.finalize(self, _end, self.process, self.folder)

    def ask(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a task."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self.process.wait()
            said = (self.said.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"])[-1]
            raise ArgumentError(f"SetFit failed in {self.python} (exit {code}): {said}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _end(process: "subprocess.Popen[str]", folder: "tempfile.TemporaryDirectory[str]") -> None:
    process.kill()
    process.communicate()
    folder.cleanup()


def run(
    *, data: Path, env: Path, out: Path, only: list[str] | None = None, rows: int | None = None,
    backbone: str = BUNDLE, max_steps: int = MAX_STEPS,
) -> list[Path]:  # fmt: skip
    """Fill every cell and write the page.

    Parameters
    ----------
    data, out, rows : as in `sonde.bench.comparison`
    env : Path
        Folder of the environment, made if absent.
    only : names of data sets, or None for all
    backbone, max_steps : as in `SetFit`
    """
    python = str(make_env(env))

    def make(setting: Setting) -> SetFit:
        return SetFit(python, backbone, max_steps=max_steps, random_state=setting.seed)

    title = f"SetFit {VERSION}, one epoch of contrastive training, at most {max_steps} steps"
    more = {"setfit": Candidate("setfit", title, make)}
    return comparison.run(
        data=data, models=None, out=out, rows=rows, only=only, cache=None, recipes=["setfit"], more=more
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--env", type=Path, required=True, help="folder of SetFit's environment, made if absent")
    parser.add_argument("--only", nargs="+", help="only these data sets")
    parser.add_argument("--rows", type=int, help="at most this many rows of each split, for a trial")
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS, help="contrastive steps, at most (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="where the page goes (%(default)s)")
    parser.add_argument("--backbone", default=BUNDLE, help="folder or id (%(default)s)")
    written = run(**vars(parser.parse_args(arguments)))
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
