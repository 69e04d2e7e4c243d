"""Stores from strangers, and damaged ones: nothing outside is touched, nothing hangs, nothing wrong is answered."""

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from test_extract import source
from tiny import SENTENCES

from sonde.errors import SondeWarning, StoreError
from sonde.read import shards
from sonde.read.extract import read
from sonde.read.sources import expand_blocks
from sonde.read.store import Column, Store, hash_texts

ABOUT = {"backbone": "b", "fingerprint": "f", "view": "v", "site": "hidden.1", "pooling": "mean", "dtype": "float32"}
KEYS = hash_texts(SENTENCES)
VALUES = torch.arange(18, dtype=torch.float32).reshape(6, 3)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """The one shard of a sound store."""
    store = Store(tmp_path / "store")
    store.write_header()
    store.column(ABOUT).append(KEYS, VALUES)
    (path,) = tmp_path.glob("store/blocks/*/*.safetensors")
    return path


def opened(shard: Path, width: int | None = None) -> Column:
    return Store(shard.parents[2]).column(ABOUT, width)


def forged(shard: Path, hashes: torch.Tensor, values: torch.Tensor, **more: torch.Tensor) -> None:
    """Somebody else's shard under the right name, with a right checksum."""
    crc = 0
    for tensor in (hashes, values):
        crc = zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data, crc)
    shard.write_bytes(save({"hashes": hashes, "values": values, **more}, {"crc32": f"{crc:08x}"}))


def raw_keys() -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(KEYS.tobytes(), dtype=np.uint8).reshape(6, 16).copy())


FORGERIES: dict[str, tuple[torch.Tensor, torch.Tensor]] = {
    "NaN": (raw_keys(), VALUES / 0),
    "infinity": (raw_keys(), VALUES + torch.inf),
    "another type": (raw_keys(), VALUES.double()),
    "another width": (raw_keys(), VALUES[:, :2].contiguous()),
    "no rows": (raw_keys(), VALUES[:0]),
    "one axis": (raw_keys(), VALUES[:, 0].contiguous()),
    "three axes": (raw_keys(), VALUES[:, :, None].contiguous()),
    "hashes of numbers": (raw_keys().float(), VALUES),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_shard_is_damaged(shard: Path, name: str) -> None:
    forged(shard, *FORGERIES[name])
    with pytest.warns(SondeWarning, match=rf"The shard .*{shard.name} is damaged; its rows are read again"):
        assert not opened(shard, 3).find(KEYS).any()
    assert not shard.exists()


def test_a_shard_with_something_more_is_damaged(shard: Path) -> None:
    forged(shard, raw_keys(), VALUES, more=torch.zeros(3))
    with pytest.warns(SondeWarning, match="is damaged"):
        assert not opened(shard).find(KEYS).any()


def header(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**8) + b"{}",
        header(b'{"hashes":' * 100_000),
        header(b" " * 10**7 + b"{}"),
        header(b'{"hashes":{"dtype":"U8","shape":[4611686018427387904,16],"data_offsets":[0,0]}}'),
        header(b'{"values":{"dtype":"F32","shape":[1000000000000,1000000000000],"data_offsets":[0,4]}}0000'),
        b"",
        b"\0" * 7,
    ],
)
def test_headers_that_promise_too_much_are_damage(shard: Path, content: bytes) -> None:
    shard.write_bytes(content)
    with pytest.warns(SondeWarning, match="is damaged"):
        assert not opened(shard).find(KEYS).any()


