"""Batches of many users: the same numbers as one user at a time, whatever stands in a batch, and nothing torn apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ranking_history import write_history
from test_records_history import FOLDS, LOGS, make_log

from adcascade.records.history import OutOfFoldHistory, PointInTimeHistory, ranges
from ranking.artifact import Ranker, load_version
from ranking.data.behaviour_rows import BehaviourRows, behaviour_logits, known_logits
from ranking.data.dataset import load_dataset
from ranking.data.text_batches import AdTexts
from ranking.data.user_units import make_units, tiles_of
from ranking.store import open_store
from ranking.training.behaviour import ids_of, rows_per_step
from ranking.training.options import BehaviourOptions


@pytest.fixture(scope="module", params=["time", "random", "request", "with interests", "with a history"])
def data(world, request, tmp_path_factory):
    split = "time" if request.param.startswith("with") else request.param
    history = None
    if request.param == "with a history":
        history = write_history(tmp_path_factory.mktemp("history"))
    data = load_dataset(world.ads, world.clicks, world.users, split=split, history=history)
    if request.param == "with interests":
        said = {name: ("espresso beans", "trail shoes", "")[place % 3] for place, name in enumerate(data.users)}
        data = replace(data, users={name: replace(user, interests=said[name]) for name, user in data.users.items()})
    return data


@pytest.fixture(scope="module")
def ranker(world):
    store = open_store(world.model)
    loaded = load_version(store, store.current())
    model = loaded.model.behaviour
    torch.manual_seed(0)
    with torch.no_grad():  # every weight says something
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return Ranker(loaded.model, loaded.tokenizer, loaded.spec)


@pytest.fixture(scope="module")
def rows(data, ranker):
    return BehaviourRows(data, AdTexts(data, ranker.tokenizer, ranker.spec.max_ad_tokens), ranker, torch.device("cpu"))


@torch.no_grad()
def one_by_one(rows, model, wanted):
    """Logits of a click and of a conversion of rows, as serving has them: a user at a time."""
    model.eval()
    found = {}
    for window in rows.windows(wanted):
        scored = rows.score(model, window)
        found |= dict(
            zip(window.rows.tolist(), zip(scored.click.tolist(), scored.conversion.tolist(), strict=True), strict=True)
        )
    return torch.tensor([found[row] for row in wanted.tolist()])


def test_a_batch_of_many_users_says_what_each_user_alone_says(data, rows, ranker):
    wanted = np.random.default_rng(0).permutation(len(data.log))[: len(data.log) // 2]
    found = behaviour_logits(ranker.model.behaviour, rows, wanted)
    expected = one_by_one(rows, ranker.model.behaviour, wanted)
    torch.testing.assert_close(torch.stack([found.click, found.conversion], dim=1), expected, atol=1e-5, rtol=1e-5)
    assert expected.std(dim=0).min() > 0.01


def test_a_row_that_is_wanted_several_times_is_said_the_same_each_time(data, rows, ranker):
    wanted = np.random.default_rng(1).integers(0, len(data.log), 200)
    wanted = np.r_[wanted, wanted[::-1], wanted[:7]]
    found = behaviour_logits(ranker.model.behaviour, rows, wanted)
    once = behaviour_logits(ranker.model.behaviour, rows, np.arange(len(data.log)))
    torch.testing.assert_close(found.click, once.click[wanted], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.conversion, once.conversion[wanted], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        known_logits(ranker, rows, wanted).click, known_logits(ranker, rows, np.arange(len(data.log))).click[wanted]
    )


@pytest.mark.parametrize("rows_per_batch", [1, 40, 100_000])
@torch.no_grad()
def test_batches_of_any_size_hold_each_row_once_and_say_the_same(data, rows, ranker, rows_per_batch):
    model, wanted = ranker.model.behaviour.eval(), data.split.valid
    units, order, clicks = rows.units(wanted), [], []
    for chosen in units.in_random_order(np.random.default_rng(3), rows_per_batch):
        of_batch, batch = rows.batch(units, chosen)
        order.append(of_batch)
        clicks.append(model.of_users(batch).click)
    order = np.concatenate(order)
    assert np.array_equal(np.sort(order), np.sort(wanted))
    expected = one_by_one(rows, model, order)[:, 0]
    torch.testing.assert_close(torch.cat(clicks), expected, atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_one_user_at_a_time(data, rows, ranker):
    model, wanted = ranker.model.behaviour.eval(), data.split.train[-300:]
    weights = dict(model.named_parameters())
    of_windows = sum(rows.score(model, window).click.square().sum() for window in rows.windows(wanted))
    expected = torch.autograd.grad(of_windows, list(weights.values()), allow_unused=True)
    units = rows.units(wanted)
    of_batches = sum(model.of_users(rows.batch(units, chosen)[1]).click.square().sum() for chosen in units.by_size(100))
    found = torch.autograd.grad(of_batches, list(weights.values()), allow_unused=True)
    for name, one, other in zip(weights, found, expected, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(
                one, other, atol=1e-3, rtol=1e-3, msg=lambda found, name=name: f"{name}: {found}"
            )


CHOSEN = st.lists(st.integers(0, 39), max_size=30, unique=True)


@settings(max_examples=200, deadline=None)
@given(LOGS, FOLDS, st.booleans(), CHOSEN, st.integers(0, 5))
def test_units_are_of_one_user_and_hold_what_their_rows_see(log, folds, by_time, chosen, limit):
    past = PointInTimeHistory(log) if by_time else OutOfFoldHistory(log, np.array(folds[: len(log)]))
    rows = np.unique(np.array(chosen, np.int64) % len(log))
    users = log.user_id.codes.astype(np.int64)
    units = make_units(rows, users, np.arange(len(log)) // 3, past.spans(rows, limit))
    assert sorted(units.rows.tolist()) == rows.tolist()
    offsets, events = past.spans(units.rows, limit).recent()
    for unit in range(len(units)):
        mine = np.arange(units.starts[unit], units.starts[unit + 1])
        assert len(set(users[units.rows[mine]])) == 1
        assert np.array_equal(np.sort(units.rows[mine]), units.rows[mine])
        of_unit = units.spans.events[units.event_starts[unit] :][: units.event_counts[unit]]
        for place in mine:
            seen = of_unit[units.spans.first[place] : units.spans.last[place]]
            if units.spans.row_fold is not None:
                seen = seen[np.array(folds)[seen] != units.spans.row_fold[place]]
            assert seen.tolist() == events[offsets[place] : offsets[place + 1]].tolist()
            assert len(seen) == 0 or place >= mine[-1] + 1 - units.looking_back[unit]


def test_a_long_past_is_cut_into_units_but_a_request_is_not():
    log = make_log([(request, "u1", "a1", 0, 1) for request in range(700) for _ in range(5)])
    requests = np.arange(3500) // 5
    units = make_units(
        np.arange(3500), np.zeros(3500, np.int64), requests, PointInTimeHistory(log).spans(np.arange(3500), 100)
    )
    assert len(units) >= 3500 // 256
    assert units.counts.max() <= 2 * 128
    assert units.event_counts.max() <= 256 + 100 + 5
    unit = np.repeat(np.arange(len(units)), units.counts)
    assert all(len(set(unit[requests[units.rows] == request])) == 1 for request in range(700))


SIZES = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 400)), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(SIZES)
def test_tiles_hold_each_user_with_a_past_once_and_stay_small(sizes):
    rows, events = np.array(sizes, np.int64).T
    tiles = tiles_of(rows, events)
    users = np.concatenate([*tiles, np.empty(0, np.int64)]).tolist()
    assert sorted(users) == np.flatnonzero((rows > 0) & (events > 0)).tolist()
    for tile in tiles:
        assert len(tile) == 1 or len(tile) * rows[tile].max() * events[tile].max() <= 131_072


def test_ranges_follow_one_another():
    assert ranges(np.array([5, 0, 7]), np.array([2, 0, 3])).tolist() == [5, 6, 7, 8, 9]
    assert ranges(np.empty(0, np.int64), np.empty(0, np.int64)).tolist() == []


def test_learned_ids_of_the_logs_ads_alone_are_trained_and_all_others_stay(rows, ranker):
    model, every = ranker.model.behaviour, ranker.model.behaviour.ids
    before, buckets = every.weight.detach().clone(), rows.texts.buckets
    with ids_of(model, rows) as known:
        assert len(model.ids.weight) == len(buckets[buckets > 0].unique()) + 1
        torch.testing.assert_close(model.ids.weight[known.texts.buckets], before[buckets])
        assert torch.equal(known.texts.buckets > 0, buckets > 0)
        with torch.no_grad():
            model.ids.weight.add_(1.0)
    assert model.ids is every
    used = torch.cat([buckets, torch.zeros(1, dtype=torch.int64)]).unique()
    changed = (every.weight != before).any(dim=1).nonzero()[:, 0]
    assert torch.equal(changed, used)
    with torch.no_grad():
        every.weight.copy_(before)


@pytest.mark.parametrize(
    ("rows_that_train", "asked", "rows_of_a_step"),
    [
        (1000, None, 512),
        (204_800, None, 512),
        (800_000, None, 2000),
        (100_000_000, None, 16_384),
        (800_000, 96, 96),
    ],
)
def test_steps_grow_with_the_log_unless_somebody_says_otherwise(rows_that_train, asked, rows_of_a_step):
    assert rows_per_step(BehaviourOptions(batch=asked), rows_that_train) == rows_of_a_step
