"""Tables: files of texts and labels <-> columns, streamed; files appear whole or not at all.

    Table             columns of one file, or of one stretch of its rows
    read_table        a whole file
    iter_tables       a file in stretches of rows, in constant memory
    text_column       a column as texts; a missing cell is a blank text
    label_column      a column as labels; a missing cell is None
    write_table       columns -> file
    TableWriter       the same, stretch by stretch
    write_atomically  any file: written beside its target, renamed when complete

Formats, by extension: .csv .tsv .jsonl, each also with .gz behind, and .parquet. Text is UTF-8 (a byte order mark is
accepted); .csv and .tsv quote as RFC 4180 says; blank lines are no rows. Rows are counted from 1, without the header.
"""

import csv
import difflib
import errno
import gzip
import json
import math
import os
import re
import secrets
import shutil
import stat
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NoReturn, Self

from sonde.errors import ArgumentError, DataError

Columns = dict[str, list[object]]
Label = str | int | bool

EXTENSIONS = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".parquet")
DELIMITERS = {"csv": ",", "tsv": "\t"}
# The longest line and the longest cell, in bytes and characters. Real texts stay far below (the longest IMDb review has
# 14,000 characters); what exceeds it is a binary file or a quote that was never closed, and must not fill the memory.
LONGEST = 2**26
# Names shown in a sentence before "and N more": a line or two of a terminal.
SHOWN = 12
# First bytes of files that are often given the wrong extension.
SIGNATURES = {
    b"\x1f\x8b": "It looks like a gzip file: add .gz to its name.",
    b"PK\x03\x04": "It looks like a zip file or an Excel workbook: save it as CSV UTF-8.",
    b"PAR1": "It looks like a parquet file: name it .parquet.",
    b"\xff\xfe": "It looks like UTF-16: save it as UTF-8.",
    b"\xfe\xff": "It looks like UTF-16: save it as UTF-8.",
}
CONVERT = "Save it as UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
KINDS = {
    str: "text",
    int: "a whole number",
    bool: "true or false",
    float: "a number",
    list: "a list",
    dict: "an object",
}
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SURROGATE = re.compile("[\ud800-\udfff]")
# csv.field_size_limit is one number for the whole process. It is raised for one record at a time and put back, under
# this lock, so that other users of csv keep their limit and two of our readers do not undo each other's.
_LIMIT_LOCK = threading.Lock()


@dataclass(frozen=True)
class Table:
    """Columns of one file, or of one stretch of its rows."""

    path: Path
    """The file, named in error sentences."""
    columns: Columns
    """Column name -> one cell per row: str in csv and tsv, the file's own types elsewhere, None where missing."""
    start: int = 0
    """Rows of the file that stand before the first row here."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values()), []))

    @property
    def names(self) -> list[str]:
        """Column names, in the file's order."""
        return list(self.columns)


