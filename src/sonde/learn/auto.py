"""The recipe `auto`: several views of the hidden layers and the text, blended.

    fit         a problem and the blocks of all hidden layers -> fitted blend
    learners    what is trained
    usual       the parts that are worth their time
    PARTS       name of a part -> how to train it on the blocks of one backbone

    last      L2 logistic regression on the mean of the last layer: few features, steady where rows are few
    network   row 4 of LLMEmbed's Table 1: a small network on the means of the last five layers, side by side
    layers    L2 logistic regression on every layer, mean and max over tokens
    stc       Sparsify-then-Classify on the same blocks
    lexical   word and character n-grams

Where several backbones are given, each has its own: one head on all layers of two backbones is no better than two that
are blended, and a backbone that adds nothing is left out, so that nobody needs to run it. `sonde.learn.opinions` says
how much each part counts.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from sonde.learn import blend, lexical, logistic, mlp, sparse
from sonde.learn.problem import Outcome, Problem
from sonde.learn.recipes import LLMEMBED_DEPTHS
from sonde.learn.selection import depth

Learner = Callable[[Problem], Outcome]

# Side by side the last five layers tell more than their average: out-of-fold log loss of the blend .2715 and .3385
# against .2733 and .3422 (4,000 rows of AG News and SST-2). Row 15, with a small LLaMA as the deep backbone, does not
# come near (accuracy out of fold .79 against .90).
ROW = 4
# One fold after another is held out until so many rows that choose were: their log loss tells the weights of a blend to
# a few hundredths, and a network that is trained once more costs as much as the first.
HELD_ROWS = 2000
# With fewer rows that choose, `layers` in place of the network: it is faster there, and reasons stay exact. With more,
# `layers` beside the network lowers the out-of-fold log loss by 0 to .8% (five sets, 3,000 to 4,000 rows; by nothing on
# 16,000 rows of IMDb) for three quarters of the time; `stc` by .2%.
FEWEST_FOR_NETWORK = 1000


def fit(problem: Problem, names: Sequence[str], *, parts: Sequence[str] | None = None) -> Outcome:
    """Train all parts and blend them.

    Parameters
    ----------
    problem : Problem
    names : sequence of str
        Blocks of hidden layers, mean and max, of one backbone or several.
    parts : sequence of str, optional
        Keys of `PARTS` to train for each backbone, beside `lexical`; by default those of `usual`.
    """
    return blend.fit(problem, learners(problem, names, parts))


def learners(problem: Problem, names: Sequence[str], parts: Sequence[str] | None = None) -> list[tuple[str, Learner]]:
    """Name and learner of each part; those of the second backbone are called "last 2" and so on."""
    found: list[tuple[str, Learner]] = []
    for number, own in enumerate(_by_backbone(names), start=1):
        for part in usual(problem) if parts is None else parts:
            found.append((part if number == 1 else f"{part} {number}", PARTS[part](own)))
    return [*found, ("lexical", lexical.fit)]


def usual(problem: Problem) -> tuple[str, ...]:
    """The parts that are worth their time on so many rows."""
    rows = np.count_nonzero(problem.folds.choosing & (problem.weights > 0))
    return ("last", "network") if rows >= FEWEST_FOR_NETWORK else ("last", "layers")


def _by_backbone(names: Sequence[str]) -> list[list[str]]:
    found: dict[int, list[str]] = {}
    for name in names:
        found.setdefault(int(name.split("/")[0]), []).append(name)
    return [found[index] for index in sorted(found)]


def _means(names: Sequence[str]) -> list[str]:
    """Shallowest first."""
    return sorted((name for name in names if name.endswith("/mean")), key=depth)


def _last(names: Sequence[str]) -> Learner:
    return partial(logistic.fit, names=_means(names)[-1:])


def _layers(names: Sequence[str]) -> Learner:
    return partial(logistic.fit, names=list(names))


def _network(names: Sequence[str]) -> Learner:
    deep = [name for name in reversed(_means(names)) if depth(name)]  # the embeddings are no layer
    return partial(mlp.fit, deep=deep[:LLMEMBED_DEPTHS], sentences=(), row=ROW, held_rows=HELD_ROWS)


def _stc(names: Sequence[str]) -> Learner:
    return partial(sparse.fit, names=list(names))


PARTS: dict[str, Callable[[Sequence[str]], Learner]] = {
    "last": _last,
    "network": _network,
    "layers": _layers,
    "stc": _stc,
}
"""Blocks of one backbone -> what is trained on them."""
