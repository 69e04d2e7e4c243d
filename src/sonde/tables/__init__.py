"""Tables: files of texts and labels <-> columns, streamed; files appear whole or not at all.

    Table             columns of one file, or of one stretch of its rows
    read_table        a whole file
    iter_tables       a file in stretches of rows, in constant memory
    draw_table        so many rows of a file, at random, in the memory of these
    text_column       a column as texts; a missing cell is a blank text
    label_column      a column as labels; a missing cell is None
    write_table       columns -> file
    TableWriter       the same, stretch by stretch
    write_atomically  any file: written beside its target, renamed when complete

Formats, by extension: .csv .tsv .jsonl, each also with .gz behind, and .parquet. Text is UTF-8 (a byte order mark is
accepted); .csv and .tsv quote as RFC 4180 says; blank lines are no rows. Rows are counted from 1, without the header.
"""

from sonde.tables.atomic import write_atomically
from sonde.tables.columns import Label, label_column, text_column
from sonde.tables.drawing import draw_table
from sonde.tables.reading import iter_tables, read_table
from sonde.tables.table import EXTENSIONS, Columns, Table
from sonde.tables.writing import TableWriter, write_table

__all__ = [
    "EXTENSIONS",
    "Columns",
    "Label",
    "Table",
    "TableWriter",
    "draw_table",
    "iter_tables",
    "label_column",
    "read_table",
    "text_column",
    "write_atomically",
    "write_table",
]