def test_a_shard_that_is_a_link_is_not_followed(shard: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    shard.rename(precious)
    before = precious.read_bytes()
    shard.symlink_to(precious)
    with pytest.warns(SondeWarning, match="is damaged"):
        assert not opened(shard).find(KEYS).any()
    assert precious.read_bytes() == before and not shard.is_symlink()


def test_a_pipe_in_a_store_hangs_nobody(shard: Path) -> None:
    shard.unlink()
    os.mkfifo(shard)
    with pytest.warns(SondeWarning, match="is damaged"):
        assert not opened(shard).find(KEYS).any()
    (shard.parent / "block.json").unlink()
    os.mkfifo(shard.parent / "block.json")
    with pytest.warns(SondeWarning, match=r"block\.json is damaged; it is written anew"):
        opened(shard)


def test_a_block_that_is_a_link_is_not_entered(shard: Path, tmp_path: Path) -> None:
    """Else its damaged shards, and what looks like a dead writer's, would be deleted in somebody's folder."""
    away = tmp_path / "somebody"
    shard.parent.rename(away)
    shard.parent.symlink_to(away)
    for name in ("model.safetensors", ".tmp-1"):
        (away / name).write_bytes(b"precious")
        os.utime(away / name, (1, 1))
    store = Store(tmp_path / "store", limit_bytes=10)
    store.write_header()
    assert store.describe() == [] and not store.column(ABOUT).find(KEYS).any()
    assert store.make_room(1, []) and not store.make_room(10**6, [])
    there = {".tmp-1", "block.json", "model.safetensors", shard.name}
    assert {path.name for path in away.iterdir()} == there
    store.column(ABOUT).append(KEYS[:2], VALUES[:2])
    assert {path.name for path in away.iterdir()} == there and not shard.parent.is_symlink()


def test_a_store_whose_shards_cannot_be_read_now_keeps_them(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: Any, **__: Any) -> Any:
        raise OSError(24, "Too many open files")

    column = opened(shard)
    with pytest.warns(SondeWarning), monkeypatch.context() as patch:
        patch.setattr(shards, "safe_open", busy)
        sentence = r"cannot be read \(.*Too many open files\); its rows are read again"
        for one in (column, opened(shard)):
            with pytest.warns(SondeWarning, match=sentence):
                shards._trusted.clear()
                assert not shards.opens(shard) and not one.find(KEYS).any()
    assert shard.exists() and opened(shard).find(KEYS).all()


ODD_JSON = {
    "empty": b"",
    "half": b'{"backbone": "b", "fing',
    "deep": b"[" * 100_000,
    "list": b"[]",
    "number": b"1e999",
    "bytes": b"\xff\xfe",
    "large": b" " * 2**20 + b"{}",
    "other": b'{"backbone": "b", "site": "../../../etc"}',
}


@pytest.mark.parametrize("name", ODD_JSON)
def test_a_damaged_description_is_named_and_written_anew(shard: Path, name: str) -> None:
    path = shard.parent / "block.json"
    sound = path.read_bytes()
    path.write_bytes(ODD_JSON[name])
    store = Store(shard.parents[2])
    with pytest.raises(StoreError, match=r"block\.json cannot be read: it is damaged\. A run that reads this block"):
        store.describe()
    with pytest.warns(SondeWarning, match=r"block\.json is damaged; it is written anew"):
        assert opened(shard).find(KEYS).all(), "the rows are not lost"
    assert path.read_bytes() == sound and store.describe()


@pytest.mark.parametrize("content", [*ODD_JSON.values(), b'{"protocol": 1e999}', b'{"protocol": null}'])
def test_a_damaged_header_says_what_to_do(shard: Path, content: bytes) -> None:
    root = shard.parents[2]
    (root / "sonde-store.json").write_bytes(content)
    with pytest.raises(StoreError, match="Delete this file") as caught:
        Store(root)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    (root / "sonde-store.json").unlink()
    Store(root).write_header()
    assert opened(shard).find(KEYS).all()


def test_wrong_values_of_a_strangers_store_do_not_reach_an_answer(tmp_path: Path) -> None:
    one = {0: source("bert")}
    blocks = expand_blocks(0, one[0], "hidden.3", "mean")
    expected = read(SENTENCES, one, blocks, Store(tmp_path))
    for path in tmp_path.glob("blocks/*/*.safetensors"):
        if json.loads((path.parent / "block.json").read_text())["site"] == "hidden.3":
            forged(path, raw_keys(), torch.full((6, 32), torch.nan))
    with pytest.warns(SondeWarning, match="is damaged; its rows are read again"):
        window = read(SENTENCES, one, blocks, Store(tmp_path))
    np.testing.assert_array_equal(window.blocks["0/hidden.3/mean"], expected.blocks["0/hidden.3/mean"])
