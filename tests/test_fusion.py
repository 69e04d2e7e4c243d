"""The operators of LLMEmbed's Table 1 against plain loops, and the sentences of missing roles."""

import math
import statistics
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.errors import ArgumentError, RecipeError, SondeWarning
from sonde.learn import fusion, head
from sonde.learn.fusion import ROWS, Fusion, Roles, assign
from sonde.learn.head import DEFAULT, FusionNetwork, Standardise, predict

Lists = list[list[list[float]]]  # block row feature


@st.composite
def equal_blocks(draw, widest=4, most=4, largest=8.0):
    """Several blocks of one width, as nested lists."""
    blocks, rows, width = draw(st.integers(1, most)), draw(st.integers(1, 3)), draw(st.integers(1, widest))
    value = st.floats(-largest, largest, width=32)
    row = st.lists(value, min_size=width, max_size=width)
    return draw(st.lists(st.lists(row, min_size=rows, max_size=rows), min_size=blocks, max_size=blocks))


def tensors(blocks: Lists) -> list[torch.Tensor]:
    return [torch.tensor(block, dtype=torch.float64) for block in blocks]


def loop_power_normalise(x: float, sigma: float) -> float:
    """The left-hand side of equation 4, as printed."""
    return (1 - math.exp(-sigma * x)) / (1 + math.exp(-sigma * x))


def loop_co_occurrence(blocks: Lists, sigma: float) -> list[list[float]]:
    rows = range(len(blocks[0]))
    return [
        [
            loop_power_normalise(sum(a * b for a, b in zip(x[row], y[row], strict=True)), sigma)
            for x in blocks
            for y in blocks
        ]
        for row in rows
    ]


def close(actual: torch.Tensor, expected: list) -> None:
    torch.testing.assert_close(actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


@given(equal_blocks())
@settings(deadline=None)
def test_average_equals_a_loop(blocks):
    rows, width = range(len(blocks[0])), range(len(blocks[0][0]))
    close(
        fusion.average(tensors(blocks)),
        [[sum(block[r][f] for block in blocks) / len(blocks) for f in width] for r in rows],
    )


@given(equal_blocks())
@settings(deadline=None)
def test_largest_equals_a_loop(blocks):
    rows, width = range(len(blocks[0])), range(len(blocks[0][0]))
    close(fusion.largest(tensors(blocks)), [[max(block[r][f] for block in blocks) for f in width] for r in rows])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 3))
@settings(deadline=None)
def test_concatenate_equals_a_loop_for_any_widths(widths, rows):
    blocks = [[[float(100 * b + 10 * r + f) for f in range(w)] for r in range(rows)] for b, w in enumerate(widths)]
    expected = [[value for block in blocks for value in block[r]] for r in range(rows)]
    close(fusion.concatenate(tensors(blocks)), expected)


@given(equal_blocks(), st.floats(0.01, 2.0))
@settings(deadline=None)
def test_co_occurrence_equals_a_loop(blocks, sigma):
    stacked = torch.stack(tensors(blocks), dim=1)
    close(fusion.co_occurrence(stacked, sigma), loop_co_occurrence(blocks, sigma))


@given(st.floats(-500, 500), st.floats(0.01, 1.0))
@settings(deadline=None)
def test_power_normalise_is_the_left_hand_side_of_equation_4(x, sigma):
    value = float(fusion.power_normalise(torch.tensor(x, dtype=torch.float64), sigma))
    assert value == pytest.approx(loop_power_normalise(x, sigma), abs=1e-9)
    assert -1 <= value <= 1
    assert float(fusion.power_normalise(torch.tensor(-x, dtype=torch.float64), sigma)) == pytest.approx(-value)


def test_power_normalise_is_not_the_right_hand_side_of_the_paper():
    x = torch.tensor(3.0)
    assert abs(float(fusion.power_normalise(x, 0.2)) - math.tanh(2 * 0.2 * 3.0)) > 0.5


def test_power_normalise_does_not_overflow():
    values = fusion.power_normalise(torch.tensor([-1e30, 0.0, 1e30]), 0.2)
    assert values.tolist() == [-1.0, 0.0, 1.0]


