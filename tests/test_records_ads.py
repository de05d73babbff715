"""The catalog reader: one meaning for three formats, and a reason for every row that is no ad."""

import csv
import json
import tempfile
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, fields
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adcascade.records.ads import Ad, RejectedAd, ad_from_row, read_ads
from adcascade.records.errors import InputError
from adcascade.records.limits import MAX_TEXT_CHARS
from adcascade.records.missing import NULL_WORDS

START = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
SHOES = Ad(
    ad_id="7",
    title="Laufschuhe für Anfänger",
    body="Light, and 30% off",
    advertiser="Acme",
    category="sport",
    keywords=("running", "shoes"),
    language="de",
    landing_url="https://example.com/shoes",
    image_uri="s3://images/7.png",
    bid_micros=2_500_000,
    attributes={"color": "red", "brand": "Zoom"},
    start_time=START,
    end_time=START.replace(year=2025),
)
TEA = Ad("b", body="Green tea")
ROWS = [
    {
        "ad_id": 7,
        "title": SHOES.title,
        "body": SHOES.body,
        "advertiser": "Acme",
        "category": "sport",
        "keywords": ["running", "shoes"],
        "language": "de",
        "landing_url": SHOES.landing_url,
        "image_uri": SHOES.image_uri,
        "bid_micros": 2_500_000,
        "attributes": {"color": "red"},
        "start_time": "2024-05-01T12:30:00Z",
        "end_time": "2025-05-01T14:30:00+02:00",
        "brand": "Zoom",
    },
    {"ad_id": "b", "body": "Green tea"},
]
GOOD = {"ad_id": "good", "title": "A good ad"}