# Reading ------------------------------------------------------------------------------------------------------------


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
    """
    tables = list(iter_tables(path, columns=columns))
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


def _stretches(path: Path, rows: int, columns: Sequence[str] | None) -> Iterator[Table]:
    start = 0
    for stretch in _READERS[_kind(path)](path, rows, columns):
        table = Table(path, stretch, start)
        yield table
        start += table.rows
    if start == 0:
        raise DataError(f"{path} holds column names but no rows; it needs at least one row.")


def _kind(path: Path) -> str:
    """Return csv, tsv, jsonl or parquet."""
    extension = "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]).lower()
    if extension not in EXTENSIONS:
        raise DataError(f"{path} has the unknown extension {extension!r}; it must be one of: {', '.join(EXTENSIONS)}.")
    return extension.split(".")[1]


def _existing(path: Path) -> Path:
    _kind(path)
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
    delimiter = DELIMITERS[_kind(path)]
    with _lines(path) as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header = _record(reader, lines)
        if header is None:
            raise DataError(f"{path} holds only blank lines; it needs column names and at least one row.")
        places = [header.index(name) for name in _chosen(path, header, columns)]
        cells: list[list[object]] = [[] for _ in places]
        lines.next_row()
        while (record := _record(reader, lines)) is not None:
            if len(record) != len(header):
                lines.fault(
                    f"has {len(record)} fields, the header has {len(header)}; "
                    f"put a text that contains {delimiter!r} or a line break between double quotes."
                )
            for column, place in zip(cells, places, strict=True):
                column.append(record[place])
            lines.next_row()
            if len(cells[0]) == rows:
                yield {header[place]: column for place, column in zip(places, cells, strict=True)}
                cells = [[] for _ in places]
        if cells[0]:
            yield {header[place]: column for place, column in zip(places, cells, strict=True)}


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
    names = _chosen(path, _jsonl_names(path, columns), columns)
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
                lines.fault(f"holds {_described(record)}; each line must be an object with the columns as keys.")
            yield record
            lines.next_row()


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError(f"duplicate key {_repeated([name for name, _ in pairs])!r}")
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
            names = _chosen(path, file.schema_arrow.names, columns)
            row = 0
            for batch in file.iter_batches(batch_size=rows, columns=names):
                yield {name: _python(path, name, batch.column(name), row) for name in names}
                row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
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


# Columns ------------------------------------------------------------------------------------------------------------


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
        f"{_place(table, name, row)} holds {_described(cell)} where text is due; "
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
    if separator == "":
        raise ArgumentError("The label separator is empty; give one or more characters, for example ';'.")
    labels = [_label(table, name, row, cell, separator) for row, cell in enumerate(_cells(table, name))]
    _check_one_type(table, name, labels)
    return labels


def _label(table: Table, name: str, row: int, cell: object, separator: str | None) -> Any:
    if _missing(cell) or (isinstance(cell, str) and not cell.strip()):
        return None
    if separator is not None:
        if not isinstance(cell, str):
            raise DataError(f"{_place(table, name, row)} holds {_described(cell)}; only text has a label separator.")
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
        f"{_place(table, name, row)} holds {_described(cell)}; "
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
            (first, other), second = labels[0], row + table.start + 1
            raise DataError(
                f"{_place(table, name, first)} holds {_described(other)}, row {second} holds {_described(label)}; "
                f"the labels of a column must be of one type."
            )


def _cells(table: Table, name: str) -> list[object]:
    _chosen(table.path, table.names, [name])
    return table.columns[name]


def _missing(cell: object) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _place(table: Table, name: str, row: int) -> str:
    return f"{table.path}: row {table.start + row + 1}, column {name!r}"


def _described(cell: object) -> str:
    shown = repr(cell) if len(repr(cell)) <= 40 else repr(cell)[:40] + "..."  # 40: enough to find the cell again
    return f"{KINDS.get(type(cell), 'a ' + type(cell).__name__)} ({shown})"


def _chosen(path: Path, names: Sequence[str], columns: Sequence[str] | None) -> Sequence[str]:
    """Return the columns to read, after checking that names are unique and the columns exist."""
    if (twice := _repeated(names)) is not None:
        raise DataError(f"{path} has two columns named {twice!r}; rename one of them.")
    for name in columns or ():
        if name not in names:
            raise DataError(_no_column(path, name, names))
    return names if columns is None else list(dict.fromkeys(columns))


def _repeated(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _no_column(path: Path, name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name.lower(), [known.strip().lower() for known in names], n=1)
    guess = next((f" Did you mean {known!r}?" for known in names if known.strip().lower() in close), "")
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    listed = ", ".join(map(repr, names[:SHOWN])) + more
    split = " Fields are separated by commas in .csv and by tabs in .tsv." if len(names) == 1 else ""
    return f"{path} has no column {name!r}.{guess} Its columns: {listed}.{split} Choose with --text and --label."


# Writing ------------------------------------------------------------------------------------------------------------


def write_table(path: str | os.PathLike[str], columns: Mapping[str, Sequence[object]]) -> None:
    """Write columns of equal length to a file whose extension names the format; see `TableWriter`."""
    with TableWriter(path) as writer:
        writer.write(columns)


class TableWriter:
    """Write a file stretch by stretch; it appears under its name when the `with` block ends without error.

    Texts are kept to the character. A lone surrogate, which UTF-8 cannot hold, stays an escape in .jsonl and becomes
    U+FFFD elsewhere. In .csv and .tsv, None is an empty cell, and lists and objects are JSON.

    Parameters
    ----------
    path : str or path
        The file to write; what stands there is replaced at the end.
    like : str or path, optional
        The file that the columns were read from. If both are .parquet, columns keep the types that they have there;
        otherwise the types of a .parquet file are those of the first stretch.

    Raises
    ------
    DataError
        The extension is unknown, the folder does not exist, the disk is full, or the columns do not fit together.
    """

    def __init__(self, path: str | os.PathLike[str], like: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path)
        self.like = None if like is None else Path(like)
        self._kind = _kind(self.path)
        self._names: list[str] | None = None
        self._parquet: Any = None
        self._stack = ExitStack()
        self._file: Any = None

    def __enter__(self) -> Self:
        self._file = self._stack.enter_context(write_atomically(self.path, "wb"))
        if self.path.suffix.lower() == ".gz":  # no name and no time inside: equal tables are equal bytes
            packer = gzip.GzipFile(filename="", fileobj=self._file, mode="wb", compresslevel=6, mtime=0)
            self._file = self._stack.enter_context(packer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if self._parquet is not None:
            self._stack.push(_closing(self._parquet))
        return self._stack.__exit__(kind, error, trace)

    def write(self, columns: Mapping[str, Sequence[object]]) -> None:
        """Append rows: one sequence per column (lists, tuples or arrays), the same columns each time."""
        cells = {name: _listed(column) for name, column in columns.items()}
        self._check(cells)
        if self._kind == "parquet":
            return self._write_parquet(cells)
        begins, self._names = self._names is None, list(cells)
        self._file.write(_jsonl(cells) if self._kind == "jsonl" else _delimited(cells, DELIMITERS[self._kind], begins))

    def _check(self, cells: Columns) -> None:
        if self._names is not None and list(cells) != self._names:
            raise DataError(f"{self.path} was begun with the columns {self._names}; the next rows have {list(cells)}.")
        lengths = {name: len(column) for name, column in cells.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"{self.path}: the columns differ in length: {lengths}.")

    def _write_parquet(self, cells: Columns) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._parquet is None:
            fields = [(name, self._type(name, column)) for name, column in cells.items()]
            self._names, schema = list(cells), pa.schema(fields)
            self._parquet = pq.ParquetWriter(self._file, schema)
        schema = self._parquet.schema
        arrays = [self._array(name, column, schema.field(name).type) for name, column in cells.items()]
        self._parquet.write_table(pa.Table.from_arrays(arrays, schema=schema))

    def _type(self, name: str, column: list[object]) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self.like is not None and _kind(self.like) == "parquet":
            schema = pq.read_schema(self.like)
            if name in schema.names:
                return schema.field(name).type
        kind = self._array(name, column, None).type
        return pa.string() if pa.types.is_null(kind) else kind  # nothing known yet: most columns here are texts

    def _array(self, name: str, column: list[object], kind: Any) -> Any:
        import pyarrow as pa

        try:
            return pa.array([_sound(cell) for cell in column], kind)
        except (pa.ArrowException, TypeError, OverflowError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{self.path}: column {name!r} mixes types, which .parquet cannot hold ({reason}); write .jsonl."
            ) from error


def _closing(parquet: Any) -> Callable[..., None]:
    def close(kind: type[BaseException] | None, *_: object) -> None:
        """Write the footer; after an error the file is thrown away, so that a second error says nothing new."""
        with suppress(*([Exception] if kind else [])):
            parquet.close()

    return close


def _listed(column: Any) -> list[object]:
    """Return Python values, also for numpy's arrays and scalars."""
    return [cell.item() if hasattr(cell, "item") else cell for cell in column]


