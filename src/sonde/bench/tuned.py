"""Checkpoints that were fine-tuned on a data set: made, and judged by their own heads.

tune       fine-tune a backbone on training rows, and export it
story_of   what `tune` kept of a checkpoint
OwnHead    the classification head that a checkpoint holds, as a classifier
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import softmax
from sklearn.base import BaseEstimator

from sonde.baselines.finetuning import FineTuning
from sonde.baselines.tunable import free_folder, load_tunable
from sonde.bench.cells import write_json
from sonde.bench.datasets import DataSet
from sonde.errors import ArgumentError
from sonde.inputs import as_texts
from sonde.learn.calibration import decide
from sonde.precision import choose_device, choose_dtype
from sonde.read.checkpoint import fingerprint, read_config
from sonde.read.location import find_checkpoint

EPOCHS = 3
"""At most; Devlin et al. 2019, A.3 found two to four to be right."""
HEADED = "ForSequenceClassification"
LISTED = 10
"""Labels that a sentence names; some sets have fifty."""


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

    Raises
    ------
    ArgumentError
        If the folder holds what `tune` made of another backbone, by another method or on another number of rows, or
        something else that is no checkpoint.
    SondeError
        What `FineTuning` raises; a `BackboneError` if the checkpoint in the folder is damaged.
    """
    state = folder.with_name(f"{folder.name}-state")
    asked = {"backbone": backbone, "method": method, "rows": min(rows, len(train.texts))}
    if (folder / "config.json").is_file():
        story = story_of(folder, fingerprint(find_checkpoint(str(folder))))
        if story:
            _refuse_another(folder, story, asked)
            shutil.rmtree(state, ignore_errors=True)  # of a run that was killed when all was done
        return
    free_folder(folder)  # it would be refused in the end
    some = train.at(train.sampled(rows))
    classifier = FineTuning(backbone, method, epochs=EPOCHS, resume=state).fit(some.texts, some.labels)
    kept = ("epochs", "best_epoch", "parameters", "precision", "learning_rate", "held_out_rows")
    told = {name: classifier.summary_[name] for name in kept}
    told["seconds"] = classifier.summary_["training_seconds"]  # of all attempts
    fresh = state / "exported"
    shutil.rmtree(fresh, ignore_errors=True)
    classifier.export(fresh)
    # The story first: a checkpoint in its place has one.
    write_json(made_with(folder), {**asked, "of_rows": len(train.texts), **told, "fingerprint": fingerprint(fresh)})
    if folder.exists():
        folder.rmdir()  # empty
    fresh.rename(folder)
    shutil.rmtree(state)


def _refuse_another(folder: Path, story: dict[str, Any], asked: dict[str, Any]) -> None:
    others = [f"{name} {story.get(name)}, not {one}" for name, one in asked.items() if story.get(name) != one]
    if others:
        raise ArgumentError(
            f"{folder} holds a checkpoint that was made with another setting ({'; '.join(others)}). Give --finetuned "
            f"or --lora another folder, or delete this one and {made_with(folder).name} beside it."
        )


def made_with(folder: Path) -> Path:
    """The file that says how `tune` made a checkpoint."""
    return folder.with_name(f"{folder.name}.json")


def story_of(folder: Path, identity: str) -> dict[str, Any]:
    """What `tune` kept of the checkpoint of this fingerprint; empty if it came from elsewhere."""
    try:
        story = json.loads(made_with(folder).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none, or it is somebody else's file
        return {}
    return story if isinstance(story, dict) and story.get("fingerprint") == identity else {}


class OwnHead(BaseEstimator):  # type: ignore[misc]
    """The classification head of a checkpoint, as training left it: no temperature is fitted.

    Parameters
    ----------
    folder : path
        A checkpoint that `save_pretrained` or `FineTuning.export` wrote.

    Raises
    ------
    ArgumentError
        If it holds no such head, or not its weights.
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
        if absent := sorted(self.tunable_.absent):
            raise ArgumentError(
                f"{folder} names a classification head of {len(names)} labels, but its weights are not those of one: "
                f"{absent[0]} is absent or of another shape. Save the checkpoint with its head, or leave `own` out."
            )

    def know(self, labels: Iterable[str]) -> None:
        """Raise an `ArgumentError` if there is a label that the head cannot give."""
        known = self.classes_.tolist()
        if strange := sorted(set(labels) - set(known)):
            raise ArgumentError(
                f"The head of {self.folder} gives the labels {_listed(known)}, but rows have the labels "
                f"{_listed(strange)}. Name them in its config.json (id2label, label2id) as the rows do."
            )

    def judged(self, texts: Any) -> tuple[Bool[np.ndarray, "row class"], Float[np.ndarray, "row class"]]:
        """Decisions and probabilities."""
        logits = self.tunable_.predict(self.tunable_.encode(as_texts(texts)))  # row class
        found = softmax(logits.astype(np.float64), axis=1)
        return decide(found, False, None), found

    def predict(self, texts: Any) -> np.ndarray:
        """The label of each text."""
        return np.asarray(self.classes_[self.judged(texts)[0].argmax(axis=1)])


def _listed(labels: list[str]) -> str:
    return f"{', '.join(labels[:LISTED])}{', ...' if len(labels) > LISTED else ''}"