@given(equal_blocks())
@settings(deadline=None)
def test_median_product_equals_a_loop_over_pairs_of_different_blocks(blocks):
    if len(blocks) < 2:
        return
    products = [
        abs(sum(a * b for a, b in zip(blocks[i][r], blocks[j][r], strict=True)))
        for r in range(len(blocks[0]))
        for i in range(len(blocks))
        for j in range(i)
    ]
    # torch takes the lower of the two middle values
    expected = statistics.median_low(products)
    actual = fusion.median_product(fusion.products(torch.stack(tensors(blocks), dim=1)))
    assert actual == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_rows_are_measured_and_predicted_in_parts(monkeypatch):
    """Some of the rows, in any order, more of them than are worked on together."""
    rng = np.random.default_rng(0)
    block = torch.from_numpy(rng.normal(3, 5, (50, 6)).astype(np.float32))
    torch.manual_seed(0)
    rows, weights = torch.randperm(50)[:33], torch.rand(50)
    network = FusionNetwork(4, Roles((6, 6), ()), 3, DEFAULT)
    network.measure([block, 2 * block], weights, rows)
    means, expected = [to.mean.clone() for to in network.standardise], predict(network, [block, block])
    monkeypatch.setattr(head, "PREDICTION_ROWS", 7)
    network.measure([block, 2 * block], weights, rows)
    share = weights[rows] / weights[rows].sum()
    for to, mean, scale in zip(network.standardise, means, (1, 2), strict=True):
        torch.testing.assert_close(to.mean, mean)
        torch.testing.assert_close(to.mean, scale * (share @ block[rows]))
    torch.testing.assert_close(predict(network, [block, block]), expected)
    torch.testing.assert_close(predict(network, [block, block], rows), expected[rows])


def test_standardise_equals_numpy_and_weights_equal_repeats():
    rng = np.random.default_rng(0)
    block = rng.normal(3, 5, (40, 6)).astype(np.float32)
    block[:, 2] = 1234.5  # constant: centred, not scaled
    weights = rng.integers(0, 4, 40)
    weighted, repeated = Standardise(6), Standardise(6)
    weighted.measure(torch.from_numpy(block), torch.from_numpy(weights).float(), torch.arange(40))
    many = np.repeat(block, weights, axis=0)
    repeated.measure(torch.from_numpy(many), torch.ones(len(many)), torch.arange(len(many)))
    expected = (block - many.mean(0)) / np.where(np.arange(6) == 2, 1, many.std(0))
    for standardise in (weighted, repeated):
        np.testing.assert_allclose(standardise(torch.from_numpy(block)).numpy(), expected, rtol=1e-3, atol=1e-3)


def test_a_block_as_a_whole_keeps_its_directions_and_has_root_mean_square_1():
    rng = np.random.default_rng(0)
    block, weights = rng.normal(3, 5, (40, 6)).astype(np.float32), rng.integers(0, 4, 40)
    standardise = Standardise(6, whole=True)
    standardise.measure(torch.from_numpy(block), torch.from_numpy(weights).float(), torch.arange(40))
    many = np.repeat(block, weights, axis=0)
    expected = block / np.sqrt(np.square(many, dtype=np.float64).mean())
    np.testing.assert_allclose(standardise(torch.from_numpy(block)).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(standardise.mean.numpy(), many.mean(0), rtol=1e-4)  # where explanations start
    standardise.measure(torch.zeros(40, 6), torch.ones(40), torch.arange(40))
    assert torch.isfinite(standardise(torch.from_numpy(block))).all()


@pytest.mark.parametrize("row", ROWS)
def test_only_blocks_that_are_multiplied_are_scaled_as_a_whole(row):
    network = FusionNetwork(row, Roles((6,), (6, 6) if row > 4 else ()), 3, DEFAULT)
    assert {to.whole for to in network.standardise} == {row in (14, 15)}


def test_a_unit_that_is_nearly_shut_is_not_scaled():
    block = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    block[:, 3] *= 1e-12  # GELU, far below 0
    standardise = Standardise(5)
    standardise.measure(block, torch.ones(40), torch.arange(40))
    assert standardise(torch.full((1, 5), 0.5))[0, 3] == pytest.approx(0.5)


def test_standardise_is_the_identity_until_it_has_measured():
    block = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Standardise(3)(block), block)


# The 15 rows

TITLES = {
    1: "L1", 2: "Avg(L)", 3: "Max(L)", 4: "Cat(L)",
    5: "Cat(Avg(L), B)", 6: "Cat(Max(L), B)", 7: "Cat(L, B)",
    8: "Cat(Avg(L), R)", 9: "Cat(Max(L), R)", 10: "Cat(L, R)",
    11: "Cat(Avg(L), B, R)", 12: "Cat(Max(L), B, R)", 13: "Cat(L, B, R)",
    14: "Co(L, B, R)", 15: "Cat(Co(L, B, R), Avg(L))",
}  # fmt: skip


