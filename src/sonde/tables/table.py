"""Table: the columns of one file, their names, and the formats that sonde reads and writes.

Table           columns of one file, or of one stretch of its rows
EXTENSIONS      the formats, by extension
kind_of         csv, tsv, jsonl or parquet, of a path
choose_columns  the columns to read, after checking the names of the file
repeated        the first name that stands twice
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sonde.errors import DataError

Columns = dict[str, list[object]]
EXTENSIONS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")
DELIMITERS = {"csv": ",", "tsv": "\t"}
# What spreadsheets put between the fields of a .csv, by country.
SIGNS = (",", ";", "\t")
# What other programs take for their own input and output.
STREAMS = ("-", "/dev/stdin", "/dev/stdout")
# Names shown in a sentence before "and N more": a line or two of a terminal.
SHOWN = 12


@dataclass(frozen=True)
class Table:
    """Columns of one file, or of one stretch of its rows."""

    path: Path
    """The file, named in error sentences."""
    columns: Columns
    """Column name -> one cell per row: str in csv and tsv ("" where missing), else the file's own types or None."""
    start: int = 0
    """Rows of the file that stand before the first row here."""
    numbers: Sequence[int] | None = None
    """Number of each row in the file, from 1, where rows are missing between them; None: they follow on each other."""
    drawn_from: int | None = None
    """How many rows the file has, where these were drawn from it."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values()), []))

    def number(self, row: int) -> int:
        """The number in the file, from 1, of a row here, from 0."""
        return self.start + row + 1 if self.numbers is None else int(self.numbers[row])

    @property
    def names(self) -> list[str]:
        """Column names, in the file's order."""
        return list(self.columns)


def kind_of(path: Path) -> str:
    """Return csv, tsv, jsonl or parquet."""
    if str(path) in STREAMS:
        raise DataError(
            f"{path} is no file. Input comes from a file, as it is read more than once; output goes to a file, because "
            "it is written whole or not at all and can be resumed. Give a name such as labelled.csv."
        )
    extension = "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]).lower()
    if extension not in EXTENSIONS:
        raise DataError(f"{path} has the unknown extension {extension!r}; it must be one of: {', '.join(EXTENSIONS)}.")
    return extension.split(".")[1]


def choose_columns(path: Path, names: Sequence[str], columns: Sequence[str] | None) -> Sequence[str]:
    """Return the columns to read, after checking that names are unique and the columns exist."""
    if (twice := repeated(names)) is not None:
        raise DataError(f"{path} has two columns named {twice!r}; rename one of them.")
    for name in columns or ():
        if name not in names:
            raise DataError(_no_column(path, name, names))
    return names if columns is None else list(dict.fromkeys(columns))


def repeated(names: Sequence[str]) -> str | None:
    """Return the first name that stands twice, or None."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _no_column(path: Path, name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.lower(), [known.strip().lower() for known in names], n=1)
    guess = next((f" Did you mean {known!r}?" for known in names if known.strip().lower() in close), "")
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    listed = ", ".join(map(repr, names[:SHOWN])) + more
    known = "commas, semicolons or tabs in .csv, and by tabs in .tsv"
    unsplit = len(names) == 1 or any(sign in name for name in names for sign in ";\t|")
    split = f" Fields are separated by {known}." if unsplit else ""
    choose = "Choose with --text and --label (explain: --column)."
    return f"{path} has no column {name!r}.{guess} Its columns: {listed}.{split} {choose}"
