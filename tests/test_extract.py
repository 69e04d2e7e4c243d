import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import transformers
from tiny import SENTENCES, build

from sonde.errors import BackboneError, ReadingError
from sonde.read import extract as extract_module
from sonde.read.backbone import load_backbone
from sonde.read.blocks import Block, Source
from sonde.read.extract import extract, outstanding, read
from sonde.read.pooling import POOLINGS
from sonde.read.sites import MAIN, Site
from sonde.read.sources import block_of, expand_blocks, open_sources
from sonde.read.store import Store
from sonde.read.view import View

BUNDLE = "sentence-transformers/all-MiniLM-L6-v2"
WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})
SEVERAL = ("bert", "albert", "modernbert", "gpt2", "llama", "mistral", "t5", "bart")
CAUSAL = ("gpt2", "llama", "mistral")


def made_texts(n, longest=40, seed=0):
    """Texts of 1 to `longest` known words, all different."""
    choose = random.Random(seed)
    texts = {" ".join(choose.choices(WORDS, k=choose.randint(1, longest))) for _ in range(2 * n)}
    return sorted(texts)[:n]


def source(name="bert", max_tokens=64, long_text="cut"):
    backbone = load_backbone(str(build(name)), dtype="float32", device="cpu")
    return Source(backbone, View(max_tokens, long_text))


def all_blocks(sources, poolings=("mean", "max", "last", "mean_content"), sites=("hidden.*", "ffn.*")):
    return [
        block
        for index, one in sources.items()
        for site in sites
        for pooling in poolings
        for block in expand_blocks(index, one, site, pooling)
    ]


def assert_same(window, expected, tolerance=1e-5):
    """Blocks agree relative to their largest value; counts exactly."""
    assert window.blocks.keys() == expected.blocks.keys()
    for name, values in window.blocks.items():
        assert values.shape == expected.blocks[name].shape
        scale = np.abs(expected.blocks[name]).max()
        assert np.abs(values - expected.blocks[name]).max() <= tolerance * scale, name
    assert (window.tokens == expected.tokens).all()
    assert (window.lost == expected.lost).all()


def take(window, rows):
    blocks = {name: values[rows] for name, values in window.blocks.items()}
    return type(window)(0, blocks, window.tokens[:, rows], window.lost[:, rows])


@pytest.fixture
def counted(monkeypatch):
    """Count the rows and the sites that a backbone is asked to read."""

    def count(backbone):
        seen = []
        whole = backbone.read

        def spy(ids, mask, content, wanted):
            seen.append((len(ids), [str(site) for site, _ in wanted]))
            return whole(ids, mask, content, wanted)

        monkeypatch.setattr(backbone, "read", spy)
        return seen

    return count


@pytest.mark.parametrize("name", SEVERAL)
def test_results_do_not_depend_on_batches_order_company_store_or_padding_side(name, tmp_path, monkeypatch):
    sources = {0: source(name, 24)}
    blocks = all_blocks(sources, ("mean", "mean_content"), ("hidden.*",))
    blocks += all_blocks(sources, ("max", "last"), ("ffn.2", "hidden.-1"))
    texts = made_texts(50, 30)
    whole = read(texts, sources, blocks)
    assert whole.lost.any()
    for budget in (1, 100):
        assert_same(read(texts, sources, blocks, token_budget=budget), whole)
    order = np.random.default_rng(0).permutation(len(texts))
    assert_same(read([texts[i] for i in order], sources, blocks), take(whole, order))
    for row in (0, 33):
        assert_same(read([texts[row]], sources, blocks), take(whole, [row]))
    store = Store(tmp_path)
    assert_same(read(texts[:30], sources, blocks, store), take(whole, range(30)))
    assert_same(read(texts, sources, blocks, store), whole)
    assert_same(read(texts, sources, blocks, Store(tmp_path)), whole)
    monkeypatch.setattr(sources[0].backbone.tokenizer, "padding_side", "left")
    assert_same(read(texts, sources, blocks), whole, tolerance=0)


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("long_text", ["head_tail", "windows"])
def test_long_texts_are_read_the_same_in_any_batch_and_from_the_store(name, long_text, tmp_path):
    sources = {0: source(name, 9, long_text)}
    blocks = all_blocks(sources)
    texts = made_texts(30, 40)
    whole = read(texts, sources, blocks)
    assert_same(read(texts, sources, blocks, token_budget=1), whole)
    store = Store(tmp_path)
    read(texts, sources, blocks, store)
    assert_same(read(texts, sources, blocks, store), whole, tolerance=0)


