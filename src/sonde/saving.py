"""Plain records <-> a folder: `sonde.json` and `arrays.safetensors`, and a README.md that nothing reads back. No pickle
anywhere, nothing is ever executed.

check_target   whether a folder may become a saved model
save        manifest and arrays -> folder, whole or not at all
load        folder -> manifest and arrays, every disagreement refused with a sentence
manifest    the manifest alone
standing    where a model stands whose saving was killed half-way
memory_bytes  of this machine; larger arrays are not read
PROTOCOL    the version of the layout; older ones keep their reader, newer ones are refused

The manifest holds the SHA-256 of the arrays and of itself: they find damage, not malice, since who writes a model
writes them too.
"""

import glob
import hashlib
import json
import math
import os
import stat
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from sonde.card import CARD, card, untouched
from sonde.errors import ModelError
from sonde.tables.atomic import exchange, sync_folder
from sonde.tables.strays import is_dead, remove, temporary_name
from sonde.tables.table import repeated

PROTOCOL = 3
"""2 has checksums; models of 1 are read without."""
MANIFEST = "sonde.json"
ARRAYS = "arrays.safetensors"
ESCAPED = "utf-8", "backslashreplace"
"""Half an emoji in a label, which UTF-8 cannot hold, is written as JSON writes it: \\ud83d."""

MAX_MANIFEST_BYTES = 16 * 2**20
"""A manifest holds names and settings; the largest that we write, 100,000 label names, has 5 MB. As Python objects the
worst JSON takes twenty times its bytes."""

MAX_HEADER_BYTES = 2**20
"""Of the arrays; the format allows 100 MB. A hundred bytes an array: a cascade over 32 layers has 200 of them."""

ENTRIES = {
    *("format", "protocol", "recipe", "settings", "backbones", "classes", "multilabel", "matrix_labels"),
    *("label_names", "temperature", "summary", "versions", "learner", "arrays", "sha256"),
}
"""What a manifest of this protocol holds: no less, no more."""

SINCE = {"sha256": 2}
"""Entries that came with a protocol."""


