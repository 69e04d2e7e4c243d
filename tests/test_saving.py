"""Saved models: what comes back is what went in, and what was damaged on purpose is refused with a sentence."""

import hashlib
import html
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file
from samples import RECIPES, backbones, make, worded
from sklearn.base import clone

import sonde
from sonde import TextClassifier, fit_settings, saving
from sonde.errors import ArgumentError, BackboneError, ModelError

TEXTS, LABELS = worded(90)
NEW_TEXTS, _ = worded(45, seed=1)
Damage = Callable[[Path], None]


def load(folder: Path, **more: Any) -> TextClassifier:
    return sonde.load(folder, **{"dtype": "float32", "cache": None, **more})


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models by recipe; several = multi-label. Tests damage copies."""
    root = tmp_path_factory.mktemp("models")
    for recipe in ("linear", "lexical", "auto", "llmembed-2"):
        make(recipe).fit(TEXTS, LABELS).save(root / recipe)
    make().fit(TEXTS, [[label, "any"] if i % 2 else [label] for i, label in enumerate(LABELS)]).save(root / "several")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def model(sound: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound["linear"], tmp_path / "model"))


# ------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("sort", [str, int, bool, "lists", "matrix"])
def test_round_trip_gives_identical_predictions(recipe: str, sort: Any, tmp_path: Path) -> None:
    topics = ["post", "rail", "weather"]
    several = [[label, "late"] if "late" in text else [label] for text, label in zip(TEXTS, LABELS, strict=True)]
    labels: Any = {
        str: LABELS,
        int: [10 * topics.index(label) for label in LABELS],
        bool: [label == "rail" for label in LABELS],
        "lists": several,
        "matrix": np.array([[name in row for name in topics] for row in several]).astype(int),
    }[sort]
    fitted = make(recipe, max_tokens=20, long_text="windows", metric="macro_f1").fit(TEXTS, labels)
    fitted.save(tmp_path / "model")
    again = load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict_proba(NEW_TEXTS), fitted.predict_proba(NEW_TEXTS))
    np.testing.assert_array_equal(again.decision_function(NEW_TEXTS), fitted.decision_function(NEW_TEXTS))
    first, second = fitted.predict(NEW_TEXTS), again.predict(NEW_TEXTS)
    assert (
        type(first) is type(second)
        and np.array(first, dtype=object).tolist() == np.array(second, dtype=object).tolist()
    )
    assert again.classes_.dtype == fitted.classes_.dtype and again.classes_.tolist() == fitted.classes_.tolist()
    assert again.summary_ == json.loads(json.dumps(fitted.summary_))
    assert (again.recipe, again.max_tokens, again.long_text, again.metric) == (recipe, 20, "windows", "macro_f1")
    for alpha in (0.3, 0.6):
        assert again.predict_set(NEW_TEXTS, alpha=alpha) == fitted.predict_set(NEW_TEXTS, alpha=alpha)
    if sort in (str, int, bool):
        np.testing.assert_array_equal(again.held_answers_, fitted.held_answers_)


def test_a_loaded_model_saves_the_same_bytes(sound: dict[str, Path], tmp_path: Path) -> None:
    for name, folder in sound.items():
        load(folder).save(tmp_path / name)
        for file in (saving.MANIFEST, saving.ARRAYS):
            assert (tmp_path / name / file).read_bytes() == (folder / file).read_bytes(), (name, file)


def test_the_folder_holds_three_files_and_nothing_executable(sound: dict[str, Path]) -> None:
    for folder in sound.values():
        assert sorted(path.name for path in folder.iterdir()) == ["README.md", "arrays.safetensors", "sonde.json"]
        assert json.loads((folder / "sonde.json").read_text(encoding="utf-8"))["protocol"] == 3
        assert load_file(folder / "arrays.safetensors")


def test_the_manifest_says_what_the_model_is(sound: dict[str, Path]) -> None:
    content = saving.manifest(sound["linear"])
    assert content.keys() == saving.ENTRIES
    assert content["recipe"] == "linear" and content["classes"] == ["post", "rail", "weather"]
    (about,) = content["backbones"].values()
    assert about["id"] == str(tiny.build("bert")) and about["dtype"] == "float32" and len(about["fingerprint"]) == 64
    assert content["summary"]["rows"] == 90
    assert {"python", "sonde", "torch", "transformers", "numpy", "scikit-learn"} <= content["versions"].keys()


def test_backbones_and_texts_are_not_in_the_folder(sound: dict[str, Path]) -> None:
    held = load_file(sound["linear"] / saving.ARRAYS)
    widths = tiny.HIDDEN * 3 + 3 + 2 * tiny.HIDDEN  # coefficients, intercept, mean and scale
    assert sum(a.size for name, a in held.items() if name.startswith("learner/")) == widths
    for name in ("linear", "auto"):
        raw = b"".join(path.read_bytes() for path in sound[name].iterdir())
        assert not any(text.encode() in raw for text in TEXTS)


def test_saving_replaces_a_saved_model(model: Path) -> None:
    make("lexical").fit(TEXTS, LABELS).save(model)
    assert load(model).recipe == "lexical"
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_saving_to_an_empty_or_a_new_deep_folder(tmp_path: Path) -> None:
    classifier = make("lexical").fit(TEXTS, LABELS)
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        classifier.save(folder)
        assert load(folder).recipe == "lexical"


def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="pipe exists and is not a saved model; nothing was written"):
        make("lexical").fit(TEXTS, LABELS).save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo() and [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_name_too_long_for_what_is_written_beside_it_is_refused_before_training(tmp_path: Path) -> None:
    for length in (250, 300):
        with pytest.raises(ModelError, match=r"cannot be made: File name too long\. Give a shorter name"):
            saving.check_target(tmp_path / ("m" * length))


def test_labels_that_utf8_cannot_hold_are_saved(tmp_path: Path) -> None:
    labels = [f"{label}\ud83d" for label in LABELS]
    make("lexical").fit(TEXTS, labels).save(tmp_path / "model")
    assert set(load(tmp_path / "model").predict(TEXTS)) <= set(labels)


def test_a_repeated_key_is_found_in_no_time(model: Path) -> None:
    """A quadratic search among these took minutes."""
    names = ", ".join(f'"{number}": 0' for number in [*range(200_000), 199_999])
    (model / saving.MANIFEST).write_text(f"{{{names}}}")
    began = time.monotonic()
    with pytest.raises(ModelError, match="has the entry '199999' twice"):
        load(model)
    assert time.monotonic() - began < 20


def test_a_link_to_a_model_stays_a_link(model: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(model)
    make("lexical").fit(TEXTS, LABELS).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and load(model).recipe == "lexical"


def test_parameters_changed_after_fit_do_not_change_what_is_saved(tmp_path: Path) -> None:
    classifier = make().fit(TEXTS, LABELS).set_params(recipe="auto")
    classifier.save(tmp_path / "model")
    assert load(tmp_path / "model").recipe == "linear"


@pytest.mark.parametrize("foreign", ["file", "folder", "model with notes"])
def test_saving_refuses_to_delete_what_is_not_its_own(foreign: str, tmp_path: Path, model: Path) -> None:
    target = {"file": tmp_path / "plain", "folder": tmp_path / "work", "model with notes": model}[foreign]
    precious = target if foreign == "file" else target / "notes.txt"
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("precious")
    with pytest.raises(ModelError, match=r"nothing was\s+written.* [Gg]ive another folder"):
        make("lexical").fit(TEXTS, LABELS).save(target)
    assert precious.read_text() == "precious"


def test_a_place_that_cannot_be_made_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("precious")
    with pytest.raises(ModelError, match=r"plain is no folder that you may write to\. Give another folder"):
        saving.check_target(tmp_path / "plain" / "a" / "model")


@pytest.mark.parametrize("step", ["fsync", "mkdir", "exchange", "rename"])
def test_a_failed_save_leaves_the_old_model(step: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    classifier = make("lexical").fit(TEXTS, LABELS)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if step == "rename":
            patch.setattr(saving, "exchange", lambda one, other: False)
        patch.setattr({"fsync": os, "exchange": saving}.get(step, Path), step, full)
        with pytest.raises(ModelError, match=r"Saving to .*model failed: .*No space left on device.*make room"):
            classifier.save(model)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert [path.name for path in model.parent.iterdir()] == ["model"]


# ------------------------------------------------------------------------------------------------------ damage


def edit_manifest(change: Callable[[dict[str, Any]], None]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / saving.MANIFEST
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        if isinstance(content.get("sha256"), dict):  # whoever edits a model can write its checksums too
            arrays = (folder / saving.ARRAYS).read_bytes()
            content["sha256"][saving.ARRAYS] = hashlib.sha256(arrays).hexdigest()
            content["sha256"][saving.MANIFEST] = saving.digest(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return damage


def rewrite(name: str, old: str, new: str) -> Damage:
    """Replace text in the manifest, or in the header of the arrays; lengths stay right."""

    def damage(folder: Path) -> None:
        path = folder / name
        raw = path.read_bytes()
        if name == saving.MANIFEST:
            assert raw.count(old.encode()) >= 1
            path.write_bytes(raw.replace(old.encode(), new.encode(), 1))
            return
        (size,) = struct.unpack("<Q", raw[:8])
        header, data = raw[8 : 8 + size], raw[8 + size :]
        assert header.count(old.encode()) >= 1
        header = header.replace(old.encode(), new.encode(), 1)
        path.write_bytes(struct.pack("<Q", len(header)) + header + data)

    return damage


def edit_arrays(change: Callable[[dict[str, np.ndarray]], None], *, stated: bool = False) -> Damage:
    """Change the arrays; `stated` = let the manifest agree with what they are then."""

    def damage(folder: Path) -> None:
        arrays = dict(load_file(folder / saving.ARRAYS))
        change(arrays)
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, folder / saving.ARRAYS)
        if stated:
            shapes = {n: {"shape": list(a.shape), "dtype": a.dtype.name} for n, a in sorted(arrays.items())}
            edit_manifest(lambda content: content.update(arrays=shapes))(folder)

    return damage


def cut(name: str, share: float) -> Damage:
    def damage(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: int(len(raw) * share)])

    return damage


def drop(*path: str) -> Damage:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return edit_manifest(change)


def put(value: Any, *path: str) -> Damage:
    def change(content: dict[str, Any]) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return edit_manifest(change)


def nothing_left(folder: Path) -> None:
    shutil.rmtree(folder)


def no_file(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def replace_file(name: str, raw: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(raw) and None


PER_CLASS = ("learner/coefficients", "learner/intercept")
DAMAGES: dict[str, tuple[Damage, str]] = {
    # the folder
    "no folder": (nothing_left, "does not exist"),
    "no manifest": (no_file("sonde.json"), "is not a saved model: it has no sonde.json"),
    "no arrays": (no_file("arrays.safetensors"), "lacks arrays.safetensors: the model is incomplete"),
    # versions
    "newer protocol": (put(4, "protocol"), "was saved with protocol 4; this sonde reads up to 3. Upgrade sonde"),
    "protocol zero": (put(0, "protocol"), "states protocol 0, which never was"),
    "protocol of text": (put("1", "protocol"), "is not the manifest of a saved model"),
    "protocol true": (put(True, "protocol"), "is not the manifest of a saved model"),
    "no format": (put("other model", "format"), "is not the manifest of a saved model"),
    # the manifest as JSON
    "empty manifest": (replace_file("sonde.json", b""), "is cut or damaged"),
    "list": (replace_file("sonde.json", b"[]"), "is not the manifest of a saved model"),
    "bytes": (replace_file("sonde.json", b"\xff\xfe\x00{"), "is cut or damaged"),
    "deep": (replace_file("sonde.json", b"[" * 100_000), "is cut or damaged"),
    "cut manifest": (cut("sonde.json", 0.6), "is cut or damaged"),
    "doubled entry": (rewrite("sonde.json", '"recipe"', '"recipe": "auto", "recipe"'), "'recipe' twice"),
    "doubled inner entry": (rewrite("sonde.json", '"paper"', '"paper": true, "paper"'), "'paper' twice"),
    "extra entry": (put(1, "surprise"), "holds the unknown entry 'surprise'; it is not trusted"),
    "extra setting": (put(1, "settings", "surprise"), "surprise"),
    "missing setting": (drop("settings", "max_tokens"), "The entry 'settings' of sonde.json is not as sonde writes it"),
    "extra in backbone": (put(1, "backbones", "0", "surprise"), "The entry 'backbones' of sonde.json is not as"),
    "extra in learner": (put(1, "learner", "surprise"), "The entry 'learner' of sonde.json is not as sonde writes it"),
    "missing in learner": (drop("learner", "needs"), "is damaged: KeyError 'needs'"),
    "missing kind": (drop("learner", "kind"), "The model holds a learner of kind None"),
    "unknown kind": (put("oracle", "learner", "kind"), "learner of kind 'oracle'; known are: logistic"),
    "unknown recipe": (put("magic", "recipe"), "The recipe 'magic' is unknown"),
    "many backbones": (
        edit_manifest(lambda content: content["backbones"].update({"999999999": content["backbones"]["0"]})),
        "The backbones are not numbered from 0 to 63",
    ),
    # values of the manifest
    "temperature NaN": (rewrite("sonde.json", '"temperature": ', '"temperature": NaN, "x": '), "NaN is no JSON value"),
    "temperature infinite": (rewrite("sonde.json", '"temperature": ', '"temperature": 1e999, "y": '), "is larger than"),
    "temperature zero": (put(0.0, "temperature"), "The temperature is 0.0"),
    "temperature of text": (put("1.0", "temperature"), "The entry 'temperature' of sonde.json is not as"),
    "classes cut": (put(["post", "rail"], "classes"), "The learner gives 3 numbers a text for 2 classes"),
    "one class": (put(["post"], "classes"), "The classes are not two or more distinct labels in order"),
    "no classes": (put([], "classes"), "is damaged"),
    "classes doubled": (put(["post", "rail", "rail"], "classes"), "The classes are not two or more distinct labels"),
    "classes turned": (put(["rail", "post", "weather"], "classes"), "The classes are not two or more distinct labels"),
    "classes of types": (put(["post", 1, "weather"], "classes"), "The entry 'classes' of sonde.json is not as"),
    "multilabel without thresholds": (put(True, "multilabel"), "The thresholds do not fit 3 classes"),
    "no backbone": (put({}, "backbones"), "is damaged"),
    "fingerprint": (put("0" * 64, "backbones", "0", "fingerprint"), "is not the backbone that the model was"),
    "unknown site": (put(["0/hidden.9/mean"], "learner", "needs"), "out of range"),
    "deeper site": (put(["0/ffn.2/mean"], "learner", "needs"), "is damaged"),
    # the arrays as a file
    "empty arrays": (replace_file("arrays.safetensors", b""), "its header does not fit"),
    "cut arrays": (cut("arrays.safetensors", 0.9), "is cut or damaged"),
    "cut header": (cut("arrays.safetensors", 0.05), "its header does not fit"),
    "longer arrays": (
        lambda folder: (folder / saving.ARRAYS).write_bytes((folder / saving.ARRAYS).read_bytes() + b"0000") and None,
        "is cut or damaged",
    ),
    "enormous header": (replace_file("arrays.safetensors", b"\xff" * 7 + b"\x7f{}"), "its header does not fit"),
    "pickle": (replace_file("arrays.safetensors", b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00."), "does not fit"),
    "doubled array": (
        rewrite(
            "arrays.safetensors",
            '"learner/intercept":',
            '"learner/intercept":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"learner/intercept":',
        ),
        "has the entry 'learner/intercept' twice",
    ),
    "metadata": (rewrite("arrays.safetensors", "{", '{"__metadata__":{"a":"b"},'), "holds the entry '__metadata__'"),
    "other offsets": (rewrite("arrays.safetensors", '"data_offsets":[0,', '"data_offsets":[4,'), "is cut or damaged"),
    "unknown dtype": (rewrite("arrays.safetensors", '"dtype":"F32"', '"dtype":"F33"'), "is cut or damaged"),
    "renamed array": (rewrite("arrays.safetensors", "learner/mean", "learner/mode"), "lacks the array 'learner/mean'"),
    # the arrays against the manifest
    "missing array": (edit_arrays(lambda a: a.pop("learner/mean") is None), "lacks the array 'learner/mean'"),
    "extra array": (edit_arrays(lambda a: a.update(more=np.ones(2))), "holds the array 'more' that sonde.json does"),
    "unlisted array": (drop("arrays", "learner/mean"), "holds the array 'learner/mean' that sonde.json does not list"),
    "other shape": (
        edit_arrays(lambda a: a.update({"learner/mean": a["learner/mean"][:-1]})),
        "the array 'learner/mean' is {'shape': [31]",
    ),
    "other dtype": (
        edit_arrays(lambda a: a.update({"learner/mean": a["learner/mean"].astype(np.float64)})),
        "the array 'learner/mean' is {'shape': [32], 'dtype': 'float64'}",
    ),
    "list of arrays": (put([], "arrays"), "does not list its arrays"),
    "NaN": (
        edit_arrays(lambda a: a["learner/coefficients"].__setitem__((0, 0), np.nan)),
        "the array 'learner/coefficients' holds NaN or infinity",
    ),
    "infinity": (
        edit_arrays(lambda a: a["learner/intercept"].__setitem__(0, -np.inf)),
        "the array 'learner/intercept' holds NaN or infinity",
    ),
    # arrays that agree with the manifest and not with the model
    "stated missing array": (edit_arrays(lambda a: a.pop("learner/mean") is None, stated=True), "is damaged"),
    "stated extra array": (edit_arrays(lambda a: a.update({"learner/more": np.ones(2)}), stated=True), "is damaged"),
    "stated stray array": (
        edit_arrays(lambda a: a.update(more=np.ones(2)), stated=True),
        "The array 'more' is missing or too many for this learner",
    ),
    "stated thresholds": (
        edit_arrays(lambda a: a.update(thresholds=np.full(3, 0.5)), stated=True),
        "The thresholds do not fit 3 classes",
    ),
    "stated class less": (
        edit_arrays(lambda a: a.update({n: a[n][..., :-1] for n in PER_CLASS}), stated=True),
        "The learner gives 2 numbers a text for 3 classes",
    ),
    "stated feature less": (
        edit_arrays(lambda a: a.update({"learner/mean": a["learner/mean"][:-1]}), stated=True),
        "is damaged",
    ),
    "stated matrix of scores": (
        edit_arrays(lambda a: a.update(conformal_scores=np.ones((2, 2))), stated=True),
        "The conformal scores must have one dimension",
    ),
    "stated scores turned": (
        edit_arrays(lambda a: a.update(conformal_scores=a["conformal_scores"][::-1].copy()), stated=True),
        "The conformal scores do not rise from 0 to 1",
    ),
    "stated matrix of keys": (
        edit_arrays(lambda a: a.update(train_keys=a["train_keys"][:, None]), stated=True),
        "The training keys must have one dimension",
    ),
    "stated answers without truth": (
        edit_arrays(lambda a: a.update(held_answers=a["held_answers"][:, :1].copy()), stated=True),
        "The held-out answers must have two columns",
    ),
    "stated answers turned": (
        edit_arrays(lambda a: a.update(held_answers=a["held_answers"][::-1].copy()), stated=True),
        "The held-out answers do not fall from 1 to 0",
    ),
    "stated no answers": (
        edit_arrays(lambda a: a.pop("held_answers") is None, stated=True),
        "Held-out answers belong to models of one",
    ),
    "no scores": (edit_arrays(lambda a: a.pop("conformal_scores") is None, stated=True), "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(DAMAGES))
def test_damage_is_refused_with_a_sentence(name: str, model: Path) -> None:
    damage, sentence = DAMAGES[name]
    damage(model)
    with pytest.raises((ModelError, BackboneError)) as caught:
        load(model)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a: a.update(conformal_scores=a["conformal_scores"][:, 0].copy()), "scores must have two columns"),
        (lambda a: a.update(conformal_scores=a["conformal_scores"][1:].copy()), "scores are not of whole rows"),
        (lambda a: a.update(held_answers=np.ones((3, 2), dtype=np.float32)), "answers belong to models of one label"),
    ],
)
def test_damaged_calibration_of_several_labels_is_refused(
    change: Any, sentence: str, sound: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sound["several"], tmp_path / "model"))
    edit_arrays(change, stated=True)(folder)
    with pytest.raises(ModelError, match=f"{sentence}.*; the model is damaged"):
        load(folder)


@pytest.mark.parametrize("entry", sorted(saving.ENTRIES - {"format", "protocol"}))
def test_every_missing_entry_is_refused(entry: str, model: Path) -> None:
    drop(entry)(model)
    with pytest.raises(ModelError, match=f"lacks the entry '{entry}'; the model is damaged"):
        load(model)


@pytest.mark.parametrize("entry", ["id", "fingerprint", "dtype", "max_tokens"])
def test_every_missing_entry_of_a_backbone_is_refused(entry: str, model: Path) -> None:
    drop("backbones", "0", entry)(model)
    with pytest.raises(ModelError, match=f"is damaged: KeyError '{entry}'"):
        load(model)


@pytest.mark.parametrize("recipe", ["linear", "lexical", "auto", "llmembed-2", "several"])
@pytest.mark.parametrize("stated", [False, True])
def test_no_recipe_does_without_one_of_its_arrays(
    recipe: str, stated: bool, sound: dict[str, Path], tmp_path: Path
) -> None:
    for i, name in enumerate(load_file(sound[recipe] / saving.ARRAYS)):
        folder = Path(shutil.copytree(sound[recipe], tmp_path / str(i)))
        edit_arrays(lambda arrays, name=name: arrays.pop(name) is None, stated=stated)(folder)  # type: ignore[misc]
        with pytest.raises(ModelError, match=r"damaged|lacks the array"):
            load(folder)


@pytest.mark.parametrize("recipe", ["linear", "lexical", "auto", "llmembed-2", "several"])
def test_no_recipe_does_without_one_of_its_settings(recipe: str, sound: dict[str, Path], tmp_path: Path) -> None:
    for i, name in enumerate(saving.manifest(sound[recipe])["learner"]):
        folder = Path(shutil.copytree(sound[recipe], tmp_path / str(i)))
        drop("learner", name)(folder)
        with pytest.raises(ModelError):
            load(folder)


def shortened(axis: int, name: str) -> Damage:
    def change(arrays: dict[str, np.ndarray]) -> None:
        array = arrays[name]
        arrays[name] = np.take(array, range(array.shape[axis] - 1), axis=axis) if array.ndim else array[None]

    return edit_arrays(change, stated=True)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["linear", "lexical", "auto", "llmembed-15"])
def test_no_recipe_takes_arrays_of_another_shape(recipe: str, tmp_path: Path) -> None:
    """Shortened consistently in file and manifest: the learner itself must notice that its parts disagree.

    In a process of its own, because shapes are checked at every call under pytest, and at none elsewhere.
    """
    sound = tmp_path / "sound"
    make(recipe).fit(TEXTS, LABELS).save(sound)
    arrays = {n: a for n, a in load_file(sound / saving.ARRAYS).items() if n.startswith("learner/") and a.size}
    damaged = {}
    for name, axis in [(name, axis) for name, array in arrays.items() for axis in ([0, -1] if array.ndim > 1 else [0])]:
        damaged[f"{name} {axis}"] = str(shutil.copytree(sound, tmp_path / str(len(damaged))))
        shortened(axis, name)(Path(damaged[f"{name} {axis}"]))
    script = f"""
