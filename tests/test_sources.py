import numpy as np
import pytest
from tiny import SENTENCES, build

from sonde.errors import ArgumentError, BackboneError
from sonde.read.extract import read
from sonde.read.sources import (
    block_of,
    expand_blocks,
    layers_run,
    max_tokens_of,
    open_sources,
    open_store,
    prepare,
)


def opened(name="bert", max_tokens=None, long_text="cut", dtype="float32"):
    return open_sources({0: str(build(name))}, max_tokens=max_tokens, long_text=long_text, dtype=dtype, device="cpu")[0]


def test_the_default_length_is_that_of_the_checkpoint():
    assert opened("bert").view.max_tokens == 64
    assert opened("roberta").view.max_tokens == opened("roberta").backbone.max_positions == 62
    assert opened("t5").view.max_tokens == 512


def test_a_length_holds_for_all_or_for_each():
    names = {0: str(build("bert")), 1: str(build("llama"))}
    settings = {"long_text": "windows", "dtype": "float32", "device": "cpu"}
    both = open_sources(names, max_tokens=np.int64(20), **settings)
    assert [one.view.max_tokens for one in both.values()] == [20, 20]
    assert type(both[0].view.max_tokens) is int
    each = open_sources(names, max_tokens=(20, None), **settings)
    assert [one.view.max_tokens for one in each.values()] == [20, 64]
    assert each[1].view.long_text == "windows"
    (second,) = open_sources({1: names[1]}, max_tokens=(20, 30), **settings).values()
    assert second.view.max_tokens == 30


@pytest.mark.parametrize("wrong", [0, 3, -1, True, 12.0, "128", np.int64(2)])
def test_a_length_that_is_none_is_refused(wrong):
    with pytest.raises(ArgumentError, match=r"max_tokens is .*; it must be a whole number of at least 4, or None"):
        opened(max_tokens=wrong)


def test_too_few_lengths_are_refused():
    with pytest.raises(ArgumentError, match="max_tokens has 1 entries; give one number, or one for each backbone"):
        max_tokens_of([8], 1)


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ArgumentError, match=r"max_tokens is 65, but .* has 64 positions\. Give at most 64"):
        opened(max_tokens=65)


def test_unknown_ways_with_long_texts_are_listed():
    with pytest.raises(ArgumentError, match="'middle' is unknown; it must be one of: cut, head_tail, windows"):
        opened(long_text="middle")


@pytest.mark.parametrize("wrong", [3, 1.5, ["folder"], object()])
def test_a_cache_that_is_no_folder_is_refused(wrong):
    with pytest.raises(ArgumentError, match=r"cache is .*; give 'auto', the path of a folder, or False for no store"):
        open_store(wrong)


def test_blocks_come_shallowest_first_and_only_once_each():
    names = [block.name for block in expand_blocks(0, opened(), "hidden.*", "max")]
    assert names == ["0/hidden.0/max", "0/hidden.1/max", "0/hidden.2/max", "0/hidden.3/max"]
    assert [block.name for block in expand_blocks(3, opened(), "sentence", "max")] == ["3/sentence"]
    assert [block.name for block in expand_blocks(0, opened("t5"), "decoder.ffn.*", "mean")] == [
        "0/decoder.ffn.1/mean",
        "0/decoder.ffn.2/mean",
    ]


def test_first_is_refused_on_every_stack_that_reads_from_left_to_right():
    for name, site in (("gpt2", "hidden.1"), ("t5", "decoder.hidden.1"), ("bart", "decoder.ffn.1")):
        with pytest.raises(BackboneError, match=r"'first' at .* is refused"):
            expand_blocks(0, opened(name), site, "first")
    assert expand_blocks(0, opened("t5"), "hidden.1", "first")


def test_preparing_says_how_much_and_writes_nothing(tmp_path):
    sources = {0: opened()}
    blocks = expand_blocks(0, sources[0], "hidden.*", "mean")
    few, many = (prepare(rows, sources, blocks, open_store(tmp_path / "new")) for rows in (100, 1000))
    assert 9 * few < many < 10 * few
    assert many > 1000 * 4 * 32 * 4
    assert not (tmp_path / "new").exists()
    assert read(SENTENCES, sources, blocks, open_store(tmp_path / "new")).rows == 6


@pytest.mark.parametrize(
    ("name", "blocks", "layers"),
    [
        ("bert", ["0/hidden.1/mean", "0/ffn.2/max"], 2),
        ("bert", ["0/hidden.0/mean"], 0),
        ("bert", ["0/sentence"], 3),
        ("t5", ["0/hidden.2/mean", "0/decoder.ffn.1/mean"], 3 + 1),
    ],
)
def test_layers_run_as_deep_as_the_deepest_block(name: str, blocks: list[str], layers: int) -> None:
    sources = open_sources({0: str(build(name))}, max_tokens=None, long_text="cut", dtype="float32", device="cpu")
    assert layers_run([block_of(block, sources) for block in blocks], sources) == layers
