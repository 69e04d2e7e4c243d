"""Parts: a long file in stretches, each of which is done by one worker and kept on its own.

Part       some consecutive rows of a file
cut        file -> parts; a row that holds no text is refused before any work starts
texts_of   the texts of some parts, streamed
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sonde.tables import iter_tables, text_column
from sonde.tables.reading import warn_of_quotes

PART_ROWS = 4096
PART_CHARACTERS = 4 * 2**20
"""A part has at most this many rows or characters, as the windows in which texts are read: sorting by length pays, a
run that is killed repeats seconds of a small encoder, and what lies in memory stays flat."""


@dataclass(frozen=True)
class Part:
    """Some consecutive rows of a file."""

    number: int
    """Its place among the parts, from 0."""
    start: int
    """Rows of the file before its first."""
    rows: int
    """How many it has."""


def cut(source: Path, text: str, rows: int | None = None) -> list[Part]:
    """Cut a file into parts of at most `rows` rows, by default `PART_ROWS`, in one pass.

    All columns are read: what cannot be read is found now, not when the output is written after hours.

    Raises
    ------
    DataError
        The file cannot be read, or a cell of the column holds something else than text: the sentence names the row.
    """
    parts: list[Part] = []
    most = rows or PART_ROWS
    start = filled = size = 0
    for length in _lengths(source, text):
        if filled and (filled >= most or size + length > PART_CHARACTERS):
            parts.append(Part(len(parts), start, filled))
            start, filled, size = start + filled, 0, 0
        filled, size = filled + 1, size + length
    return [*parts, Part(len(parts), start, filled)]


def _lengths(source: Path, text: str) -> Iterator[int]:
    for table in warn_of_quotes(iter_tables(source)):
        yield from map(len, text_column(table, text))


def texts_of(source: Path, text: str, parts: Sequence[Part]) -> Iterator[tuple[Part, list[str]]]:
    """The texts of these parts, which stand in the order of the file; a part at a time."""
    wanted = iter(parts)
    part = next(wanted, None)
    texts: list[str] = []
    for table in iter_tables(source, columns=[text]) if part else ():
        cells = text_column(table, text)
        while part and part.start < table.start + table.rows:
            begin = max(part.start - table.start, 0)
            texts += cells[begin : part.start + part.rows - table.start]
            if len(texts) < part.rows:  # its end stands in the next stretch
                break
            yield part, texts
            part, texts = next(wanted, None), []
        if part is None:
            return
