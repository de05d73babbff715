"""What is made of a log in few bits and block by block: the same as made at once of 64-bit numbers."""

from dataclasses import replace

import numpy as np
import pytest

from adcascade.records import packed
from adcascade.records.clicks import ClickLog
from adcascade.records.coded import CodedColumn
from adcascade.records.splits import Split, drawn_units
from ranking.data import feature_table
from ranking.data.dataset import load_dataset
from ranking.data.feature_table import NormalFeatures
from ranking.data.labels import all_labels
from ranking.data.log_report import report_on
from ranking.spec import CtrSpec


@pytest.fixture(scope="module", params=["time", "request"])
def data(world, request):
    return load_dataset(world.ads, world.clicks, world.users, split=request.param)


def wide(data):
    """The same log, all of whose numbers have 64 bits, and whose requests are coded in the order of the rows."""
    log = data.log
    counts = {name: getattr(log, name).astype(np.int64) for name in ("clicks", "impressions", "conversions")}
    columns = {
        "ad_id": log.ad_id,
        "user_id": log.user_id,
        "request_id": CodedColumn.of(log.request_id.tolist()[::-1])[::-1],
    }
    columns = {name: replace(one, codes=one.codes.astype(np.int64)) for name, one in columns.items()}
    log = replace(log, **counts, **columns)
    return replace(data, log=log, split=Split(*(part.astype(np.int64) for part in data.split)))


def test_numbers_of_few_bits_are_hashed_and_reported_as_those_of_64(data, monkeypatch):
    other = wide(data)
    assert data.log.clicks.dtype == data.groups.dtype == data.request_rows.dtype == np.int32
    assert data.log.ad_id.codes.dtype.itemsize < 4
    assert data.log.request_id.in_order
    assert not other.log.request_id.in_order
    assert other.training_sha256 == data.training_sha256
    np.testing.assert_array_equal(other.groups, data.groups)
    np.testing.assert_array_equal(other.request_rows, data.request_rows)
    monkeypatch.setattr(packed.blocks, "__defaults__", (100,))
    assert report_on(other) == report_on(data)
    assert replace(data).training_sha256 == data.training_sha256
    np.testing.assert_array_equal(replace(data).request_rows, data.request_rows)


def test_a_row_looks_back_on_the_same_whatever_the_bits(data):
    other, rows = wide(data), np.arange(len(data.log))[::-1]
    for mine, wides in zip(data.past.spans(rows, 5).recent(), other.past.spans(rows, 5).recent(), strict=True):
        np.testing.assert_array_equal(mine, wides)
    assert data.user_texts(rows[:20]) == other.user_texts(rows[:20])


def reference_draw(log, rows, most, seed):
    """`drawn_units` in Python: users by name, then requests of nobody, each drawn in a random order while they fit."""
    units = [(0, log.user_id[row]) if log.user_id[row] else (1, log.request_id[row]) for row in rows.tolist()]
    sizes = [units.count(unit) for unit in sorted(set(units))]
    order = np.random.default_rng(seed).permutation(len(sizes)).tolist()
    kept, left = set(), most
    for place in order:
        if sizes[place] <= left:
            kept.add(sorted(set(units))[place])
            left -= sizes[place]
    return [row for row, unit in zip(rows.tolist(), units, strict=True) if unit in kept]


def test_units_are_drawn_in_the_order_of_names_whatever_stands_first_in_the_log(monkeypatch):
    random = np.random.default_rng(0)
    users = [f"u{number}" if number < 12 else "" for number in random.integers(0, 16, 200)]
    requests, none = [f"r{number}" for number in random.integers(0, 60, 200)], np.zeros(200, np.int64)
    log = ClickLog.of(requests, requests, users, none, none, none, none + 1, none, none, {})
    rows = np.arange(20, 200, dtype=np.int32)
    for in_order in (False, True):
        some = replace(log, request_id=log.request_id.sorted) if in_order else log
        for blocks in (1 << 20, 7):
            monkeypatch.setattr(packed.blocks, "__defaults__", (blocks,))
            for seed in range(4):
                assert drawn_units(some, rows, 90, seed).tolist() == reference_draw(log, rows, 90, seed)


def test_features_are_normalised_by_block_and_the_table_stays_as_it_was(monkeypatch):
    table = np.array([[1.0, np.nan], [3.0, 8.0], [5.0, 6.0], [7.0, 2.0]], np.float32)
    spec = CtrSpec.model_construct(feature_mean=(1.0, 2.0), feature_std=(2.0, 4.0))
    before, want = table.copy(), [[0, 0], [1, 1.5], [2, 1], [3, 0]]
    assert spec.normalise(table).tolist() == want
    np.testing.assert_array_equal(table, before)
    rows = np.array([3, 0, 2, 1, 1])
    at_once = NormalFeatures(table, spec.normalise)[rows]
    monkeypatch.setattr(feature_table, "_NORMAL_ROWS", 2)
    by_block = NormalFeatures(table, spec.normalise)[rows]
    assert by_block.dtype == at_once.dtype == np.float32
    assert by_block.tolist() == at_once.tolist() == [want[row] for row in rows.tolist()]
    assert NormalFeatures(table, spec.normalise)[rows[:0]].shape == (0, 2)


def test_labels_of_some_rows_are_those_of_all(data):
    every = all_labels(data.log, data.groups)
    some = all_labels(data.log, data.groups, data.split.valid)
    assert every.rows.tolist() == list(range(len(data.log)))
    assert some.rows is data.split.valid
    assert some.clicks is every.clicks


def test_what_was_made_of_a_log_is_forgotten_and_made_anew(data):
    some, rows = replace(data), np.arange(0, len(data.log), 7)
    table = some.feature_table(some.past, 0.3, some.feature_names)
    past, features, (_, kind) = some.past, table[rows], some.context_kinds
    some.forget()
    assert some.past is not past
    np.testing.assert_array_equal(some.feature_table(some.past, 0.3, some.feature_names)[rows], features)
    np.testing.assert_array_equal(some.context_kinds[1], kind)
    some.forget()
    some.forget()  # nothing is there to forget
