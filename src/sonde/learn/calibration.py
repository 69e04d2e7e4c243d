"""Logits -> probabilities that mean what they say, thresholds per label.

softmax, log_softmax, sigmoid    in numpy, without overflow
to_probabilities                 softmax, or sigmoid for multi-label data
decide                           probabilities -> predicted labels as an indicator
fit_temperature                  one number that the logits are divided by
fit_thresholds                   one threshold per label
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.optimize import minimize_scalar

from sonde.learn.targets import Targets

# Temperatures searched. Where the choosing rows are separated without error the loss falls for ever as the temperature
# goes to 0, and where the logits say nothing as it grows: the bounds keep probabilities usable in both cases.
TEMPERATURES = (0.05, 20.0)
# Nats by which all rows together must gain for a temperature a factor of e away from 1, twice that for e^1.4 and so on:
# rows that happen to be separated would drive each temperature of a model to its bound, and the product beyond use.
# Lexical models of 4 to 32 texts a class, five sets: test log loss at most .3% above that without it, up to 17% below.
PRIOR = 1.0
# A label with fewer positive rows keeps the threshold .5: the best threshold of a handful of rows follows their noise.
POSITIVES_FOR_THRESHOLD = 5


def softmax(logits: Float[np.ndarray, "row class"]) -> Float[np.ndarray, "row class"]:
    """Probabilities over classes, of the logits' dtype."""
    return np.asarray(np.exp(log_softmax(logits)))


def log_softmax(logits: Float[np.ndarray, "row class"]) -> Float[np.ndarray, "row class"]:
    """Log probabilities over classes."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def sigmoid(logits: Float[np.ndarray, "row class"]) -> Float[np.ndarray, "row class"]:
    """Probability of each label on its own."""
    return np.asarray(np.exp(-np.logaddexp(0, -logits)))


def to_probabilities(logits: Float[np.ndarray, "row class"], multilabel: bool) -> Float[np.ndarray, "row class"]:
    """Softmax for single-label data, sigmoid for multi-label data."""
    return sigmoid(logits) if multilabel else softmax(logits)


def decide(
    probabilities: Float[np.ndarray, "row class"],
    multilabel: bool,
    thresholds: Float[np.ndarray, " class"] | None = None,
) -> Bool[np.ndarray, "row class"]:
    """Predicted labels: the most probable class, or every label that reaches its threshold (.5 if none is given)."""
    if multilabel:
        return np.asarray(probabilities >= (0.5 if thresholds is None else thresholds))
    return np.asarray(np.arange(probabilities.shape[1]) == probabilities.argmax(axis=1)[:, None])


def fit_temperature(
    logits: Float[np.ndarray, "row class"], targets: Targets, weights: Float[np.ndarray, " row"]
) -> float:
    """The temperature that minimises the weighted log loss of `logits / temperature`, with a prior on its logarithm.

    Parameters
    ----------
    logits : ndarray (row, class)
        Out-of-fold logits of the choosing rows, finite.
    targets : Targets
        Of the same rows.
    weights : ndarray (row,)

    Returns
    -------
    float
        In [.05, 20]; 1 if no row has weight. The loss is convex in 1 / temperature, and the prior in the logarithm of
        the temperature, where the search runs.

    Source: Guo et al. 2017, section 4.2.
    """
    assert np.isfinite(logits).all(), "temperature is fitted on rows that were held out"
    if not weights.sum() > 0:
        return 1.0
    truth, wide = targets.indicator, logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        scaled = wide * math.exp(-log_temperature)
        if targets.multilabel:
            losses = np.logaddexp(0, np.where(truth > 0, -scaled, scaled)).mean(axis=1)  # row class -> row
        else:
            losses = -(truth * log_softmax(scaled)).sum(axis=1)  # row class -> row
        return float(np.average(losses, weights=weights)) + PRIOR * log_temperature**2 / float(weights.sum())

    bounds = (math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1]))
    return math.exp(float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x))


def fit_thresholds(
    probabilities: Float[np.ndarray, "row class"], targets: Targets, weights: Float[np.ndarray, " row"]
) -> Float64[np.ndarray, " class"]:
    """For each label, the threshold with the best F1 on out-of-fold probabilities of the choosing rows.

    A threshold lies half-way between two neighbouring probabilities; of equally good ones the nearest to .5 is taken.
    Labels with fewer than five positive rows keep .5.
    """
    assert np.isfinite(probabilities).all(), "thresholds are fitted on rows that were held out"
    thresholds = np.full(targets.n_classes, 0.5)
    for k in np.flatnonzero((targets.indicator > 0).sum(axis=0) >= POSITIVES_FOR_THRESHOLD):
        thresholds[k] = _best_threshold(probabilities[:, k].astype(np.float64), targets.indicator[:, k], weights)
    return thresholds


def _best_threshold(
    probabilities: Float64[np.ndarray, " row"], truth: Float[np.ndarray, " row"], weights: Float[np.ndarray, " row"]
) -> float:
    order = np.argsort(-probabilities, kind="stable")
    falling = probabilities[order]
    both = np.cumsum((weights * truth)[order])  # weight of the true rows among the first so many
    said = np.cumsum(weights[order])
    f1 = 2 * both / np.maximum(said + both[-1], np.finfo(np.float64).tiny)
    last_of_ties = np.append(falling[:-1] > falling[1:], True)
    cuts = (falling + np.append(falling[1:], falling[-1])) / 2
    best = last_of_ties & (f1 >= f1[last_of_ties].max())
    return float(cuts[best][np.abs(cuts[best] - 0.5).argmin()])
