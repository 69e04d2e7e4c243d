"""Intervals: how far a figure on so few rows may be from what it is on many more.

wilson       a share of rows -> its 95% interval
newcombe     two shares, each of rows of its own -> the 95% interval of the first less the second
around       a mean loss over rows -> its 95% interval
resampled    any measure of truth and decisions -> its 95% interval, by bootstrap
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

NORMAL = 1.959963984540054
"""The normal distribution has 95% of its weight within so many standard deviations."""

DRAWS = 1000
"""Of a bootstrap: its 2.5% and 97.5% quantiles then rest on 25 draws each."""

FEWEST_DRAWS, WORK = 100, 5 * 10**8
"""Where rows are of very many kinds and labels are many: draws at least, and decisions that are counted in all."""

Interval = tuple[float, float]
Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
"""Truth, decisions, weights of the rows -> a figure, as in `sonde.learn.metrics`."""


def wilson(right: float, rows: float) -> Interval:
    """The interval of a share; all of 0 to 1 where there are no rows.

    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".
    """
    if not rows:
        return 0.0, 1.0
    share, spread = right / rows, NORMAL**2 / rows
    centre = (share + spread / 2) / (1 + spread)
    half = NORMAL * math.sqrt(share * (1 - share) / rows + spread / (4 * rows)) / (1 + spread)
    return (centre - half if right else 0.0), (centre + half if right < rows else 1.0)  # exact at both ends


def newcombe(right: float, rows: float, other_right: float, other_rows: float) -> Interval:
    """The interval of a share less a share of other rows, from the intervals of Wilson of both.

    Source: Newcombe 1998, "Interval Estimation for the Difference Between Independent Proportions", method 10.
    """
    one, other = right / rows, other_right / other_rows
    low, high = wilson(right, rows)
    other_low, other_high = wilson(other_right, other_rows)
    return (
        one - other - math.hypot(one - low, other_high - other),
        one - other + math.hypot(high - one, other - other_low),
    )


def around(values: Float[np.ndarray, " row"]) -> Interval | None:
    """The mean of losses, none below 0, divided and multiplied by what 1.96 of its standard errors are of it.

    That is the normal interval of the logarithm of the mean (delta method): it never reaches below 0. None where there
    is one row alone, which says nothing of others.
    """
    if len(values) < 2:
        return None
    mean = float(values.mean())
    if mean <= 0:
        return mean, mean
    factor = math.exp(NORMAL * float(values.std(ddof=1)) / math.sqrt(len(values)) / mean)
    return mean / factor, mean * factor


def resampled(
    measure: Measure,
    truth: Shaped[np.ndarray, "row class"],
    decided: Bool[np.ndarray, "row class"],
    seed: int = 0,
    unknown: Int[np.ndarray, " row"] | None = None,
) -> Interval:
    """The 2.5% and 97.5% quantiles of the measure over rows drawn with replacement, less the bias of the draws.

    F1 of classes with few rows is lower in a draw, which misses some of their rows, than in the rows that it is drawn
    from: the mean of the draws less the measure of all rows. Without that the interval would be too low twice over.

    Where every decision is right, or all draws give the same, they know of no rows that are otherwise. The share that
    Wilson's interval of as many rows, all alike, leaves open may then count for nothing, or be all right.

    So many labels of each row are `unknown`, beside the classes, and are missed.

    Rows with the same truth and the same decision are one kind. How often each kind is drawn has a multinomial
    distribution, so that the work grows with the kinds and not with the rows.

    Source: Efron 1979, "Bootstrap Methods: Another Look at the Jackknife" (percentile interval, bias).
    """
    if unknown is not None and unknown.any():  # classes more, which nobody decides for
        missed = unknown[:, None] > np.arange(unknown.max())  # row missed
        truth = np.concatenate([truth, missed], axis=1)
        decided = np.concatenate([decided, np.zeros_like(missed)], axis=1)
    pairs = np.concatenate([truth > 0, decided], axis=1)  # row class -> row 2class
    kinds, rows = np.unique(pairs, axis=0, return_counts=True)  # kind 2class
    true, said = np.split(kinds, 2, axis=1)  # kind class
    draws = max(FEWEST_DRAWS, min(DRAWS, WORK // kinds.size))
    rng, shares = np.random.default_rng(seed), rows / len(truth)
    found = [measure(true, said, rng.multinomial(len(truth), shares).astype(np.float64)) for _ in range(draws)]
    point = measure(true, said, rows.astype(np.float64))
    if (true == said).all() or min(found) == max(found):
        alike = wilson(len(truth), len(truth))[0]
        return point * alike, 1 - (1 - point) * alike
    low, high = np.quantile(found, (0.025, 0.975)) + (point - np.mean(found))
    return max(float(low), 0.0), min(float(high), 1.0)
