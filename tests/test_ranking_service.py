"""RankingService through a real server: order, ids, bad input, swaps."""

import itertools
import json
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import grpc
import numpy as np
import pytest
from conftest import save_tiny_bert, serving_server, tiny_options
from scipy.special import logit

from adcascade.artifacts.hotswap import HotSwap
from adcascade.records.ads import read_catalog
from adcascade.records.users import Context, UserProfile
from adcascade.v1 import ranking_pb2 as pb
from adcascade.v1 import types_pb2
from adcascade.v1.ranking_pb2_grpc import RankingServiceStub, add_RankingServiceServicer_to_server
from index_builder.artifact import open_store as open_index_store
from ranking.__main__ import _load_catalog, _load_engine
from ranking.data.dataset import load_dataset
from ranking.inputs.prepare import prepare
from ranking.runtime.engine_settings import EngineSettings
from ranking.service import SERVICE_NAME, RankingServicer
from ranking.store import open_store
from ranking.training.run import train_and_save

IDS = ["coffee-1", "garden-1", "running-1", "running-2"]
USER = types_pb2.UserProfile(
    user_id="u0",
    history=[types_pb2.Event(type=types_pb2.EVENT_TYPE_CLICK, ad_id=f"running-{number}") for number in range(5, 15)],
)


@pytest.fixture
def roots(world, tmp_path):
    shutil.copytree(world.model, tmp_path / "model")
    return tmp_path / "model", world.index


@pytest.fixture
def served(roots):
    model_root, index_root = roots
    engines = HotSwap(
        open_store(model_root), partial(_load_engine, open_store(model_root), EngineSettings("cpu")), poll_seconds=0.05
    )
    catalogs = HotSwap(open_index_store(index_root), partial(_load_catalog, open_index_store(index_root)))
    engines.start()
    catalogs.start()
    servicer = RankingServicer(engines, catalogs, batch_candidates=500)
    with serving_server(SERVICE_NAME, partial(add_RankingServiceServicer_to_server, servicer)) as (_, channel):
        yield RankingServiceStub(channel), engines
    servicer.close()
    engines.close()
    catalogs.close()


@pytest.fixture
def stub(served):
    return served[0]


def by_id(*ids):
    return [pb.RankCandidate(ad_id=ad_id) for ad_id in ids]


def status_of(call, request):
    with pytest.raises(grpc.RpcError) as caught:
        call(request)
    return caught.value.code(), caught.value.details()


def test_candidates_come_back_ordered_by_p_click_and_taste_wins(stub):
    reply = stub.Rank(pb.RankRequest(user=USER, candidates=by_id(*IDS)))
    probabilities = [ad.p_click for ad in reply.ads]
    assert probabilities == sorted(probabilities, reverse=True)
    assert all(0 < p_click < 1 for p_click in probabilities)
    assert {ad.ad_id for ad in reply.ads[:2]} == {"running-1", "running-2"}
    assert [IDS[ad.candidate] for ad in reply.ads] == [ad.ad_id for ad in reply.ads]
    assert reply.model_version
    assert reply.index_version
    assert reply.timing.compute_ms > 0


def test_an_inline_ad_scores_like_the_same_ad_by_id(stub, world):
    by_their_id = stub.Rank(pb.RankRequest(user=USER, candidates=by_id("garden-1")))
    line = next(line for line in world.ads.read_text().splitlines() if '"garden-1"' in line)
    values = json.loads(line)
    inline = stub.Rank(pb.RankRequest(user=USER, candidates=[pb.RankCandidate(ad=types_pb2.Ad(**values))]))
    assert inline.ads[0].p_click == pytest.approx(by_their_id.ads[0].p_click, abs=1e-6)


def test_top_n_keeps_the_best(stub):
    everything = stub.Rank(pb.RankRequest(user=USER, candidates=by_id(*IDS)))
    best = stub.Rank(pb.RankRequest(user=USER, candidates=by_id(*IDS), top_n=2))
    assert [ad.ad_id for ad in best.ads] == [ad.ad_id for ad in everything.ads[:2]]
    assert best.cached_ads == 4


def test_an_empty_user_is_ranked_by_ad_and_context_alone(stub):
    reply = stub.Rank(pb.RankRequest(candidates=by_id(*IDS), context=types_pb2.Context(device="phone")))
    assert len(reply.ads) == 4


