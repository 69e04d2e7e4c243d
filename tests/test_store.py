import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from test_extract import counted, made_texts, source
from tiny import SENTENCES, build

from sonde.errors import SondeWarning, StoreError
from sonde.read import extract as extract_module
from sonde.read import shards
from sonde.read.blocks import Source
from sonde.read.extract import estimate, extract, read
from sonde.read.sources import expand_blocks, open_store, prepare
from sonde.read.store import DEFAULT_LIMIT_BYTES, Store, default_root, hash_texts
from sonde.read.view import View
from sonde.tables import strays

__all__ = ["counted"]  # a fixture

ABOUT = {"backbone": "here", "fingerprint": "f", "view": {"max_tokens": 64}, "site": "hidden.1", "pooling": "mean"}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _large_disk(monkeypatch):
    """What these tests say about room does not depend on the machine."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**13, 0, 10**13))


def filled(root, texts=SENTENCES, limit=None, **about):
    store = Store(root, limit)
    column = store.column({**ABOUT, **about})
    column.append(hash_texts(texts), values_of(texts))
    return store, column


def values_of(texts, dim=3):
    return torch.tensor([[float(len(text) + i) for i in range(dim)] for text in texts])


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def shards_of(root):
    return sorted(root.glob("blocks/*/*.safetensors"))


def linear(sources, layer="hidden.-1", pooling="mean"):
    return [block for index, one in sources.items() for block in expand_blocks(index, one, layer, pooling)]


def bytes_in(root):
    return sum(len(content) for content in files(root).values())


# ---------------------------------------------------------------- columns


def test_rows_are_found_by_their_text_in_any_order(tmp_path):
    filled(tmp_path)
    column = Store(tmp_path).column(ABOUT)
    asked = [SENTENCES[4], "never seen", SENTENCES[0]]
    assert column.find(hash_texts(asked)).tolist() == [True, False, True]
    assert column.absent(hash_texts(asked)).sum() == 1
    assert torch.equal(column.read(hash_texts([SENTENCES[4], SENTENCES[0]])), values_of([SENTENCES[4], SENTENCES[0]]))


def test_many_shards_are_one_column(tmp_path):
    texts = made_texts(160, 6)
    store = Store(tmp_path)
    column, twin = store.column(ABOUT), store.column({**ABOUT, "pooling": "max"})
    for start in range(0, 160, 4):
        some = texts[start : start + 4]
        column.append(hash_texts(some), values_of(some))
        twin.append(hash_texts(some), -values_of(some))
    shuffled = random.Random(0).sample(texts, 160)
    for own, sign in ((column, 1), (twin, -1), (Store(tmp_path).column(ABOUT), 1)):
        assert own.find(hash_texts(shuffled)).all()
        assert torch.equal(own.read(hash_texts(shuffled)), sign * values_of(shuffled))
    assert len(column.shards) <= 8
    assert column.shards[0] is twin.shards[0], "columns with equal rows share one index in memory"


def test_a_store_that_is_opened_for_every_part_of_a_file_reads_each_shard_a_few_times(tmp_path, monkeypatch):
    from sonde.read import store

    read = []
    monkeypatch.setattr(store, "read_hashes", lambda path: read.append(path) or shards.read_hashes(path))
    texts = made_texts(160, 7)
    for start in range(0, 160, 4):
        some = texts[start : start + 4]
        column = open_store(tmp_path).column(ABOUT)
        assert not column.find(hash_texts(some)).any() and column.absent(hash_texts(some)).all()
        assert column.find(hash_texts(texts[:start])).all() and len(column.shards) <= 8
        column.append(hash_texts(some), values_of(some))
    assert len(read) <= 80, "40 shards: each when it is written, and when the next part looks"
    assert torch.equal(open_store(tmp_path).column(ABOUT).read(hash_texts(texts)), values_of(texts))


def test_a_store_that_is_opened_again_sees_what_others_dropped_damaged_and_wrote(tmp_path):
    texts = made_texts(24, 8)
    names = []
    for start in range(0, 24, 4):
        keys = hash_texts(texts[start : start + 4])
        open_store(tmp_path).column(ABOUT).append(keys, values_of(texts[start : start + 4]))
        names.append(next(path for path in tmp_path.rglob("*.safetensors") if path not in names))
    open_store(tmp_path).column(ABOUT)  # all are known now
    kept = names[1].read_bytes()
    names[0].unlink()
    names[1].write_bytes(kept[:-3])
    with pytest.warns(SondeWarning, match="is damaged"):
        column = open_store(tmp_path).column(ABOUT)
    present = [False] * 8 + [True] * 16
    assert column.find(hash_texts(texts)).tolist() == present == (~column.absent(hash_texts(texts))).tolist()
    (described,) = open_store(tmp_path).describe()
    assert described["rows"] == 16 and described["shards"] == 4
    names[1].write_bytes(kept)  # another process wrote it again
    column = open_store(tmp_path).column(ABOUT)
    column.append(hash_texts(texts[:4]), values_of(texts[:4]))
    assert column.find(hash_texts(texts)).all() and not column.absent(hash_texts(texts)).any()
    assert torch.equal(column.read(hash_texts(texts)), values_of(texts))
    for name in names:
        name.unlink()
    assert not open_store(tmp_path).column(ABOUT).find(hash_texts(texts)).any()


def test_rows_of_a_dropped_shard_that_were_read_again_are_found(tmp_path):
    texts = made_texts(24, 9)
    for start in range(0, 24, 4):
        some = texts[start : start + 4]
        open_store(tmp_path).column(ABOUT).append(hash_texts(some), values_of(some))
    for path in list(tmp_path.rglob("*.safetensors"))[:3]:
        path.unlink()
    column = open_store(tmp_path).column(ABOUT)
    missing = [text for text, there in zip(texts, column.find(hash_texts(texts)), strict=True) if not there]
    assert len(missing) == 12
    for start in range(0, 12, 3):  # in other shards than before
        column.append(hash_texts(missing[start : start + 3]), values_of(missing[start : start + 3]))
    for one in (column, open_store(tmp_path).column(ABOUT), Store(tmp_path).column(ABOUT)):
        assert one.find(hash_texts(texts)).all() and not one.absent(hash_texts(texts)).any()
        assert torch.equal(one.read(hash_texts(texts)), values_of(texts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
def test_values_keep_their_type_and_bits(tmp_path, dtype):
    values = (torch.randn(6, 5, generator=torch.Generator().manual_seed(0)) * 100).to(dtype)
    Store(tmp_path).column(ABOUT).append(hash_texts(SENTENCES), values)
    back = Store(tmp_path).column(ABOUT).read(hash_texts(SENTENCES))
    assert back.dtype == dtype
    assert torch.equal(back, values)


@pytest.mark.parametrize(
    "other",
    [
        {"fingerprint": "g"},
        {"view": {"max_tokens": 65}},
        {"view": {"max_tokens": 64, "long_text": "windows"}},
        {"site": "hidden.2"},
        {"pooling": "max"},
        {"dtype": "bfloat16"},
    ],
)
def test_another_view_site_pooling_type_or_backbone_never_hits(tmp_path, other):
    store, _ = filled(tmp_path)
    assert not store.column({**ABOUT, **other}).find(hash_texts(SENTENCES)).any()


def test_another_name_of_the_same_backbone_hits(tmp_path):
    store, _ = filled(tmp_path)
    assert store.column({**ABOUT, "backbone": "./elsewhere"}).find(hash_texts(SENTENCES)).all()


def test_the_same_rows_make_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        filled(tmp_path / name)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_an_older_way_of_reading_never_hits(tmp_path, monkeypatch):
    filled(tmp_path)
    monkeypatch.setattr("sonde.read.store.READING_VERSION", 2)
    assert not Store(tmp_path).column(ABOUT).find(hash_texts(SENTENCES)).any()


# ---------------------------------------------------------------- reading through the store


def test_a_second_recipe_reads_only_what_is_missing(tmp_path, counted, monkeypatch):
    sources = {0: source("bert")}
    backbone, store = sources[0].backbone, Store(tmp_path)
    texts = made_texts(80, 10)
    read(texts[:40], sources, linear(sources, "hidden.1:3"), store)
    seen = counted(backbone)
    read(texts[:40], sources, linear(sources, "hidden.1:3"), store)
    assert seen == []
    deepest = []
    whole = backbone._forward.run
    monkeypatch.setattr(
        backbone._forward, "run", lambda *a: deepest.append(max(site.layer for site, _ in a[3])) or whole(*a)
    )
    read(texts[:40], sources, linear(sources, "hidden.0:3"), store)
    assert sum(rows for rows, _ in seen) == 40
    assert {tuple(sites) for _, sites in seen} == {("hidden.0",)}
    assert set(deepest) == {0}, "the model runs only as deep as what is missing"
    seen.clear()
    read(texts, sources, linear(sources, "hidden.0:3"), store)
    assert sum(rows for rows, _ in seen) == 40, "the other texts only"


def test_a_row_that_lacks_one_layer_does_not_cost_the_others(tmp_path, counted):
    sources = {0: source("bert")}
    store = Store(tmp_path)
    texts = made_texts(60, 10)
    read(texts[:30], sources, linear(sources, "hidden.1"), store)
    seen = counted(sources[0].backbone)
    window = read(texts, sources, linear(sources, "hidden.1:3"), store)
    by_sites = {}
    for rows, sites in seen:
        by_sites[tuple(sites)] = by_sites.get(tuple(sites), 0) + rows
    assert by_sites == {("hidden.2",): 30, ("hidden.1", "hidden.2"): 30}
    expected = read(texts, sources, linear(sources, "hidden.1:3"))
    for name, values in expected.blocks.items():
        np.testing.assert_allclose(window.blocks[name], values, rtol=1e-4, atol=1e-5)


def test_duplicates_in_later_windows_come_from_the_store(tmp_path, counted, monkeypatch):
    monkeypatch.setattr(extract_module, "WINDOW_ROWS", 6)
    sources = {0: source("bert")}
    seen = counted(sources[0].backbone)
    windows = list(extract(SENTENCES * 5, sources, linear(sources), Store(tmp_path)))
    assert sum(rows for rows, _ in seen) == 6
    for window in windows:
        np.testing.assert_array_equal(window.blocks["0/hidden.3/mean"], windows[0].blocks["0/hidden.3/mean"])


def test_views_types_and_backbones_do_not_meet_in_a_store(tmp_path, counted):
    bert = source("bert")
    store = Store(tmp_path)
    read(SENTENCES, {0: bert}, linear({0: bert}), store)
    for other in (source("bert", 63), source("bert", 64, "windows"), source("electra")):
        expected = read(SENTENCES, {0: other}, linear({0: other})).blocks["0/hidden.3/mean"]
        seen = counted(other.backbone)
        window = read(SENTENCES, {0: other}, linear({0: other}), store)
        assert sum(rows for rows, _ in seen) == 6
        np.testing.assert_array_equal(window.blocks["0/hidden.3/mean"], expected)


def test_hashes_are_stored_and_never_texts(tmp_path):
    sources = {0: source("bert")}
    read([*SENTENCES, "the secret password is platypus"], sources, linear(sources, "hidden.*"), Store(tmp_path))
    for name, content in files(tmp_path).items():
        for text in (*SENTENCES, "platypus", "parcel"):
            assert text.encode() not in content, name
    assert "hidden.3" in str(files(tmp_path)), "what the values are can be read"


def test_few_rows_are_kept_in_a_store_of_ones_own_but_not_in_the_shared_cache(tmp_path):
    sources = {0: source("bert")}
    read(SENTENCES, sources, linear(sources), Store(tmp_path / "own"))
    read(SENTENCES, sources, linear(sources), Store(tmp_path / "shared", 10**9))
    assert len(shards_of(tmp_path / "own")) == 2
    assert shards_of(tmp_path / "shared") == []
    read(made_texts(64, 5), sources, linear(sources), Store(tmp_path / "shared", 10**9))
    assert len(shards_of(tmp_path / "shared")) == 2


def test_describe_says_what_a_store_holds(tmp_path):
    sources = {0: source("bert")}
    store = Store(tmp_path)
    read(SENTENCES, sources, linear(sources, "hidden.1:3"), store)
    described = {entry["site"]: entry for entry in Store(tmp_path).describe()}
    assert sorted(described) == ["hidden.1", "hidden.2", "tokens"]
    assert described["hidden.1"]["rows"] == 6
    assert (described["hidden.1"]["dim"], described["tokens"]["dim"]) == (32, 2)
    assert sum(entry["bytes"] for entry in described.values()) + len(files(tmp_path)["sonde-store.json"]) == bytes_in(
        tmp_path
    )


# ---------------------------------------------------------------- room


@pytest.mark.parametrize(("layer", "rows"), [("hidden.-1", 1000), ("hidden.*", 300), ("ffn.2", 6), ("sentence", 250)])
def test_the_estimate_is_not_below_what_is_written_and_close(tmp_path, layer, rows, monkeypatch):
    monkeypatch.setattr(extract_module, "WINDOW_ROWS", 400)
    sources = {0: source("bert"), 1: source("llama")}
    blocks = linear(sources, layer)
    texts = made_texts(rows, 8)
    estimated = estimate(rows, sources, blocks)
    read(texts, sources, blocks, Store(tmp_path))
    written = bytes_in(tmp_path) - len(files(tmp_path)["sonde-store.json"])
    assert written <= estimated
    if rows == 1000:
        assert estimated <= 1.1 * written


def test_a_full_disk_is_refused_before_work_starts(tmp_path, monkeypatch, counted):
    sources = {0: source("bert")}
    blocks = linear(sources)
    seen = counted(sources[0].backbone)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 300 * 10**6))
    assert prepare(1000, sources, blocks, Store(tmp_path)) < 2 * 10**5
    with pytest.raises(
        StoreError, match=r"need 1\.\d\d GB in .*, where 0\.30 GB are free\. Give a folder on a larger"
    ) as e:
        prepare(10**7, sources, blocks, Store(tmp_path))
    assert "--no-cache" in str(e.value)
    assert prepare(10**7, sources, blocks, None) > 10**9, "without a store the disk does not matter"
    assert seen == []
    assert files(tmp_path) == {}


def test_what_is_stored_already_needs_no_room(tmp_path, monkeypatch):
    sources = {0: source("bert")}
    blocks = linear(sources)
    texts = made_texts(300, 8)
    read(texts[:290], sources, blocks, Store(tmp_path))
    some = estimate(20, sources, blocks)
    monkeypatch.setattr("sonde.read.store.SPARE_BYTES", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12, some))
    for known in (texts, None):
        prepare(300, sources, blocks, Store(tmp_path), known)
    prepare(0, sources, blocks, Store(tmp_path))
    with pytest.raises(StoreError, match="are free"):
        prepare(300, sources, blocks, Store(tmp_path), made_texts(300, 8, seed=1))
    with pytest.raises(StoreError, match="are free"):
        prepare(300, sources, linear(sources, "hidden.0"), Store(tmp_path))


def test_more_than_the_shared_cache_may_hold_is_refused(tmp_path):
    sources = {0: source("bert")}
    with pytest.raises(
        StoreError, match=r"more than the 20 GB that the shared cache .* Give this work a store of its own"
    ):
        prepare(10**9, sources, linear(sources), Store(tmp_path, 20 * 10**9))


def used_at(column, seconds):
    os.utime(column.folder / "block.json", (seconds, seconds))


def test_the_least_recently_used_blocks_go_first(tmp_path):
    texts = made_texts(100, 5)
    columns = {}
    for site in ("a", "b", "c"):
        _, columns[site] = filled(tmp_path, texts, site=site)
    for age, site in enumerate(("b", "c", "a")):
        used_at(columns[site], 10**9 + age)
    size = columns["a"].bytes()
    store = Store(tmp_path, limit_bytes=3 * size + size // 2)
    new = store.column({**ABOUT, "site": "d"})
    assert store.make_room(size, [new])
    assert {site for site in columns if columns[site].folder.exists()} == {"a", "c"}
    new.append(hash_texts(texts), values_of(texts))
    assert bytes_in(tmp_path) <= 3 * size + size // 2


def test_looking_a_block_up_makes_it_recent(tmp_path):
    texts = made_texts(100, 5)
    columns = {site: filled(tmp_path, texts, site=site)[1] for site in ("a", "b")}
    used_at(columns["a"], 10**9)
    used_at(columns["b"], 10**9 + 1)
    store = Store(tmp_path, limit_bytes=2 * columns["a"].bytes())
    store.column({**ABOUT, "site": "a"})
    assert store.make_room(100, [store.column({**ABOUT, "site": "c"})])
    assert columns["a"].folder.exists()
    assert not columns["b"].folder.exists()


def test_what_a_run_uses_is_never_dropped_and_the_limit_holds_all_the_same(tmp_path):
    texts = made_texts(100, 5)
    _, column = filled(tmp_path, texts)
    size = column.bytes()
    store = Store(tmp_path, limit_bytes=size + 100)
    column = store.column(ABOUT)
    assert column.find(hash_texts(texts)).all()
    assert not store.make_room(size, [column])
    assert torch.equal(column.read(hash_texts(texts)), values_of(texts))


@pytest.mark.parametrize("ages", [(2, 3, 1), (3, 2, 1)])
def test_a_block_that_is_always_in_use_loses_its_oldest_shards(tmp_path, ages):
    parts = [made_texts(400, 9)[i : i + 100] for i in range(0, 400, 100)]
    _, column = filled(tmp_path, parts[0])
    for part in parts[1:3]:
        column.append(hash_texts(part), values_of(part))
    paths = [column.folder / shards.shard_name(hash_texts(part)) for part in parts]
    for path, age in zip(paths[:3], ages, strict=True):
        os.utime(path, (10**9 + age, 10**9 + age))
    store = Store(tmp_path, limit_bytes=column.bytes() + 10)
    column = store.column(ABOUT)
    assert column.find(hash_texts(parts[2])).all()
    assert store.make_room(1000, [column])
    oldest, newer = (0, 1) if ages[0] < ages[1] else (1, 0)
    assert [path.exists() for path in paths] == [newer == 0, newer == 1, True, False], "the third was used just now"
    assert not column.find(hash_texts(parts[oldest])).any()
    assert column.find(hash_texts(parts[newer])).all()


def test_extract_keeps_a_cache_below_its_limit_and_reads_right(tmp_path, monkeypatch):
    monkeypatch.setattr(extract_module, "WINDOW_ROWS", 100)
    sources = {0: source("bert")}
    limit = 40_000
    for seed, layer in enumerate(("hidden.1", "hidden.2", "hidden.3", "hidden.3")):
        texts = made_texts(400, 8, seed)
        blocks = linear(sources, layer)
        window = read(texts, sources, blocks, Store(tmp_path, limit))
        assert bytes_in(tmp_path) - len(files(tmp_path)["sonde-store.json"]) <= limit
        expected = read(texts, sources, blocks)
        for name, values in expected.blocks.items():
            np.testing.assert_allclose(window.blocks[name], values, rtol=1e-4, atol=1e-5)
    assert shards_of(tmp_path)


def test_the_default_cache_has_a_limit_and_a_folder_of_ones_own_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("SONDE_CACHE", str(tmp_path / "there"))
    assert default_root() == tmp_path / "there"
    for said in ("auto", True):
        assert (open_store(said).root, open_store(said).limit_bytes) == (tmp_path / "there", DEFAULT_LIMIT_BYTES)
    assert open_store(tmp_path).limit_bytes is None
    assert open_store(None) is None
    assert open_store(False) is None
    monkeypatch.delenv("SONDE_CACHE")
    assert default_root().name == "sonde"


# ---------------------------------------------------------------- damage and refusals


def damages():
    def cut(path):
        path.write_bytes(path.read_bytes()[:-7])

    def empty(path):
        path.write_bytes(b"")

    def noise(path):
        path.write_bytes(b"\xff" * path.stat().st_size)

    def flip_value(path):
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)

    def flip_hash(path):
        content = bytearray(path.read_bytes())
        content[8 + int.from_bytes(content[:8], "little") + 3] ^= 1
        path.write_bytes(content)

    return [cut, empty, noise, flip_value, flip_hash]


@pytest.mark.parametrize("damage", damages())
@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_a_damaged_shard_is_named_and_its_rows_are_read_again(tmp_path, damage, which, counted, monkeypatch):
    monkeypatch.setattr(extract_module, "WINDOW_ROWS", 3)
    sources = {0: source("bert")}
    blocks = linear(sources)
    whole = read(SENTENCES, sources, blocks, Store(tmp_path))
    before = files(tmp_path)
    victim = shards_of(tmp_path)[which]
    damage(victim)
    seen = counted(sources[0].backbone)
    with pytest.warns(SondeWarning, match=rf"The shard .*{victim.name} is damaged; its rows are read again") as caught:
        window = read(SENTENCES, sources, blocks, Store(tmp_path))
    assert {w.message.code for w in caught if isinstance(w.message, SondeWarning)} == {"damaged_shards"}
    assert sum(rows for rows, _ in seen) in (0, 3), "no more than the rows of one shard; none for the token counts"
    np.testing.assert_array_equal(window.blocks["0/hidden.3/mean"], whole.blocks["0/hidden.3/mean"])
    assert (window.tokens == whole.tokens).all()
    assert files(tmp_path) == before, "and the store is whole again"


def test_damage_that_happens_while_a_store_is_open_is_seen(tmp_path):
    store, _ = filled(tmp_path)
    column = store.column(ABOUT)
    damages()[3](shards_of(tmp_path)[0])
    with pytest.warns(SondeWarning, match="is damaged"):
        assert not column.find(hash_texts(SENTENCES)).any()


def test_a_shard_that_another_process_drops_is_read_again_without_a_word(tmp_path, counted, recwarn):
    sources = {0: source("bert")}
    store = Store(tmp_path)
    read(SENTENCES, sources, linear(sources), store)
    stream = extract(SENTENCES, sources, linear(sources), store)
    seen = counted(sources[0].backbone)
    original = Store.write_header

    def evicted(self):
        original(self)
        shutil.rmtree(tmp_path / "blocks")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write_header", evicted)
        (window,) = stream
    assert sum(rows for rows, _ in seen) == 6
    assert np.isfinite(window.blocks["0/hidden.3/mean"]).all()
    assert len(shards_of(tmp_path)) == 2
    assert not [w for w in recwarn if isinstance(w.message, SondeWarning)]


@pytest.mark.parametrize("before_torch", [False, True])
def test_a_shard_dropped_while_it_is_opened_is_no_damage(tmp_path, monkeypatch, recwarn, before_torch):
    """safetensors opens a file, then torch maps it by its name: another process may drop it before either does."""
    opened, drop_at = 0, None
    whole = shards.safe_open

    def dropped(path, framework):
        nonlocal opened
        opened += 1
        if opened == drop_at:
            path.unlink()
            if before_torch:
                torch.UntypedStorage.from_file(str(path), False, 8)
        return whole(path, framework=framework)

    monkeypatch.setattr(shards, "safe_open", dropped)
    for attempt in range(1, 20):
        filled(tmp_path)
        opened, drop_at = 0, attempt
        column = Store(tmp_path).column(ABOUT)
        assert column.find(hash_texts(SENTENCES)).all() == (opened < attempt)
        if opened < attempt:
            break
    assert 2 < attempt < 19
    assert not [w for w in recwarn if isinstance(w.message, SondeWarning)]


def test_rows_that_vanish_while_they_are_read_are_a_sentence(tmp_path):
    _, column = filled(tmp_path)
    assert column.find(hash_texts(SENTENCES)).all()
    shutil.rmtree(column.folder)
    with pytest.raises(StoreError, match=r"The store lost 6 rows of .* while it was read: run again"):
        column.read(hash_texts(SENTENCES))


def test_a_newer_protocol_is_refused(tmp_path):
    (tmp_path / "sonde-store.json").write_text(json.dumps({"protocol": 99}))
    with pytest.raises(
        StoreError, match=r"has protocol 99; this sonde reads up to 1\. Upgrade sonde or give another folder"
    ):
        Store(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"protocol": "x"}', '{"protocol": null}'])
def test_a_header_that_says_nothing_is_refused(tmp_path, content):
    (tmp_path / "sonde-store.json").write_text(content)
    with pytest.raises(
        StoreError, match=r"sonde-store\.json cannot be read .* Delete this file, .* what the store holds is kept"
    ):
        Store(tmp_path)


def test_a_saved_model_is_no_store(tmp_path):
    (tmp_path / "sonde.json").write_text("{}")
    with pytest.raises(StoreError, match="is a saved model; a store must be a folder of its own"):
        Store(tmp_path)


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file; a store is a folder"):
        Store(tmp_path / "file")
    with pytest.raises(StoreError, match=r"The folder .* cannot be made: .* Give another one"):
        Store(tmp_path / "file" / "below").write_header()


def test_a_damaged_description_is_a_sentence(tmp_path):
    store, column = filled(tmp_path)
    (column.folder / "block.json").write_text("{")
    with pytest.raises(StoreError, match=r"block\.json cannot be read"):
        store.describe()


@contextmanager
def files_end_at(size):
    """No file of this process grows beyond `size` bytes: writes stop in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_stops_in_the_middle_leaves_earlier_shards_usable(tmp_path, counted):
    sources = {0: source("bert")}
    texts = made_texts(400, 6)
    read(texts[:20], sources, linear(sources), Store(tmp_path))
    before = files(tmp_path)
    with (
        files_end_at(20_000),
        pytest.raises(StoreError, match=r"Writing .* failed: .* What was written before is kept"),
    ):
        read(texts, sources, linear(sources), Store(tmp_path))
    after = files(tmp_path)
    assert after.items() >= before.items()
    assert not [name for name in after if ".tmp" in name]
    seen = counted(sources[0].backbone)
    read(texts[:20], sources, linear(sources), Store(tmp_path))
    assert seen == []
    read(texts, sources, linear(sources), Store(tmp_path))
    assert sum(rows for rows, _ in seen) == 380


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_full_disk_while_writing_is_a_sentence(tmp_path, monkeypatch, failing):
    monkeypatch.setattr(extract_module, "WINDOW_ROWS", 3)
    sources = {0: source("bert")}
    calls = []

    def commit(temporary, path):
        calls.append(path.suffix == ".safetensors")
        if sum(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(temporary, path)

    whole = shards._commit
    monkeypatch.setattr(shards, "_commit", commit)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 12_000_000))
    with pytest.raises(StoreError, match=r"No space left on device \(0\.01 GB are free\).*run the same command again"):
        read(SENTENCES, sources, linear(sources), Store(tmp_path))
    assert len(shards_of(tmp_path)) == failing - 1
    monkeypatch.setattr(shards, "_commit", whole)
    read(SENTENCES, sources, linear(sources), Store(tmp_path))
    read(SENTENCES, sources, linear(sources), Store(tmp_path / "other"))
    one, other = files(tmp_path), files(tmp_path / "other")
    assert {name: content for name, content in one.items() if not name.startswith("other")} == other


