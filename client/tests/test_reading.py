"""Every kind of file gives its rows back, whatever is in them."""

from __future__ import annotations

import csv
import datetime
import io
import json
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptolemy_client.errors import BatchError
from ptolemy_client.reading import Options, open_table
from ptolemy_client.reading.delimited import detect_encoding
from ptolemy_client.reading.table import unique_names

GERMAN = "id;Buchungstext;Betrag\n1;Bürobedarf für Köln;12,50\n2;Reisekosten Größe ß;8,00\n3;Café André;3,20\n"
# Whatever a text file may hold: no lone surrogates, and no NUL, which the csv module of Python 3.9 refuses.
TEXT = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), max_size=20)
TABLES = st.integers(1, 5).flatmap(
    lambda width: st.tuples(
        st.lists(st.text("abcdefgh", min_size=1, max_size=6), min_size=width, max_size=width, unique=True),
        st.lists(st.lists(TEXT, min_size=width, max_size=width), max_size=30),
    )
)
quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


DETECTED = Options()


def rows(path: Path, options: Options = DETECTED, columns: list[str] | None = None) -> list[dict]:
    return [row for batch in open_table(path, options).batches(columns) for row in batch.to_pylist()]


def write_csv(path: Path, header: list[str], lines: list[list[str]], delimiter: str, encoding: str, ending: str, every: bool) -> None:
    text = io.StringIO()
    # One cell that is empty must be quoted: a blank line is no row. And Python before 3.13 forgets to quote \r where lines end with \n.
    quoting = csv.QUOTE_ALL if every or len(header) == 1 or ending == "\n" else csv.QUOTE_MINIMAL
    writer = csv.writer(text, delimiter=delimiter, lineterminator=ending, quoting=quoting)
    writer.writerow(header)
    writer.writerows(lines)
    path.write_bytes(text.getvalue().encode(encoding))


@quick
@given(
    table=TABLES,
    delimiter=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    ending=st.sampled_from(["\n", "\r\n"]),
    every=st.booleans(),
)
def test_a_csv_file_gives_every_cell_back(tmp_path, table, delimiter, encoding, ending, every):
    header, lines = table
    path = tmp_path / "data.csv"
    write_csv(path, header, lines, delimiter, encoding, ending, every)
    assert rows(path, Options(delimiter=delimiter)) == [dict(zip(header, line)) for line in lines]


@quick
@given(table=TABLES, delimiter=st.sampled_from(",;\t|"))
def test_the_delimiter_is_found(tmp_path, table, delimiter):
    header, lines = table
    if len(header) == 1:
        return  # there is none to find
    plain = [["".join(letter for letter in cell if letter not in ",;\t|") for cell in line] for line in lines]
    path = tmp_path / "data.csv"
    write_csv(path, header, plain, delimiter, "utf-8", "\n", False)
    assert rows(path) == [dict(zip(header, line)) for line in plain]


@pytest.mark.parametrize(
    ("encoding", "found"),
    [("utf-8", "utf-8"), ("utf-8-sig", "utf-8-sig"), ("cp1252", "cp1252"), ("latin-1", "cp1252"), ("utf-16", "utf-16"),
     ("utf-16-le", "utf-16-le"), ("utf-16-be", "utf-16-be")],
)  # fmt: skip
def test_the_encoding_is_found(tmp_path, encoding, found):
    path = tmp_path / "data.csv"
    path.write_bytes(GERMAN.encode(encoding))
    assert detect_encoding(path) == found
    assert rows(path)[0] == {"id": "1", "Buchungstext": "Bürobedarf für Köln", "Betrag": "12,50"}


def test_an_umlaut_behind_a_megabyte_of_ascii_is_found(tmp_path):
    path = tmp_path / "data.csv"
    path.write_bytes(b"a,b\n" + b"plain,text\n" * 200_000 + "Büro,Köln\n".encode("cp1252"))
    assert rows(path)[-1] == {"a": "Büro", "b": "Köln"}


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "Командировка в Москву, гостиница и билеты на поезд. Канцелярские товары для отдела, бумага и ручки."),
        ("gb18030", "出差到北京的火车票和酒店费用，办公室用的纸张和笔，打印机墨盒，会议室租金。"),
    ],
)
def test_other_alphabets_are_told_from_western_ones(tmp_path, encoding, text):
    path = tmp_path / "data.csv"
    path.write_bytes(f"text;n\n{text};1\n{text};2\n".encode(encoding))
    assert rows(path)[0]["text"] == text


