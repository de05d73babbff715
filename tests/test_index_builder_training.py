"""Training the towers: nothing of the future is seen, what is learned is learned, and what cannot be is said."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_towers
from hypothesis import given
from hypothesis import strategies as st

from adcascade.records.clicks import ClickLog
from adcascade.records.coded import CodedColumn
from adcascade.records.errors import InputError
from adcascade.records.users import Context, EventType
from adcascade.towers.evaluation.holdout import held_out
from adcascade.towers.evaluation.metrics import Places, ndcg_at, ranks_of, recall_at, reciprocal_rank, with_interval
from adcascade.towers.model import EVENT_TYPES, attribute_buckets
from adcascade.towers.training.batches import AdSampler, Step, attributes_of, catalog_of, padded, steps, user_events
from adcascade.towers.training.data import load_retrieval_data
from adcascade.towers.training.fit import fit_towers, short_widths
from adcascade.towers.training.loss import softmax_loss
from adcascade.towers.training.options import TowerOptions
from adcascade.towers.training.score_weights import fit_score_weights
from adcascade.towers.training.sequences import moments_of, sequences_of
from adcascade.towers.training.split import split_log
from adcascade.towers.training.train import train_towers
from adcascade.towers.training.tune import interests_of
from adcascade.training.errors import TrainingError
from adcascade.vectors.encoder import load_encoder
from adcascade.vectors.errors import BuildError

ENCODER = load_encoder("hashing:64")


def log_of(rows):
    """A log from (user, ad, time, clicks), in order of time."""
    rows = sorted(rows, key=lambda row: row[2])
    texts = {name: np.array([row[place] for row in rows], object) for name, place in (("user", 0), ("ad", 1))}
    time, clicks = (np.array([row[place] for row in rows], np.int64) for place in (2, 3))
    zeros = np.zeros(len(rows), np.int64)
    return ClickLog.of(
        texts["user"], texts["ad"], texts["user"], time * 1_000_000, zeros, clicks, zeros + 1, zeros, zeros, {}
    )


def sequences(rows):
    log = log_of(rows)
    number_of = {name: number for number, name in enumerate(sorted(set(log.ad_id)))}
    return sequences_of(log, np.arange(len(log)), number_of)


def test_events_are_in_order_of_time_by_user():
    found = sequences([("b", "x", 5, 1), ("a", "y", 9, 0), ("a", "x", 3, 1), ("", "x", 4, 1)])
    assert (list(found.users), found.start.tolist()) == (["a", "b"], [0, 2, 3])
    assert found.ads.tolist() == [0, 1, 0]
    click, shown = EVENT_TYPES.index(EventType.CLICK), EVENT_TYPES.index(EventType.IMPRESSION)
    assert found.types.tolist() == [click, shown, click]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 12), st.integers(0, 1)), min_size=1, max_size=25),
    st.lists(st.integers(0, 24), min_size=1, max_size=5),
)
def test_a_moment_sees_strictly_earlier_events_and_foretells_the_others(rows, places):
    found = sequences([("u", f"ad{ad}", time, clicked) for ad, time, clicked in rows])
    for moment in moments_of(found, 0, np.array(places), impression_weight=0.3, decay=0.1):
        before, after = found.time[: moment.seen], found.time[moment.seen :]
        assert not len(before) or before.max() < after.min()
        assert not set(moment.ads) & set(found.ads[: moment.seen])
        assert set(moment.ads) <= set(found.ads[moment.seen :])
        assert len(set(moment.ads.tolist())) == len(moment.ads)
        assert ((moment.weights > 0) & (moment.weights <= 1)).all()


def test_later_clicks_count_less_and_impressions_a_share():
    found = sequences([("u", "a", 1, 1), ("u", "b", 2, 1), ("u", "c", 3, 0), ("u", "d", 4, 1), ("u", "b", 5, 1)])
    (moment,) = moments_of(found, 0, np.array([1]), impression_weight=0.5, decay=0.1)
    assert dict(zip(moment.ads.tolist(), moment.weights.tolist(), strict=True)) == pytest.approx(
        {1: 1.0, 2: 0.5 * 0.9, 3: 0.81}
    )
    (moment,) = moments_of(found, 0, np.array([1]), impression_weight=0.0, decay=0.0)
    assert moment.ads.tolist() == [1, 3]


def test_planted_future_events_change_nothing_that_was_trained(tower_data):
    """Rows after the training part may say anything."""
    data, later = tower_data, np.concatenate([tower_data.split.tune, tower_data.split.test])
    clicks = data.log.clicks.copy()
    clicks[later] = 1 - clicks[later]
    devices = np.array(data.log.context["device"].tolist(), object)
    devices[later] = "tv"
    planted = replace(data, log=replace(data.log, clicks=clicks, context={"device": CodedColumn.of(devices)}))
    options = tiny_towers(epochs=2)
    weights = []
    for one in (data, planted):
        found = sequences_of(one.log, one.split.fit, one.number_of)
        shape = _shape(options)
        catalog = catalog_of(one.ad_ids, frozenset(one.log.ad_id[one.split.fit].tolist()), one.texts, shape)
        weights.append(fit_towers(found, catalog, attributes_of(one.users, list(found.users)), shape, options).towers)
    assert weights[0].sha256 == weights[1].sha256
    judged = [held_out(one.log, one.split.fit, one.split.tune, one.number_of) for one in (data, planted)]
    profiles = dict(data.users)
    shared = sorted(set(judged[0].users) & set(judged[1].users))[:5]
    judged = [one.take(np.array([list(one.users).index(user) for user in shared])) for one in judged]
    assert {context.device for context in judged[1].contexts} == {"tv"}  # that of the request is known by then
    here = [replace(one, contexts=judged[0].contexts) for one in judged]
    vectors = [interests_of(weights[0], catalog, one, profiles) for one in here]
    np.testing.assert_array_equal(*vectors)


def _shape(options):
    from adcascade.towers.model import TowerShape

    return TowerShape(
        text_width=64,
        width=options.width,
        layers=options.layers,
        heads=options.heads,
        history=options.history,
        id_buckets=256,
    )


def test_towers_find_what_each_user_likes(tower_data):
    """Each user of the made-up platform clicks mostly on one of three topics."""
    trained = train_towers(tower_data, ENCODER, tiny_towers())
    ads = trained.ad_vectors(tower_data.ad_ids, tower_data.texts)
    topic_of_ad = np.array([ad_id.split("-")[0] for ad_id in tower_data.ad_ids])
    judged = held_out(tower_data.log, tower_data.split.train, tower_data.split.test, tower_data.number_of)
    shape = trained.spec.shape
    catalog = catalog_of(tower_data.ad_ids, trained.known_ads, tower_data.texts, shape)
    vectors = interests_of(trained.towers, catalog, judged, tower_data.users)
    assert vectors.shape == (len(judged), shape.dimension)
    right = []
    for user, of_user, seen in zip(judged.users, vectors, judged.seen, strict=True):
        scores = of_user @ ads.T
        scores[seen] = -np.inf
        topic = ["running", "coffee", "garden"][int(user[1:]) % 3]
        right.append(np.mean(topic_of_ad[np.argsort(-scores)[:8]] == topic))
    assert np.mean(right) > 0.75
    assert list(trained.spec.recall) == [32, 16]
    compared = trained.spec.compared
    assert list(compared.others) == ["popularity", "recent popularity", "likeness of texts"]
    assert (list(compared.towers), list(compared.lead)) == ([32, 16], [32, 16])
    assert compared.towers[32][10] > compared.others["recent popularity"][10]
    assert "recent popularity" not in trained.spec.better_than()
    assert str(trained.spec.passes["train"]) == "all 50 passes"
    assert len(trained.spec.popularity_weights) == len(trained.spec.features)


def test_a_user_of_whom_nothing_is_known_gets_what_is_clicked_where_they_are(tower_data):
    log = tower_data.log
    topic_of = np.array([["running", "coffee", "garden"][int(user[1:]) % 3] for user in log.user_id], object)
    strangers = np.array([f"{user} in {request}" for user, request in zip(log.user_id, log.request_id, strict=True)])
    log = replace(log, user_id=CodedColumn.of(strangers, ""), context={"placement": CodedColumn.of(topic_of)})
    trained = train_towers(replace(tower_data, log=log), ENCODER, tiny_towers())
    ads = trained.ad_vectors(tower_data.ad_ids, tower_data.texts)
    nobody = padded(sequences_of(log, np.arange(1), tower_data.number_of), [slice(0, 0)])
    catalog = catalog_of(tower_data.ad_ids, trained.known_ads, tower_data.texts, trained.spec.shape)
    events = user_events(trained.towers.ads, catalog, nobody, torch.zeros(1, 0, dtype=torch.int64))
    found = {}
    for topic in ("running", "coffee", "garden", ""):
        context = torch.from_numpy(attribute_buckets([Context(placement=topic).values]))
        with torch.no_grad():
            scores = trained.towers.users.interests(events, context).numpy()[0] @ ads.T
        best = [tower_data.ad_ids[ad].split("-")[0] for ad in np.argsort(-scores)[:8]]
        found[topic] = {name: best.count(name) for name in set(best)}
    assert all(found[topic].get(topic, 0) >= 6 for topic in ("running", "coffee", "garden")), found
    assert max(found[""].values()) < 8, found


def test_training_is_repeatable(tower_data):
    options = tiny_towers(epochs=2)
    one, again = (train_towers(tower_data, ENCODER, options).spec.model_dump(exclude={"passes"}) for _ in range(2))
    assert one == again  # but for the seconds that it took
    other = train_towers(tower_data, ENCODER, replace(options, seed=1))
    assert other.spec.space_sha256 != one["space_sha256"]


def test_a_large_catalog_is_learned_against_samples(tower_data):
    options = tiny_towers(epochs=2, sampled_above=10, sampled_ads=16, hard_negatives=8)
    trained = train_towers(tower_data, ENCODER, options)
    assert np.isfinite(trained.ad_vectors(tower_data.ad_ids, tower_data.texts)).all()


def test_the_sample_holds_what_followed_and_its_chances_are_right():
    clicks = np.r_[np.full(5, 40), np.zeros(95, np.int64)]
    sampler = AdSampler(clicks, TowerOptions(sampled_above=0, sampled_ads=20))
    random, counts, step = np.random.default_rng(0), np.zeros(100), Step(None, None, None, None, None, [], [])
    for _ in range(500):
        sample = sampler.draw(step, random)
        assert (np.diff(sample.ads) > 0).all()
        counts[sample.ads] += 1
    chance = np.exp(dict(zip(sample.ads.tolist(), sample.log_q.tolist(), strict=True))[0])
    assert counts[0] / 500 == pytest.approx(chance, abs=0.06)
    assert AdSampler(clicks, TowerOptions()).draw(step, random).log_q is None


def test_the_loss_is_the_cross_entropy_with_what_followed():
    interests, vectors = torch.tensor([[1.0, 2.0]]), torch.eye(2).repeat(2, 1)[:3]
    targets, seen = torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[False, False, True]])
    scores = torch.tensor([1.0, 2.0])  # the third ad was seen
    expected = -(torch.log_softmax(scores, 0) * torch.tensor([0.25, 0.75])).sum()
    torch.testing.assert_close(softmax_loss(interests, vectors, targets, seen, None), expected)
    log_q = torch.tensor([-1.0, 0.0, 0.0])
    expected = -(torch.log_softmax(scores - log_q[:2], 0) * torch.tensor([0.25, 0.75])).sum()
    torch.testing.assert_close(softmax_loss(interests, vectors, targets, seen, log_q), expected)


def test_popularity_and_neighbours_weigh_as_much_as_clicks_say():
    """Clicks are drawn from a softmax with known weights; they are found again, beside what the towers say."""
    random = np.random.default_rng(0)
    features = random.normal(size=(50, 2)).astype(np.float32)
    scores = random.normal(size=(800, 50)).astype(np.float32)
    neighbours = random.exponential(0.1, size=(800, 50)).astype(np.float32)
    logits = scores + features @ np.array([1.5, 0.0]) + 6 * neighbours
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    clicked = [np.array([random.choice(50, p=row)]) for row in shares]
    nothing = [np.empty(0, np.int64)] * 800
    found = fit_score_weights(scores, features, neighbours, clicked, nothing)
    assert found.popularity == pytest.approx([1.5, 0.0], abs=0.12)
    assert found.neighbours == pytest.approx(6, abs=0.9)
    assert fit_score_weights(scores, features, -neighbours, clicked, nothing).neighbours == 0
    assert fit_score_weights(scores, features, 0 * neighbours, clicked, nothing).popularity == pytest.approx(
        [1.5, 0.0], abs=0.15
    )


def test_ranks_by_hand():
    places = [Places.known([0, 3, 20]), Places.known([12])]
    assert recall_at(places, 10).tolist() == [2 / 3, 0]
    assert recall_at(places, 2).tolist() == [1 / 2, 0]
    assert reciprocal_rank(places).tolist() == [1, 1 / 13]
    ideal = 1 + 1 / np.log2(3) + 1 / 2
    assert ndcg_at(places, 10) == pytest.approx([(1 + 1 / np.log2(5)) / ideal, 0])
    scores = np.array([0.5, 0.9, 0.5, 0.1], np.float32)
    found = ranks_of(scores, np.array([2, 0, 3]), np.array([1]))
    assert (found.first.tolist(), found.tied.tolist()) == ([0, 0, 2], [2, 2, 1])
    interval = with_interval([0, 1] * 200)
    assert interval.low < 0.5 == interval.value < interval.high


def test_each_split_keeps_the_future_from_training(tower_data):
    log = tower_data.log
    for how in ("time", "user", "ad", "none"):
        split = split_log(log, how, 0)
        assert not set(split.train) & set(split.test)
        assert not set(split.fit) & set(split.tune)
        for earlier, later in ((split.fit, split.tune), (split.train, split.test)):
            for user in ("u0", "u7"):
                times = [log.time[rows[log.user_id[rows] == user]] for rows in (earlier, later)]
                assert not (len(times[0]) and len(times[1])) or times[0].max() <= times[1].min()
    hidden = split_log(log, "ad", 0)
    assert not set(log.ad_id[hidden.train]) & set(log.ad_id[hidden.test])
    with pytest.raises(InputError, match="there is no split 'week'"):
        split_log(log, "week", 0)


def test_what_cannot_be_learned_from_is_said(world, tower_data, tmp_path):
    no_users = tmp_path / "clicks.csv"
    no_users.write_text("request_id,ad_id,clicks,impressions\nr1,coffee-1,1,2\nr2,coffee-2,0,1\n")
    with pytest.raises(InputError, match="needs user_id and timestamp"):
        load_retrieval_data(world.ads, no_users, None, ENCODER)
    no_clicks = replace(tower_data, log=replace(tower_data.log, clicks=np.zeros_like(tower_data.log.clicks)))
    with pytest.raises(InputError, match="no click to learn from"):
        train_towers(no_clicks, ENCODER, tiny_towers())
    with pytest.raises(BuildError, match="cannot be divided among 5 heads"):
        train_towers(tower_data, ENCODER, tiny_towers(heads=5))
    with pytest.raises(TrainingError, match="not a number; lower --learning-rate"):
        train_towers(tower_data, ENCODER, tiny_towers(learning_rate=1e30))


def test_types_that_the_log_lacks_keep_their_meaning(tower_data):
    users = train_towers(tower_data, ENCODER, tiny_towers(epochs=3)).towers.users
    weight = {kind: users.weight[place].item() for place, kind in enumerate(EVENT_TYPES)}
    assert weight[EventType.HIDE] < weight[EventType.SHORT_VIEW] < 0
    assert weight[EventType.VIEW] == pytest.approx(weight[EventType.CLICK] / 2)


def test_steps_hold_moments_of_users_within_their_windows(tower_data):
    options = tiny_towers(history=10, users_per_step=8)
    found = sequences_of(tower_data.log, tower_data.split.train, tower_data.number_of)
    users = 0
    for step in steps(found, attributes_of(tower_data.users, list(found.users)), options, np.random.default_rng(0)):
        users += len(step.events.lengths)
        assert step.events.ads.shape[1] <= 10
        assert (step.place <= step.events.lengths[step.user]).all()
        for moment, seen in zip(step.moments, step.seen, strict=True):
            assert len(seen) == moment.seen
    assert users == len(found.users)
    assert padded(found, [slice(0, 0)]).ads.shape == (1, 1)
    assert short_widths(96) == (48, 24)
