"""Coded columns against lists of the same texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adcascade.records.coded import CodedColumn, GrowingColumn, combinations, grouped, joined, pairs

TEXT = st.sampled_from(["", "a", "b", "ab", "é", "\U0001f600", "z\0", "B"])
VALUES = st.lists(st.one_of(st.none(), TEXT), max_size=30)
BOTH = st.integers(0, 20).flatmap(lambda rows: st.tuples(*[st.lists(TEXT, min_size=rows, max_size=rows)] * 2))


@given(VALUES, st.sampled_from([None, ""]))
def test_a_column_reads_like_the_list_that_it_was_made_of(values, nothing):
    want = [nothing if value is None else value for value in values]
    column = CodedColumn.of(values, nothing)
    assert (len(column), column.tolist(), list(column)) == (len(want), want, want)
    assert [column[row] for row in range(len(want))] == want
    assert column.distinct == len({*want} - {nothing})
    assert column.known.tolist() == [value != nothing for value in want]
    for text in ("a", "", "nobody", nothing):
        assert (column == text).tolist() == [value == text for value in want]
        assert (column != text).tolist() == [value != text for value in want]
    assert column.among({"a", "é"}).tolist() == [value in ("a", "é") for value in want]
    assert column.of_names(len, -1, np.int64).tolist() == [-1 if value == nothing else len(value) for value in want]


@given(VALUES, st.data())
def test_names_in_order_have_codes_that_compare_as_texts_do(values, data):
    rows = data.draw(st.lists(st.integers(0, max(0, len(values) - 1)), max_size=20 if values else 0))
    taken = CodedColumn.of(values)[np.array(rows, np.int64)]
    want = [values[row] for row in rows]
    for column in (taken, taken.compact(), taken.sorted):
        assert column.tolist() == want
    names = sorted({*want} - {None})
    assert taken.sorted.names.to_pylist() == names
    assert taken.sorted.codes.tolist() == [-1 if value is None else names.index(value) for value in want]
    short = taken.renamed(lambda name: name[:1] if name != "b" else None)
    assert short.tolist() == [None if value in (None, "b") else value[:1] for value in want]


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_columns_one_after_the_other_hold_each_text_once(parts):
    want = [value for part in parts for value in part]
    growing = GrowingColumn(2)
    for part in parts:
        growing.append(CodedColumn.of(part))
    growing.append_nothing(3)
    assert growing.column().tolist() == [None] * 2 + want + [None] * 3
    together = joined([CodedColumn.of(part) for part in parts])
    assert together.tolist() == want
    assert len(together.names) == len({*want} - {None})


@given(BOTH)
def test_pairs_are_the_texts_side_by_side(both):
    first, second = (CodedColumn.of(values, "") for values in both)
    want = [f"{one}\x1f{other}" if one and other else "" for one, other in zip(*both, strict=True)]
    assert pairs(first, second, "\x1f").tolist() == want


@given(
    st.integers(0, 20).flatmap(
        lambda n: st.lists(st.lists(st.integers(-1, 3), min_size=n, max_size=n), min_size=1, max_size=4)
    )
)
def test_rows_with_the_same_numbers_are_one_combination(columns):
    rows = list(zip(*columns, strict=True))
    first, kind = combinations([np.array(column, np.int32) for column in columns])
    assert [rows[first[number]] for number in kind] == rows
    assert sorted(first.tolist()) == sorted(rows.index(row) for row in {*rows})


def test_combinations_of_numbers_far_apart_do_not_overflow():
    far = np.array([-(2**62), 2**62, -(2**62)], np.int64)
    first, kind = combinations([np.array([0, 1, 0]), far, far])
    assert (first.tolist(), kind.tolist()) == ([0, 1], [0, 1, 0])


@given(st.lists(st.integers(-1, 4), max_size=30))
def test_grouped_rows_keep_their_order(codes):
    order, start = grouped(np.array(codes, np.int32), 5)
    for code in range(-1, 5):
        want = [row for row, own in enumerate(codes) if own == code]
        assert order[start[code + 1] : start[code + 2]].tolist() == want


def test_a_column_is_compared_with_texts_alone():
    with pytest.raises(TypeError):
        hash(CodedColumn.of(["a"]))
    assert (CodedColumn.of(["a"]) == 5) is False
