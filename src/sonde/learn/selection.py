"""Which neurons of a block matter: L1 probes, squared weights, the smallest set that carries a share of them.

    rank, Ranking   blocks of a layer -> the importance of each neuron, for every fold and for all trainable rows
    importance      coefficients of probes -> importance
    keep            importance, eta -> the neurons that are kept
    depth           a block -> how many layers of the backbone must run for it
    ETAS            the paper's shares

Source: Sparsify-then-Classify (arXiv 2311.15983), step 3. The released code ranks by the first class alone; here each
class first shares out a total of one among the neurons by its squared coefficients, and the importance of a neuron is
the mean of its shares over the classes: a class that is told by few strong neurons counts as much as one that is told
by many weak ones. A class whose probe has no weights has no say.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64

from sonde.errors import ArgumentError
from sonde.learn import probe
from sonde.learn.problem import Problem

ETAS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)

# Of a probe's objective. R8, 2,000 rows, two layers: of every set of 3 neurons or more, 92 to 100% are those that are
# kept at 1e-8; at 1e-3 it may be 86%.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Ranking:
    """The neurons of a block by importance."""

    name: str
    """The block."""
    importance: Float64[np.ndarray, "fold feature"]
    """Sums to 1 over the neurons; all 0 where no probe has a weight. The last fold is the model on all trainable rows:
    what a fold keeps is told by rows that it trains on alone."""
    summary: dict[str, Any]
    """C, losses, values of C that were skipped, constant neurons; JSON-able."""


def rank(problem: Problem, names: Sequence[str], *, grid: Sequence[float] = probe.GRID) -> list[Ranking]:
    """Train the probes of the blocks of a layer and rank the neurons of each; arguments as in `probe.fit_layer`."""
    found = probe.fit_layer(problem, names, grid=grid, tolerance=TOLERANCE)
    return [_ranking(name, probes) for name, probes in found.items()]


def _ranking(name: str, found: probe.Probes) -> Ranking:
    summary = {
        "C": found.best.c,
        "losses": {f"{c:g}": loss for c, loss in found.losses.items()},
        "skipped": list(found.skipped),
        "dropped_columns": found.dropped,
    }
    return Ranking(name, importance(found.best.coefficients), summary)


def importance(coefficients: Float[np.ndarray, "fold feature column"]) -> Float64[np.ndarray, "fold feature"]:
    """Mean over classes of each neuron's share of the squared coefficients of the class."""
    squares = coefficients.astype(np.float64) ** 2
    totals = squares.sum(axis=1, keepdims=True)  # fold 1 column
    shares = squares / np.where(totals > 0, totals, 1.0)
    speaking = (totals > 0).sum(axis=2)  # fold 1
    return np.asarray(shares.sum(axis=2) / np.maximum(speaking, 1))  # fold feature


def keep(importance: Float64[np.ndarray, " feature"], eta: float) -> Bool[np.ndarray, " feature"]:
    """The smallest set of neurons whose importance sums to at least eta of the total; nothing if there is none.

    Raises
    ------
    ArgumentError
        If eta is not above 0 and at most 1.
    """
    if not 0 < eta <= 1:
        raise ArgumentError(f"eta is {eta}; it is the share of importance that is kept, above 0 and at most 1.")
    order = np.argsort(-importance, kind="stable")
    reached = np.cumsum(importance[order])
    total = reached[-1] if len(reached) else 0.0
    kept = np.zeros(len(importance), dtype=bool)
    if total > 0:
        enough = int(np.searchsorted(reached, eta * total * (1 - 1e-12)))  # rounding of the sum asks for no neuron more
        kept[order[: enough + 1]] = True
    return kept & (importance > 0)


def depth(name: str) -> int:
    """The layer of a block: `hidden.L` and `ffn.L` need the first L layers of their backbone."""
    found = re.search(r"\.(\d+)(?:/|$)", name)
    assert found, f"{name} lies at no layer"
    return int(found[1])