import sonde
from sonde.errors import ModelError
assert sonde.load({str(sound)!r}, dtype="float32", cache=None)
for name, folder in {damaged!r}.items():
    try:
        sonde.load(folder, dtype="float32", cache=None)
        print(name)
    except ModelError as error:
        assert "damaged" in str(error) or "numbers a text" in str(error), error
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == [], "accepted, though shortened"


# --------------------------------------------------------------------------------------------- moved backbones


def moved(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.build(name), tmp_path / f"moved {name}"))


def test_moved_backbones_are_named_at_loading(tmp_path: Path) -> None:
    old = moved("bert", tmp_path)
    fitted = make(backbones=(str(old),)).fit(TEXTS, LABELS)
    fitted.save(tmp_path / "model")
    expected = fitted.predict_proba(NEW_TEXTS)
    new = old.rename(tmp_path / "elsewhere")
    with pytest.raises(BackboneError, match="moved bert"):
        load(tmp_path / "model")
    again = load(tmp_path / "model", backbones=[str(new)])
    np.testing.assert_array_equal(again.predict_proba(NEW_TEXTS), expected)
    assert again.backbones == (str(new),)
    again.save(tmp_path / "model")
    np.testing.assert_array_equal(load(tmp_path / "model").predict_proba(NEW_TEXTS), expected)


