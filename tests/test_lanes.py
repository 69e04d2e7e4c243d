"""Several batches at once, each on one thread: the values of one batch after the other, whatever happens to a batch."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_extract import assert_same, made_texts
from test_memory import ERRORS
from tiny import ARCHITECTURES, build

from sonde.errors import ReadingError, SondeWarning
from sonde.read import reader
from sonde.read.backbone import OWN_CODE, Backbone, load_backbone
from sonde.read.batching import LANE_BUDGET, LANE_TOKENS, TOKEN_BUDGET, plan, share
from sonde.read.blocks import Source
from sonde.read.extract import read
from sonde.read.forward import Forward
from sonde.read.lanes import AHEAD, END_SECONDS, Lanes
from sonde.read.packing import WIDER, Packed, level, pack
from sonde.read.reader import divide
from sonde.read.sources import expand_blocks
from sonde.read.stages import read_in_stages
from sonde.read.view import View

TEXTS = made_texts(60, 12)
BUDGET = 64
"""Tokens a batch: some ten batches."""


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def new_backbone(name: str = "bert", dtype: str = "float32") -> Backbone:
    """One that nobody has read, so that it has no copies."""
    made = load_backbone(str(build(name)), dtype=dtype, device="cpu")
    return Backbone(made.name, made.path, made.dtype, made.device, False)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Of every pass, the thread and how many threads torch uses in it."""
    noted: list[tuple[str, int]] = []
    for name in ("run", "run_packed"):
        whole = getattr(Forward, name)

        def note(self: Forward, *given: object, whole: object = whole) -> object:
            noted.append((threading.current_thread().name, torch.get_num_threads()))
            return whole(self, *given)  # type: ignore[operator]

        monkeypatch.setattr(Forward, name, note)
    return noted


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_values_are_those_of_one_batch_after_the_other(name: str, passes: list[tuple[str, int]]) -> None:
    source = Source(load_backbone(str(build(name)), dtype="float32", device="cpu"), View(32))
    some = [("hidden.*", "mean"), ("ffn.*", "max"), ("hidden.-1", "last")]
    blocks = [block for spec, pooling in some for block in expand_blocks(0, source, spec, pooling)]
    side_by_side = read(TEXTS, {0: source}, blocks, token_budget=BUDGET)
    assert len(passes) > 4
    assert set(passes) == {("sonde-lane", 1)}
    passes.clear()
    torch.set_num_threads(1)
    assert_same(side_by_side, read(TEXTS, {0: source}, blocks, token_budget=BUDGET), 1e-5)
    assert {thread for thread, _ in passes} == {threading.current_thread().name}


def test_batches_run_at_the_same_time_and_share_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = new_backbone()
    both, whole, models = threading.Barrier(2), Forward.run, set()

    def meet(self: Forward, *given: object) -> object:
        models.add(self.model)
        both.wait(timeout=60)  # breaks if the other does not come
        return whole(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Forward, "run", meet)
    source = Source(backbone, View(32))
    same_length = ["one two three"] + [f"one two {word}" for word in ("four", "five", "six")]
    read(same_length, {0: source}, expand_blocks(0, source, "hidden.1", "mean"), token_budget=10)
    one, other = models
    assert source.backbone._forward.model not in models
    assert [w.data_ptr() for w in one.parameters()] == [w.data_ptr() for w in other.parameters()]
    assert [w.data_ptr() for w in one.buffers()] == [w.data_ptr() for w in other.buffers()]


def test_a_row_without_numbers_is_named_and_nothing_is_left_behind() -> None:
    source = Source(new_backbone(), View(32))
    blocks, tokenizer = expand_blocks(0, source, "hidden.*", "mean"), source.backbone.tokenizer
    expected = read(TEXTS, {0: source}, blocks, token_budget=BUDGET)
    words = source.backbone._forward.model.get_input_embeddings().weight
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    token = ids[-1][1]
    kept = words[token].clone()
    words.data[token] = torch.nan
    spoilt = [row + 1 for row, own in enumerate(ids) if token in own]
    with pytest.raises(ReadingError, match=f"row ({'|'.join(map(str, spoilt))})\\b"):
        read(TEXTS, {0: source}, blocks, token_budget=BUDGET)
    words.data[token] = kept
    assert_same(read(TEXTS, {0: source}, blocks, token_budget=BUDGET), expected, 0)


