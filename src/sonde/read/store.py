"""The activation store: what was read once is not read again.

Store          a folder of blocks, each a folder of shards, addressed by text hash
opened         a store, with what this process has learnt of it
Column         one block of the store: look rows up, append rows
hash_texts     texts -> 16-byte keys; the store never holds a text
block_bytes    size of a new block
default_root   where the store lies when nobody says otherwise

Layout: `sonde-store.json` (protocol), `blocks/<key>/block.json` (what the values are) and
`blocks/<key>/<shard>.safetensors` with `hashes` (row, 16) uint8, `values` (row, dim) and a checksum. A shard is named
after the hashes it holds and written under a temporary name, then renamed: a shard is whole or absent, writing the
same rows again gives the same file, and two processes cannot disagree about a name. The modification times of
`block.json` and of a shard say when they were last used.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import platformdirs
import torch
from safetensors import SafetensorError
from torch import Tensor

from sonde.errors import StoreError, warn
from sonde.read.about import about_of, key_of, read_json, record_of
from sonde.read.shards import (
    HASH_BYTES,
    HEADER_BYTES,
    clear_strays,
    drop_folder,
    existing,
    is_intact,
    opens,
    read_hashes,
    read_values,
    shard_name,
    state_of,
    write_file,
    write_shard,
)
from sonde.tables.strays import remove

logger = logging.getLogger(__name__)

PROTOCOL = 1
READING_VERSION = 1
"""Raised whenever the same texts, backbone, view, site and pooling give other values than before."""

DEFAULT_LIMIT_BYTES = 20 * 10**9
"""The default cache stays below this; what was not used for longest goes first."""

SPARE_BYTES = 256 * 2**20
"""Disk that is left free for everybody else."""

RECOUNT_SECONDS = 60.0
"""What other processes write is seen that late: counting 10,000 files takes a tenth of a second."""


def default_root() -> Path:
    """`SONDE_CACHE` if set, else the platform's cache folder for sonde."""
    return Path(os.environ.get("SONDE_CACHE") or platformdirs.user_cache_dir("sonde"))


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """BLAKE2b keys of texts, (row,) of 16-byte strings."""
    digests = [hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest() for t in texts]
    return np.array(digests, dtype=f"S{HASH_BYTES}")


@dataclass(frozen=True)
class _Index:
    """Sorted keys of some shards and where each row lies."""

    keys: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    names: tuple[str, ...]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Position of each key in this index, -1 where absent."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)


def _index(folder: Path, names: Sequence[str]) -> _Index:
    found = {name: keys for name in names if (keys := read_hashes(folder / name)) is not None}
    parts = list(found.values())
    keys = np.concatenate([np.empty(0, dtype=f"S{HASH_BYTES}"), *parts])
    shard = np.repeat(np.arange(len(parts), dtype=np.int32), [len(p) for p in parts])
    row = np.concatenate([np.empty(0, dtype=np.int32), *(np.arange(len(p), dtype=np.int32) for p in parts)])
    return _sorted(keys, shard, row, tuple(found))


def _sorted(keys: np.ndarray, shard: np.ndarray, row: np.ndarray, names: tuple[str, ...]) -> _Index:
    order = np.argsort(keys, kind="stable")
    return _Index(keys[order], shard[order], row[order], names)


def _joined(one: _Index, other: _Index) -> _Index:
    keys, row = np.concatenate([one.keys, other.keys]), np.concatenate([one.row, other.row])
    shard = np.concatenate([one.shard, other.shard + np.int32(len(one.names))])
    return _sorted(keys, shard, row, one.names + other.names)


Merged = MutableMapping[tuple[str, ...], _Index]
"""Indexes by the names of their shards: equal names hold equal rows, whatever the block."""


def _added(indexes: Sequence[_Index], new: _Index, merged: Merged) -> list[_Index]:
    """The same and one more. An index is joined with one less than twice as large, so that there are few to search and
    each row is sorted as often as rows double.
    """
    found = [*indexes, new]
    while len(found) > 1 and len(found[-2].keys) < 2 * len(found[-1].keys):
        names = found[-2].names + found[-1].names
        if (joined := merged.get(names)) is None:
            merged[names] = joined = _joined(found[-2], found[-1])
        found[-2:] = [joined]
    return found


