"""Tables of rows in memory and in a file, and features that are the same whatever the blocks they are made in."""

import itertools
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_options

from adcascade.records.clicks import ClickLog
from adcascade.records.coded import CodedColumn
from adcascade.records.history import PointInTimeHistory
from adcascade.records.splits import drawn_units
from adcascade.training.stage import StageContext
from ranking.data import dataset
from ranking.data.block_features import features_by_block, moments
from ranking.data.dataset import load_dataset
from ranking.data.feature_table import RowTable, TableLimits, request_blocks
from ranking.evaluation import baselines
from ranking.evaluation.evaluate import evaluate
from ranking.training.behaviour import _plan, rows_per_step
from ranking.training.options import BehaviourOptions, CommonOptions
from ranking.training.train import train

IN_A_FILE, IN_MEMORY = 0, 1 << 30
SMALL = TableLimits(block_rows=64, counted_rows=200, most_in_memory=IN_A_FILE)


@pytest.mark.parametrize("most_in_memory", [IN_A_FILE, IN_MEMORY])
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_table_gives_back_the_rows_that_were_put_in(most_in_memory, shuffled):
    random = np.random.default_rng(0)
    values = random.random((1000, 7)).astype(np.float32)
    order = random.permutation(1000) if shuffled else None
    table = RowTable(1000, 7, np.float32, order, most_in_memory)
    lines = values if order is None else values[order]
    for start in range(0, 1000, 300):
        table.append(lines[start : start + 300])
    for rows in (np.arange(1000), np.array([999]), np.array([3, 3, 2]), random.permutation(1000)[:30], np.arange(0)):
        np.testing.assert_array_equal(table[rows], values[rows])


@pytest.mark.parametrize("most_in_memory", [IN_A_FILE, IN_MEMORY])
def test_a_table_is_filled_once_and_read_when_it_is_full(most_in_memory):
    table = RowTable(5, 2, np.float32, None, most_in_memory)
    table.append(np.ones((4, 2)))
    with pytest.raises(ValueError, match="4 of 5 lines"):
        table[np.arange(4)]
    for block in (np.ones((2, 2)), np.ones((1, 1)), np.ones(2)):
        with pytest.raises(ValueError, match="do not fit"):
            table.append(block)
    table.append(np.zeros((1, 2)))
    assert table[np.array([3, 4])].tolist() == [[1, 1], [0, 0]]
    for rows in ([5], [-1], [0, 1, 5]):
        with pytest.raises(IndexError):
            table[np.array(rows)]


ON_A_SMALL_DISK = """
import resource, sys
import numpy as np
from ranking.data.feature_table import RowTable

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

if sys.argv[1] == "reserved":
    limit(1 << 16)
    RowTable(1 << 14, 4, np.float64, None, 0)
table = RowTable(1 << 14, 4, np.float64, None, 0)
limit(1 << 16)
for _ in range(4):
    table.append(np.ones((1 << 12, 4)))
"""