def test_a_batch_that_is_too_much_is_halved_in_its_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(load_backbone(str(build("bert")), dtype="float32", device="cpu"), View(32))
    blocks = expand_blocks(0, source, "hidden.*", "mean")
    expected, whole = read(TEXTS, {0: source}, blocks, token_budget=BUDGET), Forward.run

    def short(self: Forward, ids: torch.Tensor, *given: object) -> object:
        if len(ids) > 2:
            raise ERRORS["cpu"]
        return whole(self, ids, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Forward, "run", short)
    with pytest.warns(SondeWarning, match="it is read in halves"):
        assert_same(read(TEXTS, {0: source}, blocks, token_budget=BUDGET), expected)


def test_an_error_ends_reading_and_the_lanes_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(load_backbone(str(build("bert")), dtype="float32", device="cpu"), View(32))
    blocks, calls, whole = expand_blocks(0, source, "hidden.*", "mean"), [0], Forward.run

    def breaks(self: Forward, *given: object) -> object:
        calls[0] += 1
        if calls[0] == 3:
            raise RuntimeError("a defect")
        return whole(self, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as broken:
        broken.setattr(Forward, "run", breaks)
        with pytest.raises(RuntimeError, match="a defect"):
            read(TEXTS, {0: source}, blocks, token_budget=BUDGET)
    assert read(TEXTS, {0: source}, blocks, token_budget=BUDGET).rows == len(TEXTS)


def test_batches_for_which_memory_suffices_one_at_a_time_are_read_so(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(load_backbone(str(build("bert")), dtype="float32", device="cpu"), View(32))
    blocks, whole, busy = expand_blocks(0, source, "hidden.*", "mean"), Forward.run, [0]
    texts = ["a b c", "d e f", "g h i", "j k l"]
    expected, both, lock = read(texts, {0: source}, blocks, token_budget=1), threading.Barrier(2), threading.Lock()

    def one_fits(self: Forward, *given: object) -> object:
        with lock:
            busy[0] += 1
        try:
            if threading.current_thread() is not threading.main_thread():
                both.wait(timeout=60)
                raise ERRORS["cpu"]
            assert busy[0] == 1
            return whole(self, *given)  # type: ignore[arg-type]
        finally:
            with lock:
                busy[0] -= 1

    monkeypatch.setattr(Forward, "run", one_fits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is halved
        assert_same(read(texts, {0: source}, blocks, token_budget=1), expected)


@pytest.mark.parametrize("refusal", [TypeError("cannot pickle '_thread.lock' object"), pickle.PickleError("a script")])
def test_a_model_that_cannot_be_copied_runs_one_batch_at_a_time(
    refusal: Exception, passes: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(new_backbone(), View(32))
    blocks = expand_blocks(0, source, "hidden.*", "mean")

    def refuse(*_: object) -> None:
        raise refusal

    monkeypatch.setattr(copy, "deepcopy", refuse)
    found = read(TEXTS, {0: source}, blocks, token_budget=BUDGET)
    assert set(passes) == {(threading.current_thread().name, 2)}
    assert source.backbone.most_lanes() == 0
    monkeypatch.undo()
    torch.set_num_threads(1)
    assert_same(found, read(TEXTS, {0: source}, blocks, token_budget=BUDGET))


def test_a_model_with_code_of_its_own_is_not_copied() -> None:
    backbone = new_backbone()
    assert backbone.most_lanes() == 2
    backbone._forward.model.__class__ = type("Own", (type(backbone._forward.model),), {"__module__": f"{OWN_CODE}.own"})
    assert backbone.most_lanes() == 0


def test_stages_and_batches_run_at_the_same_time() -> None:
    source = Source(load_backbone(str(build("bert")), dtype="float32", device="cpu"), View(32))
    blocks = expand_blocks(0, source, "hidden.1", "mean"), expand_blocks(0, source, "hidden.3", "mean")
    expected = read(TEXTS, {0: source}, [*blocks[0], *blocks[1]], token_budget=BUDGET)
    found = []

    def plainly() -> None:
        found.extend(read(TEXTS, {0: source}, [*blocks[0], *blocks[1]], token_budget=BUDGET) for _ in range(5))

    other = threading.Thread(target=plainly)
    other.start()
    for _ in range(5):
        staged = read_in_stages(TEXTS, source, blocks, lambda _stage, rows, _values: rows % 2 == 0, BUDGET)
        assert staged.reached.tolist() == [int(row % 2 == 0) for row in range(len(TEXTS))]
    other.join(timeout=60)
    assert len(found) == 5
    for one in found:
        assert_same(one, expected)


def test_stages_that_read_another_backbone_meanwhile_come_to_an_end() -> None:
    source, other = (Source(new_backbone(name), View(32)) for name in ("bert", "distilbert"))
    blocks = expand_blocks(0, source, "hidden.1", "mean"), expand_blocks(0, source, "hidden.3", "mean")
    elsewhere, reading = expand_blocks(0, other, "hidden.1", "mean"), threading.Event()
    expected, rows_read = read(TEXTS, {0: other}, elsewhere), []

    def goes_on(_stage: int, rows: torch.Tensor, _values: object) -> torch.Tensor:
        reading.wait(timeout=60)
        assert_same(read(TEXTS, {0: other}, elsewhere), expected)
        rows_read.append(read(TEXTS, {0: source}, blocks[0], token_budget=BUDGET).rows)  # and the same one
        return torch.ones(len(rows), dtype=torch.bool)

    def plainly() -> None:
        reading.set()
        read(TEXTS, {0: source}, blocks[0], token_budget=BUDGET)

    beside = threading.Thread(target=plainly)
    beside.start()
    read_in_stages(TEXTS, source, blocks, goes_on)
    beside.join(timeout=60)
    assert rows_read and not beside.is_alive()


def test_each_lane_has_a_copy_and_the_caller_the_first() -> None:
    first = {"weights": torch.ones(2), "state": [0]}
    lanes, both = Lanes(first, lambda: iter([first["weights"]])), threading.Barrier(2)

    def use(_: int) -> object:
        with lanes.one() as own:
            both.wait(timeout=60)
            return own

    one, other = lanes.each(use, [1, 2], 2)
    assert one["weights"] is other["weights"] is first["weights"]
    assert len({id(copied["state"]) for copied in (first, one, other)}) == 3
    with lanes.one() as own, lanes.first() as again:
        assert own is again is first
        assert list(lanes.each(lambda _: threading.current_thread().name, [1], 2)) == [threading.current_thread().name]


def test_who_reads_with_one_thread_after_others_meets_hooks_on_the_model() -> None:
    source = Source(new_backbone(), View(32))
    blocks, passed = expand_blocks(0, source, "hidden.*", "mean"), []
    read(TEXTS, {0: source}, blocks, token_budget=BUDGET)
    torch.set_num_threads(1)
    words = source.backbone._forward.model.get_input_embeddings()
    with words.register_forward_hook(lambda *_: passed.append(1)):
        for _ in range(3):
            read(TEXTS[:1], {0: source}, blocks)
    assert len(passed) == 3


def test_threads_end_with_the_model() -> None:
    before = set(threading.enumerate())  # among them lanes of earlier tests, which may end meanwhile
    lanes = Lanes([0], lambda: iter(()))
    assert list(lanes.each(lambda item: item, [1, 2, 3], 2)) == [1, 2, 3]
    started = [one for one in threading.enumerate() if one.name == "sonde-lane" and one not in before]
    assert len(started) == 2
    del lanes
    gc.collect()
    for thread in started:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in started)


def test_a_process_that_was_forked_has_lanes_of_its_own() -> None:
    lanes = Lanes([0], lambda: iter(()))
    assert list(lanes.each(lambda x: x + 1, [1, 2, 3], 2)) == [2, 3, 4]
    child = os.fork()
    if not child:
        os._exit(0 if list(lanes.each(lambda x: x + 1, [1, 2, 3], 2)) == [2, 3, 4] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("script", "seconds"),
    [
        ("next(lanes.each(lambda s: time.sleep(s), [0, 600, 600], 2))", END_SECONDS),
        (
            "def later():\n    time.sleep(1)\n    assert list(lanes.each(lambda x: x, [1, 2], 2)) == [1, 2]\n"
            "threading.Thread(target=later).start()",
            0,
        ),
    ],
    ids=["a batch hangs", "a thread outlives the main one"],
)
def test_a_process_ends(script: str, seconds: float) -> None:
    begin = "import threading, time; from sonde.read.lanes import Lanes; lanes = Lanes([0], lambda: iter(()))\n"
    done = subprocess.run([sys.executable, "-c", begin + script], timeout=120, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_other_threads_keep_their_number_of_threads() -> None:
    lanes = Lanes([0], lambda: iter(()))
    list(lanes.each(lambda x: x, [1, 2], 2))
    assert threads_of_a_new_thread() == [2, 2]


def threads_of_a_new_thread() -> list[int]:
    seen = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    return [torch.get_num_threads(), *seen]


def test_where_no_thread_can_be_started_the_caller_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = Lanes([0], lambda: iter(()))

    def refuse(_: threading.Thread) -> None:
        torch.set_num_threads(1)  # as a thread that came this far would
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        assert list(lanes.each(lambda x: x, [1, 2], 2)) == [1, 2]
    assert not lanes.can_grow and threads_of_a_new_thread() == [2, 2]


def test_a_few_texts_make_a_batch_for_every_lane() -> None:
    lengths = [LANE_TOKENS // 8] * 16
    assert len(plan(lengths, share(lengths, LANE_BUDGET, 2))) == 2
    assert len(plan(lengths[:4], share(lengths[:4], LANE_BUDGET, 2))) == 1
    assert share(lengths * 1000, LANE_BUDGET, 2) == LANE_BUDGET and share(lengths * 1000, 64, 2) == 64


def test_lanes_have_as_many_packed_batches_each_until_there_are_many() -> None:
    for lanes, count in ((1, 40), (2, 90), (2, 120), (2, 140), (3, 200), (4, 150)):
        lengths = [40 + i % 30 for i in range(count)]
        batches = pack(lengths, level(lengths, 1024, lanes))
        tokens = sorted(sum(lengths[i] for i in batch) for batch in batches)
        assert len(batches) % lanes == 0 and tokens[0] > 0.6 * tokens[-1], (lanes, count, tokens)
    assert level([40] * 1000, 1024, 2) == level([40] * 1000, 1024, 4) == 1024
    assert level([40] * 10, 1024, 2) == 1024


def test_a_single_text_takes_one_thread(passes: list[tuple[str, int]]) -> None:
    for dtype in ("float32", "bfloat16"):
        source = Source(load_backbone(str(build("bert")), dtype=dtype, device="cpu"), View(32))
        read(TEXTS[:1], {0: source}, expand_blocks(0, source, "hidden.*", "mean"))
    assert len(passes) == 2 and {threads for _, threads in passes} == {1}


LARGE = {
    "a packed text": ("bert", "bfloat16", TEXTS[:1]),
    "bfloat16 that is not packed": ("t5", "bfloat16", made_texts(400, 12)),
    "one text": ("bert", "float32", TEXTS[:1]),
    "long texts": ("bert", "float32", ["one two three " * 8, "four five six " * 8, "seven eight nine " * 8]),
}


@pytest.mark.parametrize("case", LARGE)
def test_what_takes_all_threads_together_in_a_large_model(
    case: str, passes: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, dtype, texts = LARGE[case]
    monkeypatch.setattr(reader, "LITTLE", 0)  # the tiny model counts as a large one
    monkeypatch.setattr(reader, "LANE_BUDGET", 20)  # the last case is of texts that are longer
    source = Source(load_backbone(str(build(name)), dtype=dtype, device="cpu"), View(32))
    read(texts, {0: source}, expand_blocks(0, source, "hidden.*", "mean"))
    assert set(passes) == {(threading.current_thread().name, 2)}


def test_packed_texts_of_a_large_model_go_side_by_side_while_memory_suffices(
    passes: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LITTLE", 0)
    monkeypatch.setattr(reader, "BUDGET", 64)
    source = Source(load_backbone(str(build("bert")), dtype="bfloat16", device="cpu"), View(32))
    blocks, texts = expand_blocks(0, source, "hidden.*", "mean"), made_texts(400, 12)
    found = read(texts, {0: source}, blocks)
    assert set(passes) == {("sonde-lane", 1)}
    lengths = [12] * 400
    assert divide(lengths, source.backbone, packs=True)[0] == 2
    assert divide(lengths, source.backbone, packs=True, side_by_side=False)[0] == 0
    backward = read(texts[::-1], {0: source}, blocks).blocks
    assert all((backward[name][::-1] == values).all() for name, values in found.blocks.items())


@pytest.mark.parametrize("threads", [1, 2, 16])
def test_packed_batches_are_filled_up_where_they_are_many_and_full(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(threads)
    monkeypatch.setattr(reader, "BUDGET", 512 - WIDER)
    source = Source(load_backbone(str(build("bert")), dtype="bfloat16", device="cpu"), View(32))
    sizes, whole = [], Forward.run_packed

    def note(self: Forward, packed: Packed, *given: Any) -> object:
        sizes.append(packed.ids.numel())
        return whole(self, packed, *given)

    monkeypatch.setattr(Forward, "run_packed", note)
    for count in (60, 2000):  # of one lane's texts and of all
        sizes.clear()
        texts = made_texts(count, 30)
        read(texts, {0: source}, expand_blocks(0, source, "hidden.*", "mean"))
        assert max(sizes) <= 512
    assert set(sizes) == {512}


def test_batches_are_as_large_as_the_caller_says(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(load_backbone(str(build("bert")), dtype="float32", device="cpu"), View(32))
    sizes, whole = [], Forward.run

    def note(self: Forward, ids: torch.Tensor, *given: object) -> object:
        sizes.append(ids.numel())
        return whole(self, ids, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Forward, "run", note)
    blocks = expand_blocks(0, source, "hidden.*", "mean")
    for budget, low, high in ((None, LANE_BUDGET // 2, LANE_BUDGET), (2 * TOKEN_BUDGET["cpu"], 4096, 8192)):
        read(made_texts(2000, 30), {0: source}, blocks, token_budget=budget)
        assert low < max(sizes) <= high
        sizes.clear()


def test_many_texts_come_in_the_same_batches_whatever_the_threads() -> None:
    backbone = load_backbone(str(build("bert")), dtype="float32", device="cpu")
    lengths, found = [length % 30 + 2 for length in range(4000)], []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        lanes, batches = divide(lengths, backbone, packs=False)
        assert lanes == threads
        found.append([batch.tolist() for batch in batches])
    assert found[0] == found[1] == found[2]


def test_multiplications_count_shared_layers_as_often_as_they_run() -> None:
    bert, albert = (load_backbone(str(build(name)), dtype="float32", device="cpu") for name in ("bert", "albert"))
    weights = {name: one.numel() for name, one in bert._forward.model.named_parameters() if "encoder.layer" in name}
    assert bert.multiplications == sum(weights.values())
    own = sum(one.numel() for name, one in albert._forward.model.named_parameters() if "albert_layers" in name)
    assert albert.multiplications == own * albert.layers["main"]


def test_no_more_is_begun_than_lanes_can_take() -> None:
    begun: list[int] = []
    lanes = Lanes([0], lambda: iter(()))
    results = lanes.each(lambda item: begun.append(item) or item, list(range(100)), 2)  # type: ignore[func-returns-value]
    assert next(results) == 0
    time.sleep(0.2)
    assert len(begun) <= AHEAD * 2 + 1
    results.close()
    time.sleep(0.2)
    assert len(begun) <= AHEAD * 2 + 1
