"""The engine over a real model version: same answers however requests are batched, chunked and cached."""

import numpy as np
import pytest
import torch

from ranking.artifact import load_version
from ranking.batch import PairBatch, pad, tokenize
from ranking.engine import EngineSettings, RankingEngine, RankQuery, choose_device, choose_precision, has_bfloat16
from ranking.errors import ModelError
from ranking.features import FEATURES, dense_features, taste_of
from ranking.store import open_store
from records.history import Counts


@pytest.fixture
def engine(world):
    return make_engine(world)


def make_engine(world, **settings):
    store = open_store(world.model)
    return RankingEngine(load_version(store, store.current()), EngineSettings(device="cpu", **settings))


def make_query(user="u1", ads=5, words="trail shoes", past=()):
    ids = [f"running-{number}" for number in range(ads)]
    texts = [f"{words} offer {number}" for number in range(ads)]
    return RankQuery(f"age 21 | liked: {words}", user, list(past), [True] * len(past), ids, texts)


def test_queries_are_answered_alike_alone_and_in_a_batch(engine):
    queries = [make_query(ads=3), make_query("u2", 7, "espresso beans"), make_query("u3", 1, past=["roses"])]
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


@torch.no_grad()
def test_the_engine_agrees_with_the_plain_forward(engine):
    query, loaded = make_query(ads=4, past=["espresso", "trail shoes"]), engine.loaded
    users = pad(tokenize(loaded.tokenizer, [query.user_text], loaded.spec.max_user_tokens), 0)
    ads = pad(tokenize(loaded.tokenizer, query.ad_texts, loaded.spec.max_ad_tokens), 0)
    past = pad(tokenize(loaded.tokenizer, query.past_texts, loaded.spec.max_ad_tokens), 0)
    ctr, counters = loaded.spec.prior_ctr, loaded.counters
    taste = taste_of(loaded.model.text(ads).numpy(), loaded.model.text(past).numpy(), np.array([True, True]), ctr)
    features = dense_features(counters.counts("ad", query.ad_ids), counters.counts("user", ["u1"] * 4), taste, ctr)
    dense = torch.from_numpy(loaded.spec.normalise(features))
    logits = loaded.model(PairBatch(users, ads, (4,), dense)).numpy()
    np.testing.assert_allclose(engine.rank([query])[0].p_click, loaded.spec.calibration.p_click(logits), atol=1e-5)


def test_features_of_nothing_known_are_the_prior():
    none = Counts(np.zeros(1, np.int64), np.zeros(1, np.int64))
    features = dense_features(none, none, np.zeros(1), ctr=0.25)[0]
    expected = {"ad_impressions_log": 0, "ad_ctr_logit": np.log(1 / 3), "user_ctr_logit": np.log(1 / 3), "taste": 0}
    for name, value in expected.items():
        assert features[FEATURES.index(name)] == pytest.approx(value, abs=1e-6)


def test_taste_follows_what_reads_alike():
    past = np.eye(2, dtype=np.float32)
    candidates = np.array([[1, 0], [0, 1]], np.float32)
    liked_first, liked_second = taste_of(candidates, past, np.array([True, False]), ctr=0.5)
    assert liked_first > 0 > liked_second
    unseen = taste_of(candidates, past, np.array([True, False]), 0.5, np.zeros((2, 2), bool))
    assert (unseen == 0).all()


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