def test_several_moved_backbones_are_named_in_order(tmp_path: Path) -> None:
    fitted = make(backbones=backbones("llmembed")).fit(TEXTS, LABELS)
    fitted.save(tmp_path / "model")
    places = [str(moved(name, tmp_path)) for name in ("bert", "electra")]
    again = load(tmp_path / "model", backbones=places)
    np.testing.assert_array_equal(again.predict_proba(NEW_TEXTS), fitted.predict_proba(NEW_TEXTS))
    with pytest.raises(ModelError, match="is not the backbone that the model was trained on"):
        load(tmp_path / "model", backbones=places[::-1])


def test_another_backbone_of_the_same_shape_is_refused(model: Path) -> None:
    sentence = r"is not the backbone that the model was trained on \(fingerprint [0-9a-f]{12} instead of [0-9a-f]{12}\)"
    with pytest.raises(ModelError, match=sentence):
        load(model, backbones=[str(tiny.build("electra"))])


@pytest.mark.parametrize(("given", "said"), [([], "0 entries"), (["a", "b"], "2 entries"), ("abc", "a string")])
def test_as_many_places_as_backbones(given: Any, said: str, model: Path) -> None:
    with pytest.raises(ArgumentError, match=f"backbones is {said}; give a list of 1"):
        load(model, backbones=given)