@dataclass
class Column:
    """One block of a store."""

    folder: Path
    """Its folder; may not exist yet."""
    about: dict[str, Any]
    """What the values are: backbone, fingerprint, view, site, pooling, dtype."""
    shards: list[_Index] = field(default_factory=list)
    """What was found on disk and appended since; a shard may stand in two of them."""
    merged: Merged = field(default_factory=dict)
    """Shared by the columns of a store."""
    used: set[str] = field(default_factory=set)
    """Shards that this run has found rows in, or written."""
    lost: set[str] = field(default_factory=set)
    """Shards in the indexes that are damaged or gone."""
    width: int | None = None
    """Numbers a row; shards of another width are damaged. None = any."""

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Which keys are present, (row,) bool. Shards that hold them are checked; damaged ones count as absent."""
        present = np.zeros(len(keys), dtype=bool)
        for index in self.shards:
            at = index.find(keys)
            for shard in np.unique(index.shard[at[at >= 0]]):
                if self._holds(index.names[shard]):
                    present |= (at >= 0) & (index.shard[at] == shard)
        return present

    def read(self, keys: np.ndarray) -> Tensor:
        """Values of keys that are all present, (row, dim) in the stored dtype.

        Raises
        ------
        StoreError
            If another process has removed them meanwhile.
        """
        out: Tensor | None = None
        left = np.ones(len(keys), dtype=bool)
        for index in self.shards:
            at = index.find(keys)
            for shard in np.unique(index.shard[at[(at >= 0) & left]]):
                rows = np.flatnonzero((at >= 0) & left & (index.shard[at] == shard))
                values = self._values(index.names[shard])
                if values is None:
                    self.used.discard(index.names[shard])
                    self.lost.add(index.names[shard])
                    continue
                if out is None:
                    out = torch.empty((len(keys), values.shape[1]), dtype=values.dtype)
                out[torch.from_numpy(rows)] = values[torch.from_numpy(index.row[at[rows]])]  # row dim
                left[rows] = False
        if out is None or left.any():
            raise StoreError(
                f"The store lost {int(left.sum())} rows of {self.folder.name} while it was read: run again."
            )
        return out

    def append(self, keys: np.ndarray, values: Tensor) -> None:
        """Write one shard; keys are distinct."""
        assert len(keys) == len(values)
        if self.folder.is_symlink():  # sonde makes none: what it points to is not written to
            remove(self.folder)
        name = shard_name(keys)
        try:
            self._write(name, keys, values)
        except StoreError:
            if self.folder.exists():
                raise
            self._write(name, keys, values)  # another process dropped the block meanwhile, to make room
        self.used.add(name)
        self.lost.discard(name)
        self.shards = [
            _without(index, self.lost) for index in self.shards
        ]  # their keys must not hide the same elsewhere
        if not any(name in index.names for index in self.shards):
            self.shards = _added(self.shards, _known(self.folder, (name,), self.merged), self.merged)

    def absent(self, keys: np.ndarray) -> np.ndarray:
        """Which keys are absent, (row,) bool, without looking at their values."""
        absent = np.ones(len(keys), dtype=bool)
        for index in self.shards:
            at, lost = index.find(keys), _places(index, self.lost)
            absent &= (at < 0) | np.isin(index.shard[at], lost) if lost else at < 0
        return absent

    def bytes(self) -> int:
        """Bytes of this block on disk."""
        return _bytes(self.folder)

    def _write(self, name: str, keys: np.ndarray, values: Tensor) -> None:
        if not (self.folder / "block.json").exists():
            _make(self.folder)
            write_file(self.folder / "block.json", record_of(self.about))
        write_shard(self.folder / name, keys, values)

    def _holds(self, name: str) -> bool:
        if name in self.used or name in self.lost:
            return name in self.used
        path = self.folder / name
        if not is_intact(path, self.about.get("dtype"), self.width):
            self.lost.add(name)
            return False
        self.used.add(name)
        return True

    def _values(self, name: str) -> Tensor | None:
        try:
            return None if name in self.lost else read_values(self.folder / name)
        except (OSError, SafetensorError):
            return None


class Store:
    """A folder of blocks.

    Parameters
    ----------
    root : path
        The folder; made when something is written.
    limit_bytes : int, optional
        The store never grows above this: what was not used for longest is deleted. None = no limit.

    Raises
    ------
    StoreError
        If the folder holds something else, or a store of a newer protocol.
    """

    def __init__(self, root: Path | str, limit_bytes: int | None = None) -> None:
        self.root = Path(root).expanduser()
        self.limit_bytes = limit_bytes
        self._indexes: dict[Path, list[_Index]] = {}
        self._merged: WeakValueDictionary[tuple[str, ...], _Index] = WeakValueDictionary()
        self._whole: dict[Path, tuple[int, ...]] = {}
        self._bytes: int | None = None
        self._counted = 0.0
        self._check()

    def column(self, about: Mapping[str, Any], width: int | None = None) -> Column:
        """The block whose values are described by `about`; the name of its backbone says nothing about values."""
        about = {**about, "reading_version": READING_VERSION}
        folder = self.root / "blocks" / key_of(about)
        path = folder / "block.json"
        if folder.is_symlink() or not path.exists():
            return Column(folder, about, merged=self._merged, width=width)
        with suppress(OSError, StoreError):  # a store that may only be read
            if about_of(path) is None:
                warn(f"{path} is damaged; it is written anew.", "damaged_shards")
                write_file(path, record_of(about))
            path.touch()
        indexes, lost = self._indexes_of(folder)
        return Column(folder, about, indexes, self._merged, lost=lost, width=width)

    def reserve(self, needed_bytes: int) -> None:
        """Refuse, before any work is done, what the disk or the limit cannot hold."""
        free = shutil.disk_usage(existing(self.root)).free
        if needed_bytes and needed_bytes > free - SPARE_BYTES:
            raise StoreError(
                f"The activations need {needed_bytes / 1e9:.2f} GB in {self.root}, where {free / 1e9:.2f} GB are free. "
                "Give a folder on a larger disk (--cache DIR or SONDE_CACHE), or read without a store (--no-cache)."
            )
        if self.limit_bytes is not None and needed_bytes > self.limit_bytes:
            raise StoreError(
                f"The activations need {needed_bytes / 1e9:.2f} GB, more than the {self.limit_bytes / 1e9:.0f} GB that "
                f"the shared cache in {self.root} may grow to. Give this work a store of its own (--cache DIR) or none "
                "(--no-cache)."
            )

    def make_room(self, new_bytes: int, columns: Sequence[Column]) -> bool:
        """Keep below the limit: drop what was not used for longest, first of other blocks, then of these columns.

        Nothing is dropped that this run has read or written. Returns whether `new_bytes` more may be written.
        """
        if self.limit_bytes is None:
            return True
        if self._bytes is None or time.monotonic() - self._counted > RECOUNT_SECONDS:
            self._bytes, self._counted = sum(_bytes(folder) for folder in self._folders()), time.monotonic()
        oldest = self._drop_oldest(columns)
        while self._bytes + new_bytes > self.limit_bytes:
            freed = next(oldest, None)
            if freed is None:
                return False
            self._bytes -= freed
        self._bytes += new_bytes
        return True

    def write_header(self) -> None:
        """Mark the folder as a store and clear what dead writers left."""
        header = self.root / "sonde-store.json"
        if not header.exists():
            _make(self.root)
            write_file(header, json.dumps({"format": "sonde activation store", "protocol": PROTOCOL}).encode())
        clear_strays(self.root)

    def describe(self) -> list[dict[str, Any]]:
        """One entry a block: what it is, rows, dim, bytes."""
        return [_describe(folder, *self._indexes_of(folder)) for folder in self._folders()]

    def _check(self) -> None:
        header = self.root / "sonde-store.json"
        if not header.exists():
            if self.root.is_file():
                raise StoreError(f"{self.root} is a file; a store is a folder. Give another path.")
            if (self.root / "sonde.json").exists():
                raise StoreError(
                    f"{self.root} is a saved model; a store must be a folder of its own. Give another path."
                )
            return
        try:
            protocol = int(read_json(header)["protocol"])
        except (ValueError, KeyError, TypeError, OverflowError, OSError) as error:
            raise StoreError(
                f"{header} cannot be read ({error}). Delete this file, if {self.root} is a store: it is written anew, "
                "and what the store holds is kept."
            ) from error
        if protocol > PROTOCOL:
            raise StoreError(
                f"The store {self.root} has protocol {protocol}; this sonde reads up to {PROTOCOL}. "
                "Upgrade sonde or give another folder."
            )

    def _folders(self) -> list[Path]:
        found = [path.parent for path in self.root.glob("blocks/*/block.json")]
        return sorted(one for one in found if not one.name.startswith(".") and not one.is_symlink())

    def _indexes_of(self, folder: Path) -> tuple[list[_Index], set[str]]:
        """What a block holds, and which of the shards named there are damaged or gone."""
        there = {path.name for path in folder.glob("*.safetensors")}
        known = self._indexes.get(folder, [])
        named = {name for index in known for name in index.names}
        known = [_without(index, named - there) for index in known]
        if new := tuple(sorted(there - named)):
            known = _added(known, _known(folder, new, self._merged), self._merged)
        self._indexes[folder] = known
        named = {name for index in known for name in index.names}
        return known, {name for name in named if name not in there or not self._opens(folder / name)}

    def _opens(self, path: Path) -> bool:
        """Whether a shard is whole; one that has not changed since it was is not opened again."""
        state = state_of(path)
        if state is None or self._whole.get(path) != state:
            if not opens(path) or state is None:
                return False
            self._whole[path] = state
        return True

    def _drop_oldest(self, columns: Sequence[Column]) -> Iterator[int]:
        """Delete one thing after the other, least recently used first, and say how many bytes each was."""
        in_use = {column.folder for column in columns}
        blocks = [folder for folder in self._folders() if folder not in in_use]
        for folder in _oldest_first(blocks, "block.json"):
            size = _bytes(folder)
            logger.info("store: dropping %s, %.2f GB, unused for longest", folder.name, size / 1e9)
            drop_folder(folder)
            yield size
        owners = {path: column for column in columns for path in _unused(column)}
        for path in _oldest_first(list(owners)):
            size = _bytes(path)
            path.unlink(missing_ok=True)
            owners[path].lost.add(path.name)
            yield size


_last: list[Store] = []


def opened(root: Path | str, limit_bytes: int | None = None) -> Store:
    """The store in a folder. The one opened last is kept with its indexes, 24 bytes a row: whoever goes through a long
    file part by part would otherwise read the hashes of all rows again for each.
    """
    new = Store(root, limit_bytes)
    if not _last or (_last[0].root, _last[0].limit_bytes) != (new.root, new.limit_bytes):
        _last[:] = [new]
    return _last[0]


def _known(folder: Path, names: tuple[str, ...], merged: Merged) -> _Index:
    """The index of some shards, taken from another block where it is known there."""
    if (index := merged.get(names)) is None:
        index = _index(folder, names)
        if index.names == names:
            merged[names] = index
    return index


def block_bytes(about: Mapping[str, Any], rows: int, row_bytes: int, shards: int) -> int:
    """Bytes that a new block of so many rows takes on disk, in so many shards."""
    record = len(record_of({**about, "reading_version": READING_VERSION}))
    return record + rows * (row_bytes + HASH_BYTES) + shards * HEADER_BYTES


def _unused(column: Column) -> list[Path]:
    return [path for path in column.folder.glob("*.safetensors") if path.name not in column.used]


def _describe(folder: Path, indexes: Sequence[_Index], lost: set[str]) -> dict[str, Any]:
    path = folder / "block.json"
    try:
        about = about_of(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error}).") from error
    if about is None:
        raise StoreError(
            f"{path} cannot be read: it is damaged. A run that reads this block writes it anew; or delete {folder}."
        )
    names = [name for index in indexes for name in index.names if name not in lost]
    return {
        **about,
        "rows": _rows(indexes, lost),
        "dim": _width(folder, names),
        "shards": len(names),
        "bytes": _bytes(folder),
    }


def _rows(indexes: Sequence[_Index], lost: set[str]) -> int:
    """Different ones."""
    kept = [index.keys[~np.isin(index.shard, _places(index, lost))] for index in indexes]
    return len(np.unique(np.concatenate(kept))) if kept else 0


def _without(index: _Index, names: set[str]) -> _Index:
    """The same without some shards."""
    if not (places := _places(index, names)):
        return index
    kept = ~np.isin(index.shard, places)
    numbers = np.cumsum([name not in names for name in index.names], dtype=np.int32) - np.int32(1)
    left = tuple(name for name in index.names if name not in names)
    return _Index(index.keys[kept], numbers[index.shard[kept]], index.row[kept], left)


def _places(index: _Index, names: set[str]) -> list[int]:
    return [place for place, name in enumerate(index.names) if name in names]


def _width(folder: Path, names: Sequence[str]) -> int:
    """Of the first shard that nobody has dropped meanwhile."""
    for name in names:
        with suppress(OSError, SafetensorError):
            return int(read_values(folder / name).shape[1])
    return 0


def _bytes(path: Path) -> int:
    """Of a file, or of those in a folder; what another process drops meanwhile counts nothing."""
    total = 0
    for file in path.glob("*") if path.is_dir() else [path]:
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def _oldest_first(paths: Sequence[Path], file: str = "") -> list[Path]:
    """By the time of their last use; those that another process drops meanwhile are left out."""
    used: list[tuple[int, Path]] = []
    for path in paths:
        with suppress(FileNotFoundError):
            used.append(((path / file).stat().st_mtime_ns, path))
    return [path for _, path in sorted(used)]


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"The folder {folder} cannot be made: {error}. Give another one (--cache DIR).") from error