@cache
def whole_model(name):
    return transformers.AutoModel.from_pretrained(build(name), dtype=torch.float32).eval()


def slow_windows(name, text, max_tokens, layer, how):
    """Pool over all tokens of all windows in a plain loop, each window alone through the whole model."""
    tokenizer = load_backbone(str(build(name)), dtype="float32", device="cpu").tokenizer
    full, bare = (tokenizer(text, add_special_tokens=add)["input_ids"] for add in (True, False))
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    prefix, suffix = full[:start], full[start + len(bare) :]
    room = max_tokens - len(prefix) - len(suffix)
    count = -(-len(bare) // room)
    kept, content = [], []
    for i in range(count):
        part = bare[len(bare) * i // count : len(bare) * (i + 1) // count]
        ids = [*prefix, *part, *suffix]
        with torch.inference_mode():
            output = whole_model(name)(input_ids=torch.tensor([ids]), output_hidden_states=True)
        states = output.hidden_states[layer][0].double().numpy()
        for position, state in enumerate(states):
            kept.append(state)
            sink = name in CAUSAL and position == 0
            if len(prefix) <= position < len(ids) - len(suffix) and not sink:
                content.append(state)
    chosen = {"mean": kept, "max": kept, "first": kept[:1], "last": kept[-1:], "mean_content": content or kept}[how]
    return np.max(chosen, axis=0) if how == "max" else np.sum(chosen, axis=0) / len(chosen)


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in ("bert", "llama", "gpt2") for how in POOLINGS if how != "first" or name not in CAUSAL],
)
def test_windows_pool_over_all_tokens_of_all_windows(name, how):
    one = source(name, 9, "windows")
    texts = [*made_texts(12, 40), "good", SENTENCES[0]]
    block = Block(0, Site(MAIN, "hidden", 2), how)
    window = read(texts, {0: one}, [block])
    assert not window.lost.any()
    expected = np.stack([slow_windows(name, text, 9, 2, how) for text in texts])
    np.testing.assert_allclose(window.blocks[block.name], expected, rtol=1e-4, atol=1e-5)


def test_windows_differ_from_cut():
    block = Block(0, Site(MAIN, "hidden", 2), "mean")
    texts = made_texts(10, 40)
    cut, windows = (read(texts, {0: source("bert", 9, how)}, [block]) for how in ("cut", "windows"))
    long = cut.lost[0] > 0
    assert long.any()
    differs = np.abs(cut.blocks[block.name] - windows.blocks[block.name]).max(axis=1) > 1e-3
    assert differs[long].all()


def test_blocks_equal_hidden_states_of_the_whole_model():
    sources = {0: source("bert")}
    blocks = all_blocks(sources, ("mean",), ("hidden.*",))
    window = read(SENTENCES, sources, blocks)
    tokenizer = sources[0].backbone.tokenizer
    for row, text in enumerate(SENTENCES):
        with torch.inference_mode():
            states = whole_model("bert")(
                **tokenizer(text, return_tensors="pt"), output_hidden_states=True
            ).hidden_states
        for layer, state in enumerate(states):
            expected = state[0].mean(dim=0).numpy()
            np.testing.assert_allclose(window.blocks[f"0/hidden.{layer}/mean"][row], expected, rtol=1e-4, atol=1e-5)


def test_duplicates_are_read_once_and_come_back_in_every_place(counted):
    sources = {0: source()}
    blocks = all_blocks(sources, ("mean",), ("hidden.-1",))
    texts = [*SENTENCES, *SENTENCES[::-1], SENTENCES[2]]
    seen = counted(sources[0].backbone)
    whole = read(texts, sources, blocks)
    assert sum(rows for rows, _ in seen) == len(SENTENCES)
    (window,) = extract(texts, sources, blocks)
    assert sum(rows for rows, _ in seen) == 2 * len(SENTENCES)
    expected = take(read(SENTENCES, sources, blocks), [*range(6), *range(5, -1, -1), 2])
    assert_same(whole, expected)
    assert_same(window, expected)


