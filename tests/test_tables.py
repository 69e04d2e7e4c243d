"""Tables: what is written is read back; what is wrong is said with file, row and column; files appear whole or not."""

import csv
import errno
import gzip
import json
import os
import re
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sonde.errors import ArgumentError, DataError, SondeWarning
from sonde.scale.parts import cut
from sonde.tables import (
    EXTENSIONS,
    Table,
    TableWriter,
    draw_table,
    iter_tables,
    label_column,
    read_table,
    text_column,
    write_atomically,
    write_table,
)

SURROGATE_FREE = st.text(st.characters(blacklist_categories=["Cs"]), max_size=30)
AWKWARD = ["plain", "", "a,b", "a\tb", 'say "hi"', "two\nlines", "two\r\nlines", "mac\rline", " spaces ", "nul\0byte"]
AWKWARD += ["\ufeffmark", "\u2028", "日本語", "🙂", "=1+1", '"', '""', "\n", "\r", "\\n", "\x85", "\x1c"]


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    data = content.encode("utf-8") if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def refusal(path: Path, columns: list[str] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read_table(path, columns)
    return str(caught.value).replace(f"{path.parent}{os.sep}", "")


# There and back


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_texts_survive_the_round_trip_to_the_character(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"t{extension}"
    columns = {"text": AWKWARD, "odd, name": AWKWARD[::-1]}
    write_table(path, columns)
    table = read_table(path)
    assert table.columns == columns
    assert (table.rows, table.names) == (len(AWKWARD), ["text", "odd, name"])
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl", ".parquet"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(SURROGATE_FREE, min_size=1, max_size=5))
def test_any_single_column_of_texts_survives(tmp_path: Path, extension: str, texts: list[str]) -> None:
    path = tmp_path / f"t{extension}"
    write_table(path, {"text": texts})
    assert read_table(path).columns == {"text": texts}


def test_csv_module_reads_what_we_write(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", {"text": AWKWARD, "n": list(range(len(AWKWARD)))})
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, strict=True))
    assert rows == [["text", "n"]] + [[text, str(n)] for n, text in enumerate(AWKWARD)]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_stretches_join_to_the_whole_and_know_their_place(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"t{extension}"
    with TableWriter(path) as writer:
        writer.write({"a": ["0", "1", "2"], "b": ["x"] * 3})
        writer.write({"a": [], "b": []})
        writer.write({"a": ["3", "4"], "b": ["y"] * 2})
    tables = list(iter_tables(path, rows=2, columns=["a"]))
    assert [table.columns for table in tables] == [{"a": ["0", "1"]}, {"a": ["2", "3"]}, {"a": ["4"]}]
    assert [table.start for table in tables] == [0, 2, 4]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_columns_come_in_the_order_asked_for(tmp_path: Path, extension: str) -> None:
    write_table(tmp_path / f"t{extension}", {"a": ["1"], "b": ["2"], "c": ["3"]})
    assert list(read_table(tmp_path / f"t{extension}", ["c", "a"]).columns.items()) == [("c", ["3"]), ("a", ["1"])]


def test_equal_tables_are_equal_bytes(tmp_path: Path) -> None:
    for extension in EXTENSIONS:
        one, two = tmp_path / f"one{extension}", tmp_path / f"two{extension}"
        write_table(one, {"text": AWKWARD})
        write_table(two, {"text": AWKWARD})
        assert one.read_bytes() == two.read_bytes(), extension


def test_extension_may_be_in_capitals(tmp_path: Path) -> None:
    assert read_table(put(tmp_path, "T.CSV", "text\nhi\n")).columns == {"text": ["hi"]}


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("text,label\r\nhi,1\r\nyou,2\r\n", ["hi", "you"]),
        ("text,label\nhi,1\nyou,2", ["hi", "you"]),
        ("\ufefftext,label\nhi,1\n", ["hi"]),
        ('\ufeff"text","label"\n"hi","1"\n', ["hi"]),
        ("\n\ntext,label\n\nhi,1\n\r\n\nyou,2\n\n", ["hi", "you"]),
        ("text,label\nnul\0byte,1\n", ["nul\0byte"]),
        ('text,label\n"two\nlines, ""quoted""",1\n', ['two\nlines, "quoted"']),
    ],
)
def test_csv_dialects(tmp_path: Path, content: str, texts: list[str]) -> None:
    assert text_column(read_table(put(tmp_path, "t.csv", content)), "text") == texts


