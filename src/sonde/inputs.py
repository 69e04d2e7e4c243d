"""Texts and labels as users hand them over, checked before any work starts.

as_texts         any sequence of str -> list, with warnings about texts that cannot say much
one_column       labels in the only column of a table -> list
column_names     names of the columns of a table of labels
in_order         such a table in the order of a model's classes
present          which labels are not missing
taken            some of the texts or labels
as_weights       sample weights -> float64
as_groups        groups of rows -> numbers
"""

from collections.abc import Iterable, Sequence, Set
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from sonde.errors import ArgumentError, DataError, warn

HUGE_CHARACTERS = 10**6
"""A text of a megabyte is more often a parsing accident (an unclosed quote) than a text."""


def as_texts(texts: Any, what: str = "texts") -> list[str]:
    """Check texts: a list, tuple, array or Series of str.

    Raises
    ------
    DataError
        For a bare string, another type, or an entry that is not text; names the row, counted from 1.

    Warns
    -----
    SondeWarning
        blank_texts, huge_texts, nul_texts, surrogate_texts: counted, and read all the same.
    """
    if isinstance(texts, str | bytes):
        raise DataError(f"{what} is one string; give a list of strings, for example [{texts[:20]!r}].")
    if len(getattr(texts, "shape", (0,))) != 1 or isinstance(texts, dict | Set) or not isinstance(texts, Iterable):
        shape = getattr(texts, "shape", None)
        raise DataError(
            f"{what} must be a list of strings, not {type(texts).__name__}"
            + (f" of shape {shape}." if shape else ".")
            + (
                f" Take one of its columns, such as [{texts.columns[0]!r}]."
                if len(getattr(texts, "columns", ()))
                else ""
            )
        )
    out = list(texts)
    for row, text in enumerate(out):
        if not isinstance(text, str):
            raise DataError(
                f"{what}: row {row + 1} is {text!r:.60} ({type(text).__name__}) where text is due. "
                "Convert it to a string, or leave the row out."
            )
    _warn_odd(out)
    return [str(text) for text in out]


def _warn_odd(texts: Sequence[str]) -> None:
    blank = sum(not text.strip() for text in texts)
    huge = sum(len(text) >= HUGE_CHARACTERS for text in texts)
    nul = sum("\0" in text for text in texts)
    lone = sum(_has_surrogate(text) for text in texts)
    if blank:
        warn(f"{blank} texts are blank; they are kept and say nothing about their label.", "blank_texts", blank)
    if huge:
        warn(f"{huge} texts have a million characters or more; is a quote unclosed?", "huge_texts", huge)
    if nul:
        warn(f"{nul} texts hold NUL bytes; they are read as they are.", "nul_texts", nul)
    if lone:
        warn(f"{lone} texts hold lone surrogates; these are read as U+FFFD.", "surrogate_texts", lone)


def _has_surrogate(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def one_column(labels: Any) -> Any:
    """Labels in the only column of a table or matrix as a list, a sparse matrix as an array, others as they are."""
    if hasattr(labels, "toarray"):
        labels = labels.toarray()
    only = len(getattr(labels, "shape", ())) == 2 and labels.shape[1] == 1
    return np.asarray(labels)[:, 0].tolist() if only else labels


def column_names(labels: Any) -> list[str] | None:
    """Names of the columns of a table of several, pandas or polars; None of other labels, and if they are numbers.

    Raises
    ------
    DataError
        If a name stands twice.
    """
    if len(getattr(labels, "shape", ())) != 2 or not hasattr(labels, "columns"):
        return None
    names = list(labels.columns)
    if not all(isinstance(name, str) for name in names):
        return None
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"The table of labels has two columns named {twice!r}; rename one of them.")
    return names


def in_order(labels: Any, classes: np.ndarray) -> Any:
    """The columns of a table of labels in the order of the classes, as an array; other labels as they are.

    Raises
    ------
    DataError
        If its columns have other names than the classes.
    """
    names = column_names(labels)
    if names is None or classes.dtype.kind != "U":
        return labels
    known = classes.tolist()
    if set(names) != set(known):
        lacking, other = sorted(set(known) - set(names)), sorted(set(names) - set(known))
        said = [f"lacks {', '.join(map(repr, lacking))}"] * bool(lacking)
        said += [f"has {', '.join(map(repr, other))}, which the model does not know"] * bool(other)
        raise DataError(f"The table of labels {' and '.join(said)}; give a column for each label of the model.")
    return np.asarray(labels)[:, [names.index(name) for name in known]]


def present(labels: Any, rows: int) -> Bool[np.ndarray, " row"]:
    """Which rows have a label; None, NaN and blank text are missing.

    Raises
    ------
    DataError
        If the labels are a bare string or not as many as the texts.
    """
    if isinstance(labels, str | bytes):
        raise DataError(f"labels is one string, {labels[:20]!r}; give one label for each text.")
    if not hasattr(labels, "__len__"):
        raise DataError(f"labels must be a list or array with one entry for each text, not {type(labels).__name__}.")
    if len(labels) != rows:
        raise DataError(f"There are {rows} texts and {len(labels)} labels; give one label for each text.")
    if len(getattr(labels, "shape", (rows,))) != 1:
        return np.ones(rows, dtype=bool)
    return np.array([not _missing(label) for label in labels], dtype=bool)


def taken(entries: Any, kept: Bool[np.ndarray, " row"]) -> Any:
    """Some of the texts or labels, as a list; of the rows of a matrix, as an array."""
    if len(getattr(entries, "shape", ())) == 2:
        return np.asarray(entries)[kept]
    return [entry for entry, keep in zip(entries, kept, strict=True) if keep]


def _missing(label: object) -> bool:
    label = label.item() if isinstance(label, np.generic) else label
    if isinstance(label, str):
        return not label.strip()
    return (
        label is None or (isinstance(label, float) and label != label) or type(label).__name__ in ("NAType", "NaTType")
    )


def as_weights(weights: Any, rows: int) -> Float64[np.ndarray, " row"]:
    """Sample weights, one a text, finite and not negative; ones if None."""
    if weights is None:
        return np.ones(rows)
    try:
        array = np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"sample_weight must hold numbers, one for each of {rows} texts ({error}).") from error
    if array.shape != (rows,):
        raise ArgumentError(f"sample_weight has shape {array.shape}; it must have one number for each of {rows} texts.")
    if not np.isfinite(array).all() or (array < 0).any() or not array.any():
        raise ArgumentError("sample_weight must be finite and not negative, and not zero everywhere.")
    return array


def as_groups(groups: Any, rows: int) -> Int64[np.ndarray, " row"] | None:
    """Numbers of the groups, one a text; a text without one (None, NaN, blank) is a group of its own. None if None.

    Raises
    ------
    ArgumentError
        If they are not as many as the texts, no list, or cannot be compared.
    """
    if groups is None:
        return None
    if isinstance(groups, str | bytes) or not hasattr(groups, "__len__") or len(groups) != rows:
        got = f"{len(groups)}" if hasattr(groups, "__len__") else type(groups).__name__
        raise ArgumentError(f"groups must be a list with one entry for each of {rows} texts, not {got}.")
    seen: dict[Any, int] = {}
    numbers = np.empty(rows, dtype=np.int64)
    for row, group in enumerate(groups):
        if _missing(group):
            group = object()
        try:
            numbers[row] = seen.setdefault(group, len(seen))
        except TypeError as error:
            raise ArgumentError(
                f"The group of row {row + 1} is of type {type(group).__name__}; groups are text or numbers."
            ) from error
    return numbers
