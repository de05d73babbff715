"""What counters are looked up by, and everything that is made of a log in parts: the same as made at once."""

import numpy as np
import pytest
from conftest import tiny_options

from adcascade.records import history
from adcascade.records.ads import Ad
from adcascade.records.coded import CodedColumn
from adcascade.records.counters import CounterSnapshot
from adcascade.records.history import PointInTimeHistory
from adcascade.training.checkpoint import unfinished_folder
from ranking.data import behaviour_rows, log_report
from ranking.data.behaviour_rows import BehaviourRows
from ranking.data.dataset import load_dataset
from ranking.data.known_logits import KnownLogits
from ranking.data.log_counters import LogCounters
from ranking.data.log_keys import LogKeys
from ranking.data.log_report import report_on
from ranking.data.text_batches import AdTexts
from ranking.data.user_units import units_together
from ranking.inputs.features import COUNTED, keys_of
from ranking.model.behaviour import BehaviourLogits
from ranking.training.begin import begin

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module", params=["time", "request"])
def data(world, request):
    return load_dataset(world.ads, world.clicks, world.users, split=request.param)


def test_keys_of_a_log_are_those_of_each_row(data):
    log = data.log
    assert list(data.keys) == list(COUNTED)
    for row in range(0, len(log), 37):
        of_row = keys_of(data.ads[log.ad_id[row]], log.user_id[row])
        assert {key: data.keys[key][row] or "" for key in COUNTED} == of_row
    some = np.arange(len(log))[::-3]
    for key, ids in data.keys.take(some).items():
        assert ids.tolist() == data.keys[key][some].tolist()
        assert data.keys.known_share(key) == data.keys[key].known.mean()
    with pytest.raises(KeyError):
        data.keys["color"]


@pytest.mark.parametrize("key", COUNTED)
def test_parts_hold_all_rows_of_an_id(data, key):
    part, parts = data.keys.parts(key, 100)
    assert parts == -(-len(data.log) // 100)
    assert part.max() < parts
    of_id = {}
    for name, number in zip(data.keys[key], part.tolist(), strict=True):
        assert not name or of_id.setdefault(name, number) == number  # a row without an id counts nothing
    assert data.keys.parts(key, len(data.log))[1] == 1


def test_rows_of_nobody_are_in_all_parts():
    """In one part they could be most of the log."""
    names = [f"u{row}" if row % 3 == 0 else "" for row in range(900)]
    ids = [f"a{row % 9}" for row in range(900)]
    keys = LogKeys(
        CodedColumn.of(ids, ""), CodedColumn.of(names, ""), {f"a{number}": Ad(f"a{number}") for number in range(9)}
    )
    for key in ("user", "user_category", "advertiser"):
        part, parts = keys.parts(key, 100)
        assert np.bincount(part, minlength=parts).max() < 150


def test_spans_and_units_made_in_parts_are_those_made_at_once(data, world, tiny_bert, monkeypatch):
    start = begin(data, tiny_options(tiny_bert), torch.device("cpu"))
    whole = start.rows.units(data.split.train)
    monkeypatch.setattr(history, "_USERS_ROWS", 150)
    monkeypatch.setattr(behaviour_rows, "_UNITS_ROWS", 90)
    again = load_dataset(world.ads, world.clicks, world.users, split=data.split_by)
    ads = AdTexts(again, start.ranker.tokenizer, start.ranker.spec.max_ad_tokens)
    parts = BehaviourRows(again, ads, start.ranker, torch.device("cpu")).units(again.split.train)
    for name in ("rows", "starts", "event_starts", "event_counts", "looking_back"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)
    for name in ("events", "first", "last", "row_fold", "event_fold"):
        np.testing.assert_array_equal(getattr(parts.spans, name), getattr(whole.spans, name), err_msg=name)
    assert units_together([whole]) is whole
    if data.split_by == "time":
        assert isinstance(again.past, PointInTimeHistory)
        assert parts.spans.first.dtype == np.int8  # what a unit sees is counted from its own first event
        assert parts.rows.dtype == np.int32


def test_rows_that_repeat_others_are_counted_in_parts(data, monkeypatch):
    at_once = report_on(data)
    monkeypatch.setattr(log_report, "_PART_ROWS", 100)
    assert report_on(data) == at_once


def test_counters_that_are_written_in_parts_are_those_of_the_whole_log(data, tmp_path):
    whole = CounterSnapshot.of(data.log, data.keys)
    whole.save(tmp_path / "whole.parquet")
    LogCounters(data.log, data.keys, len(data.log)).save(tmp_path / "at_once.parquet")
    assert (tmp_path / "at_once.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    LogCounters(data.log, data.keys, 100).save(tmp_path / "parts.parquet")
    parts = CounterSnapshot.load(tmp_path / "parts.parquet")
    assert list(parts.totals) == [key for key in COUNTED if whole.totals[key]]
    for key, totals in whole.totals.items():
        ids = sorted(totals)
        assert sorted(parts.totals.get(key, {})) == ids
        found, want = parts.counts(key, ids), whole.counts(key, ids)
        for name in ("impressions", "clicks", "first", "last"):
            np.testing.assert_array_equal(getattr(found, name), getattr(want, name))
        np.testing.assert_allclose(found.decayed, want.decayed, rtol=1e-12)


def test_logits_are_learned_once_and_kept_by_row():
    asked = []

    def score(rows):
        asked.append(rows.tolist())
        return BehaviourLogits(torch.from_numpy(rows).float(), torch.from_numpy(-rows).float())

    known = KnownLogits(score)
    for rows in ([7, 3, 7], [3], [9, 1, 3, 40], [], [40, 2, 2]):
        wanted = np.array(rows, np.int64)
        assert known[wanted].tolist() == rows
        assert known.conversion(wanted).tolist() == [-row for row in rows]
    assert asked == [[3, 7], [1, 9, 40], [2]]


def test_a_checkpoint_is_told_apart_by_each_row_of_a_long_column(tmp_path):
    column = np.zeros((1 << 20) + 5, np.int8)
    before = unfinished_folder(tmp_path, column)
    assert unfinished_folder(tmp_path, column.copy()) == before
    column[-1] = 1
    assert unfinished_folder(tmp_path, column) != before
