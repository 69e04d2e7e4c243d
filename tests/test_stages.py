"""Reading in stages: the values of plain reading, and only the blocks that the rows still in need."""

import itertools
import logging
import random
from contextlib import contextmanager

import numpy as np
import pytest
import tiny
import torch
from test_backbone import batch, close, tiny_backbone
from test_extract import made_texts, source

from sonde.errors import BackboneError, ReadingError
from sonde.read import descent as descents
from sonde.read import stages as stages_module
from sonde.read.backbone import load_backbone
from sonde.read.blocks import Block
from sonde.read.extract import read
from sonde.read.gates import Gates, UnclearRows
from sonde.read.pooling import POOLINGS
from sonde.read.sites import DECODER, MAIN, Site
from sonde.read.sources import expand_blocks
from sonde.read.stages import Staged, read_in_stages

EVERY = list(tiny.ARCHITECTURES)
LAST = tiny.LAYERS
DEPTHS = [(0, 1, 2, 3), (1, 2), (0, 3)]


def hidden(layer, how="mean"):
    return Site(MAIN, "hidden", layer), how


def ffn(layer, how="mean"):
    return Site(MAIN, "ffn", layer), how


def full_stages(backbone, depths):
    """Hidden states and feed-forward activations of these depths, in every pooling that makes sense."""
    hows = [how for how in POOLINGS if how != "first" or not backbone.causal]
    return [[want(d, how) for how in hows for want in (hidden, ffn)[: 1 + (d > 0)]] for d in depths]


@contextmanager
def run_rows(backbone):
    """Rows of every call of a block of the main stack, by block number; of one batch, where blocks are shared."""
    counts, handles = dict.fromkeys(range(1, backbone.layers[MAIN] + 1), 0), []
    places = backbone._forward.stacks[MAIN].blocks
    shared = len({place.module for place in places}) < len(places)
    calls = itertools.count(1)
    for number, module in enumerate(dict.fromkeys(place.module for place in places), start=1):

        def count(_module, args, kwargs, number=number):
            counts[next(calls) if shared else number] += len(args[0] if args else kwargs["hidden_states"])

        handles.append(module.register_forward_pre_hook(count, with_kwargs=True))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


class Script:
    """Row r goes on after stage s if r is not in leaving[s]; keeps what it was told."""

    def __init__(self, leaving):
        self.leaving, self.seen = leaving, []

    def __call__(self, stage, rows, values):
        self.seen.append((stage, rows.clone(), dict(values)))
        return torch.tensor([row not in self.leaving.get(stage, ()) for row in rows.tolist()], dtype=torch.bool)

    def reached(self, rows, stages):
        return [next((s for s in range(stages) if r in self.leaving.get(s, ())), stages - 1) for r in range(rows)]


def check(backbone, ids, mask, content, stages, leaving, saves=True):
    """The values of plain reading, the right answer, and exactly the blocks that are needed."""
    wants = [want for stage in stages for want in stage]
    plain = backbone.read(ids, mask, content, wants) if wants else {}
    script, rows = Script(leaving), len(ids)
    sources = [[backbone._source(want) for want in stage] for stage in stages]
    backbone._descent._known(sources)  # the first descent also tries a few rows
    with run_rows(backbone) as counts:
        reached = backbone.read_in_stages(ids, mask, content, stages, script)
    expected = script.reached(rows, len(stages))
    assert reached.dtype == torch.int64
    assert reached.tolist() == expected
    still = range(rows)
    for stage, (told, found, values) in enumerate(script.seen):
        assert told == stage
        assert found.tolist() == list(still)
        assert values.keys() == {want for before in stages[: stage + 1] for want in before}
        for want, vectors in values.items():
            assert vectors.dtype == torch.float32 and vectors.device.type == "cpu"
            close(vectors, plain[want][list(still)])
        still = [row for row in still if row not in leaving.get(stage, ())]
    assert len(script.seen) == max(expected) + 1
    depths = descents._depths(sources)
    needed = dict.fromkeys(counts, 0)
    for last in expected:
        for layer in range(1, (depths[last] if saves else depths[-1]) + 1):
            needed[layer] += 1
    assert counts == needed