def save(folder: Path | str, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a record; the folder is the old whole or the new whole.

    Parameters
    ----------
    folder : path
        Made if absent; replaced if it holds a saved model; refused if it holds anything else.
    content : mapping
        JSON values.
    arrays : mapping of str to ndarray

    Raises
    ------
    ModelError
        If `folder` is something else, or cannot be written.
    """
    target = check_target(folder).resolve()  # a symbolic link keeps pointing at the folder it names
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}  # keeps arrays without dimensions
    shapes = {name: {"shape": list(array.shape), "dtype": array.dtype.name} for name, array in sorted(arrays.items())}
    blob = save_safetensors(arrays)
    manifest = {"format": "sonde model", "protocol": PROTOCOL, **content, "arrays": shapes}
    manifest["sha256"] = {MANIFEST: digest(manifest), ARRAYS: hashlib.sha256(blob).hexdigest()}
    assert manifest.keys() == ENTRIES, "a manifest holds what its protocol says"
    fresh = temporary_name(target, f".{target.name}")
    old = target.parent / f".{target.name}.old-{time.monotonic_ns()}"
    try:
        fresh.mkdir(parents=True)
        _write(fresh / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False).encode(*ESCAPED))
        _write(fresh / ARRAYS, blob)
        _write(fresh / CARD, card(manifest).encode(*ESCAPED))
        _close_as(target, fresh)
        sync_folder(fresh)
        if not target.exists() or not exchange(fresh, target):
            if target.exists():
                target.rename(old)
            fresh.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise ModelError(
            f"Saving to {target} failed: {error}. Nothing was changed; make room or give another folder."
        ) from error
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        _sweep(target, fresh)


def _close_as(old: Path, fresh: Path) -> None:
    """Let the new folder and its files be open to whom those were that they replace, and to nobody else."""
    for path in (fresh, *fresh.iterdir()):
        replaced = old / path.relative_to(fresh)
        if replaced.exists():
            path.chmod(stat.S_IMODE(replaced.stat().st_mode))


def standing(folder: Path | str) -> Path:
    """The folder; or, where saving was killed between two renames, the one that held the model before.

    Systems that exchange two names in one step never leave that.
    """
    target = Path(folder)
    if target.exists():
        return target
    olds = target.parent.glob(f".{glob.escape(target.name)}.old-*")
    return max(olds, key=lambda old: old.stat().st_ctime_ns, default=target)


def digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says, its checksums apart; white space and the order of entries say nothing."""
    said = {name: entry for name, entry in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def seal(folder: Path | str) -> str:
    """What tells a saved model from any other, wherever it lies: the digest of its manifest, which holds checksums."""
    return digest(manifest(folder))


def check_target(folder: Path | str) -> Path:
    """The folder to save to, if it is free, empty or a saved model and nothing else; `ModelError` else.

    The model's README.md is its own as long as nobody has edited it.
    """
    target = Path(folder)
    try:
        temporary_name(target, f".{target.name}").exists()
    except OSError as error:
        raise ModelError(f"{target!s:.60}... cannot be made: {error.strerror}. Give a shorter name.") from error
    held = {path.name for path in target.iterdir()} if target.is_dir() else set()
    parent = next(path for path in [*target.absolute().parents] if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ModelError(f"{target} cannot be made: {parent} is no folder that you may write to. Give another folder.")
    if (target.exists() and not target.is_dir()) or (held and MANIFEST not in held):
        raise ModelError(f"{target} exists and is not a saved model; nothing was written. Give another folder.")
    own = {MANIFEST, ARRAYS}
    if (target / CARD).is_file():
        own.add(CARD)
        if not untouched((target / CARD).read_text(encoding="utf-8", errors="replace")):
            raise ModelError(
                f"{target} is a saved model whose {CARD} somebody has edited, which saving would write over; nothing "
                "was written. Move that page away or give another folder."
            )
    if foreign := sorted(held - own):
        raise ModelError(
            f"{target} is a saved model that also holds {', '.join(foreign[:3])}, which saving would delete; nothing "
            "was written. Move that away or give another folder."
        )
    return target


def load(folder: Path | str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a record back.

    Raises
    ------
    ModelError
        If the folder is not a saved model, has a newer protocol, or an entry is missing, cut, extra, duplicated or of
        another shape or dtype than its manifest says.
    """
    content = manifest(folder)
    try:
        return content, _arrays(standing(folder), content)
    except ModelError:
        again = manifest(folder)
        if again == content:
            raise
    return again, _arrays(standing(folder), again)  # somebody saved between the two looks


def _arrays(folder: Path, content: Mapping[str, Any]) -> dict[str, np.ndarray]:
    path = folder / ARRAYS
    if not path.is_file():
        raise ModelError(f"{folder} lacks {ARRAYS}: the model is incomplete. Copy it again or train it again.")
    blob = _bounded(path, memory_bytes())
    _check_header(path, blob)
    try:
        arrays: dict[str, np.ndarray] = load_safetensors(blob)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"{path} is cut or damaged ({error}). Copy the model again or train it again.") from error
    _compare(path, content.get("arrays"), arrays)
    if content["protocol"] >= SINCE["sha256"] and content["sha256"].get(ARRAYS) != hashlib.sha256(blob).hexdigest():
        raise _changed(path)
    return arrays


def manifest(folder: Path | str) -> dict[str, Any]:
    """Read and check `sonde.json` alone."""
    path = standing(folder) / MANIFEST
    if not path.is_file():
        what = "does not exist" if not Path(folder).exists() else f"is not a saved model: it has no {MANIFEST}"
        raise ModelError(f"{folder} {what}. Give a folder that `sonde fit --out` or `TextClassifier.save` wrote.")
    content = _parse(path, _bounded(path, MAX_MANIFEST_BYTES))
    if content.get("format") != "sonde model" or type(content.get("protocol")) is not int:
        raise ModelError(f"{path} is not the manifest of a saved model.")
    if content["protocol"] > PROTOCOL:
        raise ModelError(
            f"{folder} was saved with protocol {content['protocol']}; this sonde reads up to {PROTOCOL}. Upgrade sonde."
        )
    if content["protocol"] < 1:
        raise ModelError(f"{path} states protocol {content['protocol']}, which never was; the model is damaged.")
    _compare_entries(path, content)
    return content


def _compare_entries(path: Path, content: Mapping[str, Any]) -> None:
    entries = {name for name in ENTRIES if content["protocol"] >= SINCE.get(name, 1)}
    for name in sorted(entries - content.keys()):
        raise ModelError(f"{path} lacks the entry {name!r}; the model is damaged. Copy it again or train it again.")
    for name in sorted(content.keys() - entries):
        raise ModelError(f"{path} holds the unknown entry {name!r}; it is not trusted. Train it again.")
    if "sha256" in entries and (
        not isinstance(content["sha256"], dict) or content["sha256"].get(MANIFEST) != digest(content)
    ):
        raise _changed(path)


def _changed(path: Path) -> ModelError:
    return ModelError(
        f"{path} is not what was saved: its checksum differs, so it was damaged or edited since. Copy the model again "
        "or train it again."
    )


def _bounded(path: Path, most: int) -> bytes:
    """The bytes of a file that has no more than that."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            blob = file.read(size + 1) if size <= most else b""
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error
    if size > most:
        raise ModelError(f"{path} has {size:,} bytes; here it may have at most {most:,}. It is not read.")
    if len(blob) != size:
        raise ModelError(f"{path} changed while it was read: load the model again.")
    return blob


def memory_bytes() -> int:
    """Physical memory of the machine."""
    if not hasattr(os, "sysconf"):  # Windows, whose files this does not bound
        return sys.maxsize
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _sweep(target: Path, fresh: Path) -> None:
    """Remove what was replaced, and what writers of this model left who are no more."""
    name = glob.escape(target.name)
    dead = [stray for stray in target.parent.glob(f".{name}.tmp-*") if is_dead(stray)]
    old = list(target.parent.glob(f".{name}.old-*")) if target.exists() else []
    for stray in (fresh, *dead, *old):
        remove(stray)


def _check_header(path: Path, blob: bytes) -> None:
    size = int.from_bytes(blob[:8], "little")
    if len(blob) < 8 or size > min(MAX_HEADER_BYTES, len(blob) - 8):
        raise ModelError(f"{path} is cut or damaged: its header does not fit. Copy the model again or train it again.")
    if "__metadata__" in _parse(path, blob[8 : 8 + size]):
        raise ModelError(f"{path} holds the entry '__metadata__', which sonde never writes; it is not trusted.")


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        content = json.loads(
            raw, object_pairs_hook=lambda pairs: _distinct(path, pairs), parse_constant=_no_number, parse_float=_finite
        )
    except ModelError:
        raise
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is cut or damaged ({error}). Copy the model again or train it again.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not the manifest of a saved model.")
    return content


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"{digits} is larger than any number")
    return number


def _distinct(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = repeated([name for name, _ in pairs])
        raise ModelError(f"{path} has the entry {twice!r} twice; a saved model never has. Train it again.")
    return content


def _compare(path: Path, stated: Any, arrays: Mapping[str, np.ndarray]) -> None:
    if not isinstance(stated, dict):
        raise ModelError(f"{path.parent / MANIFEST} does not list its arrays; the model is damaged. Train it again.")
    for name in sorted(stated.keys() - arrays.keys()):
        raise ModelError(f"{path} lacks the array {name!r} that {MANIFEST} lists. Copy the model again.")
    for name in sorted(arrays.keys() - stated.keys()):
        raise ModelError(f"{path} holds the array {name!r} that {MANIFEST} does not list; it is not trusted.")
    for name, array in arrays.items():
        found = {"shape": list(array.shape), "dtype": array.dtype.name}
        if stated[name] != found:
            raise ModelError(f"{path}: the array {name!r} is {found}, but {MANIFEST} says {stated[name]!s:.100}.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ModelError(f"{path}: the array {name!r} holds NaN or infinity; the model is damaged.")


def _write(path: Path, blob: bytes) -> None:
    with path.open("wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())
