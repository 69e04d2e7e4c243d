"""Reading: a file -> columns, streamed; what is wrong is said with file, row, line and column.

read_table       a whole file
iter_tables      a file in stretches of rows, in constant memory
delimiter_of     what separates the fields of a file
warn_of_quotes   stretches, passed on; a .tsv that does not quote is told at the end
"""

import csv
import difflib
import gzip
import json
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, NoReturn

from sonde.errors import ArgumentError, DataError, warn
from sonde.tables.columns import described
from sonde.tables.table import DELIMITERS, EXTENSIONS, SHOWN, SIGNS, Columns, Table, choose_columns, kind_of, repeated

# The longest line and the longest cell, in bytes and characters. Real texts stay far below (the longest IMDb review has
# 14,000 characters); what exceeds it is a binary file or a quote that was never closed, and must not fill the memory.
LONGEST = 2**26
# First bytes of files that are often given the wrong extension.
SIGNATURES = {
    b"\x1f\x8b": "It looks like a gzip file: add .gz to its name.",
    b"PK\x03\x04": "It looks like a zip file or an Excel workbook: save it as CSV UTF-8.",
    b"PAR1": "It looks like a parquet file: name it .parquet.",
    b"\xff\xfe": "It looks like UTF-16: save it as UTF-8.",
    b"\xfe\xff": "It looks like UTF-16: save it as UTF-8.",
}
CONVERT = "Save it as UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
# What a spreadsheet says of its own file in a first line.
_TOLD = re.compile(r"sep=([,;\t|])", re.IGNORECASE)
# csv.field_size_limit is one number for the whole process. It is raised for one record at a time and put back, under
# this lock, so that other users of csv keep their limit and two of our readers do not undo each other's.
_LIMIT_LOCK = threading.Lock()


def read_table(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> Table:
    """Read a whole file.

    Parameters
    ----------
    path : str or path
        A .csv, .tsv, .jsonl (each also .gz) or .parquet file.
    columns : sequence of str, optional
        Read these columns only, in this order; all of them if None.

    Raises
    ------
    DataError
        The file is missing, empty or damaged, or has no such column: the sentence names file, row and line.

    Warns
    -----
    SondeWarning
        odd_quotes: cells of a .tsv that hold both a tab and a line end.
    """
    tables = list(warn_of_quotes(iter_tables(path, columns=columns)))
    whole = {name: [cell for table in tables for cell in table.columns[name]] for name in tables[0].columns}
    return Table(tables[0].path, whole)


def iter_tables(
    path: str | os.PathLike[str], rows: int = 8192, columns: Sequence[str] | None = None
) -> Iterator[Table]:
    """Read a file in stretches of `rows` rows; parameters and errors as in `read_table`.

    A path that cannot be read is refused at once, a damaged row when it is reached.
    """
    if rows < 1 or (columns is not None and not columns):
        raise ArgumentError(f"rows={rows}, columns={columns}: there must be one row and one column, or more.")
    return _stretches(_existing(Path(path)), rows, columns)


def warn_of_quotes(tables: Iterator[Table]) -> Iterator[Table]:
    """Pass on the stretches of a file; behind the last, warn of cells of a .tsv that hold a tab and a line end."""
    rows: list[int] = []
    for table in tables:
        if kind_of(table.path) == "tsv":
            cells = (entry for column in table.columns.values() for entry in enumerate(column))
            rows += [table.number(row) for row, cell in cells if "\t" in str(cell) and "\n" in str(cell)]
        yield table
    if rows:
        warn(
            f"{table.path}: {len(rows)} cells between double quotes hold a tab and a line end, the first in row "
            f"{min(rows)}. If each is several rows, the file does not quote: put texts with double quotes in them "
            "between double quotes and double those inside, or save it as CSV.",
            "odd_quotes",
            len(rows),
        )


def _stretches(path: Path, rows: int, columns: Sequence[str] | None) -> Iterator[Table]:
    start = 0
    for stretch in _READERS[kind_of(path)](path, rows, columns):
        table = Table(path, stretch, start)
        yield table
        start += table.rows
    if start == 0:
        raise DataError(f"{path} holds column names but no rows; it needs at least one row.")


def _existing(path: Path) -> Path:
    kind_of(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder; a file is needed ({', '.join(EXTENSIONS)}).")
    if path.exists():
        return path
    if not path.parent.is_dir():
        raise DataError(f"There is no file {path}: the folder {path.parent} does not exist.")
    similar = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()])
    hint = f" Similar names there: {', '.join(similar)}." if similar else ""
    raise DataError(f"There is no file {path.name} in {path.parent.resolve()}.{hint}")


