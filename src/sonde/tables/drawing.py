"""Rows drawn from a file that may be larger than memory.

draw_table   so many rows of a file, each as likely as any other, in the file's order
"""

import os
from collections.abc import Sequence

import numpy as np

from sonde.errors import ArgumentError
from sonde.tables.reading import iter_tables, warn_of_quotes
from sonde.tables.table import Columns, Table


def draw_table(path: str | os.PathLike[str], rows: int, columns: Sequence[str] | None = None, seed: int = 0) -> Table:
    """Draw rows at random, without replacement, while a file streams by once; at most twice as many are held.

    Parameters
    ----------
    path : str or path
        A .csv, .tsv, .jsonl (each also .gz) or .parquet file.
    rows : int
        How many; all of them where the file has fewer.
    columns : sequence of str, optional
        Read these columns only, in this order; all of them if None.
    seed : int
        The same seed draws the same rows of the same file.

    Returns
    -------
    Table
        In the file's order; its rows know their numbers in the file.

    Raises
    ------
    ArgumentError
        `rows` is below 1.
    DataError
        As `read_table`.

    Notes
    -----
    Every row is given a random number, and those with the smallest are kept (a reservoir: Vitter 1985).
    """
    if rows < 1:
        raise ArgumentError(f"rows is {rows}; draw one row or more.")
    generator = np.random.default_rng(seed)
    drawn, there = _Drawn(rows), 0
    for table in warn_of_quotes(iter_tables(path, columns=columns)):
        drawn.offer(table, generator.random(table.rows))
        there += table.rows
    drawn.shrink()
    return Table(table.path, drawn.columns, numbers=drawn.numbers.tolist(), drawn_from=there)


class _Drawn:
    """The rows with the smallest numbers so far, and some more."""

    def __init__(self, rows: int) -> None:
        self.columns: Columns = {}
        self.numbers = np.zeros(0, dtype=np.int64)
        self._rows, self._keys, self._bound = rows, np.zeros(0), 1.0

    def offer(self, table: Table, keys: np.ndarray) -> None:
        """Take what may be among the smallest."""
        chosen = np.flatnonzero(keys < self._bound)
        for name, cells in table.columns.items():
            self.columns.setdefault(name, []).extend(cells[row] for row in chosen.tolist())
        self.numbers = np.concatenate([self.numbers, chosen + table.start + 1])
        self._keys = np.concatenate([self._keys, keys[chosen]])
        if len(self._keys) > 2 * self._rows:
            self.shrink()

    def shrink(self) -> None:
        """Keep the smallest alone."""
        if len(self._keys) <= self._rows:
            return
        kept = np.sort(np.argpartition(self._keys, self._rows)[: self._rows])
        self.columns = {name: [cells[row] for row in kept.tolist()] for name, cells in self.columns.items()}
        self.numbers, self._keys = self.numbers[kept], self._keys[kept]
        self._bound = float(self._keys.max())