def test_a_thousand_candidates_are_ranked(stub):
    candidates = [
        pb.RankCandidate(ad=types_pb2.Ad(ad_id=f"x{number}", title=f"Ad number {number}")) for number in range(1000)
    ]
    assert len(stub.Rank(pb.RankRequest(user=USER, candidates=candidates)).ads) == 1000


def test_unknown_ids_fail_unless_they_may_be_skipped(stub):
    request = pb.RankRequest(user=USER, candidates=by_id("coffee-1", "nobody", "nothing"))
    code, details = status_of(stub.Rank, request)
    assert code is grpc.StatusCode.NOT_FOUND
    assert "2 ads are not in this index version: nobody, nothing; set skip_unknown" in details
    request.skip_unknown = True
    reply = stub.Rank(request)
    assert [ad.ad_id for ad in reply.ads] == ["coffee-1"]
    assert list(reply.unknown_ad_ids) == ["nobody", "nothing"]
    only_unknown = stub.Rank(pb.RankRequest(user=USER, candidates=by_id("nobody"), skip_unknown=True))
    assert (list(only_unknown.ads), list(only_unknown.unknown_ad_ids)) == ([], ["nobody"])


def test_of_no_candidates_none_are_returned(stub):
    reply = stub.Rank(pb.RankRequest(user=USER))
    assert (list(reply.ads), list(reply.unknown_ad_ids)) == ([], [])
    assert reply.model_version


