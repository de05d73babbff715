"""The behaviour network alone: who may see which event, attention to nothing, what is dropped, and places."""

import numpy as np
import pytest
import torch
from conftest import tiny_options

from adcascade.records.datasets.synthetic import SyntheticOptions, make_synthetic
from ranking.data.dataset import load_dataset
from ranking.inputs.features import EVENT_CLASSES, INTERESTS_CLASS, TIME_GAP_BUCKETS, UNKNOWN_TIME_GAP
from ranking.model.behaviour import BehaviourModel
from ranking.model.behaviour_inputs import AdInputs, History, Impressions, with_interests
from ranking.model.shape import ModelShape
from ranking.training.train import train

WIDTH, FEATURES, BUCKETS, ADS, EVENTS = 12, 3, 32, 4, 6


@pytest.fixture
def model():
    """With weights that say something everywhere: some begin at zero."""
    torch.manual_seed(0)
    made = BehaviourModel(WIDTH, FEATURES, ModelShape(id_buckets=BUCKETS)).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.abs().max() == 0:
                weight.normal_(std=0.5)
            if name in ("ids.weight", "gaps.weight"):
                weight.normal_(std=0.5)
    return made


def keys(rows, seed, first_bucket=1):
    random = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(rows, WIDTH, generator=random), dim=1)
    return AdInputs(vectors, torch.arange(first_bucket, first_bucket + rows) % BUCKETS)


def shown(rows=ADS):
    random = torch.Generator().manual_seed(1)
    return Impressions(
        torch.randn(rows, FEATURES, generator=random), torch.randint(1, 50, (rows, 3), generator=random), keys(rows, 2)
    )


def history(seen, events=EVENTS):
    random = torch.Generator().manual_seed(3)
    return History(
        keys(events, 4, first_bucket=10),
        torch.randint(0, EVENT_CLASSES, (events,), generator=random),
        torch.randint(0, TIME_GAP_BUCKETS, (len(seen), events), generator=random),
        seen,
    )


def everything(rows=ADS, events=EVENTS):
    return torch.ones(rows, events, dtype=torch.bool)


def with_other_event(past, place):
    """The same history with another ad, another type and another time at one place."""
    vectors, buckets = past.ads.vectors.clone(), past.ads.buckets.clone()
    types, gaps = past.types.clone(), past.gaps.clone()
    vectors[place], buckets[place] = -vectors[place], 31
    types[place], gaps[:, place] = (types[place] + 1) % EVENT_CLASSES, (gaps[:, place] + 1) % TIME_GAP_BUCKETS
    return History(AdInputs(vectors, buckets), types, gaps, past.seen)


@torch.no_grad()
def test_an_event_changes_those_impressions_alone_that_may_see_it(model):
    seen = everything()
    seen[1, 2] = seen[3, 2] = False
    before = model(shown(), history(seen))
    after = model(shown(), with_other_event(history(seen), 2))
    for logits, others in ((before.click, after.click), (before.conversion, after.conversion)):
        torch.testing.assert_close(logits[[1, 3]], others[[1, 3]], atol=0, rtol=0)
        assert ((logits - others)[[0, 2]].abs() > 1e-4).all()


@torch.no_grad()
def test_an_event_that_nobody_sees_is_as_if_it_were_not_there(model):
    seen = everything()
    seen[:, -2:] = False
    whole, past = model(shown(), history(seen)), history(seen)
    cut = History(
        AdInputs(past.ads.vectors[:-2], past.ads.buckets[:-2]), past.types[:-2], past.gaps[:, :-2], past.seen[:, :-2]
    )
    torch.testing.assert_close(whole.click, model(shown(), cut).click)


@torch.no_grad()
def test_each_impression_is_scored_as_if_it_were_alone(model):
    seen = torch.rand(ADS, EVENTS, generator=torch.Generator().manual_seed(5)) < 0.5
    together, some, past = model(shown(), history(seen)).click, shown(), history(seen)
    for row in range(ADS):
        one = Impressions(
            some.dense[[row]], some.context[[row]], AdInputs(some.ads.vectors[[row]], some.ads.buckets[[row]])
        )
        mine = History(past.ads, past.types, past.gaps[[row]], past.seen[[row]])
        torch.testing.assert_close(model(one, mine).click[0], together[row])


@torch.no_grad()
def test_the_order_of_the_events_is_nothing_but_their_gaps(model):
    order, past = torch.tensor([3, 0, 5, 1, 4, 2]), history(everything())
    turned = History(
        AdInputs(past.ads.vectors[order], past.ads.buckets[order]), past.types[order], past.gaps[:, order], past.seen
    )
    torch.testing.assert_close(model(shown(), past).click, model(shown(), turned).click)


@torch.no_grad()
@pytest.mark.parametrize("events", [0, EVENTS])
def test_who_has_no_past_attends_to_nothing_and_finds_nothing(model, events):
    """Attention has a place for nothing, so that its weights are numbers, and zeros, where no event may be seen."""
    nobody = history(torch.zeros(ADS, events, dtype=torch.bool), events)
    some = shown()
    attended, event_value = model._attend(some.ads.vectors, model._ads(some.ads), nobody)
    assert attended.abs().max() == 0
    assert event_value.abs().max() == 0
    assert torch.isfinite(model(some, nobody).click).all()


@torch.no_grad()
def test_the_more_is_attended_to_nothing_the_less_the_past_counts(model):
    some, past = shown(), history(everything())
    found = {}
    for null_logit in (-30.0, 0.0, 30.0):
        model.null_logit.fill_(null_logit)
        attended, event_value = model._attend(some.ads.vectors, model._ads(some.ads), past)
        found[null_logit] = float(attended.abs().mean()), float(event_value.abs().mean())
    assert found[30.0] == pytest.approx((0, 0), abs=1e-6)
    assert found[-30.0][0] > found[0.0][0] > 1e-4
    # With nothing to attend to but events, liking is a mean of what their types are worth.
    model.null_logit.fill_(-30.0)
    model.event_value.weight.fill_(0.7)
    event_value = model._attend(some.ads.vectors, model._ads(some.ads), past)[1]
    torch.testing.assert_close(event_value, torch.full_like(event_value, 0.7))


