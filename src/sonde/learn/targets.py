"""Labels as users write them <-> the indicator matrix that learners read.

Targets           classes, (row, class) indicator, single- or multi-label
encode            labels of a training set -> Targets
encode_against    labels of a test set -> Targets over the classes of a model
unseen            which labels a model's classes do not contain, with counts
plain             a label as Python has it
is_collection     whether an entry is several labels
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Int64

from sonde.errors import DataError

Label: TypeAlias = str | int | bool


@dataclass(frozen=True)
class Targets:
    """The labels of a data set."""

    classes: np.ndarray
    """(class,) sorted; dtype str, int64 or bool."""
    indicator: Float32[np.ndarray, "row class"]
    """1 where a row has a class, else 0. One-hot for single-label data; an all-zero row is a label never seen."""
    multilabel: bool
    """Whether a row may have any number of classes."""
    unknown: Int64[np.ndarray, " row"] | None = None
    """How many labels of each row are none of the classes; None where every label made a class."""
    matrix: bool = False
    """Whether the labels came as a 0/1 matrix."""
    unseen: Mapping[Label, int] = field(default_factory=dict)
    """Labels that are none of the classes, with their rows, most frequent first."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.indicator)

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def ids(self) -> Int64[np.ndarray, " row"]:
        """Position in `classes` of each row's label, -1 for a label never seen. Single-label data only."""
        assert not self.multilabel, "multi-label rows have no single class id"
        return np.where(self.indicator.any(axis=1), self.indicator.argmax(axis=1), -1).astype(np.int64)

    @property
    def foreign(self) -> int:
        """How many different labels are none of the classes."""
        return len(self.unseen)

    @property
    def strange(self) -> Bool[np.ndarray, " row"] | None:
        """Rows with a label that is none of the classes; None where every label made a class."""
        return None if self.unknown is None else self.unknown > 0

    def take(self, rows: Int64[np.ndarray, " taken"] | Bool[np.ndarray, " row"]) -> "Targets":
        """The same classes over some of the rows."""
        unknown = None if self.unknown is None else self.unknown[rows]
        return replace(self, indicator=self.indicator[rows], unknown=unknown)


def encode(labels: Any, places: Sequence[int] | None = None, names: Sequence[str] | None = None) -> Targets:
    """Turn the labels of a training set into targets.

    Parameters
    ----------
    labels : list, tuple, ndarray, pandas or polars Series
        str, int or bool, all of one type: single-label. Lists of str or int (an empty list = no label), or a
        two-dimensional array of 0 and 1 whose columns are the classes 0, 1, ...: multi-label. A nested list is read as
        such a matrix if its rows are equally long, hold only 0 and 1, and are arrays, or booleans, or some row repeats
        a value.
    places : sequence of int, optional
        The row by which a sentence names each, counted from 1; by default its place among `labels`.
    names : sequence of str, optional
        The classes of a matrix, in the order of its columns, in place of 0, 1, ...

    Raises
    ------
    DataError
        A bare string, missing labels, mixed types, fractions, fewer than two classes, or nested lists that may be a
        matrix of two columns as well as lists of both labels.
    """
    rows, multilabel, width = _read(labels, places, None)
    found: list[Label] = sorted({label for row in rows for label in row}) if width is None else list(range(width))
    if len(found) < 2:
        raise DataError(_too_few(found, len(rows)))
    indicator = _indicator(rows, {label: i for i, label in enumerate(found)}, len(found))
    if width is not None and names is not None:
        found = list(names)
    classes = np.array(found, dtype=str) if isinstance(found[0], str) else np.array(found)
    return Targets(classes, indicator, multilabel, matrix=width is not None)


