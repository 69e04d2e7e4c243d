"""Files of the activation store: whole or absent, and checked before they are believed.

shard_name    hashes -> the name of their file
write_shard   hashes and values -> a file
write_file    bytes -> a small file beside the shards
read_hashes   the keys of a file, or None with a warning if it is damaged
read_values   the values of a file
opens         whether a file is whole, by its header
is_intact     whether a file holds what was written, by its checksum
set_aside     drop a damaged file with a warning
drop_folder   a whole block, in one step
clear_strays  remove what dead writers left
existing      the nearest folder that exists

A file is written under a temporary name (`tables.strays`), flushed to the disk, then renamed.
"""

import hashlib
import os
import shutil
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sonde.errors import StoreError, warn
from sonde.tables.strays import is_dead, remove, temporary_name

HASH_BYTES = 16
"""2^128 keys: a collision among a billion texts has a probability of about 1e-21."""

HEADER_BYTES = 320
"""No header of a shard is longer: two entries with offsets of up to 12 digits and a checksum come to 250 bytes."""

_trusted: dict[Path, tuple[int, int]] = {}  # shards whose checksum was right, as they were then


def shard_name(keys: np.ndarray) -> str:
    """Name of the file that holds these keys in this order."""
    return hashlib.blake2b(keys.tobytes(), digest_size=HASH_BYTES).hexdigest() + ".safetensors"


def write_shard(path: Path, keys: np.ndarray, values: Tensor) -> None:
    """Write keys (row,) and values (row, dim) into one file.

    Raises
    ------
    StoreError
        If the disk does not take it; nothing is left behind.
    """
    raw = np.frombuffer(keys.tobytes(), dtype=np.uint8).reshape(len(keys), HASH_BYTES)  # row 16
    tensors = {"hashes": torch.from_numpy(raw.copy()), "values": values.contiguous()}
    # serialised here: save_file would write under a temporary name of its own, which nobody could clear after a kill
    write_file(path, save(tensors, metadata={"crc32": _checksum(tensors["hashes"], tensors["values"])}))


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole; raises `StoreError` if the disk does not take it."""
    temporary = temporary_name(path)
    try:
        temporary.write_bytes(content)
        _commit(temporary, path)
    except OSError as error:
        raise _refusal(path, temporary, error) from error


def read_hashes(path: Path) -> np.ndarray | None:
    """Keys of a shard, (row,); None, with a warning, if they are not those that its name stands for."""
    if not opens(path):
        return None
    with safe_open(path, framework="pt") as shard:
        raw = shard.get_tensor("hashes").numpy()
    keys = np.frombuffer(raw.tobytes(), dtype=f"S{HASH_BYTES}")
    if shard_name(keys) != path.name:
        set_aside(path)
        return None
    return keys


def read_values(path: Path) -> Tensor:
    """Values of a shard, (row, dim), mapped from the file: only the rows that are used are read."""
    with safe_open(path, framework="pt") as shard:
        values: Tensor = shard.get_tensor("values")
    return values


def opens(path: Path) -> bool:
    """Whether a shard is whole; a cut one is set aside with a warning, one that is gone is simply not there."""
    try:
        with safe_open(path, framework="pt") as shard:
            shapes = [shard.get_slice(name).get_shape() for name in ("hashes", "values")]
            if shapes[0] == [shapes[1][0], HASH_BYTES]:
                return True
    except FileNotFoundError:
        return False
    except (SafetensorError, OSError):
        pass
    set_aside(path)
    return False


def is_intact(path: Path) -> bool:
    """Whether a shard holds what was written; if so it counts as used now, by its modification time.

    The bytes are read once a process, unless the file changes. Access times would not do: looking at the hashes of a
    shard may set them.
    """
    try:
        if _trusted.get(path) != _state(path) and not _matches(path):
            return False
        with suppress(OSError):  # a store that may only be read
            os.utime(path)
        _trusted[path] = _state(path)
    except OSError:
        return False
    return True


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_mtime_ns, state.st_size


def _matches(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as shard:
            checksum = (shard.metadata() or {}).get("crc32")
            return bool(checksum == _checksum(shard.get_tensor("hashes"), shard.get_tensor("values")))
    except SafetensorError:
        return False


def _checksum(*tensors: Tensor) -> str:
    checksum = 0
    for tensor in tensors:
        checksum = zlib.crc32(tensor.view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"


def set_aside(path: Path) -> None:
    """Name a damaged shard and drop it, so that its rows are read again."""
    if not path.exists():  # another process dropped it
        return
    warn(f"The shard {path} is damaged; its rows are read again.", "damaged_shards")
    with suppress(OSError):
        path.unlink()


def clear_strays(root: Path) -> None:
    """Remove the temporary files and folders of writers that are no more."""
    for pattern in (".tmp-*", "blocks/.tmp-*", "blocks/*/.tmp-*"):
        for stray in list(root.glob(pattern)):
            if is_dead(stray):
                remove(stray)


def drop_folder(folder: Path) -> None:
    """Remove a block in one step for everybody who looks: it is renamed before it is emptied."""
    going = temporary_name(folder)
    with suppress(OSError):
        folder.rename(going)
        remove(going)


def _commit(temporary: Path, path: Path) -> None:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _refusal(path: Path, temporary: Path, error: Exception) -> StoreError:
    remove(temporary)
    free = shutil.disk_usage(existing(path.parent)).free
    return StoreError(
        f"Writing {path} failed: {error} ({free / 1e9:.2f} GB are free). What was written before is kept: make room, "
        "or give another folder (--cache DIR), and run the same command again."
    )


def existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    while not path.exists():
        path = path.parent
    return path