def test_texts_that_differ_in_a_lone_surrogate_are_one_text(counted):
    sources = {0: source()}
    seen = counted(sources[0].backbone)
    window = read(["good \ud800", "good \udfff", "good \ufffd"], sources, all_blocks(sources, ("mean",), ("hidden.1",)))
    assert sum(rows for rows, _ in seen) == 1
    assert (window.blocks["0/hidden.1/mean"] == window.blocks["0/hidden.1/mean"][0]).all()


def test_odd_texts_are_read_beside_others():
    for name in ("bert", "llama", "gpt2"):
        sources = {0: source(name, 16)}
        blocks = all_blocks(sources, ("mean", "max", "mean_content"), ("hidden.*",))
        odd = ["", "  ", "a\0b", "\ud83d", "good " * 200_000]
        window = read([*odd, *SENTENCES], sources, blocks)
        assert all(np.isfinite(values).all() for values in window.blocks.values())
        assert window.lost[0, 4] > 199_000
        assert_same(take(window, range(5, 11)), read(SENTENCES, sources, blocks))


def poison(monkeypatch, backbone, word, value, site="hidden.2"):
    """Let the backbone give `value` at one site for every row that holds `word`."""
    (token,) = backbone.tokenizer(word, add_special_tokens=False)["input_ids"]
    whole = backbone.read

    def poisoned(ids, mask, content, wanted):
        out = {want: values.clone() for want, values in whole(ids, mask, content, wanted).items()}
        for (place, _), values in out.items():
            if str(place) == site:
                values[(ids == token).any(dim=1), 3] = value
        return out

    monkeypatch.setattr(backbone, "read", poisoned)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("long_text", ["cut", "windows"])
def test_nan_and_infinity_name_the_row_and_the_site(value, long_text, monkeypatch, tmp_path):
    sources = {0: source("bert", 9, long_text)}
    blocks = all_blocks(sources, ("mean", "max"), ("hidden.1", "hidden.2"))
    poison(monkeypatch, sources[0].backbone, "parcel", value)
    texts = [SENTENCES[0], SENTENCES[0], SENTENCES[1], SENTENCES[1], SENTENCES[4], SENTENCES[5]]
    sentence = r"gave NaN or infinity at site hidden\.2 \(mean\) for row 5\. .*dtype='float32'"
    with pytest.raises(ReadingError, match=sentence):
        read(texts, sources, blocks)
    with pytest.raises(ReadingError, match="for row 5"):
        list(extract(texts, sources, blocks))
    with pytest.raises(ReadingError, match="for row 5"):
        list(extract(texts, sources, blocks, Store(tmp_path)))
    monkeypatch.setattr(extract_module, "WINDOW_ROWS", 2)
    with pytest.raises(ReadingError, match="for row 5"):
        read(texts, sources, blocks)
    with pytest.raises(ReadingError, match="for row 5"):
        list(extract(texts, sources, blocks))


def test_a_weight_that_is_nan_is_found():
    sources = {0: source("roberta")}
    backbone = sources[0].backbone
    blocks = all_blocks(sources, ("mean",), ("hidden.*",))
    weight = next(w for n, w in backbone._forward.model.named_parameters() if "layer.1" in n and n.endswith("bias"))
    kept = weight.data.clone()
    weight.data[0] = float("nan")
    try:
        with pytest.raises(ReadingError, match=r"at site hidden\.2 \(mean\) for row 1\."):
            read(SENTENCES, sources, blocks)
    finally:
        weight.data.copy_(kept)


def test_truncated_rows_and_lost_tokens_are_counted_for_every_place_of_a_text(tmp_path):
    sources = {0: source("bert", 8), 1: source("llama", 64)}
    blocks = all_blocks(sources, ("mean",), ("hidden.1",))
    texts = [SENTENCES[0], "good", SENTENCES[0]]
    for store in (None, Store(tmp_path), Store(tmp_path)):
        window = read(texts, sources, blocks, store)
        assert window.lost.tolist() == [[6, 0, 6], [0, 0, 0]]
        assert window.tokens.tolist() == [[14, 3, 14], [13, 2, 13]]


