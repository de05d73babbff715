"""Batches of the text layers that are read ahead of their steps, and layers that are not trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import ranking.data.scorer as scoring
from adcascade.records.errors import InputError
from adcascade.records.history import events_of
from adcascade.records.users import UserProfile
from adcascade.training.stage import StageContext
from ranking.data.dataset import load_dataset
from ranking.data.scorer import Scorer
from ranking.data.text_batches import BatchMaker, make_blocks
from ranking.inputs.text import HISTORY_EVENTS, render_user
from ranking.model.attention import attend_one
from ranking.runtime.hardware import choose_device
from ranking.training.begin import begin
from ranking.training.lora import add_adapters, merge_adapters
from ranking.training.options import TrainOptions
from ranking.training.text import _ready_made, _train_mode, train_text

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(world):
    return load_dataset(world.ads, world.clicks, world.users)


@pytest.fixture
def start(data, tiny_bert):
    options = TrainOptions.of(base=str(tiny_bert), behaviour_epochs=0, behaviour_min_steps=1, seed=1)
    found = begin(data, options, choose_device("cpu"))
    head = found.ranker.model.head
    torch.manual_seed(2)
    for weight in head.last_weights:
        nn.init.normal_(weight)
    return found


def maker_of(data, start):
    nothing = np.zeros(len(data.log), np.float32)
    return BatchMaker(data, start.ads, start.rows.dense, nothing, nothing, start.ranker, CPU)


def blocks_of(data, rows=400):
    return make_blocks(data, data.split.train[:rows], max_ads=32, merge_requests=True)


def test_texts_of_many_rows_are_those_that_serving_makes_of_each(data, world, tmp_path):
    telling = {
        user_id: replace(user, interests=f" tea {place} ", attributes={"age": str(place % 3), "b": ""})
        for place, (user_id, user) in enumerate(sorted(data.users.items()))
        if place % 2
    }
    silent = {user_id: user for user_id, user in data.users.items() if user_id not in telling}
    for users in (telling | silent, telling, {}):
        some = replace(data, users=users)
        rows = np.arange(len(data.log))[::-1]
        offsets, events = some.past.spans(rows, HISTORY_EVENTS).recent()
        told = events_of(some.events, events)
        expected = [
            render_user(
                replace(users.get(user_id, UserProfile(user_id)), history=tuple(told[first:last])),
                data.log.context_at(row),
                data.ads.get,
            )
            for row, user_id, first, last in zip(
                rows.tolist(), data.log.user_id[rows].tolist(), offsets[:-1], offsets[1:], strict=True
            )
        ]
        assert some.user_texts(rows) == expected
        assert len(set(expected)) > 100
    assert data.user_texts(np.empty(0, np.int64)) == []


@pytest.mark.parametrize("pairs_ahead", [1, 60, 10**6])
@torch.no_grad()
def test_batches_that_are_read_ahead_score_as_each_alone(data, start, monkeypatch, pairs_ahead):
    monkeypatch.setattr(scoring, "_PAIRS_AHEAD", pairs_ahead)
    start.ranker.model.eval()
    maker, blocks = maker_of(data, start), blocks_of(data)
    alone = Scorer(start.ranker, CPU, bfloat16=False, keep=False)
    ahead = Scorer(start.ranker, CPU, bfloat16=False, keep=True)
    expected = [alone.logits(batch) for batch in alone.read_ahead(maker.batches(blocks, 24))]
    found = [ahead.logits(batch) for batch in ahead.read_ahead(maker.batches(blocks, 24))]
    assert len(found) == len(expected) > 5
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), atol=1e-5, rtol=1e-5)
    assert torch.cat(found).std() > 1e-3


@torch.no_grad()
def test_what_is_read_ahead_of_ads_fits_the_cache(data, start, monkeypatch):
    monkeypatch.setattr(scoring, "_CACHED_ADS", 12)
    start.ranker.model.eval()
    maker, blocks = maker_of(data, start), [block[:3] for block in blocks_of(data)]
    scorer = Scorer(start.ranker, CPU, bfloat16=False, keep=True)
    plain = Scorer(start.ranker, CPU, bfloat16=False, keep=False)
    for batch in scorer.read_ahead(maker.batches(blocks, 6)):
        torch.testing.assert_close(scorer.logits(batch), plain.logits(batch), atol=1e-5, rtol=1e-5)


def test_layers_that_are_not_trained_read_without_dropout(data, start):
    model = start.ranker.model
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    batch = maker_of(data, start).batch(blocks_of(data)[:4])
    with torch.no_grad():
        still = model.eval().ad_states(batch.pairs.ads), model.user_states_below(batch.pairs.users)
        _train_mode(model, TrainOptions.of().text)
        torch.testing.assert_close(model.ad_states(batch.pairs.ads), still[0], atol=0, rtol=0)
        torch.testing.assert_close(model.user_states_below(batch.pairs.users), still[1], atol=0, rtol=0)
        assert not torch.equal(model(batch.pairs), model(batch.pairs))  # the joined ones have it
        _train_mode(model, TrainOptions.of(train_layers="all").text)
        assert not torch.equal(model.ad_states(batch.pairs.ads), still[0])


def test_frozen_weights_are_bfloat16_for_the_stage_and_themselves_after_it(data, start, tiny_bert):
    model = start.ranker.model
    layers = list(model.layers[: model.join_layer])
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    batch = maker_of(data, start).batch(blocks_of(data)[:4])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = model.eval().ad_states(batch.pairs.ads)
        with _ready_made(layers):
            assert layers[0].attention.self.key.weight.dtype == torch.bfloat16
            torch.testing.assert_close(model.ad_states(batch.pairs.ads), expected, atol=0, rtol=0)
    with pytest.raises(InputError), _ready_made(layers):
        raise InputError("a stage that fails")
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]), name


def test_a_stage_in_bfloat16_changes_only_what_it_trains(data, start, tiny_bert):
    options = TrainOptions.of(base=str(tiny_bert), epochs=0.3, min_text_gain=-1.0, pairs_per_step=16, validate_every=2)
    model = start.ranker.model
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    scorer = Scorer(start.ranker, CPU, bfloat16=True, keep=True)
    context = StageContext(lambda _: None)
    train_text(model, scorer, maker_of(data, start), data, options.text, options.common, context)
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed
    last = f"encoder.encoder.layer.{len(model.layers) - 1}."
    assert all(name.startswith((last, "head.")) for name in changed), changed
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


@pytest.mark.parametrize("adapted", [False, True])
def test_one_query_reads_the_same_without_keys_and_values(start, adapted):
    model, heads = start.ranker.model.eval().double(), start.ranker.model._heads
    layer = model.layers[-1]
    if adapted:
        pytest.importorskip("peft")
        add_adapters(model.encoder, 2, [layer])
        with torch.no_grad():
            for name, weight in layer.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(weight)
        model.double()
    hidden = layer.attention.self.query.in_features
    random = torch.Generator().manual_seed(0)
    states = torch.randn(5, 7, hidden, generator=random, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([7, 1, 3, 5, 2])[:, None]
    query = torch.randn(5, hidden, generator=random, dtype=torch.float64)
    keys, values = model._keys_values(layer, states)
    wanted = nn.functional.scaled_dot_product_attention(
        model._queries(layer, query[:, None]), keys, values, mask[:, None, None]
    )
    found = attend_one(layer, query, states, mask, heads, 0.0)
    torch.testing.assert_close(found, wanted.transpose(1, 2).flatten(2), atol=1e-10, rtol=1e-10)
    if adapted:
        merge_adapters(model.encoder)
        torch.testing.assert_close(attend_one(model.layers[-1], query, states, mask, heads, 0.0), found)