def _sound(cell: object) -> object:
    """Replace lone surrogates, also inside lists and objects."""
    if isinstance(cell, str):
        return SURROGATE.sub("\ufffd", cell)
    if isinstance(cell, list):
        return [_sound(member) for member in cell]
    return {_sound(key): _sound(member) for key, member in cell.items()} if isinstance(cell, dict) else cell


def _delimited(cells: Columns, delimiter: str, begins: bool) -> bytes:
    """Return rows as RFC 4180 text with \\n at line ends.

    Not csv.writer: with \\n at line ends it leaves a carriage return unquoted, and no reader finds the text again.
    """
    special = re.compile(f'["\r\n{delimiter}]|^[ \ufeff]|[ ]$')
    rows: Iterable[Sequence[object]] = zip(*cells.values(), strict=True)
    lines = [delimiter.join(_quoted(_plain(cell), special) for cell in row) or '""' for row in rows]
    if begins:
        lines.insert(0, delimiter.join(_quoted(name, special) for name in cells) or '""')
    return SURROGATE.sub("\ufffd", "".join(line + "\n" for line in lines)).encode("utf-8")


def _plain(cell: object) -> str:
    if isinstance(cell, list | dict):
        return json.dumps(cell, ensure_ascii=False, default=str)
    return "" if cell is None else str(cell)


