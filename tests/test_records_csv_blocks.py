"""CSV that is split in blocks says the same as CSV that is parsed strictly, line by line."""

import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adcascade.records import csv_rows
from adcascade.records.batches import DamagedRow, TableBatch
from adcascade.records.csv_rows import CsvRecords, RecordError
from adcascade.records.errors import InputError
from adcascade.records.files import read_rows, read_tables

PIECES = [
    b"a,b",
    b"1,",
    b",",
    b"x",
    b" ",
    b"\t",
    b"\n",
    b"\n",
    b"\r\n",
    b"\r",
    b'"',
    b'"q,r"',
    b'"a\nb",c',
    b"\xef\xbb\xbf",
    b"\0",
]
PIECES += ["é,ü\u2028".encode(), b"\xff,y", b"NaN,null", b"  \n", b"\x0b\n", b"'s,`t", b"\\n,\\,"]
LINES = st.lists(st.sampled_from([b"a,b\n", b"c,d\r\n", b"\n"]), max_size=6).map(b"".join)
TEXTS = st.lists(st.one_of(LINES, st.sampled_from(PIECES)), max_size=20).map(b"".join)


def strictly(path):
    """Values of each record, or what is wrong with it."""
    with io.TextIOWrapper(path.open("rb"), "utf-8-sig", errors="surrogateescape", newline="") as lines:
        return [str(row) if isinstance(row, RecordError) else row for row in CsvRecords(lines, str(path))]


def in_blocks(path):
    """The same as reading files has it."""
    rows = [row for _, _, row in read_rows(path)]
    return [row.detail if isinstance(row, DamagedRow) else list(row.values()) for row in rows]


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([b"x,y\n", b"x,y\r\n", b"\xef\xbb\xbfx,y\n"]), TEXTS, st.sampled_from([1, 3, 8, 1 << 14]))
def test_blocks_of_csv_say_what_its_lines_say(tmp_path_factory, header, text, block):
    path = tmp_path_factory.mktemp("csv") / "log.csv"
    path.write_bytes(header + text)
    want = [row if isinstance(row, str) or not damaged(row) else UTF8 for row in strictly(path)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_rows, "_FIRST_BLOCK", block)
        patch.setattr(csv_rows, "_LARGEST_BLOCK", block)
        assert in_blocks(path) == want


UTF8 = "the row, or the header, has bytes that are no UTF-8"


def damaged(row):
    return any("\udc80" <= char <= "\udcff" for value in row for char in value)


def test_lines_without_quotes_are_split_in_blocks(tmp_path):
    """Or the test above would compare the strict parser with itself."""
    path = tmp_path / "log.csv"
    path.write_text("x,y\n" + "a,b\n" * 50_000 + 'c,"d"\n' + "a,b\n" * 50_000)
    batches = list(read_tables(path))
    by_column = sum(batch.table.num_rows for batch in batches if isinstance(batch, TableBatch))
    assert 50_000 < by_column < 100_000
    numbers = [number for _, number, _ in read_rows(path)]
    assert numbers == list(range(1, 100_002))


def test_a_line_beyond_the_limit_costs_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_rows, "MAX_LINE_CHARS", 64)
    for long in (60, 63, 64, 65, 100, 127, 128, 200, 400):
        path = tmp_path / f"{long}.csv"
        path.write_text("x,y\na,b\n" + "z" * (long - 2) + ",z\nc,d\n")
        for block in (1, 5, 7, 90, 1000):
            monkeypatch.setattr(csv_rows, "_FIRST_BLOCK", block)
            assert in_blocks(path) == strictly(path)


def test_a_header_that_names_a_column_twice_is_an_error_as_before(tmp_path):
    (tmp_path / "log.csv").write_text("x,x\na,b\n")
    with pytest.raises(InputError, match="twice"):
        list(read_rows(tmp_path / "log.csv"))
