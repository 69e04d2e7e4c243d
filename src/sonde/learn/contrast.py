"""What is asked of logits: one label against the others, as a sum that is linear in them.

Contrast   a score, its direction in the logits, and a constant
contrast   logits, label -> Contrast
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True)
class Contrast:
    """score = direction . logits + constant."""

    label: int
    """Column of the label."""
    against: int | None
    """Column of the other label; None: all others together."""
    probability: float
    """Of the label."""
    score: float
    """Log-odds of the label."""
    direction: Float64[np.ndarray, " class"]
    """The gradient of the score in the logits."""
    constant: float
    """Of single-label models without `against`: minus the entropy, in nats, of the other labels' probabilities."""


def contrast(
    logits: Float64[np.ndarray, " class"], label: int, against: int | None = None, *, multilabel: bool = False
) -> Contrast:
    """The log-odds of a label as a linear function of the logits that is exact at these logits.

    Parameters
    ----------
    logits : (class,)
        Divided by the temperature.
    label : int
    against : int, optional
        Another label; the score is then the log-odds between the two, z_label - z_against.
    multilabel : bool
        The score is then the label's own logit.

    Returns
    -------
    Contrast
        Without `against`: log p / (1 - p) = z_label - log sum exp z_rest = z_label - w . z_rest - H(w), where w are the
        probabilities of the others among themselves and H their entropy. e_label - w is also the gradient. With two
        classes w is 1, H is 0.
    """
    assert label != against, "a label is compared with another one"
    own = np.zeros(len(logits))  # class
    own[label] = 1
    if multilabel:
        return Contrast(label, None, _sigmoid(float(logits[label])), float(logits[label]), own, 0.0)
    others = np.delete(logits, label)
    rest = float(np.logaddexp.reduce(others))
    odds = float(logits[label]) - rest
    if against is not None:
        own[against] = -1
        return Contrast(label, against, _sigmoid(odds), float(logits[label] - logits[against]), own, 0.0)
    direction = own - np.insert(np.exp(others - rest), label, 0.0)  # class
    return Contrast(label, None, _sigmoid(odds), odds, direction, odds - float(direction @ logits))


def _sigmoid(logit: float) -> float:
    return float(np.exp(-np.logaddexp(0, -logit)))