def test_rows_are_those_of_table_1():
    assert {number: row.title for number, row in ROWS.items()} == TITLES
    assert [row.number for row in ROWS.values()] == list(range(1, 16))
    assert [n for n, row in ROWS.items() if row.uses_b] == [5, 6, 7, 11, 12, 13, 14, 15]
    assert [n for n, row in ROWS.items() if row.uses_r] == [8, 9, 10, 11, 12, 13, 14, 15]
    assert [n for n, row in ROWS.items() if row.learns_maps] == [14, 15]


def made(row: int, deep: list[torch.Tensor], sentences: list[torch.Tensor], **options) -> tuple[Fusion, torch.Tensor]:
    roles = assign(ROWS[row], deep, sentences)
    widths = Roles(tuple(b.shape[1] for b in roles.deep), tuple(b.shape[1] for b in roles.sentences))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2)
        module = Fusion(ROWS[row], widths, **{"calibrated": False, "dropout": 0.5, **options}).eval()
        return module, module(roles.deep, roles.sentences)


def some_blocks(deep_width=6, layers=3, sentence_widths=(4, 3), rows=5):
    generator = torch.Generator().manual_seed(1)
    deep = [torch.randn(rows, deep_width, generator=generator) for _ in range(layers)]
    return deep, [torch.randn(rows, width, generator=generator) for width in sentence_widths]


@pytest.mark.parametrize("number", range(1, 14))
@pytest.mark.parametrize("layers", [1, 3, 5])
def test_rows_without_maps_equal_a_loop(number, layers):
    deep, sentences = some_blocks(layers=layers)
    row = ROWS[number]
    _, actual = made(number, deep, sentences)
    chosen = ([sentences[0]] if row.uses_b else []) + ([sentences[1]] if row.uses_r else [])
    for r in range(5):
        values = [[float(v) for v in block[r]] for block in deep]
        if "Avg" in row.operators:
            fused = [sum(column) / layers for column in zip(*values, strict=True)]
        elif "Max" in row.operators:
            fused = [max(column) for column in zip(*values, strict=True)]
        else:
            fused = values[0] if number == 1 else [v for block in values for v in block]
        for block in chosen:
            fused += [float(v) for v in block[r]]
        close(actual[r], fused)


@pytest.mark.parametrize("number", [14, 15])
@pytest.mark.parametrize("sentence_widths", [(4, 4), (3, 4, 4), (4,), (2, 5)])
def test_rows_with_maps_equal_a_loop(number, sentence_widths):
    deep, sentences = some_blocks(sentence_widths=sentence_widths)
    module, actual = made(number, deep, sentences)
    common = max(sentence_widths)
    for r in range(5):
        stacked = [loop_map(to[0], block[r], relu=True) for to, block in zip(module.co.deep_maps, deep, strict=True)]
        for to, block in zip(module.co.sentence_maps, sentences, strict=True):
            narrow = block.shape[1] < common
            stacked.append(loop_map(to, block[r], relu=False) if narrow else [float(v) for v in block[r]])
        fused = loop_co_occurrence([[row] for row in stacked], 0.2)[0]
        if number == 15:
            fused += [sum(float(block[r, f]) for block in deep) / len(deep) for f in range(6)]
        close(actual[r], fused)
    assert actual.shape[1] == module.width


def loop_map(linear: torch.nn.Linear, row: torch.Tensor, relu: bool) -> list[float]:
    out = []
    for weights, bias in zip(linear.weight.tolist(), linear.bias.tolist(), strict=True):
        value = sum(w * v for w, v in zip(weights, row.tolist(), strict=True)) + bias
        out.append(max(0.0, value) if relu else value)
    return out


def test_the_papers_sizes():
    """Table 1 and the released code: 7 blocks give 49 values, row 15 has 49 + 4096 = 4145."""
    widths = Roles((4096,) * 5, (1024, 1024))
    with torch.device("meta"):
        assert Fusion(ROWS[14], widths, calibrated=False, dropout=0.5).width == 49
        assert Fusion(ROWS[15], widths, calibrated=False, dropout=0.5).width == 4145
        assert Fusion(ROWS[13], widths, calibrated=False, dropout=0.5).width == 5 * 4096 + 2 * 1024