def test_jsonl_with_mark_blank_lines_and_missing_keys(tmp_path: Path) -> None:
    path = put(
        tmp_path, "t.jsonl", '\ufeff{"text":"a"}\n\n{"text":null,"extra":[1]}\r\n  \n{"text":NaN,"extra":{"k":2}}'
    )
    assert read_table(path).columns == {"text": ["a", None, None], "extra": [None, [1], {"k": 2}]}
    assert read_table(path, ["extra"]).columns == {"extra": [None, [1], {"k": 2}]}


def test_a_text_of_three_megabytes_is_read_and_the_limit_of_csv_is_put_back(tmp_path: Path) -> None:
    text = "x" * 3_000_000
    before = csv.field_size_limit()
    for extension in (".csv", ".tsv.gz", ".jsonl"):
        write_table(tmp_path / f"t{extension}", {"text": [text]})
        assert read_table(tmp_path / f"t{extension}").columns == {"text": [text]}
    stretches = iter_tables(tmp_path / "t.csv", rows=1)
    next(stretches)
    assert csv.field_size_limit() == before


def test_two_threads_read_long_texts_at_once(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", {"text": ["x" * 200_000] * 30})
    read: list[int] = []
    threads = [threading.Thread(target=lambda: read.append(read_table(tmp_path / "t.csv").rows)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [30] * 4


@pytest.mark.parametrize("extension", [".csv.gz", ".jsonl.gz", ".tsv"])
def test_memory_does_not_grow_with_rows(tmp_path: Path, extension: str) -> None:
    peaks = []
    for rows in (1_000, 10_000):
        path = tmp_path / f"{rows}{extension}"
        tracemalloc.start()
        with TableWriter(path) as writer:
            for _ in range(rows // 250):
                writer.write({"text": ["word " * 20] * 250})
        assert sum(table.rows for table in iter_tables(path, rows=250)) == rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


@pytest.mark.parametrize("extension", ["csv", "parquet"])
def test_drawing_holds_what_it_draws_and_no_more(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"long.{extension}"
    with TableWriter(path) as writer:
        for start in range(0, 200_000, 10_000):
            writer.write({"text": [f"{row} {'x' * 200}" for row in range(start, start + 10_000)]})
    list(iter_tables(path))  # what is imported for good
    tracemalloc.start()
    drawn = draw_table(path, 500)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert drawn.rows == 500 and held < 20e6 < 200_000 * 200


@pytest.mark.parametrize("rows", [1, 7, 99, 100, 101, 10**6])
def test_drawn_rows_stand_in_order_and_know_their_numbers(tmp_path: Path, rows: int) -> None:
    path = put(tmp_path, "t.csv", "text,n\n" + "".join(f"t{i},{i}\n" for i in range(1, 101)))
    drawn = draw_table(path, rows, ["n"], seed=3)
    assert drawn.drawn_from == len(read_table(path).columns["n"])
    numbers = [int(cell) for cell in drawn.columns["n"]]
    assert len(numbers) == min(rows, 100) and numbers == sorted(set(numbers))
    assert [drawn.number(row) for row in range(drawn.rows)] == numbers
    assert drawn.columns == draw_table(path, rows, ["n"], seed=3).columns


def test_every_row_is_as_likely_to_be_drawn(tmp_path: Path) -> None:
    path = put(tmp_path, "t.csv", "n\n" + "".join(f"{i}\n" for i in range(50)))
    counts = np.zeros(50)
    for seed in range(400):
        counts[[int(str(cell)) for cell in draw_table(path, 10, seed=seed).columns["n"]]] += 1
    # each row 80 times of 400, give or take 8; the sum of squares is chi-squared with 49 degrees, but for the factor
    assert counts.sum() == 4000 and ((counts - 80) ** 2 / (80 * 0.8)).sum() < 95  # one in 10,000 is above 94


def test_what_is_wrong_with_a_drawn_row_is_said_with_its_number_in_the_file(tmp_path: Path) -> None:
    path = put(tmp_path, "t.jsonl", "".join(f'{{"text": {i}}}\n' for i in range(1, 1000)))
    drawn = draw_table(path, 2, seed=1)
    with pytest.raises(DataError, match=rf"row {drawn.columns['text'][0]}, column 'text'"):
        text_column(drawn, "text")
    with pytest.raises(ArgumentError, match="rows is 0; draw one row or more"):
        draw_table(path, 0)


def test_reading_and_writing_are_fast(tmp_path: Path) -> None:
    columns = {"text": ['some words, "quoted" and more'] * 50_000, "label": ["a"] * 50_000}
    began = time.process_time()
    write_table(tmp_path / "t.csv", columns)
    assert read_table(tmp_path / "t.csv").columns == columns
    assert time.process_time() - began < 5  # 0.3 s where this was written; 5 means a quadratic loop


# What cannot be read


def test_no_such_file_lists_similar_names(tmp_path: Path) -> None:
    put(tmp_path, "reviews.csv", "text\nhi\n")
    put(tmp_path, "other.parquet", b"")
    with pytest.raises(DataError, match=r"no file reviws\.csv in .*Similar names there: reviews\.csv\."):
        iter_tables(tmp_path / "reviws.csv")
    assert "the folder" in refusal(tmp_path / "nowhere" / "reviews.csv")
    assert "is a folder" in refusal(make_folder(tmp_path / "d.csv"))


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("name", ["t.txt", "t", "t.gz", "t.parquet.gz", "t.xlsx", ".csv"])
def test_unknown_extension_lists_the_known_ones(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, "text\nhi\n")
    assert refusal(tmp_path / name).endswith("must be one of: " + ", ".join(EXTENSIONS) + ".")
    with pytest.raises(DataError, match="unknown extension"):
        TableWriter(tmp_path / name)


CASES = [
    # name, content, what the sentence says
    ("t.csv", b"", "t.csv is empty; it needs column names and at least one row"),
    ("t.jsonl", b"", "t.jsonl is empty; it needs column names"),
    ("t.parquet", b"", "t.parquet is not a readable parquet file"),
    ("t.csv.gz", b"", "t.csv.gz holds only blank lines"),
    ("t.csv", b"\n \n"[:1], "t.csv holds only blank lines"),
    (
        "t.jsonl",
        b"\n\n",
        't.jsonl holds no fields; each line must be an object such as {"text": "...", "label": "..."}',
    ),
    ("t.csv", b"text,label\n", "t.csv holds column names but no rows; it needs at least one row"),
    ("t.csv", b"text,label,text\na,b,c\n", "t.csv has two columns named 'text'; rename one of them"),
    ("t.jsonl", b'{"text":"a","text":"b"}\n', "row 1 (line 1) is not JSON (duplicate key 'text')"),
    ("t.csv", b"a,b\n1,2\n\n1,2,3\n", "row 2 (line 4) has 3 fields, the header has 2; put a text that contains ','"),
    ("t.tsv", b"a\tb\nx\n", "row 1 (line 2) has 1 fields, the header has 2; put a text that contains '\\t'"),
    ("t.csv", b'a,b\n"1\n1",2\n1\n', "row 2 (line 4) has 1 fields"),
    (
        "t.csv",
        b'a,b\n1,2\n"never closed,2\n3,4\n',
        "row 2 (line 3) cannot be read (unexpected end of data): close every",
    ),
    ("t.csv", b'a,b\n"x"y,2\n', "row 1 (line 2) cannot be read (',' expected after '\"'): close every double quote"),
    ("t.csv", b"a,b\r1,2\r", "the header (line 1) cannot be read (new-line character seen in unquoted field"),
    ("t.csv", b"a,b\n1,2\n1,caf\xe9\n", "row 2 (line 3) is not UTF-8: byte 0xe9 at offset 13. Save it as UTF-8, for"),
    ("t.csv", b'a,b\n"1\n1\xff",2\n', "row 1 (line 3) is not UTF-8: byte 0xff at offset 8"),
    ("t.csv.gz", b"a,b\n1,2\n1,caf\xe9\n", "row 2 (line 3) is not UTF-8: byte 0xe9 at offset 13"),
    ("t.jsonl", b'{"a":1}\n{"a":"\xe9"}\n', "row 2 (line 2) is not UTF-8: byte 0xe9 at offset 14"),
    ("t.csv", b"a\xe9,b\n1,2\n", "the header (line 1) is not UTF-8: byte 0xe9 at offset 1"),
    (
        "t.csv",
        "text\nhi\n".encode("utf-16"),
        "not UTF-8: byte 0xff at offset 0. It looks like UTF-16: save it as UTF-8",
    ),
    ("t.csv", gzip.compress(b"text\nhi\n"), "It looks like a gzip file: add .gz to its name"),
    ("t.csv", b"PK\x03\x04\xff\xfe", "It looks like a zip file or an Excel workbook"),
    ("t.jsonl", b'{"a":1}\n\n{"a":\n', "row 2 (line 3) is not JSON (Expecting value"),
    ("t.jsonl", b'{"a":1}\n[1]\n', "row 2 (line 2) holds a list ([1]); each line must be an object"),
    ("t.jsonl", b'{"a":1} {"a":2}\n', "row 1 (line 1) is not JSON (Extra data"),
    ("t.jsonl", b'{"a":Infinity}\n', "row 1 (line 1) is not JSON (Infinity is no JSON value)"),
    ("t.jsonl", b"[" * 200_000 + b"\n", "row 1 (line 1) is not JSON"),
    ("t.jsonl", b'{"a":' + b"9" * 5000 + b"}\n", "row 1 (line 1) is not JSON (Exceeds the limit"),
    ("t.parquet", b"text,label\nhi,1\n", "t.parquet is not a readable parquet file"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), CASES, ids=[case[2][:40] for case in CASES])
def test_damaged_files_are_refused_with_their_place(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    said = refusal(put(tmp_path, name, content))
    assert sentence in said
    assert said.startswith(name)
    assert len(said) < 330 and "\n" not in said


@pytest.mark.parametrize("keep", [3, 15, 200, -9, -1])
def test_cut_gzip_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "t.csv.gz"
    packed = gzip.compress(b"text\n" + os.urandom(3000).hex().encode() + b"\n")
    path.write_bytes(packed[:keep])
    assert "t.csv.gz is not a complete gzip file" in refusal(path)
    path.write_bytes(b"text\nhi\n")
    assert "t.csv.gz is not a complete gzip file (Not a gzipped file" in refusal(path)


def test_parquet_faults(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": ["x" * 100] * 100}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert "t.parquet is not a readable parquet file" in refusal(path)
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), path)
    assert "two columns named 'a'" in refusal(path)
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    assert "no rows" in refusal(path)
    bad = pa.array([b"ok", b"\xff"], pa.binary()).view(pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": bad}), path)
    assert "t.parquet: row 2, column 'text' cannot be read ('utf-8' codec" in refusal(path)


@pytest.mark.parametrize("sign", [";", "\t"])
def test_a_csv_whose_header_holds_no_comma_is_split_as_spreadsheets_write_it(tmp_path: Path, sign: str) -> None:
    lines = ["", f"text{sign}label", f'"hi, you{sign} there"{sign}1', f"one, two{sign}2"]
    path = put(tmp_path, "t.csv", "\ufeff" + "\r\n".join(lines) + "\r\n")
    assert read_table(path).columns == {"text": [f"hi, you{sign} there", "one, two"], "label": ["1", "2"]}
    path = put(tmp_path, "t.csv", f"text{sign}label\nhi{sign}1\n\na{sign}b{sign}c\n")
    said = refusal(path)
    assert f"row 2 (line 4) has 3 fields, the header has 2; put a text that contains {sign!r}" in said


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ('text;"price, EUR";label\na;1,5;b\n', {"text": ["a"], "price, EUR": ["1,5"], "label": ["b"]}),
        ("id;text, raw;label\n1;hello;x\n", {"id": ["1"], "text, raw": ["hello"], "label": ["x"]}),
        ("sep=;\ntext;label\na;b\n", {"text": ["a"], "label": ["b"]}),
        ('text;label\n"two\nlines";x\n', {"text": ["two\nlines"], "label": ["x"]}),
        ('"text; the review"\nhello\n', {"text; the review": ["hello"]}),
        ("text,note\na;b,c;d\n", {"text": ["a;b"], "note": ["c;d"]}),
    ],
)
def test_the_separator_splits_the_header_and_the_first_row_alike(
    tmp_path: Path, content: str, columns: dict[str, list[str]]
) -> None:
    assert read_table(put(tmp_path, "t.csv", content)).columns == columns


@pytest.mark.parametrize("sign", [",", ";", "\t"])
@pytest.mark.parametrize("head", ["", "sep=SIGN\n"])
def test_a_csv_is_written_with_the_separators_of_the_one_that_it_comes_from(
    tmp_path: Path, sign: str, head: str
) -> None:
    source = put(tmp_path, "t.csv", f"{head.replace('SIGN', sign)}text{sign}label\na{sign}b\n")
    columns = {"text, raw; or\tnot": ["one, two; three", "a\tb", "c"], "label": ["x", "", "y;z"]}
    for name in ("out.csv", "out.tsv"):
        with TableWriter(tmp_path / name, like=source) as writer:
            writer.write(columns)
        assert read_table(tmp_path / name).columns == columns
    plain = {"text": ["one, two; three"], "label": ["x"]}
    with TableWriter(tmp_path / "plain.csv", like=source) as writer:
        writer.write(plain)
    assert (tmp_path / "plain.csv").read_text() == f'text{sign}label\n"one, two; three"{sign}x\n'


@pytest.mark.parametrize(
    "head", ["sep=|\nid|text\n1|a\n", "id;text\n1;a\n", 'sep=;\n"a ""b""";text\n1;a\n', '"two\nlines";text\n1;a\n']
)
@pytest.mark.parametrize("name", ["label", 'probability_say "good"', "two\nlines"])
def test_what_is_written_like_a_strange_csv_is_read_back(tmp_path: Path, head: str, name: str) -> None:
    source = put(tmp_path, "t.csv", head)
    columns = {"first": ["a|b", "one, two"], name: ["x;y", "z"]}
    with TableWriter(tmp_path / "out.csv", like=source) as writer:
        writer.write(columns)
    assert read_table(tmp_path / "out.csv").columns == columns


@pytest.mark.parametrize("columns", [None, ["text"], ["text", "label"]])
def test_a_header_that_a_sign_splits_names_the_row_that_it_does_not(tmp_path: Path, columns: list[str] | None) -> None:
    path = put(tmp_path, "t.csv", "text;label\nhello; you;x\nb;y\n")
    sentence = "row 1 (line 2) has 3 fields, the header has 2; put a text that contains ';'"
    assert sentence in refusal(path, columns)
    path = put(tmp_path, "t.csv", "text;label\nwell, hello; you;x\nb;y\n")
    assert sentence in refusal(path, columns)
    if columns:
        path = put(tmp_path, "t.csv", "text;label\nhello\nb;y\n")
        assert "row 1 (line 2) has 1 fields, the header has 2" in refusal(path, columns)


@pytest.mark.parametrize(
    ("header", "text"),
    [("text; the review", "one; two; three"), ("text;review", "one text"), ("a;b\tc", "x\ty\tz;u;v")],
)
def test_a_header_of_one_column_may_hold_signs(tmp_path: Path, header: str, text: str) -> None:
    path = put(tmp_path, "t.csv", f"{header}\n{text}\n")
    assert read_table(path).columns == read_table(path, [header]).columns == {header: [text]}


def test_columns_without_a_name_are_left_out_if_nothing_stands_in_them(tmp_path: Path) -> None:
    path = put(tmp_path, "t.csv", "text,label,,\nhi,1,,\nyou,2, ,\n")
    assert read_table(path).columns == {"text": ["hi", "you"], "label": ["1", "2"]}
    assert read_table(path, ["label"]).columns == {"label": ["1", "2"]}
    said = refusal(put(tmp_path, "t.csv", "text,label,,\nhi,1,,\nyou,2,,note\n"))
    assert said == "t.csv: row 2 (line 3) holds 'note', but columns 3 and 4 have no name; name them, or remove them."
    said = refusal(put(tmp_path, "t.csv", f"text{',' * 30}\nhi{',x' * 30}\n"))
    assert "columns 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13 and 18 more have no name" in said
    assert "t.csv: the header (line 1) names no column" in refusal(put(tmp_path, "t.csv", ",\n1,2\n"))
    assert read_table(put(tmp_path, "t.csv", ",text\n0,hi\n")).columns == {"": ["0"], "text": ["hi"]}


@pytest.mark.parametrize("read", [read_table, lambda path: draw_table(path, 9), lambda path: cut(path, "text")])
def test_a_tsv_that_may_not_quote_is_told(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = put(tmp_path, "t.tsv", 'text\tlabel\nfine\ta\n"so she said\tb\nand went"\tc\n')
    with pytest.warns(SondeWarning, match=r"1 cells between double quotes hold .* the first in row 2\. ") as caught:
        read(path)
    assert [w.message.code for w in caught if isinstance(w.message, SondeWarning)] == ["odd_quotes"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(put(tmp_path, "u.tsv", 'text\tlabel\n"two\nlines"\ta\n"a\ttab"\tb\n'))
        read(put(tmp_path, "t.csv", 'text,label\n"a\ttab\nand a line",c\n'))


def test_a_column_that_may_be_several_is_told_how_fields_are_separated(tmp_path: Path) -> None:
    path = put(tmp_path, "t.csv", "text;label, gold\nwell, fine;x\n")
    assert "separated by commas, semicolons or tabs" in refusal(path, ["text"])


def test_signs_in_a_header_with_commas_in_quotes_or_in_tsv_split_nothing(tmp_path: Path) -> None:
    assert read_table(put(tmp_path, "t.csv", "a;b,c\n1;2,3\n")).names == ["a;b", "c"]
    assert read_table(put(tmp_path, "t.csv", '"a;b"\n1;2\n')).columns == {"a;b": ["1;2"]}
    assert read_table(put(tmp_path, "t.csv", "text\na;b\n")).columns == {"text": ["a;b"]}
    assert read_table(put(tmp_path, "t.tsv", "a;b\n1;2\n")).columns == {"a;b": ["1;2"]}


def test_no_such_column_lists_columns_and_guesses(tmp_path: Path) -> None:
    path = put(tmp_path, "t.csv", "Text, label,n\nhi,1,2\n")
    said = refusal(path, ["text"])
    assert said == (
        "t.csv has no column 'text'. Did you mean 'Text'? Its columns: 'Text', ' label', 'n'. "
        "Choose with --text and --label (explain: --column)."
    )
    assert "Did you mean ' label'?" in refusal(path, ["label"])
    assert "Did you mean" not in refusal(path, ["zebra"])
    assert "separated by commas, semicolons or tabs" in refusal(put(tmp_path, "s.csv", "text|label\nhi|1\n"), ["text"])
    wide = put(tmp_path, "w.csv", ",".join(f"c{n}" for n in range(50)) + "\n" + ",".join("x" * 50) + "\n")
    assert "'c11' and 38 more." in refusal(wide, ["text"])
    with pytest.raises(DataError, match="has no column 'text'"):
        text_column(read_table(path), "text")
    jsonl = put(tmp_path, "t.jsonl", '{"txt":"a"}\n{"b":1}\n')
    assert "Did you mean 'txt'? Its columns: 'txt', 'b'." in refusal(jsonl, ["text"])
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    assert "t.parquet has no column 'text'" in refusal(tmp_path / "t.parquet", ["text"])


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    path = put(tmp_path, "t.csv", "text\nhi\n")
    with pytest.raises(ArgumentError, match="rows=0"):
        iter_tables(path, rows=0)
    with pytest.raises(ArgumentError, match="columns=\\[\\]"):
        read_table(path, [])
    with pytest.raises(ArgumentError, match="separator is empty"):
        label_column(read_table(path), "text", separator="")
    for blank in (" ", "\t"):
        with pytest.raises(ArgumentError, match="is white space: a cell that holds it alone"):
            label_column(read_table(path), "text", separator=blank)
    with (
        pytest.raises(ArgumentError, match="mode 'a' is unknown; it must be one of: w, wb"),
        write_atomically(path, "a"),
    ):
        pass


def test_forbidden_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "t.csv", "text\nhi\n")

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)  # simulated: the tests may run as root, who may do everything
    monkeypatch.setattr(Path, "touch", forbidden)
    assert "t.csv cannot be read: Permission denied" in refusal(path)
    with pytest.raises(DataError, match=r"u\.csv cannot be written: Permission denied in "):
        write_table(tmp_path / "u.csv", {"a": ["1"]})


def test_a_damaged_row_is_reached_only_when_read(tmp_path: Path) -> None:
    stretches = iter_tables(put(tmp_path, "t.csv", "a\n1\n2\n3,4\n"), rows=2)
    assert next(stretches).columns == {"a": ["1", "2"]}
    with pytest.raises(DataError, match=re.escape("row 3 (line 4) has 2 fields")):
        next(stretches)


# Columns


def test_texts_missing_are_blank_and_numbers_are_refused() -> None:
    table = Table(Path("t.jsonl"), {"text": ["a", None, float("nan"), ""], "n": ["1", 2, "3", "4"]}, start=100)
    assert text_column(table, "text") == ["a", "", "", ""]
    with pytest.raises(
        DataError, match=re.escape("t.jsonl: row 102, column 'n' holds a whole number (2) where text is due")
    ):
        text_column(table, "n")


def test_lone_surrogates_and_nul_bytes_are_texts(tmp_path: Path) -> None:
    path = put(tmp_path, "t.jsonl", r'{"text":"a\ud800b\u0000"}' + "\n")
    assert text_column(read_table(path), "text") == ["a\ud800b\0"]


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (["b", "a", "", None, "  ", "b"], ["b", "a", None, None, None, "b"]),
        ([0, 1, None], [0, 1, None]),
        ([1.0, float("nan"), 2.0], [1, None, 2]),
        ([True, False, None], [True, False, None]),
        ([["a", "b"], [], None], [["a", "b"], [], None]),
        ([[1, 0], [0, 1]], [[1, 0], [0, 1]]),
        ([None, None], [None, None]),
    ],
)
def test_labels_keep_their_type_and_missing_is_none(cells: list[object], labels: list[object]) -> None:
    found = label_column(Table(Path("t"), {"label": cells}), "label")
    assert found == labels
    assert [type(label) for label in found] == [type(label) for label in labels]


def test_separator_splits_strips_and_drops_empties() -> None:
    table = Table(Path("t"), {"label": ["a; b ;", "", None, ";", "c"], "n": [1, 2, 3, 4, 5]})
    assert label_column(table, "label", separator=";") == [["a", "b"], None, None, [], ["c"]]
    with pytest.raises(DataError, match=re.escape("row 1, column 'n' holds a whole number (1); only text has a label")):
        label_column(table, "n", separator=";")


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        (["a", None, 3], "row 11, column 'label' holds text ('a'), row 13 holds a whole number (3)"),
        ([1, True], "row 11, column 'label' holds a whole number (1), row 12 holds true or false (True)"),
        ([["a"], "a"], "row 11, column 'label' holds a list (['a']), row 12 holds text ('a')"),
        ([["a"], [], ["b", 2]], "row 11, column 'label' holds text ('a'), row 13 holds a whole number (2)"),
        ([1, 0.5], "row 12, column 'label' holds a number (0.5); a label must be text, a whole number, true or false"),
        (["a", {"k": 1}], "row 12, column 'label' holds an object ({'k': 1}); a label must be"),
        ([["a", None]], "row 11, column 'label' holds a NoneType (None); a label must be"),
        ([b"a"], "row 11, column 'label' holds a bytes (b'a'); a label must be"),
    ],
)
def test_labels_that_cannot_stand_together_are_named(cells: list[object], sentence: str) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)):
        label_column(Table(Path("t"), {"label": cells}, start=10), "label")


