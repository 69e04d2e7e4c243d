"""The activation store: what was read once is not read again.

    Store          a folder of blocks, each a folder of shards, addressed by text hash
    Column         one block of the store: look rows up, append rows
    hash_texts     texts -> 16-byte keys; the store never holds a text
    default_root   where the store lies when nobody says otherwise

Layout: `sonde-store.json` (protocol), `blocks/<key>/block.json` (what the values are) and
`blocks/<key>/<shard>.safetensors` with `hashes` (row, 16) uint8 and `values` (row, dim). A shard is named after the
hashes it holds and written under a temporary name, then renamed: a shard is whole or absent, writing the same rows
again gives the same file, and two processes cannot disagree about a name.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sonde.errors import StoreError, warn

logger = logging.getLogger(__name__)

PROTOCOL = 1
READING_VERSION = 1
"""Raised whenever the same texts, backbone, view, site and pooling give other values than before."""

HASH_BYTES = 16
"""2^128 keys: a collision among a billion texts has a probability of about 1e-21."""

DEFAULT_LIMIT_BYTES = 20 * 10**9
"""The default cache stays below this; what was not used for longest goes first."""

SPARE_BYTES = 256 * 2**20
"""Disk that is left free for everybody else."""


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
    parts = [_read_hashes(folder / name) for name in names]
    keys = np.concatenate(parts) if parts else np.empty(0, dtype=f"S{HASH_BYTES}")
    shard = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    row = np.concatenate([np.arange(len(p)) for p in parts]) if parts else np.empty(0, dtype=np.int64)
    order = np.argsort(keys, kind="stable")
    return _Index(keys[order], shard[order], row[order], tuple(names))


@dataclass
class Column:
    """One block of a store."""

    folder: Path
    """Its folder; may not exist yet."""
    about: dict[str, Any]
    """What the values are: backbone, fingerprint, view, site, pooling, dtype."""
    shards: list[_Index] = field(default_factory=list)
    """One merged index of what was found on disk, then one for each shard appended since."""

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Which keys are present, (row,) bool."""
        present = np.zeros(len(keys), dtype=bool)
        for index in self.shards:
            present |= index.find(keys) >= 0
        return present

    def read(self, keys: np.ndarray) -> Tensor:
        """Values of keys that are all present, (row, dim) in the stored dtype."""
        out: Tensor | None = None
        left = np.ones(len(keys), dtype=bool)
        for index in self.shards:
            at = index.find(keys)
            hit = np.flatnonzero((at >= 0) & left)
            for shard in np.unique(index.shard[at[hit]]):
                rows = hit[index.shard[at[hit]] == shard]
                values = _read_values(self.folder / index.names[shard])
                if out is None:
                    out = torch.empty((len(keys), values.shape[1]), dtype=values.dtype)
                out[torch.from_numpy(rows)] = values[torch.from_numpy(index.row[at[rows]])]  # row dim
                left[rows] = False
        if out is None or left.any():
            raise StoreError(f"The store lost {int(left.sum())} rows of {self.folder.name} while it was read: run again.")
        return out

    def append(self, keys: np.ndarray, values: Tensor) -> None:
        """Write one shard; keys are distinct."""
        assert len(keys) == len(values)
        raw = np.frombuffer(keys.tobytes(), dtype=np.uint8).reshape(len(keys), HASH_BYTES)
        name = hashlib.blake2b(raw.tobytes(), digest_size=HASH_BYTES).hexdigest() + ".safetensors"
        if not (self.folder / "block.json").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self.folder / "block.json", json.dumps(self.about, indent=1, sort_keys=True).encode())
        _save_shard(self.folder / name, raw, values)
        self.shards.append(_index(self.folder, [name]))
        if len(self.shards) > 32:  # few enough to search one by one, many enough to merge rarely
            self.shards = [_index(self.folder, [n for index in self.shards for n in index.names])]