def test_a_letter_cut_off_between_two_reads_is_still_utf8(tmp_path):
    path = tmp_path / "data.csv"
    for shift in range(4):
        path.write_text("a\n" + "x" * shift + "ü" * 70_000 + "\n", encoding="utf-8")
        assert detect_encoding(path) == "utf-8"


def test_a_line_with_too_many_cells_is_named(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('a,b\n1,"two\nlines"\n1,2,3\n')
    with pytest.raises(BatchError, match=r"data\.csv, line 4: 3 cells, but the header has 2"):
        rows(path)


def test_short_lines_are_filled_and_empty_cells_behind_the_last_column_do_not_matter(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("a,b\n1\n\n2,3,,\n")
    assert rows(path) == [{"a": "1", "b": ""}, {"a": "2", "b": "3"}]


def test_a_quote_that_is_never_closed_is_an_error_and_swallows_nothing(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('a,b\n1,"two\n3,4\n')
    with pytest.raises(BatchError, match="--no-quotes"):
        rows(path)
    assert rows(path, Options(quotes=False)) == [{"a": "1", "b": '"two'}, {"a": "3", "b": "4"}]


def test_double_and_empty_column_names_become_different_ones():
    assert unique_names(["x", "x", "", "x_2"]) == ["x", "x_3", "column_3", "x_2"]


@quick
@given(
    lines=st.lists(
        st.dictionaries(st.sampled_from("abc"), st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXT)),
        min_size=1, max_size=20,
    )
)  # fmt: skip
def test_json_lines_keep_rows_and_columns_whatever_the_types(tmp_path, lines):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [{"first": 1}, *lines]), encoding="utf-8")
    found = rows(path)
    assert len(found) == 1 + len(lines)
    for line, row in zip(lines, found[1:]):
        for name, value in line.items():
            assert row[name] == value or row[name] == json.dumps(value), (name, value, row)


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(BatchError, match="line 3: not JSON"):
        rows(path)


def test_a_workbook_keeps_types_and_loses_only_empty_rows(tmp_path):
    book = openpyxl.Workbook()
    sheet = book.active
    day = datetime.datetime(2026, 3, 1, 12, 30)
    for line in (["text", "n", None, "day"], ["Büro", 1, "x", day], [None] * 4, ["Reise", 2, None, None], ["mixed", 3, 4.5, None]):
        sheet.append(line)
    book.create_sheet("second").append(["other"])
    path = tmp_path / "data.xlsx"
    book.save(path)
    assert rows(path) == [
        {"text": "Büro", "n": 1, "column_3": "x", "day": day},
        {"text": "Reise", "n": 2, "column_3": None, "day": None},
        {"text": "mixed", "n": 3, "column_3": "4.5", "day": None},
    ]
    with pytest.raises(BatchError, match="'Sheet', 'second'"):
        open_table(path, Options(sheet="third"))


def test_a_parquet_file_keeps_its_types(tmp_path):
    path = tmp_path / "data.parquet"
    given = pa.table({"a": pa.array([1, None], pa.int32()), "d": pa.array(["1.50", None]).cast(pa.decimal128(6, 2)), "l": [["x"], []]})
    pq.write_table(given, path)
    table = open_table(path, Options())
    assert pa.Table.from_batches(list(table.batches()), table.schema).equals(given)
    assert rows(path, columns=["l"]) == [{"l": ["x"]}, {"l": []}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("x.csv", b"", "the file is empty"), ("x.doc", b"x", r"cannot read \.doc"), ("x.parquet", b"x" * 20, "not a Parquet file"),
     ("x.xlsx", b"x", "not an Excel workbook"), ("x.jsonl", b"[1]\n", "line 1: not a JSON object"), ("x.csv", b"\n\n", "no header")],
)  # fmt: skip
def test_a_broken_file_is_one_clear_error(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BatchError, match=message):
        open_table(path, Options())
