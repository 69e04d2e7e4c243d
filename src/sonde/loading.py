"""A saved classifier, from its folder.

load     folder or hub id -> TextClassifier, every disagreement refused with a sentence
recall   the same, without opening its backbones
located  where a model lies: a folder, fetched from the hub if need be
named    errors of a damaged record -> a sentence with its folder
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sonde import fit_settings, hub, saving
from sonde.classifier import TextClassifier
from sonde.errors import ArgumentError, DataError, InputError, ModelError, RecipeError
from sonde.learn import abstention, conformal, learning
from sonde.learn.problem import Record
from sonde.learn.recipes import find
from sonde.plan import ABOUT, BUNDLE

logger = logging.getLogger(__name__)

DAMAGED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, RecursionError)
"""What Python says of entries that no fit has written: missing, of another kind or size, nested without end."""

MOST_BACKBONES = 64
"""LLMEmbed reads three; a number of a billion must not become a list of that length."""


def load(
    folder: Path | str,
    *,
    revision: str | None = None,
    backbones: Sequence[str] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    cache: str | Path | bool | None = "auto",
) -> TextClassifier:
    """Read a saved classifier.

    Parameters
    ----------
    folder : path or str
        Of the model; or, where there is no such folder, its id on the model hub, which `push_to_hub` gave it.
    revision : str, optional
        Branch, tag or commit on the hub; by default the newest.
    backbones : sequence of str, optional
        Where the backbones lie now, if they moved: one for each that the model needs, in order.
    dtype, device, cache
        As in `TextClassifier`, but for `dtype="auto"` a model trained in float32 is used in float32.

    Raises
    ------
    ModelError
        If the folder is not a saved model, is damaged, is not found on the hub either, has a newer protocol, or a
        backbone is another than the one that the model was trained on.
    """
    classifier = recall(folder, revision=revision, backbones=backbones, dtype=dtype, device=device, cache=cache)
    with named(folder):
        classifier.check_widths()
    return classifier


def recall(
    folder: Path | str,
    *,
    revision: str | None = None,
    backbones: Sequence[str] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    cache: str | Path | bool | None = "auto",
) -> TextClassifier:
    """Read a saved classifier, as `load` does, without opening its backbones: for who has others predict with it."""
    folder = located(folder, revision)
    content, arrays = saving.load(folder)
    with named(folder):
        classifier = _rebuild(content, arrays, {"dtype": dtype, "device": device, "cache": cache})
        _compare(classifier, content, arrays)
        _move(classifier, backbones)
    return classifier


def located(folder: Path | str, revision: str | None = None) -> Path | str:
    """The folder of a model; where neither it nor a folder that could hold it is here, what the hub has, fetched."""
    if not saving.standing(folder).exists() and hub.looks_like_an_id(str(folder)):
        _check_absent(Path(folder))
        logger.info("there is no folder %s; the model hub is asked for it", folder)
        return hub.fetch(str(folder), revision)
    if revision is not None:
        raise ArgumentError(f"revision is {revision!r}; only models on the hub have revisions, and {folder} is none.")
    return folder


def _check_absent(folder: Path) -> None:
    """A folder that is missing beside others is more often a slip than an id on the hub."""
    if folder.parent.is_dir():
        raise ModelError(
            f"{folder} does not exist: there is a folder {folder.parent} here, but it holds no {folder.name}. Give a "
            "folder that `sonde fit --out` or `TextClassifier.save` wrote; if the model lies on the hub under this id, "
            "run from another folder."
        )


@contextmanager
def named(folder: Path | str) -> Iterator[None]:
    """What goes wrong while a record is understood becomes a `ModelError` that names the folder."""
    try:
        yield
    except InputError as error:
        if isinstance(error, RecipeError | DataError):  # of an entry that no fit has written
            raise ModelError(f"{folder} is damaged: {error} Copy it again or train it again.") from error
        raise
    except DAMAGED as error:
        what = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise ModelError(f"{folder} is damaged: {what}. Copy it again or train it again.") from error


def _rebuild(content: dict[str, Any], arrays: dict[str, np.ndarray], here: dict[str, Any]) -> TextClassifier:
    known = {int(index): {name: about[name] for name in ABOUT} for index, about in content["backbones"].items()}
    if not all(0 <= index < MOST_BACKBONES for index in known):
        raise ModelError(f"The backbones are not numbered from 0 to {MOST_BACKBONES - 1}; the model is damaged.")
    names = tuple(known.get(i, {"id": BUNDLE})["id"] for i in range(max(known, default=0) + 1))
    if here["dtype"] == "auto" and known and all(about["dtype"] == "float32" for about in known.values()):
        here = {**here, "dtype": "float32"}  # what was trained on exact values is not read in coarser ones unasked
    if content["protocol"] < fit_settings.SINCE:
        content["settings"] = fit_settings.to_record(TextClassifier().get_params(deep=False)) | content["settings"]
    settings = fit_settings.of_record(content["settings"])
    classifier = TextClassifier(find(content["recipe"]).name, names, **settings, **here)
    learner = {name.removeprefix("learner/"): a for name, a in arrays.items() if name.startswith("learner/")}
    classifier.model_ = learning.restore(Record(content["learner"], learner))
    classes = content["classes"]
    classifier.classes_ = np.array(classes, dtype=str) if isinstance(classes[0], str) else np.array(classes)
    classifier.multilabel_ = bool(content["multilabel"])
    classifier.matrix_labels_ = bool(content["matrix_labels"])
    classifier.backbones_ = known
    classifier.label_names_ = dict(content["label_names"])
    classifier.temperature_ = float(content["temperature"])
    classifier.thresholds_ = arrays.get("thresholds")
    classifier.conformal_scores_ = arrays["conformal_scores"]
    classifier.held_answers_ = arrays.get("held_answers")
    classifier.train_keys_ = arrays["train_keys"]
    classifier.summary_ = dict(content["summary"])
    return classifier


def _compare(classifier: TextClassifier, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """What was understood of a saved model must be all that it holds, and agree with itself."""
    again = json.loads(json.dumps(classifier.manifest()))
    for name in again.keys() - {"versions"}:  # the versions are those of whoever trained it
        if again[name] != content[name]:
            raise ModelError(
                f"The entry {name!r} of {saving.MANIFEST} is not as sonde writes it; the model is damaged."
            )
    held = classifier.arrays()
    if odd := sorted(held.keys() ^ arrays.keys()):
        raise ModelError(f"The array {odd[0]!r} is missing or too many for this learner; the model is damaged.")
    for name, array in held.items():
        if array.shape != arrays[name].shape or not np.array_equal(array, arrays[name]):
            raise ModelError(f"The array {name!r} does not fit the others of this learner; the model is damaged.")
    classes, thresholds = classifier.classes_, classifier.thresholds_
    distinct = np.unique(classes)
    ordered = classes if classifier.matrix_labels_ else distinct  # a table has its columns in any order
    if not 2 <= len(classes) == len(distinct) or not np.array_equal(ordered, classes):
        raise ModelError("The classes are not two or more distinct labels in order; the model is damaged.")
    if (thresholds is not None) != classifier.multilabel_ or (
        thresholds is not None and thresholds.shape != classes.shape
    ):
        raise ModelError(f"The thresholds do not fit {len(classes)} classes; the model is damaged.")
    conformal.check_scores(classifier.conformal_scores_, classifier.multilabel_)
    abstention.check_answers(classifier.held_answers_, classifier.multilabel_)
    if classifier.train_keys_.ndim != 1:
        raise ModelError("The training keys must have one dimension; the model is damaged.")
    if not 0 < classifier.temperature_ < math.inf:
        raise ModelError(f"The temperature is {classifier.temperature_}; the model is damaged.")


def _move(classifier: TextClassifier, backbones: Sequence[str] | None) -> None:
    """Look for the backbones elsewhere than where they lay."""
    known = classifier.backbones_
    if backbones is None:
        return
    if isinstance(backbones, str) or len(backbones) != len(known):
        given = "a string" if isinstance(backbones, str) else f"{len(backbones)} entries"
        raise ArgumentError(f"backbones is {given}; give a list of {len(known)}, one for each that this model needs.")
    for about, name in zip(known.values(), backbones, strict=True):
        about["id"] = name
    names = (known.get(i, {"id": name})["id"] for i, name in enumerate(classifier.backbones))
    classifier.backbones = tuple(names)