def test_several_backbones_stand_side_by_side():
    sources = {0: source("bert"), 1: source("llama"), 2: source("t5")}
    blocks = [*all_blocks(sources, ("mean",), ("hidden.-1",)), *expand_blocks(1, sources[1], "ffn.1", "max")]
    together = read(SENTENCES, sources, blocks)
    names = ["0/hidden.3/mean", "1/hidden.3/mean", "2/hidden.3/mean", "1/ffn.1/max"]
    assert sorted(together.blocks) == sorted(names)
    assert together.lost.shape == (3, 6)
    for index, one in sources.items():
        alone = read(SENTENCES, {index: one}, blocks)
        for name in alone.blocks:
            assert name.startswith(str(index))
            np.testing.assert_array_equal(alone.blocks[name], together.blocks[name])


def test_a_backbone_that_no_block_names_is_not_run(counted):
    sources = {0: source("bert"), 1: source("llama")}
    seen = counted(sources[1].backbone)
    read(SENTENCES, sources, expand_blocks(0, sources[0], "hidden.1", "mean"))
    assert seen == []


def test_windows_of_texts_follow_each_other(monkeypatch):
    monkeypatch.setattr(extract_module, "WINDOW_ROWS", 4)
    sources = {0: source()}
    blocks = all_blocks(sources, ("mean",), ("hidden.*",))
    texts = made_texts(11)
    windows = list(extract(texts, sources, blocks))
    assert [(window.start, window.rows) for window in windows] == [(0, 4), (4, 4), (8, 3)]
    monkeypatch.undo()
    whole = read(texts, sources, blocks)
    for window in windows:
        assert_same(window, take(whole, range(window.start, window.start + window.rows)))


def test_windows_are_bounded_in_bytes(monkeypatch):
    sources = {0: source()}
    blocks = expand_blocks(0, sources[0], "hidden.1", "mean")
    row_bytes = 4 * (sources[0].backbone.width(blocks[0].site) + 2)  # float32, and the numbers of tokens
    monkeypatch.setattr(extract_module, "FEW_ROWS", 1)
    monkeypatch.setattr(extract_module, "WINDOW_BYTES", 3 * row_bytes)
    windows = list(extract(made_texts(8), sources, blocks))
    assert [window.rows for window in windows] == [3, 3, 2]
    assert extract_module.window_rows(sources, [replace(blocks[0], columns=(1,))]) > 3


@pytest.mark.parametrize("long_text", ["cut", "windows"])
def test_some_columns_are_those_of_the_whole_block(long_text):
    sources = {0: source(max_tokens=8, long_text=long_text)}
    blocks = all_blocks(sources)
    whole = read(SENTENCES, sources, blocks)
    some = {block: (i % 3, 5, 9) for i, block in enumerate(blocks)}
    narrow = read(SENTENCES, sources, [replace(block, columns=columns) for block, columns in some.items()])
    for block, columns in some.items():
        np.testing.assert_array_equal(narrow.blocks[block.name], whole.blocks[block.name][:, columns])


def test_the_store_serves_columns_from_whole_rows_and_keeps_no_more_than_them(tmp_path, counted):
    sources = {0: source()}
    (block,) = expand_blocks(0, sources[0], "hidden.2", "mean")
    texts, columns = made_texts(20), (3, 5, 8)
    narrow = replace(block, columns=columns)
    store = Store(tmp_path)
    read(texts[:8], sources, [block], store)
    passes = counted(sources[0].backbone)
    found = read(texts, sources, [narrow], store)
    assert sum(rows for rows, _ in passes) == 12, "rows that lie there whole are not read again"
    expected = read(texts, sources, [block]).blocks[block.name][:, columns]
    np.testing.assert_allclose(found.blocks[block.name], expected, rtol=1e-5, atol=1e-6)
    kept = [(one["rows"], one["dim"]) for one in store.describe() if one["site"] == "hidden.2"]
    assert sorted(kept) == [(8, 32), (12, 3)]
    assert outstanding(20, sources, [narrow], store, texts) == 0
    passes.clear()
    again = read(texts, sources, [narrow], Store(tmp_path))
    np.testing.assert_array_equal(again.blocks[block.name], found.blocks[block.name])
    other = read(texts, sources, [replace(block, columns=(3, 5, 9))], Store(tmp_path))
    assert passes and other.blocks[block.name].shape == (20, 3), "other columns are other values"