@pytest.mark.parametrize("found", ["reserved", "written"])
def test_a_disk_that_is_full_ends_a_training_and_says_what_to_do(found, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", ON_A_SMALL_DISK, found]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("adcascade.records.errors.InputError: a table of features of the log, one of several, ")
    assert "needs 524,288 bytes of disk" in last
    assert f"({tmp_path}): File too large. Set TMPDIR to a folder" in last
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rows", [np.arange(1000), np.array([0, 999])])
def test_a_file_that_was_cut_short_ends_a_reading(rows):
    table = RowTable(1000, 3, np.float32, None, IN_A_FILE)
    table.append(np.ones((1000, 3)))
    os.ftruncate(table._file.fileno(), 11_990)
    with pytest.raises(OSError, match="ends at byte 11,990"):
        table[rows]


def test_blocks_hold_whole_requests_and_all_rows_once():
    requests = np.array([2, 2, 0, 1, 0, 3, 3, 3, 3, 4])
    order, cuts = request_blocks(requests, 3)
    assert order is not None
    assert sorted(order) == list(range(10))
    of_rows = [set(requests[order[start:end]].tolist()) for start, end in itertools.pairwise(cuts.tolist())]
    assert sum(map(len, of_rows)) == len(set.union(*of_rows)) == 5
    assert len(of_rows) > 2
    assert request_blocks(np.array([5, 5, 2, 0]), 2)[0] is None


@pytest.fixture(scope="module", params=["time", "request"])
def data(request, world):
    return load_dataset(world.ads, world.clicks, world.users, split=request.param)


def interleaved(data):
    """The same log, whose requests are torn apart: rows of one stand among rows of others."""
    requests = np.random.default_rng(0).integers(0, len(data.log) // 4, len(data.log))
    return replace(data, log=replace(data.log, request_id=CodedColumn.of(map(str, requests.tolist()))))


@pytest.mark.parametrize("of_log", [replace, interleaved])
def test_features_in_small_blocks_on_disk_are_those_made_at_once(data, of_log):
    some = of_log(data)
    assert all(some.keys.parts(key, SMALL.counted_rows)[1] > 3 for key in some.keys)
    source = some._source(some.past, 0.3, some.feature_names)
    order, cuts = request_blocks(source.requests, SMALL.block_rows)
    assert len(cuts) > 10
    assert (order is not None) == (of_log is interleaved)
    whole, in_blocks = features_by_block(source, TableLimits(1 << 20)), features_by_block(source, SMALL)
    rows = np.arange(len(some.log))
    np.testing.assert_array_equal(in_blocks[rows], whole[rows])
    assert np.nanstd(whole[rows], axis=0).min() > 0
    for of_blocks, at_once in zip(
        moments(in_blocks, some.split.train, SMALL), moments(whole, some.split.train, TableLimits()), strict=True
    ):
        np.testing.assert_allclose(of_blocks, at_once, rtol=1e-9, atol=1e-12)


class NotedPast(PointInTimeHistory):
    """A past that notes which ids it was asked to count."""

    def counts(self, keys, rows=None):
        self.asked = [*getattr(self, "asked", []), keys.tolist()]
        return super().counts(keys, rows)


def test_only_counters_that_a_feature_reads_are_replayed(world):
    data = load_dataset(world.ads, world.clicks, world.users, split="time")
    past, names = NotedPast(data.log), ("ad_ctr_logit", "user_category_impressions_log", "request_size_log")
    found = data.feature_table(past, 0.3, names)
    assert past.asked == [data.keys["ad"].tolist(), data.keys["user_category"].tolist()]
    every = data.feature_table(data.past, 0.3, data.feature_names)
    rows = np.arange(len(data.log))
    np.testing.assert_array_equal(found[rows], every[rows][:, [data.feature_names.index(name) for name in names]])


def test_a_training_in_small_blocks_on_disk_gives_the_same_version(data, tiny_bert):
    options = tiny_options(tiny_bert, epochs=0, trees="none")
    at_once, in_blocks = train(replace(data), options), train(replace(data, limits=SMALL), options)
    np.testing.assert_allclose(in_blocks.spec.feature_mean, at_once.spec.feature_mean, rtol=1e-9)
    for name, weight in at_once.model.state_dict().items():
        np.testing.assert_allclose(in_blocks.model.state_dict()[name].numpy(), weight.numpy(), atol=1e-6)


def test_large_parts_are_drawn_by_user_and_said(world, monkeypatch):
    plain = load_dataset(world.ads, world.clicks, world.users)
    monkeypatch.setattr(dataset, "MOST_HELD_OUT", len(plain.split.test) // 2)
    bounded = load_dataset(world.ads, world.clicks, world.users)
    np.testing.assert_array_equal(bounded.split.train, plain.split.train)
    for few, every in ((bounded.split.valid, plain.split.valid), (bounded.split.test, plain.split.test)):
        assert 0 < len(few) <= len(plain.split.test) // 2
        users = set(plain.log.user_id[few])
        assert few.tolist() == [row for row in every if plain.log.user_id[row] in users]
    assert [note for note in bounded.report.notes if "drawn at random" in note] != []
    assert bounded.report.notes != plain.report.notes
    np.testing.assert_array_equal(drawn_units(plain.log, plain.split.test, 10**9), plain.split.test)


def test_a_user_of_too_many_rows_is_not_drawn_and_keeps_nobody_else_out():
    users = ["bot"] * 90 + [f"u{number // 2}" for number in range(20)]
    ids, none = [str(row) for row in range(110)], np.zeros(110, np.int64)
    log = ClickLog.of(ids, ids, users, none, none, none, none + 1, none, none, {})
    for seed in range(9):
        drawn = drawn_units(log, np.arange(110), 30, seed)
        assert 18 <= len(drawn) <= 20
        assert "bot" not in set(log.user_id[drawn])
    assert drawn_units(log, np.arange(90), 30).tolist() == list(range(30))
    for seed in range(9):  # one who would just fit alone, before or after the others
        drawn = drawn_units(log, np.arange(110), 95, seed)
        assert len(drawn) == (94 if "bot" in set(log.user_id[drawn]) else 20)


def test_peers_of_a_large_log_are_fitted_on_its_newest_rows_and_it_is_said(world, tiny_bert, monkeypatch):
    data = load_dataset(world.ads, world.clicks, world.users)
    trained = train(data, tiny_options(tiny_bert, epochs=0))
    assert evaluate(data, trained).baselines_note == ""
    monkeypatch.setattr(baselines, "_MOST_FITTED", 500)
    found = evaluate(data, trained)
    assert (
        found.baselines_note
        == f"The baselines are fitted on the newest 500 of {len(data.split.train):,} training rows."
    )
    assert set(found.differences) >= {baselines.POPULARITY, baselines.IDS, baselines.ALL_FEATURES}


@pytest.mark.parametrize(("rows", "passes"), [(100_000, 8.0), (1_900_000, 8.0), (4_000_000, 4.0), (40_000_000, 1.0)])
def test_the_more_rows_the_fewer_passes(rows, passes):
    plan = _plan(BehaviourOptions(), CommonOptions(), rows, StageContext(print))
    assert plan.steps * rows_per_step(BehaviourOptions(), rows) / rows == pytest.approx(passes, rel=0.01)
    assert plan.validate_every <= 400
