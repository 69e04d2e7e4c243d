"""Labelled rows, checked before any work starts.

Labelled        texts, targets and weights of training or validation rows
as_labelled     what a user hands over -> Labelled
Tested          the same of rows that a fitted classifier is measured on
as_tested       what a user hands over -> Tested
with_validation training rows and the user's validation rows, if any -> all rows, and which train and choose
score           what a fitted classifier reaches on labelled rows, by its metric
warn_unseen     labels of test rows that no training row has
check_class_weight, class_factors   `class_weight`, judged, and as a factor for each row
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from sonde.errors import ArgumentError, DataError, choose, warn
from sonde.inputs import as_groups, as_texts, as_weights, column_names, in_order, one_column, present, taken
from sonde.learn import metrics
from sonde.learn.splitting import Folds, make_folds, text_keys, validation_folds
from sonde.learn.targets import Targets, encode, encode_against, is_collection, plain

FEW_ROWS = 20  # with fewer, a class of one row is no sign of a wrong column

NAMED_LABELS = 5
"""Labels that a warning names; the report counts all."""


@dataclass(frozen=True)
class Labelled:
    """Training or validation rows, checked."""

    texts: list[str]
    targets: Targets
    weights: Float[np.ndarray, " row"]
    groups: Int64[np.ndarray, " row"] | None = None
    """Numbers of groups that are held out together; None: each text by itself."""


def as_labelled(texts: Any, labels: Any, weights: Any, known: Targets | None, groups: Any = None) -> Labelled:
    """Check texts, labels, weights and groups together; leave out rows without a label, and those of weight 0.

    Weights that are all whole numbers count rows: 2 is a row that stands twice. Others are relative, and scaled to a
    mean of 1: how much rows weigh against a penalty does not hang on their unit.
    """
    rows, labels = as_texts(texts), one_column(labels)
    names = column_names(labels)
    if known is not None:
        labels = in_order(labels, known.classes)
    here = present(labels, len(rows))
    heavy, own = as_weights(weights, len(rows)), as_groups(groups, len(rows))
    _check_present(here, heavy)
    kept = here & (heavy > 0)
    if not kept.all():
        labels, rows, heavy = taken(labels, kept), taken(rows, kept), heavy[kept]
        own = None if own is None else own[kept]
    places = (np.flatnonzero(kept) + 1).tolist()
    told = (
        encode(labels, places, names)
        if known is None
        else encode_against(labels, known.classes, known.multilabel, known.matrix, places)
    )
    _warn_conflicts(rows, told)
    if known is None:
        _warn_blanks(told.classes.tolist())
        _warn_many(told)
    return Labelled(rows, told, heavy if _whole(heavy) else heavy / heavy.mean(), own)


@dataclass(frozen=True)
class Tested:
    """Rows that a fitted classifier is measured on, checked."""

    here: Bool[np.ndarray, " given"]
    """Which of the rows that were given have a label; the others are left out."""
    texts: list[str]
    """One text a row."""
    labels: Any
    """One a row, a list a row, or a 0/1 matrix with a row each; under their names, if the classifier has names."""
    targets: Targets
    """The labels over the classes of the classifier."""
    weights: Float[np.ndarray, " row"] | None
    """None: all rows weigh the same."""


def as_tested(classifier: Any, texts: Any, labels: Any, weights: Any = None) -> Tested:
    """Check texts, labels and weights together; leave out rows without a label.

    Names given with `--label-names` and the labels they stand for are both understood.

    Raises
    ------
    DataError, ArgumentError
        Also if no row has a label.

    Warns
    -----
    SondeWarning
        missing_labels, unseen_labels and those about odd texts.
    """
    rows, labels = as_texts(texts), in_order(one_column(labels), classifier.classes_)
    here = present(labels, len(rows))
    heavy = None if weights is None else as_weights(weights, len(rows))
    _check_present(here, heavy)
    if not here.any():
        raise DataError("There are no labelled rows to evaluate on.")
    if not here.all():
        labels, rows = taken(labels, here), taken(rows, here)
        heavy = None if heavy is None else heavy[here]
    labels = _named(labels, getattr(classifier, "label_names_", {}))
    form = (classifier.classes_, classifier.multilabel_, classifier.matrix_labels_)
    targets = encode_against(labels, *form, (np.flatnonzero(here) + 1).tolist())
    warn_unseen(targets.unseen, targets.classes)
    return Tested(here, rows, labels, targets, heavy)


def _check_present(here: Bool[np.ndarray, " row"], weights: Float[np.ndarray, " row"] | None) -> None:
    if missing := int((~here).sum()):
        warn(f"{missing} rows have no label and are left out.", "missing_labels", missing)
    if weights is not None and here.any() and not weights[here].any():
        raise ArgumentError("sample_weight is 0 for every row that has a label; some must weigh more.")


def _named(labels: Any, names: Mapping[str, str]) -> Any:
    """Labels under their names, where they have one."""
    if not names or getattr(labels, "ndim", 1) != 1:
        return labels

    def name(label: Any) -> Any:
        return names.get(str(plain(label)), label)

    return [[name(one) for one in label] if is_collection(label) else name(label) for label in labels]


def with_validation(train: Labelled, validation: Any, seed: int, n_folds: int = 5) -> tuple[Labelled, Folds]:
    """All rows, and which of them train and choose: folds, or the user's pair (texts, labels) behind the others.

    Raises
    ------
    DataError
        If `validation` is no pair, or none of its labels stands in the training rows.
    ArgumentError
        If there are groups as well.
    """
    if validation is None:
        return train, make_folds(train.texts, train.targets, seed=seed, n_folds=n_folds, groups=train.groups)
    if train.groups is not None:
        raise ArgumentError(
            "groups (--group) say which rows are held out together, but with a validation set no training row is held "
            "out: give one of the two."
        )
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
    indicator = np.concatenate([train.targets.indicator, held.targets.indicator[known]])  # row class
    both = replace(train.targets, indicator=indicator)
    kept = taken(held.texts, known)
    shared = int(np.isin(text_keys(kept), text_keys(train.texts)).sum())
    if shared:
        warn(
            f"{shared} of {len(kept)} validation texts stand in the training rows too: what is chosen and calibrated "
            "on them trusts the model too much. Leave validation out, and folds are held out in turn.",
            "seen_in_training",
            shared,
        )
    rows = Labelled([*train.texts, *kept], both, np.concatenate([train.weights, held.weights[known]]))
    return rows, validation_folds(len(train.texts), both, seed, rows.texts)


def score(
    classifier: Any,
    texts: Any,
    labels: Any,
    weights: Any,
    decide: Callable[[list[str]], Bool[np.ndarray, "row class"]],
) -> float:
    """Macro F1 if the classifier aims at it, else accuracy; rows are judged as by `as_tested` before texts are read."""
    rows = as_tested(classifier, texts, labels, weights)
    truth, decided = rows.targets, decide(rows.texts)
    if classifier.metric == "macro_f1":
        return metrics.macro_f1(truth.indicator, decided, rows.weights, truth.foreign)
    return metrics.accuracy(truth.indicator, decided, rows.weights, truth.strange)


def warn_unseen(strange: Mapping[Any, int], classes: np.ndarray) -> None:
    """Say which labels of test rows, and how often, no training row has; and which seem to be written otherwise."""
    if strange:
        count = sum(strange.values())
        shown = ", ".join(f"{label!r} ({rows})" for label, rows in list(strange.items())[:NAMED_LABELS])
        more = f" and {len(strange) - NAMED_LABELS} more" if len(strange) > NAMED_LABELS else ""
        warn(
            f"{count} rows have labels that the model never saw; counted as wrong: {shown}{more}."
            f"{_alike(strange, classes)}",
            "unseen_labels",
            count,
        )


def _alike(strange: Mapping[Any, int], classes: np.ndarray) -> str:
    """A known label that reads like one of these: another case, blanks, or the ".0" of a column that had gaps."""
    known = {_bare(label): label for label in reversed(classes.tolist())}
    for label in strange:
        if (near := known.get(_bare(label))) is not None:
            return f" The model knows {near!r}: write {label!r} as in training."
    return ""


def _bare(label: Any) -> str:
    return str(label).strip().casefold().removesuffix(".0")


def _whole(numbers: Float[np.ndarray, " _"]) -> bool:
    """Whether weights count rows."""
    return bool((numbers == np.floor(numbers)).all())


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
    one, other = order[1:][same], order[:-1][same]
    differ = (targets.indicator[one] != targets.indicator[other]).any(axis=1)
    count = len(np.unique(keys[one][differ]))
    if count:
        warn(f"{count} texts stand more than once with different labels; all are kept.", "conflicting_labels", count)


def _warn_many(targets: Targets) -> None:
    if not targets.multilabel and targets.rows >= FEW_ROWS and targets.n_classes > targets.rows / 2:
        warn(
            f"{targets.rows} rows have {targets.n_classes:,} different labels: most classes have one row, of which "
            "nothing can be learned. Is this the column of labels?",
            "many_classes",
            targets.n_classes,
        )


def check_class_weight(class_weight: object) -> None:
    """`ArgumentError` if it is neither "balanced" nor a dict nor None."""
    if isinstance(class_weight, str):
        choose("class_weight", class_weight, ["balanced"])
    elif not isinstance(class_weight, Mapping | None):
        raise ArgumentError(f"class_weight is {class_weight!r:.60}; it must be 'balanced', a dict or None.")


def class_factors(
    class_weight: Any, targets: Targets, weights: Float[np.ndarray, " row"], folds: Folds
) -> Float[np.ndarray, " row"]:
    """The factor of each row: by its class, or the mean over its classes.

    Whole numbers count rows, others are relative, as sample weights are.
    """
    if class_weight is None:
        return np.ones(targets.rows)
    if isinstance(class_weight, str):
        count = weights[folds.trainable] @ targets.indicator[folds.trainable]  # class
        factor = count.sum() / (len(count) * np.maximum(count, 1e-12))
    else:
        unknown = set(class_weight) - set(targets.classes.tolist())
        said = f"class_weight names {sorted(map(str, unknown))}, which are no labels of the training rows"
        if unknown and len(unknown) == len(class_weight):
            raise ArgumentError(f"{said}.")
        if unknown:  # as in a fold of cross-validation that lacks a rare class
            warn(f"{said}; they count for nothing.", "unused_class_weights", len(unknown))
        factor = np.array([class_weight.get(label, 1.0) for label in targets.classes.tolist()], dtype=np.float64)
        if not (np.isfinite(factor).all() and (factor >= 0).all()):
            raise ArgumentError("class_weight must hold finite numbers that are not negative.")
    labels = targets.indicator.sum(axis=1)
    factors = np.where(labels > 0, targets.indicator @ factor / np.maximum(labels, 1), 1.0).astype(np.float64)
    mean = np.average(factors[folds.trainable], weights=weights[folds.trainable])
    if not mean:
        raise ArgumentError("class_weight is 0 for every class that the training rows have.")
    return factors if isinstance(class_weight, str) or _whole(factor) else factors / mean
