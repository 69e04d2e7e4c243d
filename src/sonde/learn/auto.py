"""The recipe `auto`: several views of the hidden layers and the text, blended.

    fit         a problem and the blocks of all hidden layers -> fitted blend
    reads       the blocks of which they read something
    early       those that read none, trained
    learners    what is trained
    usual       the parts that are worth their time
    PARTS       name of a part -> what it reads of the blocks of one backbone, and how it is trained

    last      L2 logistic regression on the mean of the last layer: few features, steady where rows are few
    network   row 4 of LLMEmbed's Table 1: a small network on the means of the last five layers, side by side
    layers    L2 logistic regression on every layer, mean and max over tokens
    stc       Sparsify-then-Classify on the same blocks
    lexical   word and character n-grams

Where several backbones are given, each has its own: one head on all layers of two backbones is no better than two that
are blended, and a backbone that adds nothing is left out, so that nobody needs to run it. `sonde.learn.opinions` says
how much each part counts.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from sonde.learn import blend, lexical, logistic, mlp, sparse
from sonde.learn.problem import Outcome, Problem
from sonde.learn.recipes import LLMEMBED_DEPTHS
from sonde.learn.selection import depth

Learner = Callable[[Problem], Outcome]
MakeLearner = Callable[[Sequence[str]], Learner]

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


def fit(
    problem: Problem,
    names: Sequence[str],
    *,
    parts: Sequence[str] | None = None,
    early: Mapping[str, Outcome] | None = None,
) -> Outcome:
    """Train all parts and blend them.

    Parameters
    ----------
    problem : Problem
    names : sequence of str
        Blocks of hidden layers, mean and max, of one backbone or several.
    parts : sequence of str, optional
        Keys of `PARTS` to train for each backbone, beside `lexical`; by default those of `usual`.
    early : mapping of str to Outcome, optional
        Parts that are trained already, on the same problem.
    """
    found = dict(learners(problem, names, parts))
    found |= {name: partial(_done, outcome) for name, outcome in (early or {}).items()}
    return blend.fit(problem, list(found.items()))


def early(problem: Problem) -> dict[str, Outcome]:
    """The parts that read no blocks; the problem needs none."""
    return {"lexical": lexical.fit(problem)}


def _done(outcome: Outcome, _: Problem) -> Outcome:
    return outcome


def reads(problem: Problem, names: Sequence[str], parts: Sequence[str] | None = None) -> list[str]:
    """Of these blocks those that any part reads: on many rows the last layers, half of them or fewer.

    Parameters as in `fit`; the problem needs no blocks yet.
    """
    wanted = {name for _, own, _ in _planned(problem, names, parts) for name in own}
    return [name for name in names if name in wanted]


def learners(problem: Problem, names: Sequence[str], parts: Sequence[str] | None = None) -> list[tuple[str, Learner]]:
    """Name and learner of each part; those of the second backbone are called "last 2" and so on."""
    found = [(name, learner(own)) for name, own, learner in _planned(problem, names, parts)]
    return [*found, ("lexical", lexical.fit)]


def usual(problem: Problem) -> tuple[str, ...]:
    """The parts that are worth their time on so many rows."""
    rows = np.count_nonzero(problem.folds.choosing & (problem.weights > 0))
    return ("last", "network") if rows >= FEWEST_FOR_NETWORK else ("last", "layers")


def _planned(
    problem: Problem, names: Sequence[str], parts: Sequence[str] | None
) -> Iterator[tuple[str, list[str], MakeLearner]]:
    """Name of each part, the blocks that it reads, and how it is trained on them."""
    for number, own in enumerate(_by_backbone(names), start=1):
        for part in usual(problem) if parts is None else parts:
            wanted, learner = PARTS[part]
            yield part if number == 1 else f"{part} {number}", wanted(own), learner


def _by_backbone(names: Sequence[str]) -> list[list[str]]:
    found: dict[int, list[str]] = {}
    for name in names:
        found.setdefault(int(name.split("/")[0]), []).append(name)
    return [found[index] for index in sorted(found)]


def _last(names: Sequence[str]) -> list[str]:
    return _deepest_first(names)[:1]


def _deep(names: Sequence[str]) -> list[str]:
    found = _deepest_first(names)
    return [name for name in found if _depth(name)][:LLMEMBED_DEPTHS] or found[:1]  # the embeddings are no layer


def _deepest_first(names: Sequence[str]) -> list[str]:
    """The means; if none is read, what is read in its place."""
    means = [name for name in names if name.endswith("/mean")]
    return sorted(means or names, key=_depth, reverse=True)


def _depth(name: str) -> float:
    """A sentence embedding, or a pooler's, lies behind all layers."""
    return depth(name) if re.search(r"\.\d", name) else math.inf


def _logistic(names: Sequence[str]) -> Learner:
    return partial(logistic.fit, names=names)


def _network(names: Sequence[str]) -> Learner:
    return partial(mlp.fit, deep=names, sentences=(), row=ROW, held_rows=HELD_ROWS)


def _stc(names: Sequence[str]) -> Learner:
    return partial(sparse.fit, names=names)


PARTS: dict[str, tuple[Callable[[Sequence[str]], list[str]], MakeLearner]] = {
    "last": (_last, _logistic),
    "network": (_deep, _network),
    "layers": (list, _logistic),
    "stc": (list, _stc),
}
"""Blocks of one backbone -> those that the part reads; these -> what is trained on them."""