@torch.no_grad()
def test_the_head_of_likeness_finds_the_event_of_the_same_text(model):
    past, some = history(everything()), shown()
    model.gaps.weight.zero_()
    model.inverse_temperature.fill_(50.0)
    model.event_value.weight.copy_(torch.tensor([[0.0], [0.0], [1.0]]))
    types = torch.zeros(EVENTS, dtype=torch.int64)
    types[3] = 2
    same = AdInputs(past.ads.vectors[[3]].expand(ADS, -1), some.ads.buckets)
    event_value = model._attend(same.vectors, model._ads(same), History(past.ads, types, past.gaps, past.seen))[1]
    assert (event_value[:, -1] > 0.99).all()


@torch.no_grad()
def test_a_text_that_is_no_ad_has_no_id(model):
    some = keys(3, 7)
    nameless = AdInputs(some.vectors, torch.zeros(3, dtype=torch.int64))
    model.ids.weight[0] = 5.0
    torch.testing.assert_close(model._ads(nameless), model.text(some.vectors))
    assert not torch.allclose(model._ads(some), model.text(some.vectors))


@torch.no_grad()
def test_ids_are_dropped_in_training_alone_and_as_a_whole(model):
    rows = 4000
    some = AdInputs(keys(1, 8).vectors.expand(rows, -1), torch.full((rows,), 7))
    by_text, whole = model.text(some.vectors), model.text(some.vectors) + model.ids.weight[7]
    torch.testing.assert_close(model._ads(some), whole)
    model.train()
    torch.manual_seed(0)
    drawn = model._ads(some)
    dropped = (drawn == by_text).all(dim=1)
    assert float(dropped.float().mean()) == pytest.approx(0.2, abs=0.03)
    torch.testing.assert_close(drawn[~dropped], whole[~dropped])


@torch.no_grad()
def test_events_are_dropped_in_training_for_all_impressions_alike(model):
    """In the attention of one event alone, what is left of it is all or nothing."""
    some, past = shown(), history(everything(ADS, 1), 1)
    model.train()
    model.dropout.p = 0.0
    torch.manual_seed(0)
    kept = [float(model._attend(some.ads.vectors, model._ads(some.ads), past)[1].abs().sum()) > 0 for _ in range(600)]
    assert np.mean(kept) == pytest.approx(0.8, abs=0.06)


@torch.no_grad()
def test_words_of_the_context_are_dropped_in_training_alone(model):
    words = torch.arange(1, 4001)[None]
    assert torch.equal(model._words(words), words)
    model.train()
    torch.manual_seed(0)
    left = model._words(words)
    assert float((left > 0).float().mean()) == pytest.approx(0.5, abs=0.04)
    assert set(left[left > 0].tolist()) <= set(words[0].tolist())


@torch.no_grad()
def test_interests_stand_before_the_events_of_those_alone_who_state_them(model):
    past, interests = history(everything()), keys(1, 9).vectors
    mine = torch.tensor([[True], [False], [True], [False]])
    joined = with_interests(past, interests, mine)
    assert joined.ads.buckets.tolist() == [0, *past.ads.buckets.tolist()]
    assert joined.types[0] == INTERESTS_CLASS
    assert (joined.gaps[:, 0] == UNKNOWN_TIME_GAP).all()
    before, after = model(shown(), past).click, model(shown(), joined).click
    torch.testing.assert_close(before[[1, 3]], after[[1, 3]])
    assert ((before - after)[[0, 2]].abs() > 1e-4).all()


@torch.no_grad()
def test_the_mean_effect_of_places_moves_into_the_bias(model):
    """Scores at known places stay; an unknown place is then the mean one, weighed by impressions."""
    positions, impressions = torch.tensor([1, 2, 2, 0, 70]), torch.tensor([10, 20, 30, 1000, 40])
    model.positions.weight[0] = 0
    some, past = shown(5), history(everything(5))
    at_place = model(some, past).click + model.of_position(positions)
    anywhere = model(some, past).click
    known = positions > 0
    mean = float((model.of_position(positions) * impressions)[known].sum() / impressions[known].sum())
    assert abs(mean) > 0.05
    model.center_positions(positions, impressions)
    after = model(some, past).click
    torch.testing.assert_close((after + model.of_position(positions))[known], at_place[known])
    torch.testing.assert_close(after, anywhere + mean)
    assert float((model.of_position(positions) * impressions)[known].sum()) == pytest.approx(0, abs=1e-3)
    assert float(model.of_position(torch.zeros(1, dtype=torch.int64))) == 0


def test_a_training_leaves_places_with_a_mean_effect_of_zero(tiny_bert, tmp_path):
    made = SyntheticOptions(ads=40, users=60, requests=500, places=4, position_decay=1.5)
    files = make_synthetic(tmp_path, made)
    data = load_dataset(files.ads, files.clicks, files.users, split="time")
    model = train(data, tiny_options(tiny_bert, epochs=0, behaviour_min_steps=60, behaviour_epochs=1)).model.behaviour
    part = data.log.take(data.split.train)
    with torch.no_grad():
        effects = model.of_position(torch.from_numpy(part.position)).numpy()
    assert np.average(effects, weights=part.impressions) == pytest.approx(0, abs=1e-5)
    assert effects[part.position == 1].mean() - effects[part.position == 4].mean() > 1