@pytest.mark.parametrize("depths", DEPTHS, ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_rows_that_go_on_have_the_values_of_plain_reading_and_the_others_run_no_block(name, depths):
    backbone = tiny_backbone(name)
    ids, mask, content = batch(backbone)
    stages = full_stages(backbone, depths)
    choose = random.Random(name + str(depths))
    for _ in range(2):
        leaving = {s: {r for r in range(len(ids)) if choose.random() < 0.4} for s in range(len(depths))}
        check(backbone, ids, mask, content, stages, leaving)


@pytest.mark.parametrize("name", EVERY)
def test_when_no_row_goes_on_no_later_block_runs(name):
    backbone = tiny_backbone(name)
    ids, mask, content = batch(backbone)
    everyone = set(range(len(ids)))
    for depth in range(LAST):
        check(backbone, ids, mask, content, [[hidden(depth)], [hidden(LAST)]], {0: everyone})
        check(backbone, ids, mask, content, [[hidden(depth)], [hidden(LAST), ffn(LAST, "max")]], {})


@pytest.mark.parametrize("name", EVERY)
def test_batches_of_one_row_of_one_token_and_of_as_many_rows_as_tokens(name):
    backbone = tiny_backbone(name)
    ids, mask, content = batch(backbone)
    stages = full_stages(backbone, (0, 1, 2, 3))
    for row in (0, 3):
        one = slice(row, row + 1), slice(int(mask[row].sum()))
        check(backbone, ids[one], mask[one], content[one], stages, {1: {0}})
        check(backbone, ids[one], None, content[one], stages, {})
    check(backbone, ids[:, :1], None, content[:, :1], stages, {0: {1, 4}, 2: {0, 2, 3, 5}})
    for tokens in (3, 4, 5, 6):  # sizes that the batch has, or comes to have
        real = mask[:, :tokens]
        check(backbone, ids[:, :tokens], real, content[:, :tokens], stages, {0: {2}, 1: {0}, 2: {3, 4}})
        check(backbone, ids[:, :tokens], None, content[:, :tokens], stages, {0: {5, 1}, 1: {3}})


@pytest.mark.parametrize("name", ["albert", "bert", "mistral", "t5"])
def test_one_stage_runs_as_many_blocks_as_it_is_deep(name):
    backbone = tiny_backbone(name)
    ids, mask, content = batch(backbone)
    for depth in range(LAST + 1):
        backbone.read(ids, mask, content, [hidden(depth)])  # the first reading at a depth tries its copy
        check(backbone, ids, mask, content, [[hidden(depth)]], {})


def test_stages_without_sites_of_one_depth_and_out_of_order():
    backbone = tiny_backbone("bert")
    ids, mask, content = batch(backbone)
    check(backbone, ids, mask, content, [[], [hidden(2)]], {0: set(range(6))})  # decided before the first block
    check(backbone, ids, mask, content, [[], [hidden(2)], []], {0: {1}, 1: {2}})
    check(backbone, ids, mask, content, [[], []], {0: {1}})
    same = [[hidden(1)], [ffn(1)], [ffn(LAST)], [hidden(LAST)], [ffn(LAST, "max")]]
    check(backbone, ids, mask, content, same, {0: {0}, 1: {1}, 2: {2}, 3: {3}})
    check(backbone, ids, mask, content, [[hidden(2)], [hidden(1)], [hidden(3)]], {0: {4}, 1: {5}})
    assert descents._depths([[hidden(2)], [hidden(1)], [hidden(3)]]) == (2, 2, 3)


def test_the_sentence_site_is_a_stage_too():
    backbone = tiny_backbone("t5")
    ids, mask, content = batch(backbone)
    check(backbone, ids, mask, content, [[hidden(1)], [(Site(MAIN, "sentence"), None)]], {0: {0, 3}})


def test_sites_are_checked_before_anything_runs():
    backbone = tiny_backbone("llama")
    ids, mask, _ = batch(backbone)
    with pytest.raises(BackboneError, match=r"hidden\.9"):
        backbone.read_in_stages(ids, mask, None, [[hidden(0)], [hidden(9)]], lambda *_: pytest.fail("asked"))
    with pytest.raises(BackboneError, match="constant after BOS"):
        backbone.read_in_stages(ids, mask, None, [[hidden(0, "first")]], lambda *_: pytest.fail("asked"))


# ------------------------------------------------------------ plain reading where rows cannot leave


def saved(folder, prefix, family, settings):
    return load_backbone(str(tiny.save(folder, prefix, family, settings)), dtype="float32", device="cpu")


def test_a_model_whose_pads_leak_is_read_plainly():
    settings = {**tiny.ARCHITECTURES["bert"][2], "embedding_size": tiny.HIDDEN}
    backbone = saved("convbert-stages", "ConvBert", "bert", settings)
    ids, mask, content = batch(backbone)
    stages = [[hidden(1)], [hidden(2), ffn(2)], [hidden(3)]]
    check(backbone, ids, mask, content, stages, {0: {0, 2}, 1: {5}}, saves=False)
    assert backbone._descent._known(stages) is None


@pytest.mark.parametrize("name", tiny.TWO_STACKS)
def test_stages_of_the_decoder_are_read_plainly(name):
    backbone = tiny_backbone(name)
    ids, mask, content = batch(backbone)
    decoder = [(Site(DECODER, "hidden", 1), "mean")]
    script = Script({0: {0, 2}})
    plain = backbone.read(ids, mask, content, [hidden(1), *decoder])
    assert backbone.read_in_stages(ids, mask, content, [[hidden(1)], decoder], script).tolist() == [0, 1, 0, 1, 1, 1]
    (_, _, first), (_, rows, second) = script.seen
    close(first[hidden(1)], plain[hidden(1)])
    close(second[decoder[0]], plain[decoder[0]][rows])


@pytest.mark.parametrize("more", [{"num_hidden_groups": 2, "num_hidden_layers": 4}, {"inner_group_num": 2}])
def test_rows_leave_blocks_that_take_turns_too(more):
    backbone = saved(f"albert-stages-{next(iter(more))}", "Albert", "bert", {**tiny.ARCHITECTURES["albert"][2], **more})
    ids, mask, content = batch(backbone)
    for depths in ((0, 1), (1, 3), (2, 3, 4), (1, backbone.layers[MAIN])):
        check(backbone, ids, mask, content, [[hidden(d), ffn(max(d, 1))] for d in depths], {0: {0, 2}})


def test_a_model_whose_blocks_are_in_several_lists_is_read_plainly(fresh, monkeypatch, caplog):
    monkeypatch.setattr(descents, "with_blocks", lambda *_: None)
    ids, mask, content = batch(fresh)
    with caplog.at_level(logging.INFO, "sonde.read.descent"):
        check(fresh, ids, mask, content, [[hidden(1)], [ffn(2), hidden(2)], [hidden(3)]], {0: {0, 2}}, saves=False)
    assert "its rows cannot leave at depths (1, 2, 3)" in caplog.text


def test_a_model_that_pads_inside_has_the_values_of_plain_reading():
    settings = {**tiny.ARCHITECTURES["roberta"][2], "attention_window": 4}
    backbone = saved("longformer-stages", "Longformer", "roberta", settings)
    ids, mask, content = batch(backbone)
    stages = [[hidden(1), ffn(1)], [hidden(2)], [hidden(3)]]
    plain, script = backbone.read(ids, mask, content, [w for s in stages for w in s]), Script({0: {0}, 1: {4}})
    assert backbone.read_in_stages(ids, mask, content, stages, script).tolist() == [0, 2, 2, 2, 1, 2]
    for _, rows, values in script.seen:
        for want, vectors in values.items():
            close(vectors, plain[want][rows])


@pytest.fixture
def fresh():
    """A backbone whose ways are not known yet, and are forgotten afterwards."""
    backbone = tiny_backbone("bert")
    kept, backbone._descent._axes = backbone._descent._axes, {}
    yield backbone
    backbone._descent._axes = kept


def test_gates_that_pick_other_rows_are_found_out(fresh, monkeypatch, caplog):
    ids, mask, content = batch(fresh)
    picked = Gates.pick

    def reversed_pick(self, tensor):
        out = picked(self, tensor)
        return out if tensor.ndim == 3 or out is tensor else out.flip(0)  # only the masks are of other rows

    monkeypatch.setattr(Gates, "pick", reversed_pick)
    with caplog.at_level(logging.INFO, "sonde.read.descent"):
        check(fresh, ids, mask, content, [[hidden(1)], [hidden(2)]], {0: {0, 2}}, saves=False)
    assert "its rows cannot leave" in caplog.text


def test_an_argument_never_seen_before_counts_as_rows_unless_it_may_be_tokens(fresh, caplog):
    ids, mask, content = batch(fresh)
    stages = [[hidden(0)], [hidden(1)], [hidden(2)], [hidden(3)]]
    axes = fresh._descent._known(stages)
    assert axes == {(0,): True, (1,): True}
    del axes[1,]  # the mask
    leaving = {0: {0, 2}, 1: {4}}
    check(fresh, ids, mask, content, stages, leaving)
    square = ids[:, :4], mask[:, :4], content[:, :4]  # four rows are left after stage 0
    plain, script = fresh.read(*square, [hidden(d) for d in range(4)]), Script(leaving)
    with caplog.at_level(logging.INFO, "sonde.read.descent"):
        assert fresh.read_in_stages(*square, stages, script).tolist() == [0, 3, 0, 3, 1, 3]
    assert not caplog.text  # the mask keeps the size that it had at the start
    square = ids[:, :6], mask[:, :6], content[:, :6]
    plain, script = fresh.read(*square, [hidden(d) for d in range(4)]), Script(leaving)
    with caplog.at_level(logging.INFO, "sonde.read.descent"):
        assert fresh.read_in_stages(*square, stages, script).tolist() == [0, 3, 0, 3, 1, 3]
    assert "the rest of a batch is read plainly: argument 1 has 6 rows or 6 tokens" in caplog.text
    assert [stage for stage, _, _ in script.seen] == [0, 1, 2, 3]  # nobody is asked twice
    for _, rows, values in script.seen:
        for want, vectors in values.items():
            close(vectors, plain[want][rows])


def test_an_argument_that_has_rows_in_some_calls_only_is_unclear():
    gates = Gates(tiny_backbone("bert")._forward.stacks[MAIN], 2, 7, 9, {("bias",): True}, False, lambda *_: None)
    gates.shrink(torch.tensor([0, 2, 5]))
    assert gates.pick(torch.arange(7)).tolist() == [0, 2, 5]
    assert gates.pick(torch.arange(3)).tolist() == [0, 1, 2]
    assert gates._select(torch.zeros(1, 4), ("bias",)).shape == (1, 4)
    nested = {"bias": (torch.arange(7), [torch.arange(5), None], torch.tensor(1.0))}
    found = gates._select({"other": nested}, ())["other"]["bias"]
    assert [part.tolist() for part in (found[0], found[1][0], found[2])] == [[0, 2, 5], [0, 1, 2, 3, 4], 1.0]
    with pytest.raises(UnclearRows, match="argument bias has rows in some calls only"):
        gates._select({"bias": torch.zeros(6, 4)}, ())


@pytest.mark.parametrize("error", [RuntimeError("of mine"), KeyError("mine"), ReadingError("mine")])
def test_errors_of_the_callers_function_come_out_and_it_is_not_asked_again(error):
    backbone = tiny_backbone("bert")
    ids, mask, content = batch(backbone)
    asked = []

    def fail(stage, rows, values):
        asked.append(stage)
        raise error

    backbone.read_in_stages(ids, mask, content, [[hidden(1)], [hidden(2)]], Script({}))
    before = count_hooks(backbone)  # transformers leaves some of its own
    with pytest.raises(type(error)) as caught:
        backbone.read_in_stages(ids, mask, content, [[hidden(1)], [hidden(2)]], fail)
    assert caught.value is error
    assert asked == [0]
    assert count_hooks(backbone) == before


def count_hooks(backbone):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone._forward.model.modules())