# Writing


def test_numbers_lists_and_missing_cells_in_each_format(tmp_path: Path) -> None:
    columns = {
        "label": [True, None],
        "n": np.array([1, 2]),
        "p": np.array([0.5, np.nan], dtype=np.float32),
        "all": [["a", "é"], []],
        "one": [np.int64(7), np.str_("x")][:1] * 2,
    }
    write_table(tmp_path / "t.csv", columns)
    assert (tmp_path / "t.csv").read_text() == 'label,n,p,all,one\nTrue,1,0.5,"[""a"", ""é""]",7\n,2,nan,[],7\n'
    write_table(tmp_path / "t.jsonl", columns)
    first, second = (tmp_path / "t.jsonl").read_text().splitlines()
    assert first == '{"label": true, "n": 1, "p": 0.5, "all": ["a", "é"], "one": 7}'
    assert json.loads(second) == {"label": None, "n": 2, "p": None, "all": [], "one": 7}
    write_table(tmp_path / "t.parquet", columns)
    assert pq.read_table(tmp_path / "t.parquet").column("n").to_pylist() == [1, 2]


def test_lone_surrogates_are_written_safely(tmp_path: Path) -> None:
    columns = {"text": ["a\ud800b", "fine"], "many": [["\udfff"], []]}
    for extension in (".csv", ".tsv", ".parquet"):
        write_table(tmp_path / f"t{extension}", columns)
        assert read_table(tmp_path / f"t{extension}", ["text"]).columns == {"text": ["a\ufffdb", "fine"]}
    write_table(tmp_path / "t.jsonl", columns)
    assert read_table(tmp_path / "t.jsonl").columns == columns
    assert b'"a\\ud800b"' in (tmp_path / "t.jsonl").read_bytes()


