"""The paper's head: L1-regularised logistic regression on the kept neurons, one class against the rest.

fit    blocks of kept neurons -> fitted model

Source: Sparsify-then-Classify (arXiv 2311.15983), step 4.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool

from sonde.learn import probe
from sonde.learn.logistic import Logistic, as_classes
from sonde.learn.problem import Outcome, Problem
from sonde.learn.regressions import moments, varies


def fit(
    problem: Problem, kept: Mapping[str, Bool[np.ndarray, "fold _"]], *, tolerance: float = probe.TOLERANCE
) -> Outcome:
    """Choose C by folds and train the final head.

    Parameters
    ----------
    problem : Problem
    kept : mapping of str to (fold + 1, feature) bool
        The blocks, and the features that the head of each fold, and last the final one, may use.
    tolerance : float
        Relative, of the objective.

    Returns
    -------
    Outcome
        Its logits are the log-odds of each class against the rest; probabilities are their softmax, over a temperature
        that is fitted as for all recipes.
    """
    used = np.concatenate(list(kept.values()), axis=1)  # fold feature
    x = np.concatenate([problem.blocks[name] for name in kept], axis=1)  # row feature
    few = Problem(
        {_NAME: x}, problem.texts, problem.targets, problem.weights, problem.folds, problem.metric, problem.seed
    )
    found = probe.fit(few, _NAME, tolerance=tolerance, used=used)
    weights = torch.from_numpy((problem.weights * problem.folds.trainable)[:, None])  # row 1
    mean, deviation = (one[:, 0].float() for one in moments(torch.from_numpy(x), weights))
    scale = torch.where(varies(mean, deviation), 1 / deviation, 0.0)
    coefficients = as_classes(found.best.coefficients[-1], problem.targets)  # feature class
    intercept = as_classes(found.best.intercepts[-1:], problem.targets)[0]  # class
    model = Logistic(tuple(kept), mean.numpy(), scale.numpy(), coefficients, intercept)
    summary = {
        "C": found.best.c,
        "losses": {f"{c:g}": loss for c, loss in found.losses.items()},
        "skipped": list(found.skipped),
        "dropped_columns": found.dropped,
        "rows": int(problem.folds.trainable.sum()),
        "features": x.shape[1],
        "used": int((found.best.coefficients[-1] != 0).any(axis=1).sum()),
    }
    return Outcome(model, as_classes(found.best.held_out, problem.targets), summary)


_NAME = "kept neurons"
