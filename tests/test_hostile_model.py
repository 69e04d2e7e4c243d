"""Saved models from strangers: small files that would take all memory or all time, or lead elsewhere."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from samples import make, worded

import sonde
from sonde import saving
from sonde.errors import ModelError
from sonde.learn import head
from sonde.learn.problem import Record

pytestmark = pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "m"
    make("lexical").fit(*worded(90)).save(folder)
    return folder


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy, which must be refused within seconds."""
    started = time.process_time()  # others work on this machine too
    yield Path(shutil.copytree(sound, tmp_path / "m"))
    assert time.process_time() - started < 10


def forge(model: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], None]) -> None:
    """Change manifest and arrays as somebody does who knows the format: shapes and checksums are renewed."""
    content, arrays = json.loads((model / saving.MANIFEST).read_text()), dict(load_file(model / saving.ARRAYS))
    change(content, arrays)
    save_file(arrays, model / saving.ARRAYS)
    content["arrays"] = {n: {"shape": list(a.shape), "dtype": a.dtype.name} for n, a in sorted(arrays.items())}
    own = hashlib.sha256((model / saving.ARRAYS).read_bytes()).hexdigest()
    content["sha256"] = {saving.MANIFEST: saving.digest(content), saving.ARRAYS: own}
    (model / saving.MANIFEST).write_text(json.dumps(content))


def refused(model: Path, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence) as caught:
        sonde.load(model, cache=None)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(("file", "size"), [(saving.MANIFEST, 2**30), (saving.ARRAYS, 2**43)])
def test_files_with_holes_of_any_size_are_not_read(model: Path, file: str, size: int) -> None:
    os.truncate(model / file, size)
    refused(model, rf"has {size:,} bytes; here it may have at most .* It is not read")


def test_words_that_overlap_would_take_the_square_of_the_file(model: Path) -> None:
    def change(_: Any, arrays: dict[str, np.ndarray]) -> None:
        name = next(name for name, array in arrays.items() if name.endswith("word_ends") and array.size)
        words = arrays[name.replace("word_ends", "words")]
        arrays[name] = np.tile(np.array([len(words), 0], dtype=np.int64), 50_000)

    forge(model, change)
    refused(model, "The words of kind .* do not follow one another: the model is damaged")


def test_learners_within_learners_without_end(model: Path) -> None:
    def change(content: dict[str, Any], _: Any) -> None:
        for _ in range(150):
            content["learner"] = {"kind": "blend", "scales": {"a": 1.0}, "children": {"a": content["learner"]}}

    forge(model, change)
    refused(model, "is damaged")


@pytest.mark.parametrize(
    "change", [{"hidden": [10**9, 10**9]}, {"hidden": [1] * 10**5}, {"hidden": [-1]}], ids=["wide", "deep", "less"]
)
def test_networks_that_are_declared_and_not_there_take_no_memory(change: dict[str, Any]) -> None:
    roles = head.Roles(("a",), ("b",))
    network = head.FusionNetwork(2, head.Roles((8,), (8,)), 3, head.DEFAULT)
    record = head.FusionHead(roles, 2, 3, network, head.DEFAULT).record()
    assert head.FusionHead.from_record(record).n_classes == 3
    forged = {**record.settings, "setting": {**record.settings["setting"], **change}}
    with pytest.raises(ModelError, match="The saved fusion head is damaged"):
        head.FusionHead.from_record(Record(forged, record.arrays))
    for name in ("n_classes", "widths"):
        with pytest.raises(ModelError, match="The saved fusion head is damaged"):
            value = 10**12 if name == "n_classes" else [10**12, 8]
            head.FusionHead.from_record(Record({**record.settings, name: value}, record.arrays))


def test_a_pipe_or_a_folder_is_no_model(model: Path) -> None:
    (model / saving.ARRAYS).unlink()
    os.mkfifo(model / saving.ARRAYS)
    refused(model, "lacks arrays.safetensors")
    (model / saving.MANIFEST).unlink()
    (model / saving.MANIFEST).mkdir()
    refused(model, r"is not a saved model: it has no sonde\.json")


def test_names_of_arrays_and_backbones_lead_nowhere(model: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def change(content: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays["learner/../../../evil"] = np.zeros(1, dtype=np.float32)
        content["backbones"] = {"0": {"id": "../../evil", "fingerprint": "", "dtype": "float32", "max_tokens": 3}}

    forge(model, change)
    with pytest.raises(sonde.errors.InputError):
        sonde.load(model, cache=None)
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before.keys(), "loading writes nothing"


def test_a_model_that_cannot_be_read_is_a_sentence(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("sonde.saving.os.fstat", broken)
        with pytest.raises(ModelError, match=r"sonde\.json cannot be read: Input/output error"):
            saving.load(model)


def test_torch_is_left_as_it_was() -> None:
    """Sketching networks on the meta device must not leak into what is built next."""
    test_networks_that_are_declared_and_not_there_take_no_memory({"hidden": [-1]})
    assert torch.zeros(1).device.type == "cpu"
