"""Files and folders as owners have them: what is read, what a bad row costs, what is named and left out."""

import csv
import gzip
import io
import json
import logging
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adcascade.records.ads import Ad, read_ads, read_catalog
from adcascade.records.batches import DamagedRow
from adcascade.records.clicks import read_clicks
from adcascade.records.csv_rows import MAX_LINE_CHARS
from adcascade.records.errors import InputError
from adcascade.records.files import read_batches, read_rows
from adcascade.records.users import UserProfile, read_users
from adcascade.records.users_by_id import load_users

ROWS = [{"ad_id": f"a{number}", "title": f"Ad number {number}"} for number in range(3)]
ADS = [Ad(row["ad_id"], row["title"]) for row in ROWS]


def as_csv(rows):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(rows):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


FORMATS = {
    "ads.csv": as_csv,
    "ads.jsonl": as_jsonl,
    "ads.parquet": as_parquet,
    "ads.csv.gz": lambda rows: gzip.compress(as_csv(rows)),
    "ads.jsonl.gz": lambda rows: gzip.compress(as_jsonl(rows)),
    "ads.NDJSON.GZ": lambda rows: gzip.compress(as_jsonl(rows[:1])) + gzip.compress(as_jsonl(rows[1:])),
}


def rows_of(path):
    return [row for _, _, row in read_rows(path)]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_by_itself_and_from_a_folder(tmp_path, name):
    (tmp_path / name).write_bytes(FORMATS[name](ROWS))
    assert list(read_ads(tmp_path / name)) == ADS
    assert list(read_ads(tmp_path)) == ADS


def test_a_folder_is_read_with_its_subfolders_and_what_is_left_out_is_named(tmp_path, caplog):
    (tmp_path / "new.jsonl").write_bytes(as_jsonl(ROWS[:1]))
    (tmp_path / "old.jsonl.gz").write_bytes(gzip.compress(as_jsonl(ROWS[1:2])))
    (tmp_path / "2025" / "05").mkdir(parents=True)
    (tmp_path / "2025" / "05" / "ads.parquet").write_bytes(as_parquet(ROWS[2:]))
    for name in ("notes.txt", "ads.xlsx", "ads.tsv", "part.parquet.gz"):
        (tmp_path / name).write_text("x")
    for name in (".hidden.jsonl", "_SUCCESS", "_delta.jsonl"):
        (tmp_path / name).write_text("{}")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "ads.jsonl").write_text("{}")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert [ad.ad_id for ad in read_ads(tmp_path)] == ["a2", "a0", "a1"]
    (said,) = [record.getMessage() for record in caplog.records]
    for name in (
        "notes.txt",
        "ads.xlsx",
        "ads.tsv",
        "part.parquet.gz",
        "empty.csv (empty)",
        "loop (a link to a folder)",
    ):
        assert name in said
    assert not any(name in said for name in ("hidden", "_SUCCESS", "_delta", ".git"))


def test_a_file_that_a_folder_names_twice_is_read_once(tmp_path, caplog):
    (tmp_path / "2026-01.jsonl").write_bytes(as_jsonl(ROWS))
    (tmp_path / "1-latest.jsonl").symlink_to(tmp_path / "2026-01.jsonl")
    (tmp_path / "same.jsonl").hardlink_to(tmp_path / "2026-01.jsonl")
    (tmp_path / "copy.jsonl").write_bytes(as_jsonl(ROWS[:1]))
    with caplog.at_level(logging.WARNING):
        assert len(rows_of(tmp_path)) == 4
    assert "same.jsonl (another name of 2026-01.jsonl), 1-latest.jsonl (another name of 2026-01.jsonl)" in caplog.text


def test_a_rejected_row_of_a_subfolder_names_it(tmp_path):
    (tmp_path / "2025").mkdir()
    (tmp_path / "2025" / "ads.jsonl").write_text('{"ad_id": "x"}\n')
    (rejected,) = read_ads(tmp_path)
    assert (rejected.source, rejected.row) == ("2025/ads.jsonl", 1)


def test_a_folder_of_nothing_readable_names_what_it_holds(tmp_path):
    (tmp_path / "ads.tsv").write_text("x")
    with pytest.raises(InputError, match=r"ending in .*it holds ads\.tsv"):
        rows_of(tmp_path)


def test_a_file_and_its_compressed_copy_are_not_counted_twice(tmp_path):
    (tmp_path / "ads.jsonl").write_bytes(as_jsonl(ROWS))
    (tmp_path / "ads.jsonl.gz").write_bytes(gzip.compress(as_jsonl(ROWS)))
    with pytest.raises(InputError, match=r"both ads\.jsonl and ads\.jsonl\.gz"):
        rows_of(tmp_path)