def encode_against(
    labels: Any, classes: np.ndarray, multilabel: bool, matrix: bool = False, places: Sequence[int] | None = None
) -> Targets:
    """Turn the labels of a test set into targets over known classes.

    Parameters
    ----------
    labels, places : as in `encode`
    classes : ndarray (class,)
        The classes of a model.
    multilabel : bool
        Whether the model is multi-label.
    matrix : bool
        Whether it was trained on a 0/1 matrix: nested lists of 0 and 1 are read as it was.

    Returns
    -------
    Targets
        Unknown labels give no 1 anywhere in their row. Labels whose type is not that of the classes are compared as
        text, because "1" of one file may be 1 in another.

    Raises
    ------
    DataError
        As in `encode`, or if the labels are multi-label and the model is not, or the reverse.
    """
    rows = _read_against(labels, classes, multilabel, matrix, places)
    known = _positions(rows, classes)
    unknown = np.array([len(set(row) - known.keys()) for row in rows], dtype=np.int64)  # row
    unseen = dict(Counter(label for row in rows for label in row if label not in known).most_common())
    return Targets(classes, _indicator(rows, known, len(classes)), multilabel, unknown, matrix, unseen)


def unseen(labels: Any, classes: np.ndarray, multilabel: bool, matrix: bool = False) -> dict[Label, int]:
    """Count the labels that are not among `classes`, most frequent first. Arguments as in `encode_against`."""
    return dict(encode_against(labels, classes, multilabel, matrix).unseen)


def _read_against(
    labels: Any, classes: np.ndarray, multilabel: bool, matrix: bool, places: Sequence[int] | None
) -> list[list[Label]]:
    rows, given_multilabel, width = _read(labels, places, matrix)
    if given_multilabel != multilabel:
        sorts = {True: "lists of labels (or a 0/1 matrix)", False: "one label per row"}
        raise DataError(
            f"The model was trained on {sorts[multilabel]}, but these labels are {sorts[given_multilabel]}."
        )
    if width is not None and width != len(classes):
        raise DataError(f"The label matrix has {width} columns, but the model has {len(classes)} classes.")
    known: list[Label] = classes.tolist()
    return rows if width is None else [[known[column] for column in row] for row in rows]  # type: ignore[index]


def _positions(rows: list[list[Label]], classes: np.ndarray) -> dict[Label, int]:
    known: list[Label] = classes.tolist()
    by_text = {str(label): i for i, label in enumerate(known)}
    kind = type(known[0])
    found = {label for row in rows for label in row}
    # a plain dict of `known` would let True find 1
    return {label: by_text[str(label)] for label in found if str(label) in by_text and _comparable(label, kind)}


def _comparable(label: Label, kind: type) -> bool:
    return type(label) is kind or isinstance(label, str) or kind is str


def _read(labels: Any, places: Sequence[int] | None, matrix: bool | None) -> tuple[list[list[Label]], bool, int | None]:
    """Rows of labels, whether they are multi-label, and the number of columns if they came as a 0/1 matrix.

    `matrix` says how nested lists of 0 and 1 are meant; None: by their look.
    """
    if isinstance(labels, str | bytes | dict) or not isinstance(labels, Iterable):
        raise DataError(f"Labels must be a list or array with one entry per text, not {_shown(labels)}.")
    if not isinstance(labels, list | tuple):
        array = np.asarray(labels)
        if array.ndim == 2:
            return _read_matrix(array, places)
        labels = array.tolist()
        if not isinstance(labels, list):
            raise DataError("Labels must be a list or array with one entry per text, or a dense 0/1 matrix.")
    items = list(labels)
    if not items:
        raise DataError("There are no labels: a classifier needs at least two classes.")
    places = range(1, len(items) + 1) if places is None else places
    if is_collection(items[0]):
        return _read_lists(items, places, matrix)
    return [[label] for label in _of_one_type(list(zip(places, items, strict=True)))], False, None


def _read_matrix(array: np.ndarray, places: Sequence[int] | None) -> tuple[list[list[Label]], bool, int | None]:
    if array.dtype.kind == "O":  # of pandas' nullable columns
        with suppress(TypeError, ValueError):
            array = array.astype(np.float64)
    wrong = ~np.isin(array, (0, 1)) if array.dtype.kind in "biuf" else np.ones(array.shape, dtype=bool)
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        place = row + 1 if places is None else places[row]
        raise DataError(
            f"A two-dimensional array of labels must hold only 0 and 1, but row {place}, column {column} is "
            f"{_shown(array[row, column])}. Give one label per text, or a list of labels per text."
        )
    rows: list[list[Label]] = [list(np.flatnonzero(row).tolist()) for row in array]
    return rows, True, array.shape[1]