def test_parquet_keeps_the_types_of_its_source(tmp_path: Path) -> None:
    source, target = tmp_path / "a.parquet", tmp_path / "b.parquet"
    kinds = {"n": pa.int16(), "day": pa.date32(), "text": pa.dictionary(pa.int8(), pa.string()), "gone": pa.float32()}
    rows = {"n": [1, None], "day": [None, None], "text": ["a", "b"], "gone": [None, 0.5]}
    pq.write_table(pa.table({name: pa.array(rows[name], kind) for name, kind in kinds.items()}), source)
    with TableWriter(target, like=source) as writer:
        for table in iter_tables(source, rows=1):
            writer.write({**table.columns, "probability": [0.25]})
    written = pq.read_table(target)
    assert {name: written.schema.field(name).type for name in kinds} == kinds
    assert written.drop_columns(["probability"]).to_pydict() == rows


def test_typical_cells_tell_a_type_that_the_first_rows_do_not(tmp_path: Path) -> None:
    with TableWriter(tmp_path / "t.parquet") as writer:
        writer.typical = {"n": [1], "names": [["a"]]}
        writer.write({"n": [None], "names": [[]], "other": [None]})
        writer.write({"n": [7], "names": [["b", "c"]], "other": ["text"]})
    assert pq.read_table(tmp_path / "t.parquet").to_pydict() == {
        "n": [None, 7], "names": [[], ["b", "c"]], "other": [None, "text"],
    }  # fmt: skip


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"t\.csv is a device or a pipe, which a file would take the place of"):
        write_table(tmp_path / "t.csv", {"a": [1]})
    assert (tmp_path / "t.csv").is_fifo()