def test_an_answer_that_is_no_yes_or_no_for_each_row_fails():
    backbone = tiny_backbone("bert")
    ids, mask, content = batch(backbone)
    stages = [[hidden(1)], [hidden(2)]]
    with pytest.raises(AssertionError, match="one yes or no for each row"):
        backbone.read_in_stages(ids, mask, content, stages, lambda *_: torch.ones(5, dtype=torch.bool))
    for answer in (torch.ones(6), None, [True] * 6):
        with pytest.raises(AssertionError, match="a bool tensor"):
            backbone.read_in_stages(ids, mask, content, stages, lambda *_, a=answer: a)
    assert backbone.read_in_stages(ids, mask, content, stages[:1], lambda *_: None).tolist() == [0] * 6


def test_reading_within_the_function_disturbs_nothing():
    backbone = tiny_backbone("bert")
    ids, mask, content = batch(backbone)
    stages = [[hidden(1)], [hidden(2)], [hidden(3)]]
    plain, script = backbone.read(ids, mask, content, [hidden(d) for d in (1, 2, 3)]), Script({0: {1}, 1: {2}})

    def nested(stage, rows, values):
        if stage == 1:
            backbone.read_in_stages(ids[:4], mask[:4], content[:4], stages, Script({0: {0}}))
        return script(stage, rows, values)

    assert backbone.read_in_stages(ids, mask, content, stages, nested).tolist() == [2, 0, 1, 2, 2, 2]
    for _, rows, values in script.seen:
        for want, vectors in values.items():
            close(vectors, plain[want][rows])


