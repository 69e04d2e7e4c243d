"""Doubts: rows on which the model and the given labels disagree the most.

Doubt        a row, what is given, what the model says
mistakes     the errors of which the model is surest
mislabelled  rows whose given label is probably wrong, by confident learning
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from sonde.show.report.subject import Subject

SHOWN = 20
"""Rows of each list: what one reads through in a sitting, and what is explained in bounded time."""


@dataclass(frozen=True)
class Doubt:
    """A row on which the model and the given label disagree."""

    row: int
    """Its place among the labelled rows."""
    claimed: int
    """The class that is explained: predicted or suggested; multi-label: the label that is in question."""
    given: int | None
    """The class that is given; None for multi-label rows."""
    present: bool
    """Multi-label: whether the model says that the label is there. Else True."""
    probability: float
    """Of what the model claims."""
    given_probability: float
    """Of what is given."""


def mistakes(subject: Subject) -> list[Doubt]:
    """The wrong answers of the highest probability; labels that the model does not know are no answer's mistake."""
    if subject.multilabel:
        wrong = subject.truth != subject.decided
        sure = np.where(subject.decided, subject.judged.probabilities, 1 - subject.judged.probabilities)
        rows, labels = np.nonzero(wrong)
        order = np.argsort(-sure[rows, labels], kind="stable")[:SHOWN]
        return [_decision(subject, int(rows[i]), int(labels[i])) for i in order]
    rows = np.flatnonzero(~subject.right & ~subject.foreign)
    said = subject.decided.argmax(axis=1)
    order = np.argsort(-subject.judged.probabilities[rows, said[rows]], kind="stable")[:SHOWN]
    return [_answer(subject, int(row), int(said[row])) for row in rows[order]]


def mislabelled(subject: Subject) -> tuple[list[Doubt], int]:
    """Rows whose given label is probably wrong, the likeliest first, and how many there are in all.

    A class is believed of a row if its probability reaches the mean probability that rows given this class have for
    it. A row is doubted if the most probable class that is believed is more probable than the one that is given; the
    doubt is the larger, the less probable the given class is beside it. Multi-label: the same for each label, between
    present and absent. Rows whose texts stand in the training or validation rows are left out: the model has learnt
    their labels, or was chosen by them.

    Source: Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels", sections
    3.1 (thresholds, confident joint) and 3.2 (rank by normalised margin).
    """
    usable = ~subject.judged.known & ~subject.foreign
    p = subject.judged.probabilities.astype(np.float64)  # row class
    if subject.multilabel:
        found = [
            _doubted(np.stack([1 - p[:, k], p[:, k]], axis=1), subject.truth[:, k].astype(np.int64), usable)
            for k in range(p.shape[1])
        ]
        pairs = [(margin, int(row), k) for k, (rows, _, margins) in enumerate(found)
                 for row, margin in zip(rows.tolist(), margins.tolist(), strict=True)]  # fmt: skip
        return [_decision(subject, row, k) for _, row, k in sorted(pairs)[:SHOWN]], len(pairs)
    rows, suggested, margins = _doubted(p, subject.given_ids, usable)
    order = np.argsort(margins, kind="stable")[:SHOWN]
    return [_answer(subject, int(rows[i]), int(suggested[i])) for i in order], len(rows)


def _doubted(
    p: Float64[np.ndarray, "row class"], given: Int64[np.ndarray, " row"], usable: Bool[np.ndarray, " row"]
) -> tuple[Int64[np.ndarray, " found"], Int64[np.ndarray, " found"], Float64[np.ndarray, " found"]]:
    """Rows that are doubted, the class that is suggested, and the margin of what is given: the lower the worse."""
    rows = np.flatnonzero(usable)
    p, given = p[rows], given[rows]
    own = p[np.arange(len(rows)), given]
    rows_of = np.bincount(given, minlength=p.shape[1])
    means = np.bincount(given, own, minlength=p.shape[1]) / np.maximum(rows_of, 1)
    believed = (p >= np.where(rows_of > 0, means, np.inf)) & (p > 0)  # row class; nothing is known of absent classes
    suggested = np.where(believed, p, -1.0).argmax(axis=1)  # row class -> row
    margins = own - p[np.arange(len(rows)), suggested]
    doubted = np.flatnonzero(believed.any(axis=1) & (margins < 0))
    return rows[doubted], suggested[doubted], margins[doubted]


def _answer(subject: Subject, row: int, claimed: int) -> Doubt:
    given, p = int(subject.given_ids[row]), subject.judged.probabilities[row]
    return Doubt(row, claimed, given, True, float(p[claimed]), float(p[given]))


def _decision(subject: Subject, row: int, label: int) -> Doubt:
    """The model says the opposite of what is given."""
    present = not subject.truth[row, label]
    p = float(subject.judged.probabilities[row, label])
    return Doubt(row, label, None, present, p if present else 1 - p, 1 - p if present else p)
