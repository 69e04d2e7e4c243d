"""Files of the activation store: whole or absent, and checked before they are believed.

shard_name    hashes -> the name of their file
write_shard   hashes and values -> a file
write_file    bytes -> a small file beside the shards
read_hashes   the keys of a file, or None with a warning if it is damaged
read_values   the values of a file
opens         whether a file is whole, by its header
state_of      what changes whenever a file does
is_finite     whether values are without NaN and infinity
is_intact     whether a file holds what was written, by its checksum
set_aside     drop a damaged file with a warning
drop_folder   a whole block, in one step
clear_strays  remove what dead writers left
existing      the nearest folder that exists

A file is written under a temporary name (`tables.strays`), flushed to the disk, then renamed.
"""

import errno
import hashlib
import os
import shutil
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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

_trusted: dict[Path, tuple[tuple[int, ...], str | None, int | None]] = {}
"""Shards whose checksum was right, as they were then."""


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
    try:
        with _opened(path) as shard:
            raw = shard.get_tensor("hashes").numpy()
    except FileNotFoundError:  # another process dropped it
        return None
    except (OSError, SafetensorError) as error:
        _pass_by(path, error)
        return None
    keys = np.frombuffer(raw.tobytes(), dtype=f"S{HASH_BYTES}")
    if shard_name(keys) != path.name:
        set_aside(path)
        return None
    return keys


def read_values(path: Path) -> Tensor:
    """Values of a shard, (row, dim), mapped from the file: only the rows that are used are read."""
    with _opened(path) as shard:
        values: Tensor = shard.get_tensor("values")
    return values


def opens(path: Path) -> bool:
    """Whether a shard is whole; a cut one is set aside with a warning, one that is gone is simply not there.

    What is no plain file, a link or a pipe, was not written by sonde: it is neither opened nor followed. Neither is a
    header read that is longer than ours.
    """
    try:
        if stat.S_ISREG(path.lstat().st_mode) and _header_bytes(path) <= HEADER_BYTES:
            with _opened(path) as shard:
                found = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118  (no mapping)
                hashes, values = found.pop("hashes", None), found.pop("values", None)
                shapes = [[] if one is None else one.get_shape() for one in (hashes, values)]
                fit = not found and len(shapes[1]) == 2 and shapes[0] == [shapes[1][0], HASH_BYTES]
                if fit and hashes.get_dtype() == "U8":
                    return True
    except FileNotFoundError:
        return False
    except OSError as error:
        _pass_by(path, error)
        return False
    except SafetensorError:
        pass
    set_aside(path)
    return False


def is_intact(path: Path, dtype: str | None = None, width: int | None = None) -> bool:
    """Whether a shard holds what was written; if so it counts as used now, by its modification time.

    A damaged one is set aside with a warning. Values of another type or width than these, or that are not finite, are
    damage too. The bytes are read once a process, unless the file changes. Access times would not do: looking at the
    hashes of a shard may set them.
    """
    try:
        if _trusted.get(path) != (_state(path), dtype, width) and not _matches(path, dtype, width):
            set_aside(path)
            return False
        with suppress(OSError):  # a store that may only be read
            os.utime(path)
        _trusted[path] = _state(path), dtype, width
    except FileNotFoundError:
        return False
    except OSError as error:
        _pass_by(path, error)
        return False
    return True


def _matches(path: Path, dtype: str | None, width: int | None) -> bool:
    try:
        with _opened(path) as shard:
            checksum = (shard.metadata() or {}).get("crc32")
            hashes, values = shard.get_tensor("hashes"), shard.get_tensor("values")
    except SafetensorError:
        return False
    if checksum != _checksum(hashes, values) or width not in (None, values.shape[1]):
        return False
    return dtype in (None, str(values.dtype).removeprefix("torch.")) and is_finite(values)


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite: a finite sum has finite terms, and costs a quarter of looking at each."""
    return not values.is_floating_point() or bool(values.sum().isfinite()) or bool(values.isfinite().all())


def state_of(path: Path) -> tuple[int, ...] | None:
    """What changes whenever a file does: the time of its last change too, which nobody can set. None: it is not there.

    The time of its last use, which `is_intact` sets, is a change too.
    """
    try:
        return _state(path)
    except FileNotFoundError:
        return None


def _state(path: Path) -> tuple[int, ...]:
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """`OSError` and `SafetensorError` alone: torch maps a shard by its name, after safetensors has opened it."""
    try:
        with safe_open(path, framework="pt") as shard:
            yield shard
    except RuntimeError as error:
        gone = os.strerror(errno.ENOENT) in str(error)  # its name may stand for a new file by now
        raise (FileNotFoundError if gone else OSError)(str(error)) from error


def _header_bytes(path: Path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(file.read(8), "little")


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


def _pass_by(path: Path, error: Exception) -> None:
    """A shard that cannot be read now may be whole: it is left where it is."""
    warn(f"The shard {path} cannot be read ({error}); its rows are read again.", "damaged_shards")


def clear_strays(root: Path) -> None:
    """Remove the temporary files and folders of writers that are no more."""
    for pattern in (".tmp-*", "blocks/.tmp-*", "blocks/*/.tmp-*"):
        for stray in list(root.glob(pattern)):
            if is_dead(stray) and not stray.parent.is_symlink():
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