def _read_lists(
    items: list[Any], places: Sequence[int], matrix: bool | None
) -> tuple[list[list[Label]], bool, int | None]:
    for row, item in zip(places, items, strict=True):
        if not is_collection(item):
            raise DataError(
                f"Row {places[0]} is a list of labels, but row {row} is {_shown(item)}. Make every row a list."
            )
    lists = [list(item) for item in items]
    if _is_matrix(items, lists, matrix):
        return _read_matrix(np.array(lists), places)
    flat = iter(_of_one_type([(row, label) for row, labels in zip(places, lists, strict=True) for label in labels]))
    return [[next(flat) for _ in labels] for labels in lists], True, None


def _is_matrix(items: list[Any], lists: list[list[Any]], matrix: bool | None) -> bool:
    """Whether nested lists are read as a 0/1 matrix; `matrix` decides where both can be meant.

    Label lists do not repeat a label in a row; rows of a 0/1 matrix of three columns must.
    """
    width = len(lists[0])
    if not all(len(row) == width and all(_is_bit(value) for value in row) for row in lists):
        return False
    if matrix is not None:
        return matrix
    if all(isinstance(item, np.ndarray) for item in items) or any(len(set(row)) < width for row in lists):
        return True
    bits = width and all(isinstance(value, bool | np.bool_) for row in lists for value in row)
    if width == 2 and not bits:
        raise DataError(
            "Every row of labels is [0, 1] or [1, 0]. If that is a 0/1 matrix with a column for each class, give a "
            "two-dimensional array; if it is lists of labels, all rows have both, and there is nothing to learn."
        )
    return bool(bits)


def _is_bit(value: object) -> bool:
    return isinstance(value, bool | int | float | np.bool_ | np.number) and value in (0, 1)


def is_collection(item: object) -> bool:
    """Whether an entry is several labels, not one."""
    return isinstance(item, Iterable) and isinstance(item, Sized) and not isinstance(item, str | bytes | dict)


def _of_one_type(cells: list[tuple[int, Any]]) -> list[Label]:
    """The labels as plain Python values; `cells` are (row, label), the row for sentences."""
    labels = [_checked(row, item) for row, item in cells]
    for (row, _), label in zip(cells, labels, strict=True):
        if type(label) is not type(labels[0]):
            first = f"{type(labels[0]).__name__} (row {cells[0][0]}: {labels[0]!r})"
            raise DataError(
                f"Labels mix {first} and {type(label).__name__} (row {row}: {label!r}). "
                "Write them all as text, or all as whole numbers."
            )
    return labels


def plain(item: Any) -> Any:
    """A label as Python has it: of an enumeration its value, of a whole float the number."""
    value = item.item() if isinstance(item, np.generic) else item
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)  # columns with gaps often hold whole numbers as floats
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _checked(row: int, item: Any) -> Label:
    value = plain(item)
    if value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value):
        raise DataError(f"The label of row {row} is missing. Leave out the rows without a label, or give them one.")
    if isinstance(value, str):
        if value.endswith("\0"):
            raise DataError(
                f"The label of row {row} is {_shown(value)}: the NUL characters at its end, with which some programs "
                "fill columns, would be lost. Remove them."
            )
        return value
    if not isinstance(value, int):  # bool is an int
        what = "a fraction" if isinstance(value, float) else f"of type {type(value).__name__}"
        raise DataError(
            f"The label of row {row} is {_shown(value)}, {what}. Labels are text, whole numbers or booleans."
        )
    if abs(value) >= 2**63:
        raise DataError(
            f"The label of row {row} is {value}, too large for a whole number of 64 bits. Write it as text."
        )
    return value


def _indicator(
    rows: list[list[Label]], positions: dict[Label, int], n_classes: int
) -> Float32[np.ndarray, "row class"]:
    indicator = np.zeros((len(rows), n_classes), dtype=np.float32)  # row class
    pairs = [(row, positions[label]) for row, labels in enumerate(rows) for label in labels if label in positions]
    if pairs:
        indicator[tuple(np.array(pairs).T)] = 1.0
    return indicator


def _too_few(found: list[Label], rows: int) -> str:
    if not found:
        return f"None of the {rows} rows has a label: a classifier needs at least two classes."
    return f"The {rows} rows have only one class, {found[0]!r}: a classifier needs at least two classes."


def _shown(value: object) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."  # one line of a terminal