def stray(folder, name):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"half a shard")
    return folder / name


def test_what_dead_writers_left_is_cleared_and_living_ones_are_left_alone(tmp_path):
    _, column = filled(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    host, mark = strays.HOST, strays.MARK
    dead = [
        stray(column.folder, f".tmp-{host}-{child.pid}-{mark}-1"),
        stray(tmp_path, f".tmp-{host}-{os.getpid()}-00000000-1"),  # our number, in another life
        stray(column.folder, ".tmp-elsewhere-1-1-1"),
        stray(column.folder, ".tmp-unknown"),
        stray(tmp_path / "blocks" / f".tmp-{host}-{child.pid}-{mark}-2", "block.json").parent,
    ]
    for old in dead[2:4]:
        os.utime(old, (10**9, 10**9))
    living = [
        stray(column.folder, f".tmp-{host}-{os.getppid()}-{mark}-1"),
        stray(column.folder, f".tmp-{host}-{os.getpid()}-{mark}-1"),
        stray(column.folder, ".tmp-elsewhere-1-1-2"),
        stray(column.folder, ".tmp-new"),
    ]
    store = Store(tmp_path)
    store.write_header()
    assert not [path for path in dead if path.exists()]
    assert all(path.exists() for path in living)
    assert store.column(ABOUT).find(hash_texts(SENTENCES)).all()
    assert [entry["rows"] for entry in store.describe()] == [6]


def test_a_store_that_may_only_be_read_is_read(tmp_path, monkeypatch):
    sources = {0: source("bert")}
    whole = read(SENTENCES, sources, linear(sources), Store(tmp_path))

    def refuse(*args, **more):
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr("pathlib.Path.touch", refuse)
    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    window = read(SENTENCES, sources, linear(sources), Store(tmp_path))
    np.testing.assert_array_equal(window.blocks["0/hidden.3/mean"], whole.blocks["0/hidden.3/mean"])


def test_bfloat16_and_float32_do_not_meet(tmp_path):
    from sonde.read.backbone import load_backbone

    kinds = {name: load_backbone(str(build("bert")), dtype=name, device="cpu") for name in ("float32", "bfloat16")}
    store = Store(tmp_path)
    for backbone in kinds.values():
        sources = {0: Source(backbone, View(64))}
        stored, direct = (read(SENTENCES, sources, linear(sources), to) for to in (store, None))
        again = read(SENTENCES, sources, linear(sources), store)
        np.testing.assert_array_equal(stored.blocks["0/hidden.3/mean"], direct.blocks["0/hidden.3/mean"])
        np.testing.assert_array_equal(again.blocks["0/hidden.3/mean"], direct.blocks["0/hidden.3/mean"])
    assert sorted(entry["dtype"] for entry in store.describe() if entry["pooling"] == "mean") == ["bfloat16", "float32"]


def test_a_writer_killed_before_its_rename_leaves_only_what_the_next_one_clears(tmp_path, monkeypatch):
    """safetensors' own save_file writes under a name of its own, which nobody could tell from a stranger's file."""
    sources = {0: source("bert")}
    seen = []

    def commit(temporary, path):
        seen.append({name.name for name in path.parent.iterdir() if name.name.startswith(".")})
        return whole(temporary, path)

    whole = shards._commit
    monkeypatch.setattr(shards, "_commit", commit)
    read(SENTENCES, sources, linear(sources), Store(tmp_path))
    assert seen and all(name.startswith(".tmp-") for names in seen for name in names)


# ---------------------------------------------------------------- whole processes

PROCESSES = '''
import os, random, signal, sys, time
from pathlib import Path

sys.path.insert(0, TESTS)
from sonde.read import extract as extract_module
from sonde.read.backbone import load_backbone
from sonde.read.blocks import Source
from sonde.read.extract import extract
from sonde.read.sources import expand_blocks
from sonde.read.store import Store
from sonde.read.view import View

backbone = load_backbone(MODEL, dtype="float32", device="cpu")
sources = {0: Source(backbone, View(64))}
words = "the first trains left early and nobody on platform knew why a cold wind came over hills".split()


def texts(rows):
    choose = random.Random(0)
    for row in range(rows):
        yield " ".join(choose.choices(words, k=choose.randint(1, 9))) + f" {row}"


def start(work):
    """Run `work` in a process of its own, forked so that the model need not be loaded each time."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)


def finished(child):
    done, status = os.waitpid(child, os.WNOHANG)
    assert not done or os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the work failed"
    return bool(done)


def wait(child):
    while not finished(child):
        time.sleep(0.002)
'''


def run_processes(script, **values):
    given = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    folder = str(Path(__file__).resolve().parent)
    done = subprocess.run(
        [sys.executable, "-c", f"TESTS = {folder!r}\n{given}{PROCESSES}{script}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


KILLING = """
ROWS, WINDOW, MOST = 3000, 100, 25
extract_module.WINDOW_ROWS = WINDOW
blocks = [*expand_blocks(0, sources[0], "hidden.1", "mean"), *expand_blocks(0, sources[0], "hidden.3", "max")]


def work(folder, log=None):
    whole = backbone.read

    def spy(ids, mask, content, wanted):
        out = whole(ids, mask, content, wanted)
        os.write(log, f"{len(ids)}\\n".encode())
        return out

    if log is not None:
        backbone.read = spy
    for window in extract(texts(ROWS), sources, blocks, Store(folder)):
        pass


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


began = time.monotonic()
wait(start(lambda: work(ROOT + "/whole")))
seconds = time.monotonic() - began
whole = content(ROOT + "/whole")

pair = [start(lambda: work(ROOT + "/pair")) for _ in range(2)]
for child in pair:
    wait(child)
pair_is_equal = content(ROOT + "/pair") == whole

moments = random.Random(SEED)
kills, stores, wasted, equal = 0, 0, [], []
while kills < 15:
    stores += 1
    folder, log_path = f"{ROOT}/{stores}", f"{ROOT}/{stores}.log"
    killed_here, done = 0, False
    while not done:
        log = os.open(log_path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        child = start(lambda: work(folder, log))
        # A machine that is suddenly busy may get nowhere between two kills: after MOST of them a run may finish.
        until = time.monotonic() + (moments.uniform(0, seconds / 5) if killed_here < MOST else 10**6)
        while time.monotonic() < until and not done:
            done = finished(child)
            time.sleep(0.001)
        if not done:
            os.kill(child, signal.SIGKILL)
            done = os.WIFEXITED(os.waitpid(child, 0)[1])
            killed_here += not done
        os.close(log)
    kills += killed_here
    rows = sum(map(int, Path(log_path).read_text().split()))
    wasted.append([rows - ROWS, killed_here * WINDOW])
    equal.append(content(folder) == whole)
import json
print(json.dumps({"kills": kills, "wasted": wasted, "equal": equal, "pair_is_equal": pair_is_equal, "files": len(whole),
                  "seconds": seconds}))
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_continues_and_ends_with_the_same_bytes(tmp_path):
    seen = run_processes(KILLING, MODEL=str(build("bert")), ROOT=str(tmp_path), SEED=random.randrange(10**6))
    assert seen["files"] == 1 + 3 * 31
    assert seen["kills"] >= 15
    assert seen["equal"] == [True] * len(seen["equal"]), "an interrupted store ends with other bytes"
    assert all(0 <= rows <= most for rows, most in seen["wasted"]), "a restart redoes at most one shard"
    assert seen["pair_is_equal"], "two processes that write one store end with the same bytes"


GROWING = """
blocks = [
    block
    for site in ("hidden.*", "ffn.*")
    for pooling in ("mean", "max", "first", "last", "mean_content")
    for block in expand_blocks(0, sources[0], site, pooling)
]
extract_module.WINDOW_ROWS = 512


def work(rows):
    for window in extract(texts(rows), sources, blocks, Store(f"{ROOT}/{rows}")):
        assert len(window.blocks) == len(blocks)


peaks = []
for rows in (2_000, 20_000):
    child = start(lambda: work(rows))
    _, status, usage = os.wait4(child, 0)
    assert status == 0
    peaks.append(usage.ru_maxrss)
print(peaks)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_rows(tmp_path):
    few, many = run_processes(GROWING, MODEL=str(build("bert")), ROOT=str(tmp_path))
    assert many <= 1.1 * few
