"""Voting: several answers to one prompt -> one label.

Ballot   what the answers say together
vote     labels and weights of each row's answers -> a ballot
VOTES    ways to weigh an answer
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

VOTES = ("majority", "weighted")


@dataclass(frozen=True)
class Ballot:
    """The outcome for each row."""

    shares: Float64[np.ndarray, "row class"]
    """Votes for each class over all votes of the row; a row without votes is even."""
    chosen: Int64[np.ndarray, " row"]
    """The class with most votes, -1 where no answer names one. Of equals, the one that was named first."""
    failed: Bool[np.ndarray, "row answer"]
    """Answers that name no label."""


def vote(labels: Int64[np.ndarray, "row answer"], weights: Float64[np.ndarray, "row answer"], classes: int) -> Ballot:
    """Count the votes of each row.

    Parameters
    ----------
    labels : (row, answer)
        Class that an answer names, -1 where it names none.
    weights : (row, answer)
        Ones for a majority vote; else the probability with which the model wrote the label.
    classes : int
    """
    rows, answers = labels.shape
    votes = np.zeros((rows, classes))  # row class
    counted = np.where(labels >= 0, np.maximum(weights, np.finfo(np.float64).tiny), 0.0)  # row answer
    for answer in range(answers):
        there = np.flatnonzero(labels[:, answer] >= 0)
        votes[there, labels[there, answer]] += counted[there, answer]
    total = votes.sum(axis=1, keepdims=True)  # (row, 1)
    shares = np.divide(votes, total, out=np.full_like(votes, 1 / classes), where=total > 0)
    best = votes >= votes.max(axis=1, keepdims=True, initial=0.0) * (1 - 1e-12)  # row class
    chosen = np.full(rows, -1, dtype=np.int64)
    for answer in reversed(range(answers)):  # the earliest of the best is written last
        label = labels[:, answer]
        wins = (label >= 0) & best[np.arange(rows), np.maximum(label, 0)]
        chosen = np.where(wins, label, chosen)
    return Ballot(shares, chosen, labels < 0)
