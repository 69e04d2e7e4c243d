"""Columns: the cells of a column as texts or labels, and the rows that are neither, named.

text_column       a column as texts; a missing cell is a blank text
label_column      a column as labels; a missing cell is None
check_separator   what may stand between the labels of a cell
described         a cell in words, for sentences
"""

import math
from collections.abc import Sequence
from typing import Any

from sonde.errors import ArgumentError, DataError
from sonde.tables.table import Table, choose_columns

Label = str | int | bool
KINDS = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def text_column(table: Table, name: str) -> list[str]:
    """Return a column as texts; a missing cell is the blank text "".

    Raises
    ------
    DataError
        There is no such column, or a cell holds something else than text: the sentence names the row.
    """
    return [_text(table, name, row, cell) for row, cell in enumerate(_cells(table, name))]


def _text(table: Table, name: str, row: int, cell: object) -> str:
    if isinstance(cell, str):
        return cell
    if _missing(cell):
        return ""
    raise DataError(
        f"{_place(table, name, row)} holds {described(cell)} where text is due; "
        f"choose the column of texts with --text, or write the numbers as text."
    )


def label_column(
    table: Table, name: str, separator: str | None = None
) -> list[Label | None] | list[list[Label] | None]:
    """Return a column as labels; a missing or blank cell is None.

    Parameters
    ----------
    separator : str, optional
        Split each cell at it into a list of labels (multi-label); spaces around a label and empty labels are dropped.
        Cells of .jsonl and .parquet may be lists already. An empty list says "none of the labels" and is not missing.

    Returns
    -------
    list
        All str, all int, all bool, or all lists of one of these. Whole floats, which pandas makes of integers as soon
        as a cell is missing, are ints again.

    Raises
    ------
    DataError
        There is no such column, a cell is no label, or two rows hold labels of different types: both are named.
    """
    if separator is not None:
        check_separator(separator)
    labels = [_label(table, name, row, cell, separator) for row, cell in enumerate(_cells(table, name))]
    _check_one_type(table, name, labels)
    return labels


def check_separator(separator: str) -> None:
    """`ArgumentError` if labels cannot be told apart by it, or no cell can hold it alone."""
    if not separator:
        raise ArgumentError("The label separator is empty; give one or more characters, for example ';'.")
    if separator.isspace():
        raise ArgumentError(
            f"The label separator {separator!r} is white space: a cell that holds it alone, to say that a text has no "
            "label, would be blank. Give other characters, for example ';'."
        )


def _label(table: Table, name: str, row: int, cell: object, separator: str | None) -> Any:
    if _missing(cell) or (isinstance(cell, str) and not cell.strip()):
        return None
    if separator is not None:
        if not isinstance(cell, str):
            raise DataError(f"{_place(table, name, row)} holds {described(cell)}; only text has a label separator.")
        return [part.strip() for part in cell.split(separator) if part.strip()]
    if isinstance(cell, list):
        return [_single(table, name, row, member) for member in cell]
    return _single(table, name, row, cell)


def _single(table: Table, name: str, row: int, cell: object) -> Label:
    if isinstance(cell, float) and cell.is_integer():
        return int(cell)
    if isinstance(cell, str | int | bool):
        return cell
    raise DataError(
        f"{_place(table, name, row)} holds {described(cell)}; "
        f"a label must be text, a whole number, true or false, or a list of these."
    )


def _check_one_type(table: Table, name: str, labels: Sequence[object]) -> None:
    _check_alike(table, name, [(row, label) for row, label in enumerate(labels) if label is not None])
    _check_alike(
        table, name, [(row, one) for row, label in enumerate(labels) if isinstance(label, list) for one in label]
    )


def _check_alike(table: Table, name: str, labels: Sequence[tuple[int, object]]) -> None:
    for row, label in labels:
        if type(label) is not type(labels[0][1]):
            (first, other), second = labels[0], table.number(row)
            raise DataError(
                f"{_place(table, name, first)} holds {described(other)}, row {second} holds {described(label)}; "
                f"the labels of a column must be of one type."
            )


def _cells(table: Table, name: str) -> list[object]:
    choose_columns(table.path, table.names, [name])
    return table.columns[name]


def _missing(cell: object) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _place(table: Table, name: str, row: int) -> str:
    return f"{table.path}: row {table.number(row)}, column {name!r}"


def described(cell: object) -> str:
    """Say what kind of cell this is, and how it begins."""
    shown = repr(cell) if len(repr(cell)) <= 40 else repr(cell)[:40] + "..."  # 40: enough to find the cell again
    return f"{KINDS.get(type(cell), 'a ' + type(cell).__name__)} ({shown})"
