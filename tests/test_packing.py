"""Texts side by side in one row get what they get alone, whatever stands beside them."""

from collections.abc import Iterator

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sonde.read.attention import LONGEST
from sonde.read.backbone import Backbone, Wanted, load_backbone
from sonde.read.packing import BUDGET, MANY, ROOM, STEP, TILE_TOKENS, WIDER, Bags, Packed, Span, beside, pack, tiles
from sonde.read.pooling import POOLINGS, pool_all, pool_packed
from sonde.read.reader import read_pieces
from sonde.read.sites import MAIN, Site
from sonde.read.view import View, tokenise

POSITIONS = 64
quick = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN, and nothing is packed"
)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def brain(name: str, dtype: str = "bfloat16") -> Backbone:
    return load_backbone(str(tiny.build(name)), dtype=dtype, device="cpu")


def texts_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 30, (length,), generator=draw).tolist() for length in lengths]


# -------------------------------------------------------------- how texts are laid


@given(st.lists(st.integers(1, 90), max_size=60), st.integers(1, 128))
def test_every_piece_stands_in_one_batch_and_only_one_alone_exceeds_the_budget(lengths: list[int], budget: int) -> None:
    batches = pack(lengths, budget)
    assert sorted(piece for batch in batches for piece in batch.tolist()) == list(range(len(lengths)))
    laid = [[lengths[piece] for piece in batch] for batch in batches]
    assert all(sum(some) <= budget or len(some) == 1 for some in laid)
    for number, some in enumerate(laid):
        assert some == sorted(some, reverse=True)
        room, later = budget - sum(some), [length for others in laid[number + 1 :] for length in others]
        assert room < ROOM * budget or all(length > room for length in later), "as full as can be"


def test_a_row_says_where_texts_and_their_content_stand() -> None:
    packed = beside([[7, 8, 9], [1, 2, 3], [4, 5]], pad_id=11, before=1, behind=1)
    assert packed.spans == (Span(0, 2, 3), Span(6, 1, 2))
    assert packed.ids.tolist() == [[7, 8, 9, 1, 2, 3, 4, 5] + [11] * 8]
    assert packed.positions[0, :8].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert packed.content[0].nonzero().flatten().tolist() == [1, 4]


def test_there_are_few_lengths_of_rows() -> None:
    sizes = {beside([[5] * tokens]).ids.shape[1] for tokens in range(1, BUDGET + 1)}
    assert all(size % STEP == 0 for size in sizes if size > 1024) and len(sizes) == 16 + 12 + 12
    assert all(size % 64 == 0 for size in sizes if size > 256) and all(size % 16 == 0 for size in sizes)
    assert max(sizes) == BUDGET + WIDER


@settings(max_examples=200)
@given(st.integers(1, LONGEST), st.integers(1, 60), st.integers(0, 300), st.integers(0, 130))
def test_tiles_cover_every_row_once_and_stay_inside(length: int, rows: int, start: int, behind: int) -> None:
    span = Span(start, rows, length)
    size = span.stop + behind
    whole = torch.arange(size)[:, None, None]  # token head dim
    seen: list[int] = []
    for tile in tiles(span, size):
        view = tile.of(whole)[:, :, 0, 0]  # row token
        assert view.shape == (tile.rows, tile.tokens) and tile.tokens >= length
        assert int(view.min()) >= 0 and int(view.max()) < size
        kept = view[tile.above : tile.above + tile.kept, :length]
        first = start + tile.first * length
        assert torch.equal(kept.flatten(), torch.arange(first, first + tile.kept * length))
        seen += range(tile.first, tile.first + tile.kept)
    assert seen == list(range(rows))


def test_tiles_in_a_long_row_have_few_shapes() -> None:
    shapes = set()
    for length in range(1, LONGEST + 1):
        for rows in range(1, 1500 // length + 1):
            span = Span(300, rows, length)
            shapes |= {(tile.rows, tile.tokens) for tile in tiles(span, BUDGET + WIDER)}
    assert len({tokens for _, tokens in shapes}) == 30
    assert len(shapes) <= 30 * len(TILE_TOKENS)


# -------------------------------------------------------------------- what they get


def states(backbone: Backbone, texts: list[list[int]]) -> list[Tensor]:
    """The mean of each text at the last layer and inside, read side by side."""
    site = Site(MAIN, "hidden", backbone.layers[MAIN])
    found = backbone.read_packed(beside(texts), [(site, "mean"), (Site(MAIN, "ffn", 2), "max")])
    return list(torch.cat(list(found.values()), dim=1))


@quick
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "llama", "qwen3", "opt", "gpt_neox"])
def test_side_by_side_no_layer_runs_above_the_deepest_site(family: str) -> None:
    backbone, texts = brain(family), beside(texts_of([30, 17, 9, 3]))
    for depth in range(backbone.layers[MAIN] + 1):
        backbone._forward._shorter.clear()  # as in a new process: the first texts that it meets are packed
        wanted: list[Wanted] = [(Site(MAIN, "hidden", depth), "mean")]
        backbone.read_packed(texts, wanted)  # which also tests a shorter copy
        calls = tiny.count_blocks(backbone, lambda wanted=wanted: backbone.read_packed(texts, wanted))
        assert calls == {MAIN: depth}


@quick
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "llama", "qwen3", "opt", "gpt_neox"])
def test_side_by_side_is_as_alone(family: str) -> None:
    backbone = brain(family)
    site = Site(MAIN, "hidden", backbone.layers[MAIN])
    assert backbone.packs([(site, "mean")])
    texts = texts_of([30, 30, 17, 17, 17, 9, 3, 3, 1])
    for found, text in zip(states(backbone, texts), texts, strict=True):
        alone = backbone.read(torch.tensor([text]), None, None, [(site, "mean"), (Site(MAIN, "ffn", 2), "max")])
        expected = torch.cat(list(alone.values()), dim=1)[0]
        assert float((found - expected).norm() / expected.norm()) < 2e-2


