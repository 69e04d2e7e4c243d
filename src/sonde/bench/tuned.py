"""Checkpoints that were fine-tuned on a data set: made, and judged by their own heads.

tune       fine-tune a backbone on training rows, and export it
OwnHead    the classification head that a checkpoint holds, as a classifier
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import softmax
from sklearn.base import BaseEstimator

from sonde.baselines.finetuning import FineTuning
from sonde.baselines.tunable import load_tunable
from sonde.bench.cells import write_json
from sonde.bench.datasets import DataSet
from sonde.bench.machine import Stopwatch
from sonde.errors import ArgumentError
from sonde.inputs import as_texts
from sonde.learn.calibration import decide
from sonde.precision import choose_device, choose_dtype
from sonde.read.checkpoint import read_config

EPOCHS = 3
"""At most; Devlin et al. 2019, A.3 found two to four to be right."""
HEADED = "ForSequenceClassification"


def tune(folder: Path, method: str, backbone: str, train: DataSet, rows: int) -> None:
    """Fine-tune on at most `rows` training rows, a seeded sample of every class, unless the folder is there.

    A run that was stopped goes on where it was, from a folder beside it. What it took is kept in `<folder>.json`.

    Parameters
    ----------
    folder : Path
        Of the exported checkpoint.
    method : {"full", "lora"}
    backbone : str
        Hub id or folder.
    train : DataSet
    rows : int
    """
    if (folder / "config.json").is_file():
        return
    some = train.at(train.sampled(rows))
    state = folder.with_name(f"{folder.name}-state")
    classifier, watch = FineTuning(backbone, method, epochs=EPOCHS, resume=state), Stopwatch()
    classifier.fit(some.texts, some.labels)
    kept = ("epochs", "best_epoch", "parameters", "precision", "learning_rate", "held_out_rows")
    told = {name: classifier.summary_[name] for name in kept}
    about = {"backbone": backbone, "method": method, "rows": len(some.texts), "of_rows": len(train.texts)}
    write_json(made_with(folder), {**about, **told, **watch.read()})
    classifier.export(folder)
    shutil.rmtree(state)


def made_with(folder: Path) -> Path:
    """The file that says how `tune` made a checkpoint."""
    return folder.with_name(f"{folder.name}.json")


def story_of(folder: Path) -> dict[str, Any]:
    """What `tune` kept of a checkpoint; empty if it came from elsewhere."""
    path = made_with(folder)
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


class OwnHead(BaseEstimator):  # type: ignore[misc]
    """The classification head of a checkpoint, as training left it: no temperature is fitted.

    Parameters
    ----------
    folder : path
        A checkpoint that `save_pretrained` or `FineTuning.export` wrote.

    Raises
    ------
    ArgumentError
        If it holds no such head.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = folder
        config = read_config(Path(folder))
        names = {int(place): str(label) for place, label in config.get("id2label", {}).items()}
        if not names or not any(str(name).endswith(HEADED) for name in config.get("architectures") or ()):
            raise ArgumentError(f"{folder} holds no classification head (a model ...{HEADED} with its labels).")
        self.classes_ = np.array([names[place] for place in sorted(names)])  # class, in the order of the logits
        where = choose_device("auto")
        self.tunable_ = load_tunable(
            str(folder), self.classes_.tolist(), multilabel=False, max_tokens=None, long_text="cut", device=where,
            precision=choose_dtype("auto", where),
        )  # fmt: skip

    def judged(self, texts: Any) -> tuple[Bool[np.ndarray, "row class"], Float[np.ndarray, "row class"]]:
        """Decisions and probabilities."""
        logits = self.tunable_.predict(self.tunable_.encode(as_texts(texts)))  # row class
        found = softmax(logits.astype(np.float64), axis=1)
        return decide(found, False, None), found

    def predict(self, texts: Any) -> np.ndarray:
        """The label of each text."""
        return np.asarray(self.classes_[self.judged(texts)[0].argmax(axis=1)])
