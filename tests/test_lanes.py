"""Several batches at once, each on one thread: the values of one batch after the other, whatever happens to a batch."""

import copy
import os
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from test_extract import assert_same, made_texts
from test_memory import ERRORS
from tiny import ARCHITECTURES, build

from sonde.errors import ReadingError, SondeWarning
from sonde.read import reader
from sonde.read.backbone import Backbone, load_backbone
from sonde.read.batching import LANE_BUDGET, LANE_TOKENS, plan, share
from sonde.read.blocks import Source
from sonde.read.extract import read
from sonde.read.forward import Forward
from sonde.read.lanes import AHEAD, LANES, Copies
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_values_are_those_of_one_batch_after_the_other(
    name: str, dtype: str, passes: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(load_backbone(str(build(name)), dtype=dtype, device="cpu"), View(32))
    some = [("hidden.*", "mean"), ("ffn.*", "max"), ("hidden.-1", "last")]
    blocks = [block for spec, pooling in some for block in expand_blocks(0, source, spec, pooling)]
    side_by_side = read(TEXTS, {0: source}, blocks, token_budget=BUDGET)
    assert len(passes) > 4
    assert all(thread.startswith("sonde-lane") and threads == 1 for thread, threads in passes)
    passes.clear()
    torch.set_num_threads(1)
    assert_same(side_by_side, read(TEXTS, {0: source}, blocks, token_budget=BUDGET), 1e-5 if dtype == "float32" else 0)
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


def test_a_model_that_cannot_be_copied_runs_one_batch_at_a_time(
    passes: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(new_backbone(), View(32))
    blocks = expand_blocks(0, source, "hidden.*", "mean")

    def refuse(*_: object) -> None:
        raise TypeError("cannot pickle '_thread.lock' object")

    monkeypatch.setattr(copy, "deepcopy", refuse)
    found = read(TEXTS, {0: source}, blocks, token_budget=BUDGET)
    assert set(passes) == {(threading.current_thread().name, 2)}
    monkeypatch.undo()
    torch.set_num_threads(1)
    assert_same(found, read(TEXTS, {0: source}, blocks, token_budget=BUDGET))


def test_stages_wait_until_no_batch_runs_beside_them() -> None:
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


def test_copies_are_used_by_one_at_a_time() -> None:
    first = {"weights": torch.ones(2), "state": [0]}
    copies = Copies(first, lambda: iter([first["weights"]]))
    assert copies.grow(3) == 3 and copies.grow(2) == 2
    with copies.one() as a, copies.one() as b, copies.one() as c:
        assert len({id(one) for one in (a, b, c)}) == 3
        assert a["weights"] is b["weights"] is c["weights"]
        assert len({id(one["state"]) for one in (a, b, c)}) == 3
    with copies.alone() as only:
        assert only is first


def test_a_process_that_was_forked_has_lanes_of_its_own() -> None:
    assert list(LANES.each(lambda x: x + 1, [1, 2, 3], 2)) == [2, 3, 4]
    child = os.fork()
    if not child:
        os._exit(0 if list(LANES.each(lambda x: x + 1, [1, 2, 3], 2)) == [2, 3, 4] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_other_threads_keep_their_number_of_threads() -> None:
    list(LANES.each(lambda x: x, [1, 2], 2))
    seen = []
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert [torch.get_num_threads(), *seen] == [2, 2]


def test_a_few_texts_make_a_batch_for_every_lane() -> None:
    lengths = [LANE_TOKENS // 8] * 16
    assert len(plan(lengths, share(lengths, 4096, 2))) == 2
    assert len(plan(lengths, share(lengths, 4096, 1))) == 1
    assert len(plan(lengths[:4], share(lengths[:4], 4096, 2))) == 1
    assert share(lengths * 1000, 4096, 2) == LANE_BUDGET and share(lengths * 1000, 64, 2) == 64
    assert share(lengths * 1000, 4096, 1) == 4096, "one lane is no lane"


def test_a_single_text_takes_one_thread(passes: list[tuple[str, int]]) -> None:
    for dtype in ("float32", "bfloat16"):
        source = Source(load_backbone(str(build("bert")), dtype=dtype, device="cpu"), View(32))
        read(TEXTS[:1], {0: source}, expand_blocks(0, source, "hidden.*", "mean"))
    assert len(passes) == 2 and {threads for _, threads in passes} == {1}


def test_many_packed_texts_and_one_in_a_large_model_take_all_threads_together(
    passes: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LITTLE", 0)  # the tiny model counts as a large one
    for dtype, some in (("bfloat16", made_texts(400, 12)), ("float32", TEXTS[:1])):
        source = Source(load_backbone(str(build("bert")), dtype=dtype, device="cpu"), View(32))
        read(some, {0: source}, expand_blocks(0, source, "hidden.*", "mean"))
        if dtype == "float32" or source.backbone._forward.packs:
            assert set(passes) == {(threading.current_thread().name, 2)}
        passes.clear()


def test_multiplications_count_shared_layers_as_often_as_they_run() -> None:
    bert, albert = (load_backbone(str(build(name)), dtype="float32", device="cpu") for name in ("bert", "albert"))
    weights = {name: one.numel() for name, one in bert._forward.model.named_parameters() if "encoder.layer" in name}
    assert bert.multiplications == sum(weights.values())
    own = sum(one.numel() for name, one in albert._forward.model.named_parameters() if "albert_layers" in name)
    assert albert.multiplications == own * albert.layers["main"]


def test_no_more_is_begun_than_lanes_can_take() -> None:
    begun: list[int] = []
    results = LANES.each(lambda item: begun.append(item) or item, list(range(100)), 2)  # type: ignore[func-returns-value]
    assert next(results) == 0
    time.sleep(0.2)
    assert len(begun) <= AHEAD * 2 + 1
    results.close()
    time.sleep(0.2)
    assert len(begun) <= AHEAD * 2 + 1