def test_parquet_of_mixed_types_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'n' mixes types, which \.parquet cannot hold .*; write \.jsonl"):
        write_table(tmp_path / "t.parquet", {"n": [1, "a"]})
    with pytest.raises(DataError, match="column 'n' mixes types"), TableWriter(tmp_path / "t.parquet") as writer:
        writer.write({"n": [1]})
        writer.write({"n": ["a"]})
    assert names(tmp_path) == []


def test_columns_must_fit_together(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"differ in length: \{'a': 1, 'b': 2\}"):
        write_table(tmp_path / "t.csv", {"a": [1], "b": [1, 2]})
    for extension in EXTENSIONS:
        with pytest.raises(DataError, match="was begun with the columns"), TableWriter(tmp_path / f"t{extension}") as w:
            w.write({"a": [1]})
            w.write({"b": [1]})
    assert names(tmp_path) == []


# All or nothing


def test_the_file_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("old")
    with write_atomically(path) as file:
        file.write("new\r\n")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_bytes() == b"new\r\n"
    with write_atomically(path, "wb") as file:
        file.write(b"\xff")
    assert path.read_bytes() == b"\xff"


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"t{extension}"
    write_table(path, {"a": ["old"]})
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), TableWriter(path) as writer:
        writer.write({"a": ["new"]})
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_full_disk_is_said_and_the_old_file_stands(
    tmp_path: Path, extension: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"t{extension}"
    write_table(path, {"a": ["old"]})
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"could not be written: No space left on device, [\d,]+ bytes are free in"):
        write_table(path, {"a": ["new"]})
    assert path.read_bytes() == before
    assert names(tmp_path) == [path.name]


