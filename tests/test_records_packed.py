"""Narrow types at their borders, sums by block, and memory that is given back."""

import numpy as np
import pyarrow as pa
import pytest

from adcascade.records import coded, memory, packed
from adcascade.records.clicks import read_clicks
from adcascade.records.coded import CodedColumn, GrowingColumn, combinations, grouped, joined
from adcascade.records.packed import index_type, packed_counts, totals, type_for

LARGE = np.iinfo(np.int32).max


@pytest.mark.parametrize(
    ("least", "most", "kind"),
    [
        (-1, 127, np.int8),
        (-1, 128, np.int16),
        (-129, 0, np.int16),
        (0, 32_767, np.int16),
        (0, 32_768, np.int32),
        (-1, LARGE, np.int32),
        (-1, LARGE + 1, np.int64),
    ],
)
def test_the_type_is_the_narrowest_that_holds_both_ends(least, most, kind):
    assert type_for(least, most) is kind
    values = np.array([least, most, 0])
    assert packed.packed(values).dtype == kind
    assert packed.packed(values).tolist() == values.tolist()


def test_indices_are_of_32_bits_up_to_the_last_place():
    """Numpy and torch index by 32 and 64 bits; a row's number and the end of all rows must fit."""
    assert [index_type(count) for count in (0, 1, LARGE, LARGE + 1)] == [np.int32, np.int32, np.int32, np.int64]


def test_counts_are_of_32_bits_unless_one_is_larger():
    for values, kind in (([], np.int32), ([0, 5], np.int32), ([LARGE], np.int32), ([1, LARGE + 1], np.int64)):
        found = packed_counts(np.array(values, np.uint64))
        assert (found.dtype, found.tolist()) == (kind, values)


@pytest.mark.parametrize("names", [126, 127, 128, 32_766, 32_767, 32_768])
def test_codes_hold_one_number_more_than_there_are_names(names):
    """That number is one that no row has, and sorting adds one to each code."""
    texts = [f"name {number:06}" for number in range(names)]
    column = CodedColumn.of([*texts, None, texts[0]]).packed()
    assert column.codes.dtype == type_for(-1, names)
    assert column.tolist() == [*texts, None, texts[0]]
    assert (column == texts[-1]).sum() == 1
    assert not (column == "of no row").any()
    order, start = grouped(column.codes, names)
    assert order[start[names] : start[names + 1]].tolist() == [names - 1]
    assert order[: start[1]].tolist() == [names]
    assert column.sorted.codes.tolist() == [*range(names), -1, 0]


def test_a_growing_column_widens_as_names_come():
    column = GrowingColumn(2)
    want = [None, None]
    for number in (50, 200, 40_000):
        texts = [f"{number} {place}" for place in range(number)]
        column.append(CodedColumn.of(texts))
        want += texts
        assert column.column().tolist() == want
        assert column.column().codes.dtype == type_for(-1, len(column.column().names))


def test_names_in_order_stay_so_and_are_not_put_in_order_again(monkeypatch):
    column = CodedColumn.of(["b", "a", None, "c", "a"])
    assert column.ranks.tolist() == [1, 0, 2]
    in_order = column.sorted
    assert in_order.ranks.tolist() == [0, 1, 2]
    monkeypatch.setattr(coded.pc, "sort_indices", lambda names: pytest.fail("sorted again"))
    few = in_order[np.array([3, 0, 2])]
    assert (few.sorted.names.to_pylist(), few.sorted.codes.tolist()) == (["b", "c"], [1, 0, -1])
    assert few.sorted_names.to_pylist() == ["b", "c"]
    assert in_order.sorted is in_order
    assert not joined([in_order, in_order]).in_order


def test_combinations_by_block_are_those_of_all_rows_at_once(monkeypatch):
    random = np.random.default_rng(0)
    columns = [random.integers(-1, most, 1000).astype(kind) for most, kind in ((9, np.int8), (4, np.int64))]
    first, kind = combinations(columns)
    monkeypatch.setattr(packed.blocks, "__defaults__", (64,))
    again = combinations(columns)
    assert (again[0].tolist(), again[1].tolist()) == (first.tolist(), kind.tolist())
    assert [len(found) for found in combinations([np.empty(0, np.int8)])] == [0, 0]


def test_totals_by_block_leave_out_rows_of_no_code(monkeypatch):
    monkeypatch.setattr(packed.blocks, "__defaults__", (3,))
    assert totals(np.array([0, 2, -1, 2, 2, 0, -1], np.int8), 4).tolist() == [2, 0, 3, 0]
    assert totals(np.empty(0, np.int32), 0).tolist() == []


def test_a_large_count_of_a_log_is_kept(tmp_path):
    path = tmp_path / "clicks.csv"
    path.write_text(f"request_id,ad_id,clicks,impressions\nr1,a,1,2\nr2,a,{LARGE + 1},{LARGE + 5}\n")
    log, _ = read_clicks(path, None)
    assert (log.clicks.dtype, log.clicks.tolist()) == (np.int64, [1, LARGE + 1])
    assert log.impressions.tolist() == [2, LARGE + 5]
    path.write_text("request_id,ad_id,clicks,impressions\nr1,a,1,2\nr2,a,0,3\n")
    small, _ = read_clicks(path, None)
    assert (small.clicks.dtype, small.impressions.dtype) == (np.int32, np.int32)
    assert small.ctr == pytest.approx(0.2)


def test_memory_is_given_back_to_the_system(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "_trim", lambda: lambda kept: asked.append(kept))
    memory.release_unused()
    assert asked == [0]
    monkeypatch.setattr(memory, "_trim", lambda: None)  # a C library that cannot
    memory.release_unused()
    assert pa.default_memory_pool().bytes_allocated() >= 0
