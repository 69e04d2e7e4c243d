"""Checkpoints: from the name of a backbone to a complete local folder, and what its files say.

find_checkpoint   hub id or folder -> local folder; cache, hub and offline bundle in this order
read_config       config.json of a folder
read_sentence     how a sentence-transformers folder turns token states into a sentence embedding
fingerprint       what identifies a checkpoint: config, tokenizer files, sampled tensors
Sentence          the recipe of a sentence embedding
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sonde.errors import BackboneError
from sonde.read.sites import Site

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model",
    "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_VOLATILE = {"transformers_version", "_name_or_path", "name_or_path", "dtype", "torch_dtype", "use_cache"}
_SAMPLES = 8  # values read from each of three rows of a tensor: another checkpoint differs in nearly all of them


@dataclass(frozen=True)
class Sentence:
    """How a backbone embeds a sentence."""

    site: Site
    """Where the states are read."""
    pooling: str | None
    """How tokens are pooled; None where the site has no token axis."""
    normalise: bool = False
    """Whether the embedding is scaled to unit length."""
    refusal: str = ""
    """Why the embedding cannot be computed here; empty if it can."""


def read_config(folder: Path) -> dict[str, Any]:
    """Return the checkpoint's config.json."""
    config = _read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise BackboneError(f"{folder / 'config.json'} is not a model's configuration.")
    return config


def read_sentence(folder: Path, last: Site) -> Sentence | None:
    """Return what the folder's sentence-transformers modules do, or None if it has none."""
    if not (folder / "modules.json").is_file():
        return None
    pooling, normalise, refusal = "mean", False, ""
    for module in _read_json(folder / "modules.json"):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling, refusal = _read_pooling(folder / str(module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            normalise = True
        elif kind != "Transformer":
            refusal = f"its sentence-transformers modules hold a {kind}, which sonde does not apply"
    return Sentence(last, pooling, normalise, refusal)


def fingerprint(folder: Path, sentence: Sentence) -> str:
    """Identify a checkpoint without reading all of it.

    SHA-256 over the configuration without volatile fields, the tokenizer files, the recipe of the sentence embedding,
    and of every tensor its name, shape and some values as stored: hence equal however the weights are loaded.
    """
    digest = hashlib.sha256()
    config = {key: value for key, value in read_config(folder).items() if key not in _VOLATILE}
    digest.update(json.dumps(config, sort_keys=True).encode())
    for name in sorted(_TOKENIZER):
        if (folder / name).is_file():
            digest.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    digest.update(f"{sentence.site} {sentence.pooling} {sentence.normalise}".encode())
    for name, shape, values in sorted(_sampled_tensors(folder), key=lambda sampled: sampled[0]):
        digest.update(f"{name} {shape} ".encode() + values)
    return digest.hexdigest()


def complete_folder(folder: Path, name: str) -> Path:
    """Return a folder with its links resolved, or raise a `BackboneError` that says what it lacks."""
    absent = lacking(folder)
    if absent:
        raise BackboneError(
            f"Backbone {name!r} is a folder without {absent}. A model's folder holds config.json, the files of its "
            "tokenizer and its weights, as save_pretrained writes them."
        )
    return folder.resolve()


def lacking(folder: Path) -> str:
    """What a folder lacks to be a checkpoint; empty if nothing."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if not any((folder / name).is_file() for name in _TOKENIZER[:6]):
        return "a tokenizer (tokenizer.json or a vocabulary)"
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return ""
        if index.is_file():
            absent = [shard for shard in _shards(index) if not (folder / shard).is_file()]
            return f"the weight files {', '.join(absent)}" if absent else ""
    return "weights (model.safetensors)"


def _shards(index: Path) -> list[str]:
    return sorted(set(_read_json(index)["weight_map"].values()))


def _weight_files(folder: Path) -> list[Path]:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return [folder / shard for shard in _shards(folder / f"{name}.index.json")]
    raise AssertionError(f"no weights in {folder}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path} cannot be read: {error}.") from error


def _read_pooling(path: Path) -> tuple[str, str]:
    """(pooling, refusal) of a sentence-transformers pooling module, in its older and newer spelling."""
    config = _read_json(path)
    modes = config.get("pooling_mode") or [
        key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on
    ]
    modes = [modes] if isinstance(modes, str) else list(modes)
    ours = {"cls": "first", "cls_token": "first", "mean": "mean", "mean_tokens": "mean", "max": "max",
            "max_tokens": "max", "lasttoken": "last"}  # fmt: skip
    if len(modes) == 1 and modes[0] in ours:
        return ours[modes[0]], ""
    return "mean", f"its sentence-transformers pooling ({', '.join(modes) or 'none'}) is none that sonde applies"


def _sampled_tensors(folder: Path) -> Iterator[tuple[str, list[int], bytes]]:
    """(name, shape, some values as bytes) of every stored tensor."""
    from safetensors import safe_open

    for path in _weight_files(folder):
        if path.suffix == ".bin":
            stored: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            yield from ((name, list(t.shape), _sample(t, t.shape)) for name, t in stored.items())
            continue
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (no mapping)
                view = tensors.get_slice(name)
                yield name, view.get_shape(), _sample(view, view.get_shape())


def _sample(view: Any, shape: Any) -> bytes:
    """The head of the first, the middle and the last row of a tensor or of a slice of one on disk."""
    if 0 in shape:
        return b""
    if len(shape) < 2:
        values = view[:_SAMPLES] if len(shape) == 1 else view[...]
        return bytes(values.reshape(-1).float().numpy().tobytes())
    rows = [view[row : row + 1].reshape(-1)[:_SAMPLES] for row in sorted({0, shape[0] // 2, shape[0] - 1})]
    return bytes(torch.cat(rows).float().numpy().tobytes())