def test_windows_are_bounded_in_characters(monkeypatch):
    monkeypatch.setattr(extract_module, "WINDOW_CHARACTERS", 10)
    texts = ["good", "good wind", "cold", "a", "left early and late", "a"]
    sources = {0: source()}
    windows = list(extract(texts, sources, all_blocks(sources, ("mean",), ("hidden.1",))))
    assert [(window.start, window.rows) for window in windows] == [(0, 1), (1, 1), (2, 2), (4, 1), (5, 1)]


def test_texts_are_taken_lazily(monkeypatch):
    monkeypatch.setattr(extract_module, "WINDOW_ROWS", 4)
    sources = {0: source()}
    taken = []
    stream = extract((taken.append(text) or text for text in made_texts(50)), sources, all_blocks(sources, ("mean",)))
    next(stream)
    assert len(taken) <= 5
    stream.close()


def test_nothing_to_read():
    sources = {0: source()}
    blocks = all_blocks(sources, ("mean",))
    assert list(extract([], sources, blocks)) == []
    assert read([], sources, blocks).rows == 0


def test_sentence_has_length_one_where_the_folder_says_so_also_over_windows():
    sources = open_sources({0: BUNDLE}, max_tokens=8, long_text="windows", dtype="float32", device="cpu")
    (block,) = expand_blocks(0, sources[0], "sentence", "mean")
    assert block.name == "0/sentence"
    values = read([*SENTENCES, "a much longer text " * 20], sources, [block]).blocks["0/sentence"]
    np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, rtol=1e-6)


def test_a_block_is_found_by_its_name():
    sources = {0: source("bert"), 1: source("t5")}
    for block in [*all_blocks(sources), *expand_blocks(0, sources[0], "sentence", "mean")]:
        assert block_of(block.name, sources) == block
    (decoder,) = expand_blocks(1, sources[1], "decoder.hidden.1", "max")
    assert block_of("1/decoder.hidden.1/max", sources) == decoder


@pytest.mark.parametrize(
    ("name", "site", "pooling", "sentence"),
    [
        ("bert", "hidden.9", "mean", "Site 'hidden.9' is out of range. It has hidden.0 to hidden.3"),
        ("bert", "attention.1", "mean", "Site 'attention.1' is unknown. It has hidden.0"),
        ("bert", "hidden.1", "median", "'median' is unknown; it must be one of: mean, max, first, last, mean_content"),
        ("llama", "hidden.1", "first", "Pooling 'first' at hidden.1 of backbone .* is refused"),
        ("llama", "pooler", "mean", "Site pooler of backbone .* is refused"),
    ],
)
def test_blocks_that_cannot_be_read_are_refused_before_reading(name, site, pooling, sentence):
    with pytest.raises(BackboneError, match=sentence):
        expand_blocks(0, source(name), site, pooling)


REAL = [
    "The tomatoes have black spots on their lower leaves.",
    "Our flight to Lisbon was cancelled at the gate, and nobody told us anything for six hours!",
    "good",
    "Simmer the lentils with a bay leaf for half an hour; then add the onions, salt, pepper and a spoonful of vinegar.",
    "who invented the garlic press, it is impossible to clean",
    "Jet lag hit me on the third day in Tokyo.",
]


def both_ways(dtype):
    sources = open_sources({0: BUNDLE}, max_tokens=16, long_text="cut", dtype=dtype, device="cpu")
    blocks = all_blocks(sources, ("mean", "max"), ("hidden.*", "ffn.*"))
    one_by_one = read(REAL[::-1], sources, blocks, token_budget=1)
    return take(one_by_one, range(5, -1, -1)), read(REAL, sources, blocks)


def test_the_bundle_agrees_with_itself_in_float32():
    assert_same(*both_ways("float32"))


@pytest.mark.slow
def test_the_bundle_agrees_with_itself_in_bfloat16_and_with_float32():
    """Rows in the Euclidean norm: |a - b| <= 2e-2 |b| for every row and block."""
    alone, together = both_ways("bfloat16")
    _, exact = both_ways("float32")
    for name, values in together.blocks.items():
        length = np.linalg.norm(exact.blocks[name], axis=1)
        assert (np.linalg.norm(alone.blocks[name] - values, axis=1) <= 2e-2 * length).all(), name
        assert (np.linalg.norm(exact.blocks[name] - values, axis=1) <= 4e-2 * length).all(), name