# ------------------------------------------------------------------------------------------- texts


class Rule:
    """A row goes on if its text's letters say so; collects what it was told, by stage and row."""

    def __init__(self, texts, share=0.5):
        self.texts, self.share, self.told = texts, share, {}

    def stays(self, row, stage):
        return random.Random(ascii(self.texts[row]) + str(stage)).random() < self.share

    def __call__(self, stage, rows, values):
        assert rows.dtype == np.int64
        for place, row in enumerate(rows.tolist()):
            assert (stage, row) not in self.told
            self.told[stage, row] = {name: array[place] for name, array in values.items()}
        return np.array([self.stays(row, stage) for row in rows.tolist()], dtype=bool)


def staged_blocks(one, specs=("hidden.0", "hidden.1", "hidden.3"), poolings=("mean", "max")):
    return [[block for how in poolings for block in expand_blocks(0, one, spec, how)] for spec in specs]


def check_texts(texts, one, stages, budget=None, share=0.5):
    rule = Rule(texts, share)
    staged = read_in_stages(texts, one, stages, rule, budget)
    window = read(texts, {0: one}, [block for stage in stages for block in stage])
    assert (staged.tokens == window.tokens[0]).all() and (staged.lost == window.lost[0]).all()
    last = len(stages) - 1
    expected = [next((s for s in range(last) if not rule.stays(row, s)), last) for row in range(len(texts))]
    assert staged.reached.tolist() == expected
    assert rule.told.keys() == {(stage, row) for row, top in enumerate(expected) for stage in range(top + 1)}
    for (stage, row), values in rule.told.items():
        assert values.keys() == {block.name for before in stages[: stage + 1] for block in before}
        for name, vector in values.items():
            scale = np.abs(window.blocks[name]).max()
            assert vector.dtype == np.float32
            assert np.abs(vector - window.blocks[name][row]).max() <= 1e-5 * scale, (name, stage, row)
    return staged


