"""Labelled rows, checked before any work starts.

Labelled        texts, targets and weights of training or validation rows
as_labelled     what a user hands over -> Labelled
class_factors   `class_weight` -> a factor for each row
is_matrix       whether multi-label labels came as a 0/1 matrix
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from sonde.errors import ArgumentError, warn
from sonde.inputs import as_texts, as_weights, present
from sonde.learn.splitting import Folds, text_keys
from sonde.learn.targets import Targets, encode, encode_against


@dataclass(frozen=True)
class Labelled:
    """Training or validation rows, checked."""

    texts: list[str]
    targets: Targets
    weights: Float[np.ndarray, " row"]


def as_labelled(texts: Any, labels: Any, weights: Any, known: Targets | None) -> Labelled:
    """Check texts, labels and weights together; leave out rows without a label."""
    rows = as_texts(texts)
    here = present(labels, len(rows))
    chosen = as_weights(weights, len(rows))[here]
    missing = int((~here).sum())
    if missing:
        warn(f"{missing} rows have no label and are left out.", "missing_labels", missing)
        labels = [label for label, keep in zip(labels, here, strict=True) if keep]
        rows = [text for text, keep in zip(rows, here, strict=True) if keep]
    targets = encode(labels) if known is None else encode_against(labels, known.classes, known.multilabel)
    _warn_conflicts(rows, targets)
    return Labelled(rows, targets, chosen)


def is_matrix(labels: Any) -> bool:
    """Whether multi-label labels came as a 0/1 matrix; nested lists count as one where `encode` reads them so."""
    if not isinstance(labels, list | tuple):
        return len(getattr(labels, "shape", ())) == 2
    rows = [list(row) for row in labels if row is not None]
    return len({len(row) for row in rows}) == 1 and any(len(set(row)) < len(row) for row in rows)


def _warn_conflicts(texts: Sequence[str], targets: Targets) -> None:
    keys = text_keys(texts)
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    differ = (targets.indicator[order][1:] != targets.indicator[order][:-1]).any(axis=1)
    count = len(np.unique(keys[order][1:][same & differ]))
    if count:
        warn(f"{count} texts stand more than once with different labels; all are kept.", "conflicting_labels", count)


def class_factors(
    class_weight: Any, targets: Targets, weights: Float[np.ndarray, " row"], folds: Folds
) -> Float[np.ndarray, " row"]:
    """The factor of each row: by its class, or the mean over its classes."""
    if class_weight is None:
        return np.ones(targets.rows)
    if isinstance(class_weight, str):
        count = weights[folds.trainable] @ targets.indicator[folds.trainable]  # class
        factor = count.sum() / (len(count) * np.maximum(count, 1e-12))
    else:
        unknown = set(class_weight) - set(targets.classes.tolist())
        if unknown:
            raise ArgumentError(
                f"class_weight names {sorted(map(str, unknown))}, which are no labels of the training rows."
            )
        factor = np.array([class_weight.get(label, 1.0) for label in targets.classes.tolist()], dtype=np.float64)
        if not (np.isfinite(factor).all() and (factor >= 0).all() and factor.any()):
            raise ArgumentError("class_weight must hold finite numbers that are not negative, and not zero everywhere.")
    labels = targets.indicator.sum(axis=1)
    return np.where(labels > 0, targets.indicator @ factor / np.maximum(labels, 1), 1.0).astype(np.float64)
