import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.read.batching import ENOUGH_TOKENS, MAX_PADDING, collate, plan
from sonde.read.view import Pieces

LENGTHS = st.lists(st.integers(1, 600), max_size=300)
BUDGETS = st.integers(1, 5000)


def tokens(batch, lengths):
    return [lengths[i] for i in batch]


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_a_plan_is_a_partition_within_the_budget(lengths, budget):
    batches = plan(lengths, budget)
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(tokens(batch, lengths)) <= budget


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_padding_is_bounded(lengths, budget):
    for batch in plan(lengths, budget):
        own = tokens(batch, lengths)
        padded = len(own) * max(own)
        assert padded - sum(own) <= MAX_PADDING * padded


@settings(deadline=None)
@given(LENGTHS, BUDGETS)
def test_a_plan_is_a_pure_function(lengths, budget):
    first, second = plan(lengths, budget), plan(np.array(lengths, dtype=np.int64).tolist(), budget)
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in second]


def test_longest_first_and_ties_in_order():
    assert [batch.tolist() for batch in plan([3, 9, 3, 9], 18)] == [[1, 3], [0, 2]]


def test_a_piece_above_the_budget_goes_alone():
    assert [batch.tolist() for batch in plan([4, 100, 4], 10)] == [[1], [0, 2]]


def test_equal_lengths_fill_the_budget():
    assert [len(batch) for batch in plan([10] * 25, 100)] == [10, 10, 5]


def test_a_batch_that_is_full_enough_holds_one_length():
    lengths = [10] * 60 + [9] * 30
    batches = plan(lengths, 1000)
    assert ENOUGH_TOKENS * 1000 <= 600
    assert [set(tokens(batch, lengths)) for batch in batches] == [{10}, {9}]


def test_nothing_to_plan():
    assert plan([], 100) == []


def pieces(ids, prefix=1, suffix=1):
    zeros = np.zeros(len(ids), dtype=np.int64)
    return Pieces(ids, np.arange(len(ids)), prefix, suffix, zeros, zeros)


def test_collate_pads_on_the_right_and_the_mask_says_what_is_real():
    batch = collate(pieces([[1, 7, 8, 2], [1, 2], [1, 0, 2]]), np.array([2, 0, 1]), pad_id=0, causal=False)
    assert batch.ids.tolist() == [[1, 0, 2, 0], [1, 7, 8, 2], [1, 2, 0, 0]]
    assert batch.mask.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.content.int().tolist() == [[0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert batch.ids.dtype == torch.int64


def test_collate_has_no_mask_where_nothing_is_padded():
    assert collate(pieces([[1, 7, 2], [1, 8, 2]]), np.array([0, 1]), 0, causal=False).mask is None


@pytest.mark.parametrize(
    ("prefix", "suffix", "causal", "expected"),
    [
        (1, 0, True, [0, 1, 1, 1]),
        (0, 0, True, [0, 1, 1, 1]),
        (0, 0, False, [1, 1, 1, 1]),
        (0, 1, False, [1, 1, 1, 0]),
        (2, 1, True, [0, 0, 1, 0]),
    ],
)
def test_content_leaves_out_special_tokens_and_the_sink_of_causal_models(prefix, suffix, causal, expected):
    batch = collate(pieces([[5, 6, 7, 8]], prefix, suffix), np.array([0]), 0, causal)
    assert batch.content.int().tolist() == [expected]
