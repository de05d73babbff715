"""Neighbours of ads: the linear model that finds them, and how they are kept and looked up."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from adcascade.records.users import Event, EventType, UserProfile
from adcascade.towers.item_to_item import ItemToItem
from adcascade.towers.training.fit_ease import fit_ease, neighbour_scores
from adcascade.towers.training.options import TowerOptions
from adcascade.towers.training.sequences import sequences_of

OPTIONS = TowerOptions(neighbour_penalty=3.0, impression_weight=0.5)


@pytest.fixture(scope="module")
def sequences(tower_data):
    return sequences_of(tower_data.log, tower_data.split.train, tower_data.number_of)


@pytest.fixture(scope="module")
def met(tower_data):
    """What each user met, by hand: 1 for a click, 0.5 for an impression, [users, ads]."""
    log, rows = tower_data.log, tower_data.split.train
    users = sorted(set(log.user_id[rows]))
    table = np.zeros((len(users), len(tower_data.ads)))
    for row in rows:
        place = users.index(log.user_id[row]), tower_data.number_of[log.ad_id[row]]
        table[place] = max(table[place], 1.0 if log.clicks[row] else 0.5)
    return table


def test_each_ad_is_foretold_by_all_others(sequences, met, tower_data):
    """A ridge regression for each ad, without itself: what the closed form must come to."""
    found = fit_ease(sequences, tower_data.ad_ids, replace(OPTIONS, neighbours=1000)).over(tower_data.ad_ids)
    for ad in (0, 17, 59):
        others = np.delete(np.arange(met.shape[1]), ad)
        ridge = Ridge(alpha=3.0, fit_intercept=False).fit(met[:, others], met[:, ad])
        np.testing.assert_allclose(found.toarray()[others, ad], ridge.coef_, atol=1e-4)
        assert found[ad, ad] == 0


def test_the_strongest_are_kept(sequences, met, tower_data):
    all_of_them = fit_ease(sequences, tower_data.ad_ids, replace(OPTIONS, neighbours=1000))
    few = fit_ease(sequences, tower_data.ad_ids, replace(OPTIONS, neighbours=5))
    whole = all_of_them.strengths.toarray()
    for row, kept in zip(whole, few.strengths.toarray(), strict=True):
        strongest = np.argsort(-np.abs(row))[:5]
        np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(strongest))
        np.testing.assert_array_equal(kept[strongest], row[strongest])
    most_met = np.argsort(-(met > 0).sum(axis=0), kind="stable")[:10]
    ten = fit_ease(sequences, tower_data.ad_ids, replace(OPTIONS, neighbour_ads=10))
    assert set(ten.ad_ids) == {tower_data.ad_ids[ad] for ad in most_met}
    assert fit_ease(sequences, tower_data.ad_ids, replace(OPTIONS, neighbour_ads=0)) is None


def test_scores_add_up_what_was_met(sequences, met, tower_data):
    neighbours = fit_ease(sequences, tower_data.ad_ids, OPTIONS)
    scores = neighbour_scores(neighbours, sequences, tower_data.ad_ids).toarray()
    np.testing.assert_allclose(scores[:-1], met @ neighbours.over(tower_data.ad_ids).toarray(), atol=1e-5)
    assert not scores[-1].any()


def test_they_are_kept_and_found_by_id(sequences, tower_data, tmp_path):
    neighbours = fit_ease(sequences, tower_data.ad_ids, OPTIONS)
    neighbours.save(tmp_path)
    loaded = ItemToItem.load(tmp_path)
    assert (list(loaded.ad_ids), loaded.impression_weight) == (list(neighbours.ad_ids), 0.5)
    catalog = ["coffee-3", "new", "garden-0", "coffee-1"]  # another order, a new ad, most gone
    here, there = loaded.over(catalog).toarray(), neighbours.over(tower_data.ad_ids)
    number_of = tower_data.number_of
    assert here[0, 3] == there[number_of["coffee-3"], number_of["coffee-1"]]
    assert here[2, 0] == there[number_of["garden-0"], number_of["coffee-3"]]
    assert not here[1].any()
    assert not here[:, 1].any()


def test_what_an_event_is_worth():
    neighbours = ItemToItem([], None, 0.5)
    events = [("a", "impression"), ("b", "impression"), ("b", "click"), ("c", "hide"), ("d", "click"), ("d", "hide")]
    user = UserProfile(history=tuple(Event(EventType(kind), ad_id) for ad_id, kind in events))
    assert neighbours.event_weight(user, {"a": 0, "b": 1, "c": 2}) == {0: 0.5, 1: 1.0, 2: 0.0}