@pytest.mark.parametrize("name", EVERY)
def test_texts_have_the_values_of_extract(name):
    texts = made_texts(30, seed=3)
    check_texts(texts, source(name), staged_blocks(source(name)), 256)


def test_batches_order_and_windows_change_nothing(monkeypatch):
    texts = made_texts(40, seed=4)
    one = source("bert")
    stages = staged_blocks(one, ("hidden.1", "ffn.2", "hidden.3"))
    staged = check_texts(texts, one, stages)
    assert 0 < (staged.reached == 0).sum() < (staged.reached < 2).sum() < len(texts)
    for budget in (1, 64, 200):
        assert (check_texts(texts, one, stages, budget).reached == staged.reached).all()
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = check_texts([texts[i] for i in order], one, stages, 128)
    assert (shuffled.reached == staged.reached[order]).all()
    monkeypatch.setattr("sonde.read.extract.WINDOW_ROWS", 7)
    assert (check_texts(texts, one, stages, 128).reached == staged.reached).all()


def test_fewer_blocks_run_for_texts_that_leave():
    texts = made_texts(40, seed=5)
    one = source("llama")
    stages = staged_blocks(one, ("hidden.1", "hidden.2", "hidden.3"))
    check_texts(texts, one, stages)
    with run_rows(one.backbone) as counts:
        reached = read_in_stages(texts, one, stages, Rule(texts)).reached
    assert counts == {1: 40, 2: (reached >= 1).sum(), 3: (reached >= 2).sum()}


