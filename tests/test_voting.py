"""Voting: several answers, one label."""

import numpy as np

from sonde.baselines.voting import vote


def test_majority_and_weights() -> None:
    labels = np.array([[0, 1, 1], [2, 0, 0], [1, 0, 2], [-1, -1, 2], [-1, -1, -1]])
    even = vote(labels, np.ones(labels.shape), 3)
    assert even.chosen.tolist() == [1, 0, 1, 2, -1]  # of equals the one named first
    assert np.allclose(even.shares, [[1 / 3, 2 / 3, 0], [2 / 3, 0, 1 / 3], [1 / 3] * 3, [0, 0, 1], [1 / 3] * 3])
    assert even.failed.sum(axis=1).tolist() == [0, 0, 0, 2, 3]
    weights = np.array([[0.9, 0.3, 0.3], [0.5, 0.3, 0.3], [0.1, 0.2, 0.3], [1, 1, 0.0], [1, 1, 1]])
    weighed = vote(labels, weights, 3)
    assert weighed.chosen.tolist() == [0, 0, 2, 2, -1]
    assert np.allclose(weighed.shares[0], [0.6, 0.4, 0]) and np.allclose(weighed.shares.sum(axis=1), 1)


def test_no_rows() -> None:
    none = vote(np.empty((0, 5), dtype=np.int64), np.empty((0, 5)), 3)
    assert none.chosen.shape == (0,) and none.shares.shape == (0, 3)
