"""Tables of rows in memory and in a file, and features that are the same whatever the blocks they are made in."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_options

from adcascade.records.clicks import ClickLog
from adcascade.records.splits import drawn_units
from adcascade.training.stage import StageContext
from ranking.data import block_features, dataset
from ranking.data.block_features import features_by_block, moments
from ranking.data.dataset import load_dataset
from ranking.data.feature_table import RowTable, request_blocks
from ranking.evaluation import baselines
from ranking.evaluation.evaluate import evaluate
from ranking.training.behaviour import _plan, rows_per_step
from ranking.training.options import BehaviourOptions, CommonOptions
from ranking.training.train import train

IN_A_FILE, IN_MEMORY = 0, 1 << 30


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


def test_features_in_small_blocks_on_disk_are_those_made_at_once(data):
    source = data._source(data.past, 0.3, data.feature_names)
    whole = features_by_block(source, block_rows=1 << 20)
    in_blocks = features_by_block(source, block_rows=64, most_in_memory=IN_A_FILE)
    rows = np.arange(len(data.log))
    np.testing.assert_array_equal(in_blocks[rows], whole[rows])
    for of_blocks, at_once in zip(
        moments(in_blocks, data.split.train, block_rows=64), moments(whole, data.split.train), strict=True
    ):
        np.testing.assert_allclose(of_blocks, at_once, rtol=1e-9, atol=1e-12)


def test_a_training_in_small_blocks_on_disk_gives_the_same_version(data, tiny_bert, monkeypatch):
    options = tiny_options(tiny_bert, epochs=0, trees="none")
    at_once = train(replace(data), options)
    monkeypatch.setattr(block_features, "_BLOCK_ROWS", 64)
    monkeypatch.setattr(
        dataset, "features_by_block", lambda source: features_by_block(source, block_rows=64, most_in_memory=IN_A_FILE)
    )
    in_blocks = train(replace(data), options)
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
    assert set(found.differences) >= {baselines.POPULARITY, baselines.IDS, baselines.ALL_COUNTERS}


@pytest.mark.parametrize(("rows", "passes"), [(100_000, 8.0), (1_900_000, 8.0), (4_000_000, 4.0), (40_000_000, 1.0)])
def test_the_more_rows_the_fewer_passes(rows, passes):
    plan = _plan(BehaviourOptions(), CommonOptions(), rows, StageContext(print))
    assert plan.steps * rows_per_step(BehaviourOptions(), rows) / rows == pytest.approx(passes, rel=0.01)
    assert plan.validate_every <= 400
