"""Checkpoints from strangers: what they name outside is not read, what they promise is not believed."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import SENTENCES, build

from sonde.errors import BackboneError, ReadingError
from sonde.read.backbone import load_backbone
from sonde.read.blocks import Source
from sonde.read.checkpoint import lacking, read_sentence
from sonde.read.extract import read
from sonde.read.sites import MAIN, Site
from sonde.read.sources import expand_blocks
from sonde.read.view import View

LAST = Site(MAIN, "hidden", 3)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(build("bert"), tmp_path / "bert"))


def load(folder: Path) -> Any:
    return load_backbone(str(folder), dtype="float32", device="cpu")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_hidden_layers": 10**9}, "names 1,000,000,000 layers; sonde reads up to 1,000"),
        ({"vocab_size": 10**12}, "vocab_size 1,000,000,000,000, which the .* bytes of its weights cannot hold"),
        ({"hidden_size": 10**8}, "hidden_size 100,000,000, which the"),
        ({"intermediate_size": 10**30}, "cannot hold; the checkpoint is damaged or not what it says"),
        ({"text_config": {"vocab_size": 10**12}}, "vocab_size 1,000,000,000,000, which the"),
        ({"hidden_size": -1}, "cannot be loaded"),
        ({"hidden_size": "32"}, "cannot be loaded"),
        ({"model_type": "../../../etc"}, "cannot be loaded"),
        ({"model_type": 7}, "cannot be loaded"),
    ],
)  # fmt: skip
def test_sizes_that_the_weights_do_not_bear_out_are_refused_at_once(
    checkpoint: Path, changes: dict[str, Any], sentence: str
) -> None:
    edit(checkpoint / "config.json", **changes)
    started = time.process_time()  # others work on this machine too
    with pytest.raises(BackboneError, match=sentence):
        load(checkpoint)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b'"bert"'])
@pytest.mark.parametrize("name", ["config.json", "modules.json"])
def test_json_that_is_none_is_a_sentence(checkpoint: Path, name: str, content: bytes) -> None:
    (checkpoint / name).write_bytes(content)
    if name == "modules.json" and content == b"[]":
        assert read_sentence(checkpoint, LAST) is not None
        return
    with pytest.raises(BackboneError, match=rf"{name} (cannot be read|is not)"):
        load(checkpoint)


def test_a_config_of_a_gigabyte_is_not_read(checkpoint: Path) -> None:
    with (checkpoint / "config.json").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(BackboneError, match=r"config\.json cannot be read: it has 1,073,741,824 bytes; at most"):
        load(checkpoint)


def test_a_pipe_is_no_checkpoint(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    os.mkfifo(checkpoint / "config.json")
    with pytest.raises(BackboneError, match=r"without config\.json"):
        load(checkpoint)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/../../b", "a\0b"])
def test_weights_outside_the_folder_are_not_read(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(BackboneError, match="which is outside its folder; it is not read"):
        lacking(checkpoint)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"w": 3}}'])
def test_an_index_that_says_nothing_is_a_sentence(checkpoint: Path, content: str) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(content)
    with pytest.raises(BackboneError, match="does not say which file holds which weight"):
        load(checkpoint)


@pytest.mark.parametrize("modules", [[1], {"a": 1}, [{"type": "Pooling", "path": "../elsewhere"}]])
def test_modules_that_lead_elsewhere_are_refused(checkpoint: Path, modules: Any) -> None:
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(BackboneError, match=r"is not a list of|is outside its folder"):
        load(checkpoint)


@pytest.mark.parametrize("config", [[], {"pooling_mode": 3}, {"pooling_mode": [[1]]}, {}])
def test_odd_poolings_are_refused_or_said(checkpoint: Path, config: Any) -> None:
    (checkpoint / "modules.json").write_text(json.dumps([{"type": "x.Pooling", "path": "1"}]))
    (checkpoint / "1").mkdir()
    (checkpoint / "1" / "config.json").write_text(json.dumps(config))
    try:
        found = read_sentence(checkpoint, LAST)
    except BackboneError as error:
        assert "is not the configuration of a pooling module" in str(error)
    else:
        assert found is not None and "is none that sonde applies" in found.refusal


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_give_no_answers(checkpoint: Path, value: float) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    name = next(name for name in weights if "layer.1" in name and name.endswith("weight"))
    weights[name] = torch.full_like(weights[name], value)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((BackboneError, ReadingError)):
        one = {0: Source(load(checkpoint), View(64))}
        read(SENTENCES, one, expand_blocks(0, one[0], "hidden.3", "mean"))


def test_code_in_a_checkpoint_is_not_run(checkpoint: Path, tmp_path: Path) -> None:
    edit(
        checkpoint / "config.json", model_type="mine", auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}
    )
    (checkpoint / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n"
    )
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load(checkpoint)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_with_code_is_not_run(checkpoint: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "ran"),))

    (checkpoint / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Evil()}, checkpoint / "pytorch_model.bin")
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load(checkpoint)
    assert not (tmp_path / "ran").exists()
