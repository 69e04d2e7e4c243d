"""Writing: columns -> file, streamed; the file appears whole or not at all.

write_table   columns -> file
TableWriter   the same, stretch by stretch
"""

import gzip
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sonde.errors import DataError
from sonde.tables.atomic import write_atomically
from sonde.tables.reading import delimiter_of
from sonde.tables.table import DELIMITERS, SIGNS, Columns, kind_of

SURROGATE = re.compile("[\ud800-\udfff]")
_UNCLEAR = re.compile('["\r\n]')
"""In a header, what keeps readers from telling what separates it."""


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
        otherwise the types of a .parquet file are those of the first stretch. If both are .csv, fields are separated
        as they are there, where every reader would see it: by a comma if a column's name holds a quote or a line end.

    Attributes
    ----------
    typical : mapping of str to list
        Cells that tell the type of a column in a .parquet file, where the first stretch may not: it may be all None.

    Raises
    ------
    DataError
        The extension is unknown, the folder does not exist, the disk is full, or the columns do not fit together.
    """

    def __init__(self, path: str | os.PathLike[str], like: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path)
        self.like = None if like is None else Path(like)
        self.typical: Mapping[str, Sequence[object]] = {}
        self._kind = kind_of(self.path)
        self._names: list[str] | None = None
        self._delimiter, self._special = "", _UNCLEAR
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
            self._write_parquet(cells)
            return
        begins, self._names = self._names is None, list(cells)
        if self._kind == "jsonl":
            self._file.write(_jsonl(cells))
            return
        if begins:
            self._delimiter, self._special = self._separator(self._names)
        self._file.write(_delimited(cells, self._delimiter, self._special, begins))

    def _separator(self, names: Sequence[str]) -> tuple[str, re.Pattern[str]]:
        """That of the .csv which the columns were read from, if readers will find it again; what must be quoted."""
        delimiter = signs = DELIMITERS[self._kind]
        like = self.like if self._kind == "csv" else None
        if like is not None and kind_of(like) == "csv" and not _UNCLEAR.search("".join(names)):
            told, _ = delimiter_of(like, None)
            delimiter = told if told in SIGNS else delimiter
        if delimiter != signs:
            signs = "".join(SIGNS)  # so that no reader takes another
        return delimiter, re.compile(f'["\r\n{signs}]|^[ \ufeff]|[ ]$')

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

        if self.like is not None and kind_of(self.like) == "parquet":
            schema = pq.read_schema(self.like)
            if name in schema.names:
                return schema.field(name).type
        kind = self._array(name, _listed(self.typical.get(name, column)), None).type
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


def _delimited(cells: Columns, delimiter: str, special: re.Pattern[str], begins: bool) -> bytes:
    """Return rows as RFC 4180 text with \\n at line ends.

    Not csv.writer: with \\n at line ends it leaves a carriage return unquoted, and no reader finds the text again.
    """
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