def test_partitions_are_columns_unless_the_file_has_them(tmp_path):
    for folder, row in (
        ("country=DE", {"a": 1}),
        ("country=S%C3%A3o", {"a": 2}),
        ("country=X", {"a": 3, "country": "Y"}),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part-0.jsonl").write_bytes(as_jsonl([row]))
    null = tmp_path / "country=__HIVE_DEFAULT_PARTITION__"
    null.mkdir()
    (null / "part-0.parquet").write_bytes(as_parquet([{"a": 4}]))
    assert {row["a"]: row["country"] for row in rows_of(tmp_path)} == {1: "DE", 2: "São", 3: "Y", 4: None}


@pytest.mark.parametrize("name", ["ads.csv.gz", "ads.jsonl.gz"])
def test_a_gzip_file_that_is_cut_off_or_damaged_is_named(tmp_path, name):
    rows = [{"ad_id": f"{number}", "title": f"{number * 7919} and more"} for number in range(2000)]
    whole = FORMATS[name](rows)
    for damaged in (
        whole[: len(whole) // 2],
        whole[:40],
        whole[:200] + b"\x00" * 50 + whole[250:],
        b"\x1f\x8bnot gzip",
    ):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(InputError, match=name):
            rows_of(tmp_path / name)


def test_a_gzip_bomb_takes_the_memory_of_a_line_and_costs_a_row(tmp_path):
    bomb = tmp_path / "ads.jsonl.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        for _ in range(12 * MAX_LINE_CHARS // 2**20):
            file.write(b"a" * 2**20)
        file.write(b"\n" + as_jsonl(ROWS))
    tracemalloc.start()
    rows = rows_of(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(rows[0], DamagedRow)
    assert rows[1:] == ROWS
    assert peak < 6 * MAX_LINE_CHARS


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_line_without_end_costs_its_row(tmp_path, suffix):
    start = b"ad_id,title\n" if suffix == "csv" else b""
    tail = b"a0,Ad number 0\n" if suffix == "csv" else as_jsonl(ROWS[:1])
    (tmp_path / f"ads.{suffix}").write_bytes(start + b"x" * (2 * MAX_LINE_CHARS + 5) + b"\n" + tail)
    rejected, ad = read_ads(tmp_path / f"ads.{suffix}")
    assert (rejected.reason, ad) == ("bad_row", ADS[0])


MISNAMED = {
    "ads.csv": [
        (gzip.compress(b"x", mtime=0), "gzip"),
        (b"PAR1xxxx", "Parquet"),
        (b"PK\x03\x04", "spreadsheet"),
        ("ad_id,title\n".encode("utf-16"), "UTF-16"),
        ("ad_id,title\n".encode("utf-16-le"), "UTF-16"),
        ("ad_id,title\n".encode("utf-16-be"), "UTF-16"),
        (b"", "is empty"),
        (b"\n\n", "is empty"),
    ],
    "ads.jsonl": [(gzip.compress(b"x", mtime=0), "gzip"), ('{"ad_id": 1}'.encode("utf-16"), "UTF-16")],
}


@pytest.mark.parametrize(
    ("name", "content", "message"), [(name, *one) for name, many in MISNAMED.items() for one in many]
)
def test_a_file_that_is_something_else_is_named_with_what_it_is(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        rows_of(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.parametrize(("mark", "word"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_a_wrong_delimiter_is_named_with_the_file_and_its_columns(tmp_path, mark, word):
    (tmp_path / "ads.csv").write_text(mark.join(("ad_id", "title", "body")) + "\n" + mark.join("abc") + "\n")
    with pytest.raises(InputError, match=rf"ads\.csv has the columns .*ad_id.*separate its values by {word}"):
        rows_of(tmp_path / "ads.csv")


def test_a_column_that_is_there_twice_is_named(tmp_path):
    (tmp_path / "ads.csv").write_text("ad_id,title,title\nx,a,b\n")
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "ads.parquet")
    for name, column in (("ads.csv", "title"), ("ads.parquet", "a")):
        with pytest.raises(InputError, match=rf"{name} names the column '{column}' twice"):
            rows_of(tmp_path / name)
    (tmp_path / "ads.jsonl").write_text('{"ad_id": "x", "title": "a", "title": "b"}\n')
    assert [row.reason for row in rows_of(tmp_path / "ads.jsonl")] == ["bad_row"]


@pytest.mark.parametrize("header", ['""', "Unnamed: 0", "Unnamed: 0_level_0", "__index_level_0__"])
def test_the_row_numbers_of_pandas_are_left_out_and_named(tmp_path, caplog, header):
    (tmp_path / "ads.csv").write_text(f"{header},ad_id,title\n0,a0,Ad number 0\n1,a1,Ad number 1\n")
    with caplog.at_level(logging.WARNING):
        assert list(read_ads(tmp_path / "ads.csv")) == ADS[:2]
    assert "row numbers" in caplog.text


def test_the_index_that_pandas_writes_to_parquet_is_left_out(tmp_path):
    (tmp_path / "ads.parquet").write_bytes(as_parquet([{**row, "__index_level_0__": 5} for row in ROWS]))
    assert list(read_ads(tmp_path / "ads.parquet")) == ADS


def test_line_ends_blank_lines_blanks_in_the_header_and_a_mark_change_nothing(tmp_path):
    (tmp_path / "ads.csv").write_bytes(b"\xef\xbb\xbf\r\n ad_id , title\r\na0,Ad number 0\r\n\r\na1,Ad number 1\r\n")
    assert list(read_ads(tmp_path / "ads.csv")) == ADS[:2]
    (tmp_path / "ads.csv").write_bytes(b"ad_id,title\ra0,Ad number 0\ra1,Ad number 1")
    assert list(read_ads(tmp_path / "ads.csv")) == ADS[:2]


QUOTES = {
    "a quote inside quotes": (b'a0,x\na1,"27" monitor"\na2,y\n', ["a0", 3, "a2"]),
    "a quote that nothing closes": (b'a0,x\na1,"open\na2,y\na3,z\n', ["a0", 3, "a2", "a3"]),
    "a quote that a later row closes": (b'a0,x\na1,"open\na2,"y"\na3,z\n', ["a0", 3, "a2", "a3"]),
    "a quote that a later row closes well": (b'a0,x\na1,"open\na2,y"\na3,z\n', ["a0", "a1", "a3"]),
    "too many values after one": (b'a0,x\na1,"open\na2,y",z\na3,z\n', ["a0", 3, 4, "a3"]),
    "a quote on the last line": (b'a0,x\na1,"open', ["a0", 3]),
    "quotes in the middle": (b'a0,27" monitor\na1,y"\n', ["a0", "a1"]),
    "a value with line ends": (b'a0,"one\ntwo\r\nthree"\na1,y\n', ["a0", "a1"]),
    "too few values": (b"a0\na1,y\n", [2, "a1"]),
    "many open quotes": (b'a0,"x\n' * 50 + b"a1,y\n", [*range(2, 52), "a1"]),
}


@pytest.mark.parametrize(("lines", "want"), QUOTES.values(), ids=QUOTES)
@pytest.mark.parametrize("packed", [False, True])
def test_a_bad_quote_costs_its_row_and_names_its_line(tmp_path, lines, want, packed):
    path = tmp_path / ("ads.csv.gz" if packed else "ads.csv")
    path.write_bytes(gzip.compress(b"ad_id,title\n" + lines) if packed else b"ad_id,title\n" + lines)
    found = [row.detail if isinstance(row, DamagedRow) else row["ad_id"] for row in rows_of(path)]
    assert len(found) == len(want)
    for one, wanted in zip(found, want, strict=True):
        assert f"line {wanted} " in one if isinstance(wanted, int) else one == wanted


def test_a_quoted_value_keeps_its_line_ends(tmp_path):
    (tmp_path / "ads.csv").write_bytes(b'ad_id,title\na0,"one\ntwo\r\nthree, ""four"""\n')
    assert [row["title"] for row in rows_of(tmp_path / "ads.csv")] == ['one\ntwo\r\nthree, "four"']


def test_open_quotes_are_read_in_time_that_grows_with_the_file(tmp_path):
    lines = ["ad_id,title\n"]
    for _ in range(20):
        lines += ['x,"open\n', *["y,z\n"] * 1000]
    (tmp_path / "ads.csv").write_text("".join(lines))
    rows = rows_of(tmp_path / "ads.csv")
    assert sum(isinstance(row, DamagedRow) for row in rows) == 20
    assert len(rows) == 20_020


def test_a_log_that_is_mostly_broken_is_refused(tmp_path):
    lines = "".join(f'r{number},"a"b,0,1\n' for number in range(10))
    (tmp_path / "clicks.csv").write_text(f"request_id,ad_id,clicks,impressions\nr,a,0,1\n{lines}")
    with pytest.raises(InputError, match=r"90\.9% of 11 rows cannot be used.*10 bad_row \(clicks\.csv, row 2: line 3"):
        read_clicks(tmp_path / "clicks.csv", None)


def test_rows_of_ever_new_names_come_in_small_batches(tmp_path):
    rows = [{f"name-{number}-{place}": 1 for place in range(60)} for number in range(600)]
    (tmp_path / "ads.jsonl").write_bytes(as_jsonl(rows))
    sizes = [(len(batch.numbers), len(batch.columns)) for batch in read_batches(tmp_path / "ads.jsonl")]
    assert sum(count for count, _ in sizes) == 600
    assert max(count * names for count, names in sizes) < 5_000_000 < 600 * 60 * 600


def test_what_is_wrong_with_an_ad_is_known_by_its_id(tmp_path):
    (tmp_path / "ads.jsonl").write_bytes(
        as_jsonl([*ROWS, {"ad_id": "bad"}, {"ad_id": "a0", "title": "other"}, ROWS[1]])
    )
    catalog = read_catalog(tmp_path / "ads.jsonl")
    assert [ad.ad_id for ad in catalog.ads] == ["a0", "a1", "a2"]
    assert catalog.counts == {"empty_text": 1, "duplicate_id": 1, "repeated_ad": 1}
    assert set(catalog.why_rejected) == {"bad"}
    assert "empty_text" in catalog.why_rejected["bad"]


@pytest.mark.parametrize(
    ("start", "end", "usable"),
    [
        ("2026-01-01", "2026-02-01", True),
        ("1970-01-01", "9999-12-31", True),
        ("20260101", "20270101", True),
        ("2026-02-01", "2026-01-01", False),
        ("0001-01-01T00:00:00Z", "2026-01-01", False),
        ("2026-01-01", "0001-01-01", False),
        (5, None, False),
    ],
)
def test_an_ad_with_times_that_cannot_be_is_rejected(tmp_path, start, end, usable):
    (tmp_path / "ads.jsonl").write_bytes(as_jsonl([{**ROWS[0], "start_time": start, "end_time": end}]))
    (found,) = read_ads(tmp_path / "ads.jsonl")
    assert isinstance(found, Ad) is usable


def test_a_bad_user_costs_its_row_and_many_are_refused(tmp_path):
    users = [{"user_id": f"u{number}"} for number in range(200)]
    (tmp_path / "users.jsonl").write_bytes(
        as_jsonl([*users, {"user_id": True}, {"user_id": "u1", "city": "other"}, users[2]])
    )
    found, report = load_users(tmp_path / "users.jsonl")
    assert list(found) == [f"u{number}" for number in range(200)]
    assert (report.rows, len(report.rejected)) == (203, 2)
    assert "users.jsonl, row 201: user_id must be text" in report.rejected[0]
    with pytest.raises(InputError, match=r"2 of 203 users cannot be used.*row 201"):
        load_users(tmp_path / "users.jsonl", 0.001)


def test_a_history_in_a_cell_is_a_history(tmp_path):
    history = json.dumps([{"type": "click", "ad_id": 5.0, "timestamp": "20260101"}])
    (tmp_path / "users.csv").write_bytes(as_csv([{"user_id": "10.0", "city": "NULL", "age": "", "history": history}]))
    (user,) = read_users(tmp_path / "users.csv")
    assert (user.user_id, user.attributes, user.history[0].ad_id) == ("10", {}, "5")


@pytest.mark.parametrize("time", ["2099-01-01", "1999-12-31", 5])
def test_a_user_with_events_that_cannot_have_happened_is_refused(tmp_path, time):
    row = {"user_id": "u", "history": [{"type": "click", "ad_id": "a", "timestamp": time}]}
    (tmp_path / "users.jsonl").write_bytes(as_jsonl([row]))
    with pytest.raises(InputError, match=r"users\.jsonl, row 1: "):
        list(read_users(tmp_path / "users.jsonl"))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_users_whose_ids_are_floats_or_nothing(tmp_path, kind):
    rows = [{"user_id": 10.0, "age": 30.0, "vip": True}, {"user_id": float("nan"), "age": 1.0, "vip": False}]
    (tmp_path / f"users.{kind}").write_bytes({"csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet}[kind](rows))
    found, report = load_users(tmp_path / f"users.{kind}", 0.5)
    assert found == {"10": UserProfile("10", attributes=found["10"].attributes)}
    assert found["10"].attributes["age"] in ("30", "30.0")
    assert found["10"].attributes["vip"].lower() == "true"
    assert "there is no user_id" in report.rejected[0]


@pytest.mark.parametrize("hint", ["sep=,", '"sep=,"', "SEP=,"])
def test_the_line_with_the_delimiter_that_spreadsheets_write_is_no_header(tmp_path, hint):
    path = tmp_path / "ads.csv"
    path.write_bytes(hint.encode() + b"\r\n" + as_csv(ROWS))
    assert list(read_ads(path)) == ADS
    path.write_text("sep=;\nad_id;title\na1;One\n")
    with pytest.raises(InputError, match="'ad_id;title': it seems to separate its values by semicolons"):
        list(read_ads(path))


def test_joined_files_have_marks_in_the_middle(tmp_path):
    for name, make in (("ads.jsonl", as_jsonl), ("ads.csv", as_csv)):
        mark = b"\xef\xbb\xbf"
        lines = make(ROWS).splitlines(keepends=True)
        (tmp_path / name).write_bytes(mark + b"".join(lines[:-1]) + mark + lines[-1])
        assert list(read_ads(tmp_path / name)) == ADS


@pytest.mark.parametrize("text", ["[" + json.dumps(ROWS[0]) + "]", json.dumps(ROWS[0], indent=1), "7"])
def test_json_that_is_not_an_object_a_line_says_what_it_must_be(tmp_path, text):
    (tmp_path / "ads.jsonl").write_text(text)
    with pytest.raises(InputError, match="each line must be one object by itself"):
        read_catalog(tmp_path / "ads.jsonl")


def test_a_line_of_other_names_says_which_and_costs_no_other(tmp_path):
    lines = [{"adId": "a9", "title": "x"}, {"ad_id": "a8", "headline": "x"}]
    (tmp_path / "ads.jsonl").write_bytes(as_jsonl([*lines, *ROWS]))
    catalog = read_catalog(tmp_path / "ads.jsonl")
    assert catalog.ads == tuple(ADS)
    assert "there is no ad_id; there is 'adId', 'title'" in catalog.rejected[0].detail
    row = {"request_id": "r", "ad_id": "a", "clicks": 0, "impressions": 1}
    (tmp_path / "log.jsonl").write_bytes(as_jsonl([{"event": "start"}, row, row, row]))
    clicks, report = read_clicks(tmp_path / "log.jsonl", None, max_rejected=0.5)
    assert (len(clicks), report.rejected) == (3, {"bad_row": 1})
    assert "there is no request_id, ad_id, clicks, impressions; there is 'event'" in report.examples["bad_row"]
    (tmp_path / "log.jsonl").write_bytes(as_jsonl([{"requestId": "r", "adId": "a", "click": 1}, {}]))
    with pytest.raises(
        InputError, match=r"the click log lacks request_id, .*jsonl has the columns 'requestId', 'adId', 'click'"
    ):
        read_clicks(tmp_path / "log.jsonl", None)


def test_columns_of_nearly_the_right_name_are_named(tmp_path, caplog):
    (tmp_path / "ads.csv").write_text("ad_id,title,endTime,valid_from,price\na1,One,2020-01-01,2019-01-01,3\n")
    (tmp_path / "users.jsonl").write_text('{"user_id": "u1", "Interests": "tea", "age": 3}\n')
    (tmp_path / "log.csv").write_text(
        "request_id,ad_id,clicks,impressions,UserID,time,page\n" + "r,a1,0,1,u1,2026-01-01,3\n" * 3
    )
    with caplog.at_level(logging.WARNING):
        (ad,) = read_ads(tmp_path / "ads.csv")
        load_users(tmp_path / "users.jsonl")
        log, _ = read_clicks(tmp_path / "log.csv", None)
    assert ad.attributes == {"endTime": "2020-01-01", "valid_from": "2019-01-01", "price": "3"}
    assert sorted(log.context) == ["UserID", "page", "time"]
    assert [record.getMessage() for record in caplog.records] == [
        "ads.csv: the column 'endTime' is read as an attribute; if it is meant as end_time, call it so",
        "ads.csv: the column 'valid_from' is read as an attribute; if it is meant as start_time, call it so",
        "users.jsonl: the column 'Interests' is read as an attribute; if it is meant as interests, call it so",
        "log.csv: the column 'UserID' is read as context; if it is meant as user_id, call it so",
        "log.csv: the column 'time' is read as context; if it is meant as timestamp, call it so",
    ]


def test_columns_that_are_there_under_their_name_leave_others_alone(tmp_path, caplog):
    (tmp_path / "ads.csv").write_text("ad_id,title,end_time,endTime,expires\na1,One,2030-01-01,x,y\n")
    with caplog.at_level(logging.WARNING):
        assert len(list(read_ads(tmp_path / "ads.csv"))) == 1
    assert caplog.text == ""
