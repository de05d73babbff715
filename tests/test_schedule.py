"""Ads have a beginning and an end: outside of it no door lets them in, and what is left is found as well as before."""

import json
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import TOPICS, serving_server

from adcascade.artifacts.hotswap import HotSwap
from adcascade.catalog.ads_file import AdCatalog, write_ads
from adcascade.catalog.schedule import Eligibility, Schedule, may_be_shown
from adcascade.records.ads import Ad, RejectedAd, read_ads
from adcascade.records.users import Context, Event, EventType, UserProfile
from adcascade.towers.artifact import load_published_towers
from adcascade.v1 import ranking_pb2, ranking_pb2_grpc, retrieval_pb2, retrieval_pb2_grpc, types_pb2
from adcascade.vectors.encoder import load_encoder
from adcascade.vectors.errors import BuildError
from adcascade.vectors.faiss_index import build_index, factory_strings, set_search_parameters
from adcascade.wire import ad_to_wire, timestamp_to_wire
from index_builder.artifact import ADS_FILE, load_version, open_store
from index_builder.build import BuildOptions, build
from pipeline.client import AdPipeline
from ranking.artifact import load_version as load_model
from ranking.inputs.prepare import CatalogVersion
from ranking.runtime.engine import RankingEngine
from ranking.runtime.engine_settings import EngineSettings
from ranking.service import RankingServicer
from ranking.store import open_store as open_model_store
from retrieval.filtered_search import FilteredSearch
from retrieval.index import AdIndex
from retrieval.interests import InterestSettings
from retrieval.query import Query
from retrieval.retriever import Retriever
from retrieval.service import SERVICE_NAME, RetrievalServicer
from retrieval.sources import FRESH, LEXICAL, NEIGHBOURS, POPULARITY, SourceSettings

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)
# Ads with an even number ended, those with a number divisible by three have not begun; 1, 5, 7, 11 ... are shown.
OVER, LATER = NOW - HOUR, NOW + 1000 * HOUR


def times_of(number):
    if number % 2 == 0:
        return {"end_time": OVER.isoformat()}
    return {"start_time": LATER.isoformat()} if number % 3 == 0 else {}


def number_of(ad_id):
    return int(ad_id.split("-")[1])


def shown_at(ad_id, moment):
    over, later = number_of(ad_id) % 2 == 0, number_of(ad_id) % 2 and number_of(ad_id) % 3 == 0
    return moment < OVER if over else moment >= LATER if later else True


MOMENTS = {"now": None, "before the end": OVER - HOUR, "after the start": LATER + HOUR}


@pytest.fixture(scope="module")
def timed_root(world, towers_root, tmp_path_factory):
    """The made-up platform's index with towers, some ads of which are over and some not yet begun."""
    folder = tmp_path_factory.mktemp("timed")
    ads = [json.loads(line) for line in world.ads.read_text().splitlines()]
    (folder / "ads.jsonl").write_text("".join(json.dumps(ad | times_of(number_of(ad["ad_id"]))) + "\n" for ad in ads))
    towers = load_published_towers(towers_root)
    build(folder / "ads.jsonl", folder / "index", load_encoder("hashing:64"), BuildOptions(), towers=towers)
    return folder / "index"


@pytest.fixture(scope="module")
def retriever(timed_root):
    store = open_store(timed_root)
    settings = SourceSettings(timeout_seconds=30, fresh_below=10**9)
    index = AdIndex(load_version(store, store.current()), "cpu")
    found = Retriever(index, load_encoder("hashing:64"), InterestSettings(), 10, settings)
    yield found
    found.close()