LIMITED = """
import resource, signal, sys
from sonde.errors import DataError
from sonde.tables import TableWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    with TableWriter(sys.argv[1]) as writer:
        for n in range(4000):
            writer.write({"a": [str(n) * 30 + str(hash(str(n)))]})
except DataError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files there")
@pytest.mark.parametrize("extension", [".csv", ".jsonl.gz", ".parquet"])
def test_a_write_that_really_fails_half_way(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"t{extension}"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert "could not be written: File too large" in done.stdout
    assert path.read_text() == "old"
    assert names(tmp_path) == [path.name]


def test_other_errors_of_the_block_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="mine"), write_atomically(tmp_path / "t") as file:
        file.write("x")
        raise TimeoutError("mine")
    assert names(tmp_path) == []


def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    path, link = tmp_path / "t.csv", tmp_path / "link.csv"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    write_table(link, {"a": ["1"]})
    assert link.is_symlink() and path.read_text() == "a\n1\n"
    assert path.stat().st_mode & 0o777 == 0o640
    (tmp_path / "plain").touch()
    write_table(tmp_path / "new.csv", {"a": ["1"]})
    assert (tmp_path / "new.csv").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_impossible_targets_are_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder .*nowhere does not exist\. Create it first"):
        TableWriter(tmp_path / "nowhere" / "t.csv").__enter__()
    with pytest.raises(DataError, match="is a folder; name the file to write"):
        TableWriter(make_folder(tmp_path / "d.csv")).__enter__()
    long = tmp_path / ("n" * 250 + ".csv")
    write_table(long, {"a": ["1"]})
    assert read_table(long).columns == {"a": ["1"]}


def test_a_file_may_be_replaced_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_table(path, {"a": [str(n) for n in range(10)]})
    with TableWriter(path) as writer:
        for table in iter_tables(path, rows=3):
            writer.write({**table.columns, "b": table.columns["a"]})
    assert read_table(path).columns["b"] == [str(n) for n in range(10)]