def test_calibrate_sets_sigma_to_one_over_the_median_product():
    deep, sentences = some_blocks()
    module, _ = made(14, deep, sentences, calibrated=True)
    module.co.calibrate(deep, sentences)
    with torch.no_grad():
        x = module.co.stack(deep, sentences)
    pairs = [abs(float(x[r, i] @ x[r, j])) for r in range(5) for i in range(5) for j in range(i)]
    assert float(module.co.sigma) == pytest.approx(1 / statistics.median_low(pairs), rel=1e-4)
    values = module(deep, sentences).detach().abs()
    assert 0.4 < float(values.median()) < 0.7  # tanh(1/2) = .46: neither zero nor saturated


def test_calibrate_leaves_the_papers_sigma_alone():
    deep, sentences = some_blocks()
    module, _ = made(14, deep, sentences, calibrated=False)
    module.co.calibrate(deep, sentences)
    assert float(module.co.sigma) == pytest.approx(0.2)


def test_gradients_reach_the_maps_through_pn_and_products():
    deep, sentences = some_blocks(sentence_widths=(4, 3))
    module, _ = made(14, deep, sentences, calibrated=True)
    module(deep, sentences).sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in module.parameters())


# Roles


def test_row_1_takes_the_last_block_and_the_others_all():
    assert assign(ROWS[1], ["d1", "d2"], ["B"]) == Roles(("d1",), ())
    assert assign(ROWS[4], ["d1", "d2"], ["B"]) == Roles(("d1", "d2"), ())
    assert assign(ROWS[7], ["d1"], ["B", "R"]) == Roles(("d1",), ("B",))
    assert assign(ROWS[10], ["d1"], ["B", "R"]) == Roles(("d1",), ("R",))
    assert assign(ROWS[13], ["d1"], ["B", "R", "S"]) == Roles(("d1",), ("B", "R"))
    assert assign(ROWS[15], ["d1"], ["B", "R", "S"]) == Roles(("d1",), ("B", "R", "S"))
    assert assign(ROWS[14], ["d1"], ["B"]) == Roles(("d1",), ("B",))


@pytest.mark.parametrize("number", [8, 9, 10])
def test_with_one_sentence_backbone_rows_8_to_10_repeat_5_to_7_and_say_so(number):
    with pytest.warns(SondeWarning, match=f"LLMEmbed row {number} uses .*repeats row {number - 3}") as caught:
        roles = assign(ROWS[number], ["d1", "d2"], ["B"])
    assert [w.message.code for w in caught if isinstance(w.message, SondeWarning)] == ["repeated_row"]
    assert roles == assign(ROWS[number - 3], ["d1", "d2"], ["B"])


def test_no_warning_where_nothing_is_repeated():
    with warnings.catch_warnings():
        warnings.simplefilter("error", SondeWarning)
        for row in ROWS.values():
            assign(row, ["d1"], ["B", "R"])


@pytest.mark.parametrize("number", range(1, 16))
def test_a_missing_deep_role_is_named(number):
    with pytest.raises(RecipeError, match=f"row {number} needs the deep role: pass a deep backbone first"):
        assign(ROWS[number], [], ["B", "R"])


@pytest.mark.parametrize("number", range(5, 16))
def test_a_missing_sentence_role_is_named(number):
    role = "R" if number in (8, 9, 10) else "B"
    with pytest.raises(RecipeError, match=f"row {number} needs the sentence role {role}: pass a second backbone"):
        assign(ROWS[number], ["d1"], [])


@pytest.mark.parametrize("number", [11, 12, 13])
def test_a_missing_second_sentence_role_is_named(number):
    with pytest.raises(RecipeError, match=f"row {number} needs the sentence role R beside B: pass a third backbone"):
        assign(ROWS[number], ["d1"], ["B"])


@pytest.mark.parametrize("number", [0, 16, -1, True, "15", None])
def test_an_unknown_row_is_refused(number):
    with pytest.raises(ArgumentError, match="is unknown; it must be a number from 1 to 15"):
        fusion.row_of(number)


def test_pooling_deep_blocks_of_different_widths_is_refused():
    widths = Roles((6, 4), (4,))
    for number, operator in ((2, "Avg"), (3, "Max"), (15, "Avg")):
        with pytest.raises(RecipeError, match=f"{operator} needs deep blocks of one width, but they have 6, 4"):
            Fusion(ROWS[number], widths if number == 15 else Roles((6, 4), ()), calibrated=True, dropout=0.0)
    assert Fusion(ROWS[7], widths, calibrated=True, dropout=0.0).width == 14
    assert Fusion(ROWS[14], widths, calibrated=True, dropout=0.0).width == 9