class _Lines:
    """The decoded lines of a file; counts rows, lines and bytes, so that a fault can say where it stands."""

    def __init__(self, path: Path, raw: IO[bytes]) -> None:
        self.path = path
        self.raw = raw
        self.row = 0  # the row being read; 0 is the header
        self.line = 0  # the last line read
        self.begin = 1  # the line on which the row begins
        self.offset = 0  # bytes before the last line read

    def __iter__(self) -> Iterator[str]:
        size = 0
        while data := self.raw.readline(LONGEST):
            self.line, self.offset, size = self.line + 1, self.offset + size, len(data)
            if size == LONGEST:
                self.fault("stands on a line of more than 64 MiB; a row must be shorter.")
            text = data.decode("utf-8")
            yield text.removeprefix("\ufeff") if self.line == 1 else text

    def next_row(self) -> None:
        self.row, self.begin = self.row + 1, self.line + 1

    def fault(self, what: str) -> NoReturn:
        """Raise a DataError that begins with the place."""
        place = f"row {self.row} (line {self.begin})" if self.row else "the header (line 1)"
        raise DataError(f"{self.path}: {place} {what}")


@contextmanager
def _lines(path: Path) -> Iterator[_Lines]:
    """Open a text file for reading line by line; turn what can go wrong below into sentences."""
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb"))
            signature = raw.read(4)
            raw.seek(0)
            if not signature:
                raise DataError(f"{path} is empty; it needs column names and at least one row.")
            packed = path.suffix.lower() == ".gz"
            lines = _Lines(path, stack.enter_context(gzip.GzipFile(fileobj=raw)) if packed else raw)  # type: ignore[arg-type]
            yield lines
        except UnicodeDecodeError as error:
            hint = next((hint for start, hint in SIGNATURES.items() if signature.startswith(start)), CONVERT)
            lines.begin = lines.line
            byte = f"byte 0x{error.object[error.start]:02x} at offset {lines.offset + error.start:,}"
            lines.fault(f"is not UTF-8: {byte}. {hint}")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path} is not a complete gzip file ({error}); pack or download it again.") from error
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _read_delimited(path: Path, rows: int, columns: Sequence[str] | None) -> Iterator[Columns]:
    delimiter, told = delimiter_of(path, columns)
    with _lines(path) as lines:
        rest = iter(lines)
        if told:
            next(rest)
        reader = csv.reader(rest, delimiter=delimiter, strict=True)
        header = _record(reader, lines)
        if header is None:
            raise DataError(f"{path} holds only blank lines; it needs column names and at least one row.")
        unnamed = _unnamed(header, lines)
        names = [name for name in header if name] if unnamed else header
        places = [header.index(name) for name in choose_columns(path, names, columns)]
        cells: list[list[object]] = [[] for _ in places]
        lines.next_row()
        while (record := _record(reader, lines)) is not None:
            if len(record) != len(header):
                lines.fault(
                    f"has {len(record)} fields, the header has {len(header)}; "
                    f"put a text that contains {delimiter!r} or a line break between double quotes."
                )
            if held := [record[place] for place in unnamed if record[place].strip()]:
                lines.fault(f"holds {held[0]!r:.40}, but {_places(unnamed)} have no name; name them, or remove them.")
            for column, place in zip(cells, places, strict=True):
                column.append(record[place])
            lines.next_row()
            if len(cells[0]) == rows:
                yield {header[place]: column for place, column in zip(places, cells, strict=True)}
                cells = [[] for _ in places]
        if cells[0]:
            yield {header[place]: column for place, column in zip(places, cells, strict=True)}


def _unnamed(header: Sequence[str], lines: _Lines) -> list[int]:
    """Return the places of columns without a name, which spreadsheets leave behind, if there are several."""
    places = [place for place, name in enumerate(header) if not name]
    if 1 < len(places) == len(header):
        lines.fault("names no column; put the names of the columns in the first line.")
    return places if len(places) > 1 else []


def _places(places: Sequence[int]) -> str:
    """Return `columns 3 and 4`, counted from 1."""
    numbers = [str(place + 1) for place in places]
    if len(numbers) > SHOWN:
        numbers[SHOWN:] = [f"{len(numbers) - SHOWN} more"]
    return f"columns {', '.join(numbers[:-1])} and {numbers[-1]}"


def delimiter_of(path: Path, columns: Sequence[str] | None) -> tuple[str, bool]:
    """Return what separates the fields, and whether a line of its own before the header says so.

    In a .csv whose header and first row hold no comma between fields it is the sign that splits both alike:
    spreadsheets write semicolons where the comma is the decimal sign. If none does, it is the one that splits the
    header, so that the row is named which does not fit.
    """
    usual = DELIMITERS[kind_of(path)]
    head = _head(path) if usual == "," else []
    if told := _TOLD.fullmatch(head[0].strip()) if head else None:
        return told[1], True
    if head and head[-1].count('"') % 2:  # its text goes on in the next line
        head = head[:1]
    fits = {sign: _fields(head, sign) for sign in SIGNS} if head else {usual: 0}
    best = max(fits, key=lambda sign: fits[sign])
    if fits[best] <= 1 and _fields(head[:1], usual) == 1:
        alone = [sign for sign in fits if _splits(head, sign, columns)]
        return alone[0] if len(alone) == 1 else usual, False
    return best if fits[best] > 1 >= fits[usual] else usual, False