def test_every_field_of_an_ad_is_read():
    empty = Ad("")
    assert all(getattr(SHOES, one.name) != getattr(empty, one.name) for one in fields(Ad))
    assert ad_from_row(asdict(SHOES)) == SHOES


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path, rows):
    flat = [
        {**row, "keywords": ", ".join(row.get("keywords", ())), "attributes": json.dumps(row.get("attributes", {}))}
        for row in rows
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
    return path


def write_parquet(path, rows):
    moments = ("start_time", "end_time")
    typed = [
        {
            **{name: row.get(name) for name in ROWS[0]},
            "ad_id": str(row["ad_id"]),
            "attributes": list(row.get("attributes", {}).items()),
            **{name: datetime.fromisoformat(row[name]) for name in moments if name in row},
        }
        for row in rows
    ]
    strings = ("ad_id", "title", "body", "advertiser", "category", "language", "landing_url", "image_uri", "brand")
    types = {name: pa.string() for name in strings} | {
        "keywords": pa.list_(pa.string()),
        "bid_micros": pa.int64(),
        "attributes": pa.map_(pa.string(), pa.string()),
        "start_time": pa.timestamp("us", tz="UTC"),
        "end_time": pa.timestamp("ms", tz="America/New_York"),
    }
    pq.write_table(pa.Table.from_pylist(typed, pa.schema(list(types.items()))), path)
    return path


WRITERS = {"ads.jsonl": write_jsonl, "ads.ndjson": write_jsonl, "ads.csv": write_csv, "ads.parquet": write_parquet}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_ads(tmp_path, name):
    assert list(read_ads(WRITERS[name](tmp_path / name, ROWS))) == [SHOES, TEA]


def test_a_folder_is_read_in_the_order_of_its_file_names(tmp_path):
    write_csv(tmp_path / "b.csv", ROWS[1:])
    write_parquet(tmp_path / "a.PARQUET", ROWS[:1])
    write_jsonl(tmp_path / "c.jsonl", [GOOD, {"ad_id": "b", "title": "again"}])
    (tmp_path / "notes.txt").write_text("not a catalog")
    *ads, again = read_ads(tmp_path)
    assert ads == [SHOES, TEA, Ad("good", "A good ad")]
    assert (again.source, again.row, again.ad_id, again.reason) == ("c.jsonl", 2, "b", "duplicate_id")


REJECTED = {
    "half a JSON object": ("bad_row", '{"ad_id": "x", "title": "half'),
    "a JSON list": ("bad_row", '["x", "title"]'),
    "a title that is no text": ("bad_row", '{"ad_id": "x", "title": ["a"]}'),
    "a true title": ("bad_row", '{"ad_id": "x", "title": true}'),
    "a bid in words": ("bad_row", '{"ad_id": "x", "title": "a", "bid_micros": "cheap"}'),
    "a broken bid": ("bad_row", '{"ad_id": "x", "title": "a", "bid_micros": 0.5}'),
    "a bid without end": ("bad_row", '{"ad_id": "x", "title": "a", "bid_micros": Infinity}'),
    "a time in words": ("bad_row", '{"ad_id": "x", "title": "a", "start_time": "tomorrow"}'),
    "a time beyond the calendar": ("bad_row", '{"ad_id": "x", "title": "a", "end_time": 1e22}'),
    "keywords that are a number": ("bad_row", '{"ad_id": "x", "title": "a", "keywords": 5}'),
    "attributes that are a word": ("bad_row", '{"ad_id": "x", "title": "a", "attributes": "red"}'),
    "attributes that are a number": ("bad_row", '{"ad_id": "x", "title": "a", "attributes": 5}'),
    "half a surrogate pair": ("bad_row", '{"ad_id": "x", "title": "\\ud83d"}'),
    "no id": ("missing_id", '{"title": "a"}'),
    "a null id": ("missing_id", '{"ad_id": null, "title": "a"}'),
    "an id of 257 characters": ("long_id", json.dumps({"ad_id": "x" * 257, "title": "a"})),
    "no text": ("empty_text", '{"ad_id": "x"}'),
    "blank text": ("empty_text", '{"ad_id": "x", "title": " \\t", "body": "\\n\\u00a0"}'),
    "text of zero-width spaces": ("empty_text", '{"ad_id": "x", "title": "\\u200b\\ufeff"}'),
    "text one character too long": ("long_text", json.dumps({"ad_id": "x", "title": "a", "body": "b" * 32_768})),
    "a megabyte of text": ("long_text", json.dumps({"ad_id": "x", "body": "b" * 2**20})),
    "65 keywords": ("long_text", json.dumps({"ad_id": "x", "title": "a", "keywords": ["k"] * 65})),
    "a long keyword": ("long_text", json.dumps({"ad_id": "x", "title": "a", "keywords": ["k", "k" * 257]})),
    "a long category": ("long_text", json.dumps({"ad_id": "x", "title": "a", "category": "c" * 257})),
    "a long advertiser": ("long_text", json.dumps({"ad_id": "x", "title": "a", "advertiser": "c" * 257})),
    "a long language": ("long_text", json.dumps({"ad_id": "x", "title": "a", "language": "c" * 257})),
    "a long landing URL": ("long_text", json.dumps({"ad_id": "x", "title": "a", "landing_url": "h" * 2049})),
    "a long image URI": ("long_text", json.dumps({"ad_id": "x", "title": "a", "image_uri": "h" * 2049})),
    "65 attributes": ("long_text", json.dumps({"ad_id": "x", "title": "a"} | {f"a{n}": "v" for n in range(65)})),
    "a long attribute": ("long_text", json.dumps({"ad_id": "x", "title": "a", "story": "s" * 32_768})),
}


@pytest.mark.parametrize(("reason", "line"), REJECTED.values(), ids=REJECTED)
def test_a_row_that_is_no_ad_is_rejected_with_its_reason_and_reading_goes_on(tmp_path, reason, line):
    path = tmp_path / "ads.jsonl"
    path.write_text(f"{line}\n{json.dumps(GOOD)}\n")
    rejected, good = read_ads(path)
    assert isinstance(rejected, RejectedAd)
    assert (rejected.source, rejected.row, rejected.reason) == ("ads.jsonl", 1, reason)
    assert rejected.detail
    assert len(rejected.ad_id) <= 256
    assert good == Ad("good", "A good ad")


def test_a_table_without_the_columns_of_an_ad_is_refused_with_those_it_has(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "headline": ["b"]}), tmp_path / "ads.parquet")
    (tmp_path / "ads.csv").write_text("id,headline\na,b\n")
    for name in ("ads.parquet", "ads.csv"):
        with pytest.raises(InputError, match=rf"{name} needs the columns ad_id and title \(or body\); it has id, head"):
            list(read_ads(tmp_path / name))


HOSTILE = {
    "an id of 400 digits": f'{{"ad_id": {"9" * 400}, "title": "a"}}',
    "a bid beyond 64 bits": f'{{"ad_id": "x", "title": "a", "bid_micros": 1{"0" * 30}}}',
    "attributes that are a list of numbers": '{"ad_id": "x", "title": "a", "attributes": [1, 2]}',
    "attributes that are a list of words": '{"ad_id": "x", "title": "a", "attributes": ["red"]}',
    "half a surrogate pair in an attribute": '{"ad_id": "x", "title": "a", "brand": "\\ud83d"}',
    "half a surrogate pair deep in an attribute": '{"ad_id": "x", "title": "a", "brand": {"name": ["\\ud83d"]}}',
    "half a surrogate pair in a column name": '{"ad_id": "x", "title": "a", "\\ud83d": "b"}',
    "JSON of 100,000 levels": f'{{"ad_id": "x", "title": "a", "deep": {"[" * 100_000}{"]" * 100_000}}}',
}