RUNNER = UserProfile(interests="espresso", history=tuple(Event(EventType.CLICK, f"running-{n}") for n in range(6)))


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize(
    ("user", "shares", "source"),
    [
        (RUNNER, {}, NEIGHBOURS),
        (UserProfile(interests="espresso roast"), {LEXICAL: 1.0}, LEXICAL),
        (UserProfile(), {POPULARITY: 1.0}, POPULARITY),
        (RUNNER, {FRESH: 1.0}, FRESH),
        (RUNNER, {"interests": 1.0}, "interests"),
    ],
)
def test_no_source_brings_an_ad_outside_its_time(retriever, user, shares, source, moment):
    (answer,) = retriever.answer([Query(user, None, 60, shares=shares, context=Context(timestamp=moment))])
    found = [one.ad_id for one in answer.candidates]
    ids = retriever.index.loaded.catalog.ids
    assert {*found} == {ad_id for ad_id in ids if shown_at(ad_id, moment or NOW)}
    assert source == NEIGHBOURS or source in {one.source for one in answer.candidates}


def test_requests_of_one_batch_are_answered_each_at_its_time(retriever):
    queries = [Query(RUNNER, None, 60, context=Context(timestamp=moment)) for moment in MOMENTS.values()] * 2
    for query, answer in zip(queries, retriever.answer(queries), strict=True):
        found = {one.ad_id for one in answer.candidates}
        moment = query.context.timestamp or NOW
        assert found == {ad_id for ad_id in retriever.index.loaded.catalog.ids if shown_at(ad_id, moment)}


def test_nothing_to_show_is_an_empty_answer_and_the_build_says_so(tmp_path, caplog):
    ads = [{"ad_id": f"a-{number}", "title": f"old {number}", "end_time": "2020-01-01"} for number in range(40)]
    (tmp_path / "ads.jsonl").write_text("".join(json.dumps(ad) + "\n" for ad in ads))
    build(tmp_path / "ads.jsonl", tmp_path / "index", load_encoder("hashing:64"), BuildOptions())
    assert "40 of 40 ads may not be shown now" in caplog.text
    store = open_store(tmp_path / "index")
    index = AdIndex(load_version(store, store.current()), "cpu")
    retriever = Retriever(index, load_encoder("hashing:64"), InterestSettings(), 10)
    (answer,) = retriever.answer([Query(UserProfile(interests="old"), None, 5)])
    assert answer.candidates == []
    retriever.close()