@quick
def test_neighbours_say_nothing_to_the_last_bit() -> None:
    backbone = brain("bert")
    lengths = [21, 21, 21, 8, 8, 5]
    texts, others = texts_of(lengths), texts_of(lengths, seed=1)
    before = states(backbone, texts)
    for kept in range(len(texts)):
        after = states(backbone, [*others[:kept], texts[kept], *others[kept + 1 :]])
        assert torch.equal(after[kept], before[kept])
        assert kept == 0 or not torch.equal(after[kept - 1], before[kept - 1])


@quick
def test_neighbours_that_overflow_say_nothing() -> None:
    backbone = brain("bert")
    texts = texts_of([12, 12, 12])
    before = states(backbone, texts)
    words = backbone._forward.model.get_input_embeddings().weight
    saved = words[texts[1][3]].clone()
    texts[0] = [token if token != texts[1][3] else 4 for token in texts[0]]
    texts[2] = [token if token != texts[1][3] else 4 for token in texts[2]]
    before = states(backbone, texts)
    try:
        words[texts[1][3]] = torch.nan
        after = states(backbone, texts)
    finally:
        words[texts[1][3]] = saved
    assert torch.equal(after[0], before[0]) and torch.equal(after[2], before[2])
    assert bool(after[1].isnan().any())


@quick
@pytest.mark.parametrize("family", ["modernbert", "mistral", "t5", "bart"])
def test_what_attends_otherwise_is_not_packed(family: str) -> None:
    """Windows of attention, biases by position, two stacks."""
    backbone = brain(family)
    assert not backbone.packs([(Site(MAIN, "hidden", 1), "mean")])


@quick
def test_poolers_and_float32_are_not_packed() -> None:
    assert not brain("bert").packs([(Site(MAIN, "hidden", 1), "mean"), (Site(MAIN, "pooler"), None)])
    assert not brain("bert", "float32").packs([(Site(MAIN, "hidden", 1), "mean")])


def test_one_setting_of_torch_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sonde.read.backbone._TABLE", {})
    with torch.backends.mkldnn.flags(enabled=False):
        assert not brain("electra").packs([(Site(MAIN, "hidden", 1), "mean")])


@quick
def test_reading_pieces_packed_is_reading_them_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = brain("roberta")
    pieces = tokenise([*tiny.SENTENCES, "", tiny.SENTENCES[0] * 3], backbone.tokenizer, View(POSITIONS))
    wanted = [(Site(MAIN, "hidden", n), how) for n in (0, 1, 2) for how in POOLINGS]
    found = whole(backbone, pieces, wanted)
    monkeypatch.setattr(backbone._forward, "packs", False)
    expected = whole(backbone, pieces, wanted)
    for want in wanted:
        assert float((found[want] - expected[want]).norm() / expected[want].norm()) < 2e-2, want


@quick
def test_of_many_batches_all_have_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = brain("bert")
    seen: list[int] = []
    real = backbone.read_packed

    def noted(given: Packed, wanted: list[Wanted]) -> dict[Wanted, Tensor]:
        seen.append(given.ids.shape[1])
        return real(given, wanted)

    monkeypatch.setattr(backbone, "read_packed", noted)
    wanted = [(Site(MAIN, "hidden", 1), "mean")]
    pieces = tokenise([" ".join(tiny.SENTENCES[:2])] * 2500, backbone.tokenizer, View(POSITIONS))
    rows = torch.cat([values[wanted[0]] for _, values in read_pieces(pieces, backbone, wanted)])
    assert len(seen) >= MANY and set(seen) == {BUDGET + WIDER} and len(rows) == 2500
    assert float((rows - rows[0]).abs().max()) == 0
    seen.clear()
    few = tokenise(tiny.SENTENCES[:2], backbone.tokenizer, View(POSITIONS))
    list(read_pieces(few, backbone, wanted))
    assert len(seen) == 1 and seen[0] < 128


def whole(backbone: Backbone, pieces, wanted) -> dict:  # type: ignore[no-untyped-def, type-arg]
    out = {want: torch.zeros(len(pieces.ids), backbone.width(want[0])) for want in wanted}
    for batch, values in read_pieces(pieces, backbone, wanted, token_budget=40):
        for want in wanted:
            out[want][torch.from_numpy(batch)] = values[want]
    return out


# -------------------------------------------------------------------------- pooling


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_content", [False, True])
def test_packed_pooling_is_pooling_of_each_text(dtype: torch.dtype, with_content: bool) -> None:
    packed = beside(texts_of([9, 9, 4, 2, 1]), before=1, behind=1)
    hidden = torch.randn(packed.ids.shape[1], 6, generator=torch.Generator().manual_seed(3)).to(dtype)
    hows = list(POOLINGS) if with_content else [how for how in POOLINGS if how != "mean_content"]
    found = pool_packed(hidden, Bags(packed.spans, packed.content[0] if with_content else None), hows)
    assert list(found) and set(found) == set(hows)
    row = 0
    for span in packed.spans:
        expected = pool_all(span.of(hidden), None, hows, span.of(packed.content[0]))
        for how in hows:
            torch.testing.assert_close(found[how][row : row + span.rows], expected[how], rtol=1e-2, atol=1e-6)
        row += span.rows
    assert row == len(found["max"])
