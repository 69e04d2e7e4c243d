"""Recipes -> fitted models: which learner answers to which name, and which class a record comes back as.

LEARNERS   name of a learner in a recipe -> how to fit it
fit        a recipe on a problem
selects    whether a recipe chooses neurons first, for which some of the rows are enough
used       the blocks that it trains on
early      what it trains on the texts alone, before anything is read
select     the neurons that it chooses
train      the recipe on these neurons of all rows
as_cascade a fitted model whose rows may leave early, as one
describe   a fitted model -> its record
restore    a record -> the fitted model it describes
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from sonde.errors import ModelError
from sonde.learn.problem import Fitted, Outcome, Problem, Record
from sonde.learn.recipes import Recipe, Sparsity

if TYPE_CHECKING:
    from sonde.learn.cascade import Cascade
    from sonde.learn.sparsify import Selection

Groups = Sequence[Sequence[str]]
"""Names of the blocks that each `Reads` of the recipe matched, in the order of the recipe."""


Early = Mapping[str, Outcome]
"""Name of a part of a blend -> what came of it."""


def fit(recipe: Recipe, problem: Problem, groups: Groups, paper: bool = False, early: Early | None = None) -> Outcome:
    """Train what the recipe says on the blocks it read; `early` is what has been trained already."""
    settings = _settings(recipe, paper)
    return LEARNERS[recipe.learner](problem, groups, settings | ({"early": early} if early else {}))


def early(recipe: Recipe, problem: Problem) -> Early:
    """What the recipe trains on the texts alone: before blocks are read, which may leave little memory.

    Counts of n-grams and the solver's copy of them take 8 KB a text of 13 words, as much as five blocks.
    """
    if recipe.learner != "auto":
        return {}
    from sonde.learn import auto

    return auto.early(problem)


def selects(recipe: Recipe) -> bool:
    """Whether a recipe trains on neurons that it chooses on some of the rows."""
    return recipe.learner == "sparse"


def used(recipe: Recipe, problem: Problem, groups: Groups) -> Groups:
    """Of the blocks of each group those that are trained on: what recipes do depends on how many rows they have.

    The problem needs no blocks yet.
    """
    if recipe.learner != "auto":
        return groups
    from sonde.learn import auto

    wanted = set(auto.reads(problem, _all(groups)))
    return [[name for name in group if name in wanted] for group in groups]


def check(groups: Groups, sparsity: Sparsity) -> None:
    """Judge what hangs on the backbone, before anything is read."""
    from sonde.learn import sparsify

    sparsify.check_layers(_all(groups), sparsity.layers)


def select(
    recipe: Recipe, problem: Problem, groups: Groups, sparsity: Sparsity, paper: bool = False, rows: int = 0
) -> "Selection":
    """Choose neurons on a problem, commonly a sample of the `rows` that will be trained on."""
    from sonde.learn import sparsify

    settings = _settings(recipe, paper)
    settings |= {"layers": sparsity.layers, "rows": rows}
    if sparsity.eta is not None:
        settings["etas"] = (sparsity.eta,)
    return sparsify.select(problem, _all(groups), **settings)


def train(problem: Problem, selection: "Selection", exit_loss: float | None = None) -> Outcome:
    """Train on neurons that were chosen; the blocks of the problem may hold these alone.

    With `exit_loss` rows may leave at several depths, at that loss of the metric.
    """
    from sonde.learn import cascade, sparse

    return sparse.train(problem, selection) if exit_loss is None else cascade.fit(problem, selection, exit_loss)


def as_cascade(model: Fitted) -> "Cascade | None":
    """The model, if its rows may leave at several depths."""
    return cast("Cascade", model) if type(model).__name__ == "Cascade" else None


def describe(model: Fitted) -> Record:
    """The record of a fitted model, with the `kind` by which `restore` knows it."""
    kind = next(kind for kind, (_, name) in _HOMES.items() if name == type(model).__name__)
    record = model.record()
    return Record({"kind": kind, **record.settings}, record.arrays)


def restore(record: Record) -> Fitted:
    """The fitted model of a record, by the `kind` in its settings."""
    kind = record.settings.get("kind")
    if kind not in _HOMES:
        raise ModelError(f"The model holds a learner of kind {kind!r}; known are: {', '.join(_HOMES)}. Upgrade sonde.")
    module, name = _HOMES[kind]
    model: Fitted = getattr(importlib.import_module(module), name).from_record(record)
    return model


_HOMES = {
    "logistic": ("sonde.learn.logistic", "Logistic"),
    "lexical": ("sonde.learn.lexical", "Lexical"),
    "fusion": ("sonde.learn.mlp", "FusionHead"),
    "sparse": ("sonde.learn.sparse", "Sparse"),
    "cascade": ("sonde.learn.cascade", "Cascade"),
    "blend": ("sonde.learn.blend", "Blend"),
}


def _settings(recipe: Recipe, paper: bool) -> dict[str, Any]:
    return {**recipe.settings, "paper": True} if paper else dict(recipe.settings)


def _logistic(problem: Problem, groups: Groups, settings: dict[str, Any]) -> Outcome:
    from sonde.learn import logistic  # torch is imported only where it is used

    return logistic.fit(problem, _all(groups), **settings)


def _lexical(problem: Problem, groups: Groups, settings: dict[str, Any]) -> Outcome:
    from sonde.learn import lexical

    return lexical.fit(problem, **settings)


def _fusion(problem: Problem, groups: Groups, settings: dict[str, Any]) -> Outcome:
    from sonde.learn import mlp

    return mlp.fit(problem, list(groups[0]), _all(groups[1:]), **settings)


def _sparse(problem: Problem, groups: Groups, settings: dict[str, Any]) -> Outcome:
    from sonde.learn import sparse

    return sparse.fit(problem, _all(groups), **settings)


def _auto(problem: Problem, groups: Groups, settings: dict[str, Any]) -> Outcome:
    from sonde.learn import auto

    return auto.fit(problem, _all(groups), **settings)


def _all(groups: Groups) -> list[str]:
    return [name for group in groups for name in group]


LEARNERS: dict[str, Callable[[Problem, Groups, dict[str, Any]], Outcome]] = {
    "logistic": _logistic,
    "lexical": _lexical,
    "fusion": _fusion,
    "sparse": _sparse,
    "auto": _auto,
}