@pytest.mark.parametrize("line", HOSTILE.values(), ids=HOSTILE)
def test_a_row_that_no_version_could_store_is_rejected_and_reading_goes_on(tmp_path, line):
    path = tmp_path / "ads.jsonl"
    path.write_text(f"{line}\n{json.dumps(GOOD)}\n")
    rejected, good = read_ads(path)
    assert isinstance(rejected, RejectedAd)
    assert good == Ad("good", "A good ad")


def test_a_rejected_ad_can_always_be_written_down(tmp_path):
    path = tmp_path / "ads.jsonl"
    path.write_text('{"ad_id": "\\ud83d", "title": "a"}\n')
    (rejected,) = read_ads(path)
    assert rejected.reason == "bad_row"
    assert f"{rejected.ad_id}{rejected.detail}".encode() is not None


def test_ids_and_texts_at_their_limits_are_usable(tmp_path):
    row = {"ad_id": "x" * 256, "title": "t" * 68, "body": "b" * (MAX_TEXT_CHARS - 68), "keywords": ["k" * 256] * 64}
    (ad,) = read_ads(write_jsonl(tmp_path / "ads.jsonl", [row]))
    assert (ad.ad_id, ad.body, ad.keywords) == (row["ad_id"], row["body"], tuple(row["keywords"]))


@pytest.mark.parametrize("name", WRITERS)
def test_a_megabyte_of_text_is_rejected_in_every_format(tmp_path, name):
    rows = [{"ad_id": "long", "title": "a", "body": "word " * 2**18}, {**GOOD, "body": ""}]
    rejected, good = read_ads(WRITERS[name](tmp_path / name, rows))
    assert (rejected.ad_id, rejected.reason) == ("long", "long_text")
    assert good.ad_id == "good"


@pytest.mark.parametrize("name", WRITERS)
def test_of_two_rows_with_one_id_the_first_stands(tmp_path, name):
    rows = [{"ad_id": "x", "title": "first"}, {"ad_id": "x", "title": "second"}, GOOD]
    first, second, third = read_ads(WRITERS[name](tmp_path / name, rows))
    assert (first.title, third.title) == ("first", "A good ad")
    assert (second.row, second.ad_id, second.reason) == (2, "x", "duplicate_id")


def test_an_unusable_row_does_not_take_the_id_from_a_later_one(tmp_path):
    path = write_jsonl(tmp_path / "ads.jsonl", [{"ad_id": "good", "title": " "}, GOOD])
    assert [getattr(ad, "reason", "usable") for ad in read_ads(path)] == ["empty_text", "usable"]


def parquet_with_bytes(path, titles):
    """A string column may hold any bytes; Arrow checks them only when asked."""
    offsets = pa.array([0, *[sum(map(len, titles[: end + 1])) for end in range(len(titles))]], pa.int32())
    column = pa.StringArray.from_buffers(len(titles), offsets.buffers()[1], pa.py_buffer(b"".join(titles)))
    pq.write_table(pa.table({"ad_id": [str(number) for number in range(len(titles))], "title": column}), path)