def test_equal_texts_are_read_once_and_every_row_is_asked_for():
    one = source("bert")
    texts = [tiny.SENTENCES[i] for i in (0, 1, 0, 2, 1, 0)]
    stages = staged_blocks(one, ("hidden.1", "hidden.2"))
    check_texts(texts, one, stages)
    asked = []

    def only_row_five(stage, rows, values):
        asked.append((stage, rows.tolist()))
        return rows == 5

    with run_rows(one.backbone) as counts:
        staged = read_in_stages(texts, one, stages, only_row_five)
    assert counts == {1: 3, 2: 1, 3: 0}  # one text goes on because one of its rows does
    assert staged.reached.tolist() == [0, 0, 0, 0, 0, 1]
    assert [row for stage, rows in asked if stage == 1 for row in rows] == [5]
    assert sorted(row for stage, rows in asked if stage == 0 for row in rows) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("long_text", ["cut", "head_tail", "windows"])
def test_long_texts(name, long_text):
    one = source(name, 12, long_text)
    texts = [*made_texts(20, longest=40, seed=6), "good", tiny.SENTENCES[0], tiny.SENTENCES[0]]
    stages = staged_blocks(one, poolings=("mean", "max", "last", "mean_content"))
    staged = check_texts(texts, one, stages, 64)
    assert (staged.lost.max() > 0) == (long_text != "windows")
    check_texts([text for text in texts if len(text.split()) > 14], one, stages, 64)  # no single piece under windows


def test_some_columns_of_a_block():
    one = source("bert")
    chosen = Block(0, Site(MAIN, "ffn", 2), "max", (1, 7, 30))
    check_texts(made_texts(12, seed=7), one, [staged_blocks(one)[0], [chosen]])


def test_the_sentence_embedding_is_of_length_one(monkeypatch):
    one = source("t5")
    monkeypatch.setattr(one.backbone, "_sentence", replace_normalise(one.backbone.sentence))
    check_texts(made_texts(12, seed=8), one, [staged_blocks(one)[1], expand_blocks(0, one, "sentence", "")])


def replace_normalise(sentence):
    return type(sentence)(sentence.site, sentence.pooling, normalise=True)


def test_stages_without_blocks_are_decided_before_the_model_runs():
    one = source("bert")
    texts = made_texts(12, seed=9)
    check_texts(texts, one, [[], *staged_blocks(one)])
    stages = [[], staged_blocks(one)[1]]
    check_texts(texts, one, stages)
    with run_rows(one.backbone) as counts:
        reached = read_in_stages(texts, one, stages, lambda stage, rows, _: rows < 2).reached
    assert counts == {1: 2, 2: 0, 3: 0}
    assert reached.tolist() == [1, 1, *[0] * 10]