def _splits(head: Sequence[str], sign: str, columns: Sequence[str] | None) -> bool:
    """Whether a sign splits the header into the columns that are asked for; if none are, the first row too."""
    names = _split(head[0], sign)
    if _fields(head[:1], sign) <= 1:
        return False
    if columns is not None:
        return set(columns) <= set(names)
    return len(_split(head[-1], sign)) > 1 and all(name == name.strip() for name in names)


def _head(path: Path) -> list[str]:
    """Return the first two lines that are not blank; what is wrong with them is said by who reads them."""
    with suppress(DataError), _lines(path) as lines:
        return list(islice((line for line in lines if line.strip()), 2))
    return []


def _fields(lines: Sequence[str], sign: str) -> int:
    """How many fields a sign makes of each of these lines; 0 where they differ, or a quote stands within one."""
    rows = [_split(line, sign) for line in lines]
    counts = {len(row) for row in rows}
    return counts.pop() if len(counts) == 1 and not any('"' in cell for cell in rows[0]) else 0


def _split(line: str, sign: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=sign), [])
    except csv.Error:  # of a damaged header, which is refused by those who read it
        return []


def _record(reader: Any, lines: _Lines) -> list[str] | None:
    """Return the fields of the next line that is not blank, None at the end."""
    record: list[str] | None = []
    while record == []:
        lines.begin = lines.line + 1
        with _LIMIT_LOCK:
            limit = csv.field_size_limit(LONGEST)
            try:
                record = next(reader, None)
            except csv.Error as error:
                lines.fault(f"cannot be read ({error}): close every double quote, and double those inside a text.")
            finally:
                csv.field_size_limit(limit)
    return record


def _read_jsonl(path: Path, rows: int, columns: Sequence[str] | None) -> Iterator[Columns]:
    names = choose_columns(path, _jsonl_names(path, columns), columns)
    cells: Columns = {name: [] for name in names}
    filled = 0
    for record in _objects(path):
        for name, column in cells.items():
            column.append(record.get(name))
        filled += 1
        if filled == rows:
            yield cells
            cells, filled = {name: [] for name in names}, 0
    if filled:
        yield cells


def _jsonl_names(path: Path, columns: Sequence[str] | None) -> list[str]:
    """Return the keys of the rows, in one pass of its own that ends once all that is asked for has been seen."""
    names: dict[str, None] = {}
    for record in _objects(path):
        names |= dict.fromkeys(record)
        if columns is not None and names.keys() >= set(columns):
            break
    if not names:
        raise DataError(
            f"{path} holds no fields; each line must be an object such as " + '{"text": "...", "label": "..."}'
        )
    return list(names)


def _objects(path: Path) -> Iterator[dict[str, object]]:
    with _lines(path) as lines:
        lines.next_row()
        for line in lines:
            lines.begin = lines.line
            if line.isspace():
                continue
            try:
                record = _DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                lines.fault(f"is not JSON ({error}); each line must be one complete object.")
            if not isinstance(record, dict):
                lines.fault(f"holds {described(record)}; each line must be an object with the columns as keys.")
            yield record
            lines.next_row()


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"duplicate key {repeated([name for name, _ in pairs])!r}")
    return record


def _constant(name: str) -> None:
    """Read NaN, which pandas and json write for a missing cell, as null; refuse infinities."""
    if name != "NaN":
        raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _read_parquet(path: Path, rows: int, columns: Sequence[str] | None) -> Iterator[Columns]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = choose_columns(path, file.schema_arrow.names, columns)
            row = 0
            for batch in file.iter_batches(batch_size=rows, columns=names):
                yield {name: _python(path, name, batch.column(name), row) for name in names}
                row += batch.num_rows
    except DataError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError) as error:  # as pyarrow has it
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is not a readable parquet file ({reason}); write it again.") from error


def _python(path: Path, name: str, column: Any, start: int) -> list[object]:
    """Return an Arrow column as Python values; a cell that has no such value is named."""
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        for row, cell in enumerate(column, start + 1):
            try:
                cell.as_py()
            except (ValueError, OverflowError) as error:
                raise DataError(f"{path}: row {row}, column {name!r} cannot be read ({error}).") from error
        raise


_READERS: dict[str, Callable[[Path, int, Sequence[str] | None], Iterator[Columns]]] = {
    "csv": _read_delimited,
    "tsv": _read_delimited,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
}