@pytest.mark.parametrize("kind", ["flat", "hnsw", "hnsw8", "ivf", "compact", "PCA24,IVF32,Flat", "PCA32,SQ8"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("fewest", [0, 10**9], ids=["by the index", "one by one"])
def test_every_kind_of_index_finds_as_much_among_some(kind, share, fewest, monkeypatch):
    monkeypatch.setattr("retrieval.filtered_search.EXACT_ROWS", fewest)
    random, count, k = np.random.default_rng(1), 4000, 50
    centres = random.normal(size=(40, 32))
    vectors = (centres[random.integers(40, size=count)] + 0.5 * random.normal(size=(count, 32))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    (factory,) = factory_strings(kind, count, 32, is_unit=True)
    index = build_index(vectors, factory, np.empty(0, np.int64), 0, lambda _: None)
    if "IVF" in factory:
        set_search_parameters(index, {"nprobe": 24})
    queries = np.ascontiguousarray(vectors[:40])
    eligible = Eligibility(random.random(count) < share, count)

    def exact(rows):
        return rows[np.argsort(-(queries @ vectors[rows].T), axis=1)[:, :k]]

    def recall(found, truth):
        return np.mean([len({*a.tolist()} & {*b.tolist()}) / k for a, b in zip(found, truth, strict=True)])

    among_all = recall(index.search(queries, k)[1], exact(np.arange(count)))
    similarities, rows = FilteredSearch(index, vectors).search(queries, k, eligible)
    assert rows.shape == similarities.shape == (40, k)
    assert eligible.allowed[rows].all(), "an ad outside its time, or none where there are more"
    assert (np.diff(similarities, axis=1) <= 1e-6).all()
    assert recall(rows, exact(eligible.rows)) >= among_all - 0.03
    few = Eligibility(np.arange(count) < 7, count)
    assert FilteredSearch(index, vectors).search(queries, k, few)[1].shape == (40, 7)
    nothing = Eligibility(np.zeros(count, bool), count)
    assert FilteredSearch(index, vectors).search(queries, k, nothing)[1].shape == (40, 0)


def test_a_search_that_comes_back_short_is_made_good(monkeypatch):
    monkeypatch.setattr("retrieval.filtered_search.EXACT_ROWS", 0)
    random = np.random.default_rng(2)
    near, far = random.normal(5, 0.1, (3000, 16)), random.normal(-5, 0.1, (300, 16))  # all that is near is over
    vectors = np.concatenate([near, far]).astype(np.float32)
    index = build_index(vectors, "IVF32,Flat", np.empty(0, np.int64), 0, lambda _: None)
    eligible = Eligibility(np.arange(3300) >= 3000, 3300)
    rows = FilteredSearch(index, vectors).search(vectors[:4], 100, eligible)[1]
    assert (rows >= 3000).all()


def test_the_start_is_in_and_the_end_is_out():
    start, end = NOW, NOW + HOUR
    schedule, moment = Schedule.of([(start, end)]), timedelta(microseconds=1)
    for when, shown in [(start - moment, False), (start, True), (end - moment, True), (end, False)]:
        assert bool(schedule.at(when).count) is shown
        assert may_be_shown(start, end, when) is shown


def test_a_schedule_is_the_rule_at_any_moment():
    random = np.random.default_rng(0)

    def some():
        return None if random.random() < 0.3 else NOW + timedelta(seconds=int(random.integers(-50, 50)))

    times = [(some(), some()) for _ in range(200)]
    schedule = Schedule.of(times)
    for second in range(-60, 60):
        moment = NOW + timedelta(seconds=second)
        want = [row for row, (start, end) in enumerate(times) if may_be_shown(start, end, moment)]
        assert schedule.at(moment).rows.tolist() == want
    assert schedule.at(datetime(1, 1, 1, tzinfo=UTC)).count == sum(start is None for start, _ in times)
    assert schedule.at(datetime(9999, 12, 31, tzinfo=UTC)).count == sum(end is None for _, end in times)


def test_ads_without_times_cost_nothing():
    schedule = Schedule(*Schedule.unscheduled(1_000_000))
    assert schedule.at(None) is schedule.everything
    assert schedule.at(NOW).is_everything


def test_an_index_version_of_an_earlier_release_has_no_times_and_loads(tmp_path):
    write_ads([(Ad("a", "shoes", start_time=NOW, end_time=NOW + HOUR), b"0" * 16)], tmp_path / ADS_FILE)
    table = pq.read_table(tmp_path / ADS_FILE).drop_columns(["start_time", "end_time", "image_uri", "attributes"])
    pq.write_table(table, tmp_path / ADS_FILE)
    catalog = AdCatalog(tmp_path / ADS_FILE)
    assert catalog.ads([0]) == [Ad("a", "shoes")]
    assert catalog.schedule.at(NOW - HOUR).is_everything


def test_an_ad_that_ends_before_it_begins_is_rejected_and_named(tmp_path):
    row = {"ad_id": "a", "title": "x", "start_time": "2026-02-01", "end_time": "2026-01-01"}
    (tmp_path / "ads.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = read_ads(tmp_path / "ads.jsonl")
    assert isinstance(found, RejectedAd)
    assert found.reason == "never_shown"
    with pytest.raises(BuildError, match="never_shown"):
        build(tmp_path / "ads.jsonl", tmp_path / "index", load_encoder("hashing:64"), BuildOptions())


@pytest.fixture(scope="module")
def retrieval_channel(timed_root):
    store = open_store(timed_root)

    def load(version):
        index = AdIndex(load_version(store, version), "cpu")
        return Retriever(index, load_encoder("hashing:64"), InterestSettings(), 10, SourceSettings(timeout_seconds=30))

    retrievers = HotSwap(store, load)
    retrievers.start()
    servicer = RetrievalServicer(retrievers, 32)
    add = partial(retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server, servicer)
    with serving_server(SERVICE_NAME, add) as (server, channel):
        yield server, channel
    servicer.close()
    retrievers.close()


@pytest.fixture(scope="module")
def ranking_channel(world, timed_root):
    models, indexes = open_model_store(world.model), open_store(timed_root)
    engines = HotSwap(models, lambda version: RankingEngine(load_model(models, version), EngineSettings()))
    catalogs = HotSwap(indexes, lambda version: CatalogVersion(version, AdCatalog(indexes.path(version) / ADS_FILE)))
    engines.start()
    catalogs.start()
    servicer = RankingServicer(engines, catalogs, 1000, prewarm_ads=False)
    add = partial(ranking_pb2_grpc.add_RankingServiceServicer_to_server, servicer)
    with serving_server("ranking", add) as (server, channel):
        yield server, channel
    servicer.close()
    engines.close()
    catalogs.close()


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize("asked", ["user", "vectors"])
def test_retrieve_keeps_to_the_requests_time(retrieval_channel, asked, moment):
    stub = retrieval_pb2_grpc.RetrievalServiceStub(retrieval_channel[1])
    where = types_pb2.Context(timestamp=None if moment is None else timestamp_to_wire(moment))
    user = types_pb2.UserProfile(interests="espresso")
    request = retrieval_pb2.RetrieveRequest(k=60, context=where)
    if asked == "user":
        request.user.CopyFrom(user)
    else:
        request.vectors.CopyFrom(stub.EmbedUser(retrieval_pb2.EmbedUserRequest(user=user)).vectors)
    found = {one.ad_id for one in stub.Retrieve(request, timeout=60).candidates}
    every = {f"{topic}-{number}" for topic in TOPICS for number in range(20)}
    assert found == {ad_id for ad_id in every if shown_at(ad_id, moment or NOW)}


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize("inline", [False, True], ids=["by id", "inline"])
def test_rank_leaves_out_and_names_what_may_not_be_shown(ranking_channel, inline, moment):
    stub = ranking_pb2_grpc.RankingServiceStub(ranking_channel[1])
    ids = [f"coffee-{number}" for number in range(12)]

    def candidate(ad_id):
        times = {name: datetime.fromisoformat(time) for name, time in times_of(number_of(ad_id)).items()}
        ad = ad_to_wire(Ad(ad_id, "beans", **times))
        return ranking_pb2.RankCandidate(ad=ad) if inline else ranking_pb2.RankCandidate(ad_id=ad_id)

    where = types_pb2.Context(timestamp=None if moment is None else timestamp_to_wire(moment))
    request = ranking_pb2.RankRequest(candidates=[candidate(ad_id) for ad_id in ids], context=where)
    answer = stub.Rank(request, timeout=60)
    shown = [ad_id for ad_id in ids if shown_at(ad_id, moment or NOW)]
    assert sorted(ad.ad_id for ad in answer.ads) == sorted(shown)
    assert list(answer.ineligible_ad_ids) == [ad_id for ad_id in ids if ad_id not in shown]
    assert all(ids[ad.candidate] == ad.ad_id for ad in answer.ads)
    assert not answer.unknown_ad_ids


def test_rank_of_nothing_but_ended_ads_is_an_empty_answer(ranking_channel):
    stub = ranking_pb2_grpc.RankingServiceStub(ranking_channel[1])
    answer = stub.Rank(ranking_pb2.RankRequest(candidates=[ranking_pb2.RankCandidate(ad_id="coffee-0")]), timeout=60)
    assert list(answer.ads) == []
    assert list(answer.ineligible_ad_ids) == ["coffee-0"]
    assert answer.model_version


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_recommend_keeps_to_the_requests_time(retrieval_channel, ranking_channel, moment):
    with AdPipeline(retrieval_channel[0].address, ranking_channel[0].address) as pipeline:
        context = Context(timestamp=moment)
        answer = pipeline.recommend(UserProfile(interests="espresso"), context, 40, candidates=60, timeout_seconds=60)
    assert answer.degraded_reason == ""
    assert len(answer.items) >= 20
    assert all(shown_at(item.ad.ad_id, moment or NOW) for item in answer.items)