@pytest.mark.slow
def test_a_model_loads_in_another_process(model: Path) -> None:
    expected = load(model).predict(NEW_TEXTS).tolist()
    script = (
        f"import sonde; print(sonde.load({str(model)!r}, cache=None).predict({NEW_TEXTS!r}).tolist() == {expected!r})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_nothing_of_pickle_is_imported_by_saving() -> None:
    source = Path(saving.__file__).read_text(encoding="utf-8")
    assert not any(word in source for word in ("import pickle", "joblib", "torch.load", "eval(", "exec("))


def test_backbones_used_by_the_samples_differ() -> None:
    assert len(set(backbones("llmembed-2"))) == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_folder_that_was_closed_stays_closed(model: Path) -> None:
    model.chmod(0o750)
    (model / "sonde.json").chmod(0o640)
    load(model).save(model)
    assert model.stat().st_mode & 0o777 == 0o750 and (model / "sonde.json").stat().st_mode & 0o777 == 0o640
    assert load(model).predict(NEW_TEXTS[:1]).shape == (1,)


def test_a_clone_of_what_was_loaded_trains_what_was_trained(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "class_weight": {"post": 2, "rail": 1}, "sites": ("hidden.1", "hidden.-1"), "poolings": ("mean", "max"),
        "random_state": 7, "metric": "macro_f1", "max_tokens": (40,),
    }  # fmt: skip
    trained = make("linear", **settings).fit(TEXTS, LABELS)
    trained.save(tmp_path / "model")
    found = load(tmp_path / "model")
    own, mine = found.get_params(), trained.get_params()
    assert {name: own[name] for name in fit_settings.NAMES} == {name: mine[name] for name in fit_settings.NAMES}
    again = clone(found).fit(TEXTS, LABELS)
    assert np.allclose(again.predict_proba(NEW_TEXTS), trained.predict_proba(NEW_TEXTS), atol=1e-6)
    card = html.unescape((tmp_path / "model" / "README.md").read_text(encoding="utf-8"))
    assert "random_state=7" in card and "class_weight=[['post', 2], ['rail', 1]]" in card


def test_settings_of_numpy_and_generators_are_saved(tmp_path: Path) -> None:
    labels = [["post", "rail", "weather"].index(label) for label in LABELS]
    weights = {np.int64(0): np.float32(2), np.int64(1): 1}
    make("lexical", class_weight=weights, random_state=np.random.RandomState(0)).fit(TEXTS, labels).save(
        tmp_path / "model"
    )
    found = load(tmp_path / "model").get_params()
    assert found["class_weight"] == {0: 2.0, 1: 1} and found["random_state"] is None