class Store:
    """A folder of blocks.

    Parameters
    ----------
    root : path
        The folder; made when something is written.
    limit_bytes : int, optional
        Above this, blocks that were not used for longest are deleted. None = never.

    Raises
    ------
    StoreError
        If the folder holds something else, or a store of a newer protocol.
    """

    def __init__(self, root: Path | str, limit_bytes: int | None = None) -> None:
        self.root = Path(root).expanduser()
        self.limit_bytes = limit_bytes
        self._indexes: dict[tuple[str, ...], _Index] = {}
        self._check()

    def column(self, about: Mapping[str, Any]) -> Column:
        """The block whose values are described by `about`."""
        about = {**about, "reading_version": READING_VERSION}
        key = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16).hexdigest()
        folder = self.root / "blocks" / key
        if not folder.exists():
            return Column(folder, about)
        (folder / "block.json").touch() if (folder / "block.json").exists() else None
        return Column(folder, about, [self._index_of(folder)])

    def reserve(self, needed_bytes: int, keep: Iterable[Column]) -> None:
        """Make room for `needed_bytes` more, or refuse before any work is done."""
        free = shutil.disk_usage(_existing(self.root)).free
        if needed_bytes > free - SPARE_BYTES:
            raise StoreError(
                f"The activations need {needed_bytes / 1e9:.2f} GB in {self.root}, where {free / 1e9:.2f} GB are free. "
                "Give a folder on a larger disk (--cache DIR or SONDE_CACHE), or read without a store (--no-cache)."
            )
        if self.limit_bytes is None or not needed_bytes:
            return
        if needed_bytes > self.limit_bytes:
            raise StoreError(
                f"The activations need {needed_bytes / 1e9:.2f} GB, more than the {self.limit_bytes / 1e9:.0f} GB that "
                f"the shared cache in {self.root} may grow to. Give this work a store of its own (--cache DIR) or none "
                "(--no-cache)."
            )
        self._evict(self.limit_bytes - needed_bytes, {column.folder for column in keep})

    def write_header(self) -> None:
        """Mark the folder as a store and clear what dead writers left."""
        self.root.mkdir(parents=True, exist_ok=True)
        header = self.root / "sonde-store.json"
        if not header.exists():
            _write(header, json.dumps({"format": "sonde activation store", "protocol": PROTOCOL}).encode())
        for stray in [*self.root.glob(".tmp-*"), *self.root.glob("blocks/*/.tmp-*")]:
            if not _alive(int(stray.name.split("-")[1])):
                stray.unlink(missing_ok=True)

    def describe(self) -> list[dict[str, Any]]:
        """One entry a block: what it is, rows, dim, bytes."""
        return [_describe(folder, self._index_of(folder)) for folder in self._folders()]

    def _check(self) -> None:
        header = self.root / "sonde-store.json"
        if not header.exists():
            if self.root.is_file():
                raise StoreError(f"{self.root} is a file; a store is a folder. Give another path.")
            if (self.root / "sonde.json").exists():
                raise StoreError(f"{self.root} is a saved model; a store must be a folder of its own. Give another path.")
            return
        try:
            protocol = int(json.loads(header.read_text())["protocol"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise StoreError(f"{header} cannot be read ({error}). Delete the store {self.root} and run again.") from error
        if protocol > PROTOCOL:
            raise StoreError(
                f"The store {self.root} has protocol {protocol}; this sonde reads up to {PROTOCOL}. "
                "Upgrade sonde or give another folder."
            )

    def _folders(self) -> list[Path]:
        return sorted(path.parent for path in self.root.glob("blocks/*/block.json"))

    def _index_of(self, folder: Path) -> _Index:
        names = tuple(sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith(".")))
        if names not in self._indexes:  # the same rows lie under the same names in every block
            sound = [name for name in names if _sound(folder / name)]
            self._indexes[names] = _index(folder, sound)
        index = self._indexes[names]
        if all(_sound(folder / name) for name in index.names):
            return index
        return _index(folder, [name for name in index.names if _sound(folder / name)])

    def _evict(self, target_bytes: int, keep: set[Path]) -> None:
        sizes = {folder: _bytes(folder) for folder in self._folders()}
        total = sum(sizes.values())
        for folder in sorted(sizes, key=lambda f: (f / "block.json").stat().st_mtime):
            if total <= target_bytes:
                return
            if folder not in keep:
                logger.info("store: dropping %s, %.2f GB, unused for longest", folder.name, sizes[folder] / 1e9)
                shutil.rmtree(folder, ignore_errors=True)
                total -= sizes[folder]


def _describe(folder: Path, index: _Index) -> dict[str, Any]:
    about = json.loads((folder / "block.json").read_text())
    dim = int(_read_values(folder / index.names[0]).shape[1]) if index.names else 0
    return {**about, "rows": len(np.unique(index.keys)), "dim": dim, "shards": len(index.names), "bytes": _bytes(folder)}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sound(path: Path) -> bool:
    """Whether a shard opens; a damaged one is named, set aside and read again."""
    try:
        with safe_open(path, framework="pt") as shard:
            rows = shard.get_slice("hashes").get_shape()[0]
            if rows == shard.get_slice("values").get_shape()[0]:
                return True
    except (SafetensorError, OSError):
        pass
    warn(f"The shard {path} is damaged; its rows are read again.", "damaged_shards")
    path.unlink(missing_ok=True)
    return False


def _read_hashes(path: Path) -> np.ndarray:
    with safe_open(path, framework="pt") as shard:
        raw = shard.get_tensor("hashes").numpy()
    return np.frombuffer(raw.tobytes(), dtype=f"S{HASH_BYTES}")


def _read_values(path: Path) -> Tensor:
    with safe_open(path, framework="pt") as shard:
        values: Tensor = shard.get_tensor("values")
    return values


def _temporary(path: Path) -> Path:
    return path.parent / f".tmp-{os.getpid()}-{time.monotonic_ns()}"


def _save_shard(path: Path, hashes: np.ndarray, values: Tensor) -> None:
    temporary = _temporary(path)
    try:
        save_file({"hashes": torch.from_numpy(hashes.copy()), "values": values.contiguous()}, temporary)
        _commit(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(_disk_sentence(path, error)) from error


def _write(path: Path, content: bytes) -> None:
    temporary = _temporary(path)
    try:
        temporary.write_bytes(content)
        _commit(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(_disk_sentence(path, error)) from error


def _commit(temporary: Path, path: Path) -> None:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _disk_sentence(path: Path, error: Exception) -> str:
    free = shutil.disk_usage(_existing(path.parent)).free
    return (
        f"Writing {path} failed: {error} ({free / 1e9:.2f} GB are free). What was written before is kept: make room, "
        "or give another folder (--cache DIR), and run the same command again."
    )
