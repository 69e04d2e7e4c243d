"""Memory: a batch that is too much is halved, and the values stay the same; what is freed is kept for a while."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from test_extract import made_texts, source
from tiny import build

from sonde import heap as heaps
from sonde.errors import ReadingError, SondeWarning
from sonde.heap import EVERY_SECONDS, EVERY_TOKENS, HEAP, HEAP_BYTES, HELD_BYTES, Heap
from sonde.read.backbone import load_backbone
from sonde.read.blocks import Block, Source
from sonde.read.extract import read
from sonde.read.memory import Halving, is_out_of_memory
from sonde.read.sites import MAIN, Site
from sonde.read.sources import expand_blocks
from sonde.read.stages import read_in_stages
from sonde.read.view import View

TEXTS = made_texts(60, 12)
ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    "onednn": RuntimeError("could not create a primitive"),
    "python": MemoryError(),
}


@contextmanager
def short_of_memory(backbone: Any, rows: int, error: BaseException, layer: int = 2) -> Iterator[list[int]]:
    """A block of the model fails for more rows than that; the list says how many rows came."""
    seen: list[int] = []

    def check(_module: Any, args: Any, kwargs: Any) -> None:
        seen.append(len(args[0] if args else kwargs["hidden_states"]))
        if seen[-1] > rows:
            raise error

    module = backbone._forward.stacks[MAIN].blocks[layer - 1].module
    handle = module.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("long_text", ["cut", "windows"])
def test_a_batch_is_halved_until_it_fits(kind: str, long_text: str) -> None:
    one = {0: source("bert", 8 if long_text == "windows" else 64, long_text)}
    blocks = [*expand_blocks(0, one[0], "hidden.*", "mean"), *expand_blocks(0, one[0], "ffn.3", "max")]
    expected = read(TEXTS, one, blocks)
    with (
        short_of_memory(one[0].backbone, 7, ERRORS[kind]) as seen,
        pytest.warns(
            SondeWarning, match=r"Memory did not suffice for a batch of \d+ texts in the backbone .*bert"
        ) as w,
    ):
        window = read(TEXTS, one, blocks)
    assert {entry.message.code for entry in w if isinstance(entry.message, SondeWarning)} == {"halved_batches"}
    for name, values in expected.blocks.items():
        np.testing.assert_allclose(window.blocks[name], values, rtol=1e-4, atol=1e-5)
    too_many = [rows for rows in seen if rows > 7]
    assert 0 < len(too_many) <= 8, "what was too much once is tried again and again"


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN, and nothing is packed")
@pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
def test_texts_that_stand_in_one_row_are_halved_too(monkeypatch: pytest.MonkeyPatch) -> None:
    one = {0: Source(load_backbone(str(build("bert")), dtype="bfloat16", device="cpu"), View(64))}
    backbone, blocks = one[0].backbone, expand_blocks(0, one[0], "hidden.*", "mean")
    assert backbone.packs([(block.site, block.pooling) for block in blocks])
    expected, whole, seen = read(TEXTS, one, blocks), backbone.read_packed, []

    def short(packed: Any, wanted: Any) -> Any:
        seen.append(sum(span.rows for span in packed.spans))
        if seen[-1] > 9:
            raise ERRORS["cpu"]
        return whole(packed, wanted)

    monkeypatch.setattr(backbone, "read_packed", short)
    window = read(TEXTS, one, blocks)
    assert max(seen) > 9 and sum(rows for rows in seen if rows <= 9) == len(TEXTS)
    for name, values in expected.blocks.items():
        np.testing.assert_allclose(window.blocks[name], values, rtol=2e-2, atol=2e-2)


def test_one_text_that_does_not_fit_is_a_sentence() -> None:
    one = {0: source("bert")}
    sentence = r"Memory does not suffice for one text in the backbone .*bert \(CUDA out of .*\)\. Read fewer tokens"
    with (
        short_of_memory(one[0].backbone, 0, ERRORS["cuda"]),
        pytest.warns(SondeWarning, match="halves"),
        pytest.raises(ReadingError, match=sentence),
    ):
        read(TEXTS[:4], one, expand_blocks(0, one[0], "hidden.3", "mean"))


def test_other_errors_pass() -> None:
    assert not is_out_of_memory(ReadingError("Memory does not suffice for one text (CUDA out of memory)"))
    assert not is_out_of_memory(RuntimeError("shapes do not agree")) and not is_out_of_memory(ValueError("memory"))
    one = {0: source("bert")}
    with (
        short_of_memory(one[0].backbone, 7, RuntimeError("shapes do not agree")),
        pytest.raises(RuntimeError, match="shapes do not agree"),
    ):
        read(TEXTS, one, expand_blocks(0, one[0], "hidden.3", "mean"))


def test_parts_come_in_order_and_each_row_once() -> None:
    halving = Halving("model")

    def most(part: np.ndarray) -> np.ndarray:
        if len(part) > 10:
            raise MemoryError
        return part

    with pytest.warns(SondeWarning):
        assert np.concatenate(halving.each(np.arange(77), most)).tolist() == list(range(77))
    assert 8 <= halving.parts <= 16
    assert np.concatenate(halving.each(np.arange(50), most)).tolist() == list(range(50))
    assert [len(part) for part in halving.each(np.arange(3), most)] == [1, 1, 1]


@pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_reading_in_stages_is_halved_too(name: str, layer: int) -> None:
    """At block 1 before anything was asked; at block 3 after the first decision, which is not asked for again."""
    one = Source(load_backbone(str(build(name)), dtype="float32", device="cpu"), View(64))
    stages = [[Block(0, Site(MAIN, "hidden", 1), "mean")], [Block(0, Site(MAIN, "hidden", 3), "mean")]]
    told: dict[tuple[int, int], np.ndarray] = {}

    def goes_on(stage: int, rows: np.ndarray, values: Any) -> np.ndarray:
        for i, row in enumerate(rows.tolist()):
            assert (stage, row) not in told, "a row is asked once a stage"
            told[stage, row] = values[stages[stage][0].name][i]
        return np.asarray(rows % 4 != 0)

    expected = read_in_stages(TEXTS, one, stages, goes_on)
    plain, told = told, {}
    with short_of_memory(one.backbone, 5, ERRORS["cuda"], layer) as seen:
        staged = read_in_stages(TEXTS, one, stages, goes_on)
    assert max(seen) > 5 >= min(seen)
    assert staged.reached.tolist() == expected.reached.tolist()
    assert told.keys() == plain.keys()
    for key, values in plain.items():
        np.testing.assert_allclose(told[key], values, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------- what becomes of memory that is freed


class Library:
    """In place of the C library."""

    def __init__(self) -> None:
        self.options: list[tuple[int, int]] = []
        self.trims: list[int] = []

    def mallopt(self, option: int, value: int) -> None:
        self.options.append((option, value))

    def malloc_trim(self, kept: int) -> None:
        self.trims.append(kept)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    for name in heaps._OWN_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    made = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: made)
    return made


def test_freed_memory_is_kept_and_handed_back_now_and_then(library: Library) -> None:
    heap = Heap()
    heap.read(EVERY_TOKENS, 0.1)  # before anything is held, nothing is known of the library
    assert library.trims == []
    for _ in range(3):
        heap.hold("float32")
    told = [(-3, HEAP_BYTES["float32"]), (-1, HELD_BYTES)]  # malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    assert library.options == told
    heap.hold("bfloat16")
    assert library.options == [*told, (-3, HEAP_BYTES["bfloat16"]), (-1, HELD_BYTES)]
    heap.read(EVERY_TOKENS - 1, EVERY_SECONDS / 2)
    assert library.trims == []
    heap.read(1, 0.0)
    assert library.trims == [0] and (heap.tokens, heap.seconds) == (0, 0.0)
    for _ in range(2):
        heap.read(1, EVERY_SECONDS / 2)  # slow reading: the processor lacks units, or the model is large
    assert library.trims == [0, 0] and (heap.tokens, heap.seconds) == (0, 0.0)


def test_free_memory_goes_back_within_a_window_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """4,096 texts take a large model minutes, in which memory that is given back only afterwards falls to pieces."""
    counted: list[int] = []
    monkeypatch.setattr(HEAP, "read", lambda tokens, _seconds: counted.append(tokens))
    one = {0: source("bert")}
    window = read(TEXTS, one, expand_blocks(0, one[0], "hidden.*", "mean"), token_budget=200)
    assert len(counted) > 1
    assert sum(counted) == window.tokens.sum()


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_environment_says_of_memory_stands(
    name: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    heap = Heap()
    heap.hold("float32")
    heap.read(EVERY_TOKENS, 0.1)
    assert library.options == [] and library.trims == [0]


def test_a_c_library_without_such_settings_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    heap = Heap()
    heap.hold("float32")
    heap.read(EVERY_TOKENS, 0.1)
    assert heap.tokens == 0
