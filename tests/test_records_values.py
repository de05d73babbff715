"""Single values: ids that join however they are written, and what stands for nothing."""

from datetime import time, timedelta
from decimal import Decimal

import pytest

from adcascade.records.errors import InputError
from adcascade.records.rounded import RoundedFloat
from adcascade.records.values import as_attributes, as_id, as_int, as_objects, as_text, as_texts, as_word

NOTHING = (None, "", " ", "NULL", "null", "nan", "NaN", "None", "<NA>", "NaT", "\\N", float("nan"), Decimal("NaN"))

IDS = {
    "10": "10",
    "10.0": "10",
    "10.000": "10",
    " 10 ": "10",
    "007": "007",
    "007.0": "007.0",
    "10.5": "10.5",
    "-3.0": "-3",
    "u\u0308ser": "\u00fcser",
    "\ufeffuser": "user",
    "9007199254740991.0": "9007199254740991",
    "9007199254740993": "9007199254740993",
    "12e4": "12e4",
}
NUMBERS = [
    (10, "10"),
    (10.0, "10"),
    (2**60, str(2**60)),
    (Decimal("10.00"), "10"),
    (-3.0, "-3"),
    (10.5, "10.5"),
    (b"caf\xc3\xa9", "café"),
]


@pytest.mark.parametrize(("value", "want"), [*IDS.items(), *NUMBERS])
def test_an_id_is_the_same_however_it_is_written(value, want):
    assert as_id({"user_id": value}, "user_id") == want


@pytest.mark.parametrize("value", [*NOTHING, "none", "NONE", "Nat"])
def test_nothing_is_no_id(value):
    assert as_id({"user_id": value}, "user_id") == ""


@pytest.mark.parametrize(
    "value",
    [
        *(True, False, 2.0**53, 1e300, float("inf"), RoundedFloat(2.0**24), ["a"], {"a": 1}, b"\xff"),
        *("9007199254740992.0", "1.23457E+18", "1e+16", "a\x00b", "a\nb", "\ud83d"),
    ],
)
def test_what_may_be_another_id_is_refused(value):
    with pytest.raises(InputError, match="user_id"):
        as_id({"user_id": value}, "user_id")


@pytest.mark.parametrize("value", NOTHING)
def test_nothing_is_no_text_no_number_and_no_attribute(value):
    assert as_text({"title": value}, "title").strip() == ""
    assert as_texts({"keywords": value}, "keywords") == ()
    assert as_int({"bid": value}, "bid") == 0
    assert as_attributes(value) == {}
    assert as_objects({"history": value}, "history") == []
    assert as_word(value) == ""


@pytest.mark.parametrize("value", ["NA", "N/A", "none", "Nan's bakery", "null and void", "NULLARBOR"])
def test_words_that_look_like_nothing_stay(value):
    assert as_text({"title": value}, "title") == value
    assert as_word(value) == value


LISTS = {
    '["trail running", "shoes"]': ("trail running", "shoes"),
    "['trail running', 'shoes']": ("trail running", "shoes"),
    "['trail running' 'shoes']": ("trail running", "shoes"),
    '["it\'s", \'a "b"\']': ("it's", 'a "b"'),
    "trail running, shoes": ("trail running", "shoes"),
    "trail running;shoes": ("trail running", "shoes"),
    "trail running|shoes": ("trail running", "shoes"),
    "a;b, c": ("a;b", "c"),
    "[sale]": ("[sale]",),
    "[]": (),
    "[1, 2]": ("1", "2"),
    '["a", null]': ("a",),
}


@pytest.mark.parametrize(("value", "want"), LISTS.items())
def test_a_list_in_a_cell_is_a_list(value, want):
    assert as_texts({"keywords": value}, "keywords") == want


@pytest.mark.parametrize("value", ["['\\N{x}']", "[" * 100_000 + "]" * 100_000, "['a' + 'b']", "[__import__('os')]"])
def test_a_hostile_list_is_text_or_refused_and_nothing_is_run(value):
    assert as_texts({"keywords": value}, "keywords")


@pytest.mark.parametrize(
    ("value", "want"), [("9007199254740993", 2**53 + 1), ("5.0", 5), ("1e6", 10**6), (Decimal(7), 7)]
)
def test_a_whole_number_is_exact(value, want):
    assert as_int({"bid": value}, "bid") == want


@pytest.mark.parametrize(
    "value", ["1_000", "0.5", "\u0665", "1e999", "yes", True, 0.5, float("inf"), "9" * 5000, [1], 2**63]
)
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(InputError, match="bid must be a whole number") as caught:
        as_int({"bid": value}, "bid")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", ["1.000", "12.000", "-1.000", " 1.000 "])
def test_a_thousand_that_may_be_one_is_refused(value):
    with pytest.raises(InputError, match=r"impressions '-?[\d.]+' may be -?\d+ or -?\d+000"):
        as_int({"impressions": value}, "impressions")


@pytest.mark.parametrize(("value", "want"), [("0.000", 0), ("1.0", 1), ("1.00", 1), ("1000.000", 1000), ("1e3", 1000)])
def test_floats_as_other_programs_write_them_are_whole_numbers(value, want):
    assert as_int({"impressions": value}, "impressions") == want


def test_a_number_that_is_not_whole_is_named_as_it_was_given():
    with pytest.raises(InputError, match=r"clicks must be a whole number, not '0\.5'"):
        as_int({"clicks": "0.5"}, "clicks")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("[trail, running shoes]", ("trail", "running shoes")),
        ("{trail,running}", ("trail", "running")),
        ("[sale]", ("[sale]",)),
        ("[]", ()),
        ("{}", ()),
        ("[sale], shoes, [new]", ("[sale]", "shoes", "[new]")),
    ],
)
def test_lists_without_quotes_are_lists(text, want):
    assert as_texts({"keywords": text}, "keywords") == want


def test_times_of_day_and_durations_are_words():
    assert as_word(time(10, 15)) == "10:15:00"
    assert as_word(timedelta(minutes=1.5)) == "90"