LONG_AD = types_pb2.Ad(ad_id="long", title="x" * 1_000_000)
BAD_REQUESTS = {
    "5,000 candidates": (pb.RankRequest(user=USER, candidates=by_id(*map(str, range(5000)))), "5000 candidates"),
    "an id twice": (pb.RankRequest(user=USER, candidates=by_id("coffee-1", "coffee-1")), "'coffee-1' stands twice"),
    "an empty id": (pb.RankRequest(user=USER, candidates=by_id("")), "has no ad_id"),
    "an ad without text": (
        pb.RankRequest(user=USER, candidates=[pb.RankCandidate(ad=types_pb2.Ad(ad_id="a"))]),
        "title and body are empty",
    ),
    "a 1 MB text": (
        pb.RankRequest(user=USER, candidates=[pb.RankCandidate(ad=LONG_AD)]),
        "1000000 characters; the limit is 32768",
    ),
    "an event without type": (
        pb.RankRequest(user=types_pb2.UserProfile(history=[types_pb2.Event(ad_id="a")]), candidates=by_id("coffee-1")),
        "history[0].type",
    ),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests_are_invalid_and_say_what_to_do(stub, name):
    request, message = BAD_REQUESTS[name]
    code, details = status_of(stub.Rank, request)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message in details


def test_ids_need_a_server_with_an_index(roots):
    store = open_store(roots[0])
    engines = HotSwap(store, partial(_load_engine, store, EngineSettings("cpu")))
    engines.start()
    servicer = RankingServicer(engines, None, batch_candidates=500)
    with serving_server(SERVICE_NAME, partial(add_RankingServiceServicer_to_server, servicer)) as (_, channel):
        stub = RankingServiceStub(channel)
        code, details = status_of(stub.Rank, pb.RankRequest(user=USER, candidates=by_id("coffee-1")))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "start it with --index" in details
        inline = pb.RankCandidate(ad=types_pb2.Ad(ad_id="a", title="text"))
        assert len(stub.Rank(pb.RankRequest(user=USER, candidates=[inline])).ads) == 1
    servicer.close()
    engines.close()


def test_calls_before_the_model_is_loaded_are_unavailable(roots):
    store = open_store(roots[0])
    servicer = RankingServicer(HotSwap(store, partial(_load_engine, store, EngineSettings("cpu"))), None, 500)
    with serving_server(SERVICE_NAME, partial(add_RankingServiceServicer_to_server, servicer)) as (_, channel):
        for call, request in (("Rank", pb.RankRequest(candidates=by_id("a"))), ("GetModel", pb.GetModelRequest())):
            code, _ = status_of(getattr(RankingServiceStub(channel), call), request)
            assert code is grpc.StatusCode.UNAVAILABLE
    servicer.close()


def test_calls_between_the_load_of_the_model_and_that_of_the_index_are_unavailable(roots):
    model_store, index_store = open_store(roots[0]), open_index_store(roots[1])
    engines = HotSwap(model_store, partial(_load_engine, model_store, EngineSettings("cpu")))
    catalogs = HotSwap(index_store, partial(_load_catalog, index_store))
    engines.start()
    servicer = RankingServicer(engines, catalogs, batch_candidates=500)
    inline = pb.RankCandidate(ad=types_pb2.Ad(ad_id="x", title="An ad of its own"))
    requests = [pb.RankRequest(candidates=by_id("coffee-1")), pb.RankRequest(candidates=[inline])]
    with serving_server(SERVICE_NAME, partial(add_RankingServiceServicer_to_server, servicer)) as (_, channel):
        stub = RankingServiceStub(channel)
        for request in requests:
            assert status_of(stub.Rank, request) == (grpc.StatusCode.UNAVAILABLE, "the index is not loaded yet")
        assert stub.GetModel(pb.GetModelRequest()).model_version
        catalogs.start()
        for request in requests:
            assert len(stub.Rank(request).ads) == 1
    servicer.close()
    engines.close()
    catalogs.close()


def test_calls_after_what_they_need_was_released_are_unavailable(served):
    stub, engines = served
    engines.close()
    for call, request in (
        (stub.Rank, pb.RankRequest(candidates=by_id("coffee-1"))),
        (stub.GetModel, pb.GetModelRequest()),
    ):
        assert status_of(call, request)[0] is grpc.StatusCode.UNAVAILABLE


def test_the_model_describes_itself_and_a_new_version_takes_over(served, roots, world, tmp_path):
    stub, engines = served
    first = stub.GetModel(pb.GetModelRequest())
    assert (first.architecture, first.layers, first.join_layer) == ("shared_user", 3, 2)
    assert "category_ctr_logit" in first.features
    assert first.backend.startswith(("torch on cpu", "openvino on cpu"))
    assert set(first.metrics) >= {"test_auc", "test_log_loss", "test_ece"}
    base = save_tiny_bert(tmp_path / "deeper", layers=4)
    report = train_and_save(load_dataset(world.ads, world.clicks, world.users), roots[0], tiny_options(base, epochs=0))
    engines.refresh()
    second = stub.GetModel(pb.GetModelRequest())
    assert second.model_version == report.version != first.model_version
    assert (second.layers, second.join_layer) == (4, 3)
    assert stub.Rank(pb.RankRequest(user=USER, candidates=by_id("coffee-1"))).model_version == report.version


def p_click_of(stub, *counters):
    reply = stub.Rank(pb.RankRequest(user=USER, candidates=by_id(*IDS), counters=counters))
    return {ad.ad_id: ad.p_click for ad in reply.ads}


def moved_most(before, after):
    """The ad whose log-odds moved three times as far as those of any other, which stand beside it in the request."""
    moved = {ad: abs(logit(after[ad]) - logit(before[ad])) for ad in IDS}
    first, second = sorted(moved, key=moved.__getitem__, reverse=True)[:2]
    return first if moved[first] > 3 * moved[second] else None


def test_fresher_counters_go_before_those_of_the_model(stub):
    loved = pb.Counter(kind=pb.COUNTER_KIND_AD, id="garden-1", impressions=500, clicks=480)
    before, after = p_click_of(stub), p_click_of(stub, loved)
    assert moved_most(before, after) == "garden-1"


def test_counters_of_the_user_are_those_of_the_user_who_asks(stub):
    one = pb.Counter(kind=pb.COUNTER_KIND_USER, impressions=900, clicks=890)
    other = pb.Counter(kind=pb.COUNTER_KIND_USER_CATEGORY, id="garden", impressions=90, clicks=89)
    before, user, category = p_click_of(stub), p_click_of(stub, one), p_click_of(stub, other)
    assert all(abs(user[ad] - before[ad]) > 1e-6 for ad in IDS)
    assert category["garden-1"] > before["garden-1"] + 0.02  # who clicks on a category clicks on more of it
    assert moved_most(before, category) == "garden-1"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"id": "garden-1"}, r"counters[0].kind is not set"),
        ({"kind": pb.COUNTER_KIND_AD}, r"counters[0] has no id"),
        ({"kind": pb.COUNTER_KIND_AD, "id": "a", "clicks": 2, "impressions": 1}, "2 clicks on 1 impressions"),
        ({"kind": pb.COUNTER_KIND_AD, "id": "a" * 257, "impressions": 1}, "counters[0].id has 257 characters"),
    ],
)
def test_a_counter_that_cannot_be_is_refused(stub, wrong, message):
    request = pb.RankRequest(user=USER, candidates=by_id(*IDS), counters=[pb.Counter(**wrong)])
    status, details = status_of(stub.Rank, request)
    assert status is grpc.StatusCode.INVALID_ARGUMENT
    assert message in details


