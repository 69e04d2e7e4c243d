"""Labelled rows, checked before any work starts.

Labelled        texts, targets and weights of training or validation rows
as_labelled     what a user hands over -> Labelled
with_validation training rows and the user's validation rows, if any -> all rows, and which train and choose
check_class_weight, class_factors   `class_weight`, judged, and as a factor for each row
is_matrix       whether multi-label labels came as a 0/1 matrix
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from sonde.errors import ArgumentError, DataError, choose, warn
from sonde.inputs import as_texts, as_weights, present
from sonde.learn.splitting import Folds, make_folds, text_keys, validation_folds
from sonde.learn.targets import Targets, encode, encode_against
from sonde.learn.targets import is_matrix as reads_as_matrix


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
    missing, places = int((~here).sum()), (np.flatnonzero(here) + 1).tolist()
    if missing:
        warn(f"{missing} rows have no label and are left out.", "missing_labels", missing)
        labels = [label for label, keep in zip(labels, here, strict=True) if keep]
        rows = [text for text, keep in zip(rows, here, strict=True) if keep]
    told = encode(labels, places) if known is None else encode_against(labels, known.classes, known.multilabel, places)
    _warn_conflicts(rows, told)
    if known is None:
        _warn_blanks(told.classes.tolist())
    return Labelled(rows, told, chosen)


def with_validation(train: Labelled, validation: Any, seed: int, n_folds: int = 5) -> tuple[Labelled, Folds]:
    """All rows, and which of them train and choose: folds, or the user's pair (texts, labels) behind the others.

    Raises
    ------
    DataError
        If `validation` is no pair, or none of its labels stands in the training rows.
    """
    if validation is None:
        return train, make_folds(train.texts, train.targets, seed=seed, n_folds=n_folds)
    if not isinstance(validation, Sequence) or len(validation) != 2:
        raise DataError("validation must be a pair (texts, labels).")
    held = as_labelled(validation[0], validation[1], None, train.targets)
    assert held.targets.strange is not None
    known = ~held.targets.strange  # row
    if not known.all():
        warn(
            f"{int((~known).sum())} validation rows have labels that never stand in the training rows; left out.",
            "unseen_labels",
            int((~known).sum()),
        )
    if not known.any():
        raise DataError("validation has no row with a label of the training rows.")
    both = Targets(
        train.targets.classes,
        np.concatenate([train.targets.indicator, held.targets.indicator[known]]),  # row class
        train.targets.multilabel,
    )
    kept = [text for text, keep in zip(held.texts, known, strict=True) if keep]
    shared = int(np.isin(text_keys(kept), text_keys(train.texts)).sum())
    if shared:
        warn(
            f"{shared} of {len(kept)} validation texts stand in the training rows too: what is chosen and calibrated "
            "on them trusts the model too much. Leave validation out, and folds are held out in turn.",
            "seen_in_training",
            shared,
        )
    rows = Labelled([*train.texts, *kept], both, np.concatenate([train.weights, held.weights[known]]))
    return rows, validation_folds(len(train.texts), both, seed)


def is_matrix(labels: Any) -> bool:
    """Whether multi-label labels came as a 0/1 matrix; nested lists count as one where `encode` reads them so."""
    if not isinstance(labels, list | tuple):
        return len(getattr(labels, "shape", ())) == 2
    rows = [list(row) for row in labels if row is not None]
    return bool(rows) and reads_as_matrix(rows)


def _warn_blanks(classes: Sequence[Any]) -> None:
    bare = Counter(label.strip() for label in classes if isinstance(label, str))
    twice = [label for label, count in bare.items() if count > 1]
    if twice:
        warn(
            f"{len(twice)} labels occur with and without blanks at their ends, and are classes of their own, the first "
            f"is {twice[0]!r}. Strip the labels if that is not meant.",
            "blank_labels",
            len(twice),
        )


def _warn_conflicts(texts: Sequence[str], targets: Targets) -> None:
    keys = text_keys(texts)
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    differ = (targets.indicator[order][1:] != targets.indicator[order][:-1]).any(axis=1)
    count = len(np.unique(keys[order][1:][same & differ]))
    if count:
        warn(f"{count} texts stand more than once with different labels; all are kept.", "conflicting_labels", count)


def check_class_weight(class_weight: object) -> None:
    """`ArgumentError` if it is neither "balanced" nor a dict nor None."""
    if isinstance(class_weight, str):
        choose("class_weight", class_weight, ["balanced"])
    elif not isinstance(class_weight, Mapping | None):
        raise ArgumentError(f"class_weight is {class_weight!r:.60}; it must be 'balanced', a dict or None.")


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