def test_no_texts_and_strange_texts():
    one = source("bert")
    stages = staged_blocks(one)
    nothing = read_in_stages([], one, stages, lambda *_: pytest.fail("asked"))
    assert isinstance(nothing, Staged) and nothing.reached.shape == nothing.tokens.shape == nothing.lost.shape == (0,)
    check_texts(["", " ", "\ud800", "good", "\ufffd"], one, stages)


def test_values_are_rounded_as_the_store_does():
    one = source("bert")
    half = type(one)(load_backbone(str(tiny.build("bert")), dtype="bfloat16", device="cpu"), one.view)
    stages, texts = staged_blocks(half), made_texts(12, seed=10)
    plain = read(texts, {0: half}, [block for stage in stages for block in stage])

    def rounded(stage, rows, values):
        for name, array in values.items():
            assert (torch.from_numpy(array).bfloat16().float().numpy() == array).all()
            assert np.abs(array - plain.blocks[name][rows]).max() <= 2e-2 * np.abs(plain.blocks[name]).max()
        return rows % 2 == 0

    assert read_in_stages(texts, half, stages, rounded).reached.tolist() == [2, 0] * 6
    with run_rows(half.backbone) as counts:
        read_in_stages(texts, half, stages, rounded)
    assert counts == {1: 6, 2: 6, 3: 6}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_name_the_row_and_the_site(value, monkeypatch):
    one = source("bert")
    texts = [tiny.SENTENCES[i] for i in (0, 0, 1, 1, 4, 5)]
    parcel = one.backbone.tokenizer("parcel", add_special_tokens=False)["input_ids"][0]
    whole = one.backbone.read_in_stages

    def poisoned(ids, mask, content, stages, goes_on):
        def answer(stage, rows, values):
            bad = (ids[rows] == parcel).any(dim=1)
            for (site, how), vectors in values.items():
                if str(site) == "hidden.2" and how == "mean":
                    vectors[bad] = value
            return goes_on(stage, rows, values)

        return whole(ids, mask, content, stages, answer)

    monkeypatch.setattr(one.backbone, "read_in_stages", poisoned)
    stages = staged_blocks(one, ("hidden.1", "hidden.2"))
    sentence = r"gave NaN or infinity at site hidden\.2 \(mean\) for row 5\. .*dtype='float32'"
    for rows in (4096, 2):
        monkeypatch.setattr("sonde.read.extract.WINDOW_ROWS", rows)
        with pytest.raises(ReadingError, match=sentence):
            read_in_stages(texts, one, stages, lambda stage, rows, values: np.ones(len(rows), dtype=bool))
    read_in_stages(texts, one, stages, lambda stage, rows, values: rows != 4)  # what is not read cannot be damaged


def test_answers_and_blocks_are_checked():
    one = source("bert")
    with pytest.raises(AssertionError, match="one yes or no for each row"):
        read_in_stages(["good"], one, staged_blocks(one), lambda stage, rows, values: [True, True])
    two = [[Block(0, Site(MAIN, "hidden", 1), "mean")], [Block(1, Site(MAIN, "hidden", 2), "mean")]]
    with pytest.raises(AssertionError, match="one backbone"):
        read_in_stages(["good"], one, two, lambda stage, rows, values: rows >= 0)


def test_progress_counts_distinct_texts(monkeypatch):
    counted = []

    @contextmanager
    def track(name, total, unit):
        counted.append((name, total, unit))
        yield counted.append

    monkeypatch.setattr(stages_module, "track", track)
    one = source("bert")
    read_in_stages(["good", "good", "bad"], one, staged_blocks(one), lambda stage, rows, values: rows >= 0)
    assert counted == [("reading", 2, "rows"), 2]