def test_too_many_counters_are_refused(stub):
    counter = pb.Counter(kind=pb.COUNTER_KIND_AD, id="a", impressions=1)
    status, details = status_of(stub.Rank, pb.RankRequest(candidates=by_id(*IDS), counters=[counter] * 4001))
    assert (status, details) == (grpc.StatusCode.INVALID_ARGUMENT, "4001 counters; the limit is 4000")


def test_a_page_shows_no_more_ads_than_a_request_may_rank(stub):
    assert status_of(stub.Rank, pb.RankRequest(candidates=by_id(*IDS), shown=1001)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "shown is 1001; a page shows at most 1000 ads together",
    )
    assert len(stub.Rank(pb.RankRequest(user=USER, candidates=by_id(*IDS), shown=1000)).ads) == len(IDS)


def test_of_many_that_are_shown_together_each_is_clicked_less(world, tmp_path, tiny_bert):
    random = np.random.default_rng(0)
    lines, ads = ["request_id,user_id,ad_id,timestamp,clicks,impressions"], list(read_catalog(world.ads).ads)
    for request in range(1500):
        size = int(random.choice([1, 8]))
        clicked = int(random.integers(size)) if random.random() < 0.8 else -1
        for place, ad in enumerate(random.choice(len(ads), size, replace=False).tolist()):
            row = (f"r{request}", f"u{request % 40}", ads[ad].ad_id, 1_700_000_000 + 60 * request, place == clicked, 1)
            lines.append(",".join(str(int(one) if isinstance(one, bool) else one) for one in row))
    (tmp_path / "clicks.csv").write_text("\n".join(lines))
    data = load_dataset(world.ads, tmp_path / "clicks.csv", None)
    assert "request_size_log" in data.feature_names
    report = train_and_save(data, tmp_path / "model", tiny_options(tiny_bert, epochs=0), which_baselines="none")
    engine = _load_engine(open_store(tmp_path / "model"), EngineSettings("cpu"), report.version)
    query = prepare(
        UserProfile("u1"),
        Context(timestamp=datetime.fromtimestamp(1_700_090_000, UTC)),
        ads[:8],
        None,
        skip_unknown=False,
    ).query
    alone, unknown, eight = (engine.rank([replace(query, shown=shown)])[0].p_click.mean() for shown in (1, 0, 8))
    assert eight <= unknown < alone  # nobody knows: as in the mean of the rows, most of which are of eight
    assert (eight, alone) == pytest.approx((0.1, 0.8), abs=0.1)


def test_the_model_says_how_old_its_counters_are_and_what_it_has_not_learned(stub):
    assert stub.GetModel(pb.GetModelRequest()).counters_end.seconds == 1_700_000_000 + 600 * 199
    reply = stub.Rank(pb.RankRequest(user=USER, candidates=by_id(*IDS)))
    assert not any(ad.HasField("p_conversion") for ad in reply.ads)  # the log has no conversions


def test_conversions_of_the_log_are_answered(roots, world, tmp_path, tiny_bert):
    lines = world.clicks.read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    converted = [",".join([*row, row[4] if row[1].startswith("running") else "0"]) for row in rows]
    path = tmp_path / "clicks.csv"
    path.write_text("\n".join([lines[0] + ",conversions", *converted]) + "\n")
    data = load_dataset(world.ads, path, world.users)
    report = train_and_save(data, tmp_path / "model", tiny_options(tiny_bert, epochs=0), which_baselines="none")
    engine = _load_engine(open_store(tmp_path / "model"), EngineSettings("cpu"), report.version)
    catalog = _load_catalog(open_index_store(roots[1]), open_index_store(roots[1]).current()).catalog
    moment = datetime.fromtimestamp(engine.loaded.counters.end, UTC)  # later, two days of log teach nothing
    query = prepare(UserProfile("u0"), Context(timestamp=moment), IDS, catalog, skip_unknown=False).query
    p_conversion = engine.rank([query])[0].p_conversion
    assert p_conversion[2:].min() > p_conversion[:2].max() + 0.1


def test_ads_of_the_index_are_read_before_anybody_asks(served):
    stub, _ = served
    deadline = time.monotonic() + 60
    for number in itertools.count(5):  # another ad each time: none is known from the call before
        answer = stub.Rank(pb.RankRequest(user=USER, candidates=by_id(f"garden-{number}")))
        if answer.cached_ads == 1:
            return
        assert time.monotonic() < deadline
        time.sleep(0.1)