def test_bytes_that_are_no_utf8_spoil_only_their_row(tmp_path):
    titles = ["Kaffee für alle".encode(), "Kaffee für alle".encode("latin-1"), b"tea"]
    rows = [f"{number},".encode() + title for number, title in enumerate(titles)]
    (tmp_path / "a.csv").write_bytes(b"\n".join([b"ad_id,title", *rows]))
    lines = [f'{{"ad_id": "{number}", "title": "'.encode() + title + b'"}' for number, title in enumerate(titles)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    parquet_with_bytes(tmp_path / "a.parquet", titles)
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        first, damaged, last = read_ads(tmp_path / name)
        assert (first, last) == (Ad("0", "Kaffee für alle"), Ad("2", "tea"))
        assert (damaged.source, damaged.row, damaged.reason) == (name, 2, "bad_utf8")


def test_a_csv_header_that_is_no_utf8_gives_no_ad_with_a_broken_name(tmp_path):
    (tmp_path / "a.csv").write_bytes("ad_id,title,größe\nx,shoes,42\n".encode("latin-1"))
    assert [found.reason for found in read_ads(tmp_path / "a.csv")] == ["bad_utf8"]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    (tmp_path / "a.csv").write_text("ad_id,title\ngood,A good ad\n", encoding="utf-8-sig")
    (tmp_path / "a.jsonl").write_text(json.dumps(GOOD) + "\n", encoding="utf-8-sig")
    for name in ("a.csv", "a.jsonl"):
        assert list(read_ads(tmp_path / name)) == [Ad("good", "A good ad")]


@pytest.mark.parametrize("line", ["x,shoes,red,more", "x"])
def test_a_csv_row_of_another_width_is_rejected(tmp_path, line):
    (tmp_path / "a.csv").write_text(f"ad_id,title,color\n{line}\ngood,A good ad,red\n")
    rejected, good = read_ads(tmp_path / "a.csv")
    assert (rejected.row, rejected.reason, rejected.detail) == (
        1,
        "bad_row",
        f"expected 3 columns, line 2 has {line.count(',') + 1}",
    )
    assert good == Ad("good", "A good ad", attributes={"color": "red"})


def test_columns_that_an_ad_does_not_know_become_attributes(tmp_path):
    row = {**GOOD, "attributes": {"a": 1, "gone": None}, "brand": "Zoom", "sizes": [1, 2], "rating": 4.5, "none": None}
    (ad,) = read_ads(write_jsonl(tmp_path / "ads.jsonl", [row]))
    assert ad.attributes == {"a": "1", "brand": "Zoom", "sizes": "[1, 2]", "rating": "4.5"}


@pytest.mark.parametrize(
    ("name", "message"), [("none.jsonl", "does not exist"), ("ads.txt", "ending in"), ("folder", "ending in")]
)
def test_what_is_no_catalog_is_an_input_error(tmp_path, name, message):
    (tmp_path / "ads.txt").write_text("{}")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=message) as caught:
        list(read_ads(tmp_path / name))
    assert name in str(caught.value)


@pytest.mark.parametrize(("name", "content"), [("a.parquet", b"PAR1 not really"), ("a.csv", b"")])
def test_a_file_that_cannot_be_read_at_all_is_an_input_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"cannot read .*{name}|{name} is empty"):
        list(read_ads(tmp_path / name))


@pytest.mark.parametrize("name", ["ads.jsonl", "ads.csv"])
def test_rows_are_read_as_they_are_asked_for(tmp_path, name):
    path = WRITERS[name](tmp_path / name, [GOOD])
    late = {"ads.jsonl": '{"ad_id": "late", "title": "b"}\n', "ads.csv": "late,b,,{}\n"}[name]
    ads = read_ads(path)
    assert isinstance(ads, Iterator)
    assert next(ads).ad_id == "good"
    with path.open("a") as file:
        file.write(late)
    assert [ad.ad_id for ad in ads] == ["late"]


WORDS = st.text(max_size=20).filter(lambda text: text.strip() not in NULL_WORDS - {""})
IDS = st.text(st.characters(categories=("L", "N", "P"), codec="utf-8"), min_size=1, max_size=20)
STARTS = st.none() | st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC))
CATALOGS = st.lists(
    st.fixed_dictionaries(
        {
            "ad_id": IDS.map("ad {}".format).map(partial(unicodedata.normalize, "NFC")),
            "title": WORDS.map("shoes {}".format),
            "body": WORDS,
            "category": WORDS,
            "keywords": st.lists(WORDS, max_size=3),
            "bid_micros": st.integers(0, 2**63 - 1),
            "attributes": st.dictionaries(WORDS, WORDS, max_size=3),
            "start_time": STARTS,
        }
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda row: row["ad_id"],
)


@settings(max_examples=60, deadline=None)
@given(CATALOGS)
def test_whatever_is_written_is_read_back(rows):
    want = [Ad(**{**row, "keywords": tuple(row["keywords"])}) for row in rows]
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("ad_id", "title", "body", "category")),
            ("keywords", pa.list_(pa.string())),
            ("bid_micros", pa.int64()),
            ("attributes", pa.map_(pa.string(), pa.string())),
            ("start_time", pa.timestamp("us", tz="UTC")),
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        jsonl, parquet = Path(folder) / "a.jsonl", Path(folder) / "a.parquet"
        lines = (json.dumps(row, default=datetime.isoformat, ensure_ascii=False) + "\n" for row in rows)
        jsonl.write_text("".join(lines), encoding="utf-8", newline="")
        columns = [{**row, "attributes": list(row["attributes"].items())} for row in rows]
        pq.write_table(pa.Table.from_pylist(columns, schema), parquet)
        assert list(read_ads(jsonl)) == want
        assert list(read_ads(parquet)) == want