def _quoted(text: str, special: re.Pattern[str]) -> str:
    return '"' + text.replace('"', '""') + '"' if special.search(text) else text


def _jsonl(cells: Columns) -> bytes:
    """Return rows as JSON objects; in JSON, Python's escape of a lone surrogate is the JSON escape of it."""
    rows = zip(*([None if _endless(cell) else cell for cell in column] for column in cells.values()), strict=True)
    lines = [json.dumps(dict(zip(cells, row, strict=True)), ensure_ascii=False, default=str) + "\n" for row in rows]
    return "".join(lines).encode("utf-8", "backslashreplace")


def _endless(cell: object) -> bool:
    return isinstance(cell, float) and not math.isfinite(cell)  # JSON has no word for NaN and infinity but null


@contextmanager
def write_atomically(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears under its name only when complete; after an error, what stood there still stands.

    The bytes go to a hidden temporary file in the same folder (`.sonde-*.tmp`; one may stay behind if the process is
    killed), are flushed to the disk, and take the name in one step. An existing file passes on its permissions; a
    symbolic link keeps pointing at the file it names.

    Parameters
    ----------
    path : str or path
        The file to write.
    mode : {"w", "wb"}
        Text (UTF-8, line ends as written) or bytes.

    Raises
    ------
    DataError
        The folder does not exist or may not be written, `path` is a folder, or the disk is full.
    """
    target = Path(path).resolve()
    if mode not in ("w", "wb"):
        raise ArgumentError(f"mode {mode!r} is unknown; it must be one of: w, wb.")
    temporary = _temporary(Path(path), target)
    try:
        text = {"encoding": "utf-8", "newline": ""} if mode == "w" else {}
        with temporary.open(mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        free = shutil.disk_usage(target.parent).free
        raise DataError(
            f"{path} could not be written: {error.strerror}, {free:,} bytes are free in {target.parent}. "
            f"Make room or choose another disk; nothing was changed there."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path, target: Path) -> Path:
    """Create the temporary file, with the permissions that any new file gets."""
    if target.is_dir():
        raise DataError(f"{path} is a folder; name the file to write.")
    if not target.parent.is_dir():
        raise DataError(f"{path} cannot be written: the folder {target.parent} does not exist. Create it first.")
    temporary = target.parent / f".sonde-{secrets.token_hex(8)}.tmp"
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror} in {target.parent}.") from error
    return temporary


def _sync_folder(folder: Path) -> None:
    """Flush the new name to the disk, where the file system lets folders be flushed."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
