"""The engine over a real model version: same answers however requests are batched, chunked and cached."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_options

from adcascade.records.ads import Ad
from adcascade.records.users import Context, UserProfile
from ranking.artifact import load_version
from ranking.data.dataset import load_dataset
from ranking.errors import ModelError
from ranking.inputs.context import context_hashes
from ranking.inputs.features import COUNTED, keys_of
from ranking.inputs.query import PastEvent, RankQuery
from ranking.runtime.engine import RankingEngine
from ranking.runtime.engine_settings import EngineSettings
from ranking.runtime.hardware import choose_device, choose_precision, has_bfloat16
from ranking.store import open_store
from ranking.training.run import train_and_save


@pytest.fixture
def engine(world):
    return make_engine(world)


def make_engine(world, **settings):
    store = open_store(world.model)
    return RankingEngine(load_version(store, store.current()), EngineSettings(device="cpu", **settings))


def make_query(user="u1", ads=5, words="trail shoes", past=(), passed=(), interests=""):
    ids = [f"running-{number}" for number in range(ads)]
    texts = [f"{words} offer {number}" for number in range(ads)]
    keys = [keys_of(Ad(ad_id, category="running"), user) for ad_id in ids]
    events = [
        PastEvent(f"past-{text}", text, liked, 86_000.0) for liked, texts in ((0, passed), (1, past)) for text in texts
    ]
    names = {name: [of_ad[name] for of_ad in keys] for name in COUNTED}
    context = context_hashes(UserProfile(attributes={"age": "21"}), Context(device="phone"), None)
    return RankQuery(f"age 21 | liked: {words}", interests, events, ids, texts, names, context, 1.7e9)


def test_queries_are_answered_alike_alone_and_in_a_batch(engine):
    queries = [
        make_query(ads=3),
        make_query("u2", 7, "espresso beans", interests="coffee"),
        make_query("u3", 1, past=["roses"]),
    ]
    together = engine.rank(queries)
    for query, answer in zip(queries, together, strict=True):
        np.testing.assert_allclose(answer.p_click, engine.rank([query])[0].p_click, atol=1e-6)
        assert len(answer.p_click) == len(query.ad_ids)


def test_warm_cache_gives_the_same_answer_and_is_counted(world):
    engine, query = make_engine(world), make_query(ads=6)
    cold, warm = engine.rank([query])[0], engine.rank([query])[0]
    assert (cold.cached_ads, warm.cached_ads) == (0, 6)
    np.testing.assert_allclose(cold.p_click, warm.p_click, atol=1e-7)


def test_a_small_token_budget_changes_nothing_but_memory(world):
    query = make_query(ads=50)
    want = make_engine(world).rank([query])[0].p_click
    got = make_engine(world, token_budget=64).rank([query])[0].p_click
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.fixture(scope="module")
def engine_without_categories(world, tiny_bert, tmp_path_factory):
    """Trained on the same log, but no ad has a category: only texts tell topics apart."""
    folder = tmp_path_factory.mktemp("no-categories")
    ads = [json.loads(line) for line in world.ads.read_text().splitlines()]
    (folder / "ads.jsonl").write_text("".join(json.dumps({**ad, "category": ""}) + "\n" for ad in ads))
    data = load_dataset(folder / "ads.jsonl", world.clicks, world.users)
    report = train_and_save(data, folder / "model", tiny_options(tiny_bert, epochs=0))
    return RankingEngine(load_version(open_store(folder / "model"), report.version), EngineSettings(device="cpu"))


def test_what_a_user_likes_moves_the_click_probability(engine_without_categories):
    """A new ad of a topic rises with events and interests of that topic, though no counter knows ad or user."""

    def offers(words, count):
        return [f"{words} offer {number}" for number in range(count)]

    def lead(**likes):
        two = [*offers("espresso beans all about coffee", 1), *offers("roses spade all about garden", 1)]
        query = replace(make_query("nobody", 2, **likes), ad_texts=two, ad_ids=["new-1", "new-2"])
        coffee, garden = engine_without_categories.rank([query])[0].p_click
        return coffee - garden

    coffee = offers("crema roast all about coffee", 5)
    garden = offers("soil hedge all about garden", 5)
    assert lead(past=coffee, passed=garden) > lead(past=garden, passed=coffee) + 0.03
    assert lead(interests=coffee[0]) > lead(interests=garden[0])


def test_device_and_precision_that_do_not_exist_are_refused():
    with pytest.raises(ModelError, match="precision must be"):
        choose_precision("float16", torch.device("cpu"))
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no GPU"):
            choose_device("cuda")
    assert choose_precision("auto", torch.device("cpu")) == has_bfloat16(torch.device("cpu"))


def test_bfloat16_stays_close_to_float32(world):
    query = make_query(ads=20)
    full = make_engine(world, precision="float32").rank([query])[0].p_click
    half = make_engine(world, precision="bfloat16").rank([query])[0].p_click
    np.testing.assert_allclose(half, full, atol=0.03)


@pytest.mark.gpu
def test_gpu_agrees_with_cpu(world):
    query, store = make_query(ads=100), open_store(world.model)
    want = make_engine(world).rank([query])[0].p_click
    on_gpu = RankingEngine(load_version(store, store.current()), EngineSettings("cuda", "float32"))
    np.testing.assert_allclose(on_gpu.rank([query])[0].p_click, want, atol=1e-4)
