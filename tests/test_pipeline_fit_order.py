"""What retrieval's score counts in the order of both stages: fitted without what towers have learned, kept, obeyed."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_towers
from test_pipeline_cli import adcascade
from test_pipeline_client import gateway, ranking_on, retrieval_on

from adcascade.artifacts.errors import CorruptVersion
from adcascade.records.coded import CodedColumn
from adcascade.records.errors import InputError
from adcascade.records.splits import Split
from adcascade.records.users import Context, Event, EventType, UserProfile
from adcascade.reports.interval import Interval
from adcascade.serving.channel import open_channel
from adcascade.towers.artifact import load_choosing_towers, load_published_towers, save_towers
from adcascade.towers.store import open_store as open_tower_store
from adcascade.towers.training.train import train_and_save
from adcascade.v1 import ranking_pb2, recommend_pb2, types_pb2
from adcascade.v1.ranking_pb2_grpc import RankingServiceStub
from adcascade.vectors.encoder import load_encoder
from pipeline.client import AdPipeline
from pipeline.evaluate import evaluate_pipeline, load_stages
from pipeline.fit_order import (
    LARGEST_WEIGHT,
    _standing_in,
    fit_on_requests,
    fit_on_users,
    fit_order,
    least_as_good,
    save_with_order,
)
from pipeline.order import DEFAULT_RETRIEVAL_WEIGHT
from pipeline.results import ranking_of
from ranking.calibration.calibration import Calibration
from ranking.data.dataset import load_dataset
from ranking.spec import OrderBlend, read_spec
from ranking.store import open_store
from ranking.training.versions import load_named
from retrieval.evaluation.shown_scores import scores_of_shown
from retrieval.query import Query

USER = UserProfile("u0", history=tuple(Event(EventType.CLICK, ad_id=f"running-{number}") for number in range(8)))
ORDER = OrderBlend(retrieval_weight=1.5, fitted_on="users", units=9, gain=Interval(0.1, 0.0, 0.2))


@pytest.fixture(scope="module")
def data(world):
    return load_dataset(world.ads, world.clicks, world.users, split="time")


@pytest.fixture(scope="module")
def validating(data):
    """The same, with the validation part in the place of the test."""
    return data.with_split(Split(data.split.train, np.empty(0, np.int64), data.split.valid))


@pytest.fixture(scope="module")
def stages(tower_index, world):
    retriever, model = load_stages(tower_index, world.model)
    yield retriever, model
    retriever.close()


@pytest.fixture(scope="module")
def standing_in(validating, world, stages, tmp_path_factory):
    with _standing_in(validating, world.ads, stages[0], tmp_path_factory.mktemp("vectors")) as found:
        yield found


@pytest.fixture(scope="module")
def other_towers(tower_data, tmp_path_factory):
    """Root of towers that no index was built with."""
    root = tmp_path_factory.mktemp("other") / "towers"
    train_and_save(tower_data, load_encoder("hashing:64"), root, tiny_towers(seed=1, epochs=1), publish_anyway=True)
    return root


def clicked(data, clicks):
    """The same rows, clicked otherwise."""
    return replace(data, log=replace(data.log, clicks=clicks.astype(data.log.clicks.dtype)))


def saying_nothing(model):
    """A ranker whose probabilities are all alike."""
    flat = Calibration(method="isotonic", points=((-1.0, 0.3), (1.0, 0.3)))
    return replace(model, spec=model.spec.model_copy(update={"calibration": flat}))


def test_towers_that_stand_in_know_no_row_that_is_judged(validating, standing_in, stages):
    known, stand_in = standing_in
    spec, of_index = stand_in.index.loaded.towers.spec, stages[0].index.loaded.towers.spec
    assert spec.training_sha256 == known.training_sha256 != of_index.training_sha256
    assert spec.popularity_weights == of_index.popularity_weights
    assert (spec.neighbour_weight, spec.shape, spec.training) == (
        of_index.neighbour_weight,
        of_index.shape,
        of_index.training,
    )
    first = int(validating.log.time[validating.split.test].min())
    assert stand_in.index.loaded.towers.popularity.as_of_us <= first


def test_clicks_that_are_judged_do_not_change_who_stands_in(validating, standing_in, world, stages, tmp_path):
    clicks = validating.log.clicks.copy()
    clicks[validating.split.test] = 1 - clicks[validating.split.test]
    with _standing_in(clicked(validating, clicks), world.ads, stages[0], tmp_path) as (_, other):
        want, found = (one.index.loaded.searched_vectors for one in (standing_in[1], other))
        assert np.asarray(found).tolist() == np.asarray(want).tolist()


def test_towers_that_chose_stand_in_as_those_that_are_trained_for_it(
    validating, world, standing_in, stages, towers_root, tmp_path
):
    kept = load_choosing_towers(towers_root, stages[0].index.loaded.towers)
    with _standing_in(validating, world.ads, stages[0], tmp_path, kept) as (known, other):
        assert other.index.loaded.towers.spec.training_sha256 == known.training_sha256
        assert other.index.loaded.towers.spec.passes == kept.spec.passes  # their seconds, too: none were trained
        want, found = (one.index.loaded.searched_vectors for one in (standing_in[1], other))
        np.testing.assert_allclose(found, want, atol=1e-6)
        asked = [Query(USER, None, 20, context=Context(device="phone"))]
        want, found = ([one.ad_id for one in by.answer(asked)[0].candidates] for by in (standing_in[1], other))
        assert found == want


def test_towers_that_chose_by_other_rows_do_not_stand_in(validating, world, stages, towers_root, tmp_path):
    split = validating.split
    fewer = validating.with_split(split._replace(train=split.train[:-50], test=split.test))
    kept = load_choosing_towers(towers_root, stages[0].index.loaded.towers)
    with _standing_in(fewer, world.ads, stages[0], tmp_path, kept) as (known, other):
        assert other.index.loaded.towers.spec.training_sha256 == known.training_sha256


def test_a_root_without_these_towers_is_refused(stages, other_towers, tmp_path):
    towers = stages[0].index.loaded.towers
    with pytest.raises(InputError, match=r"no version under .*leave out --towers"):
        load_choosing_towers(other_towers, towers)
    with pytest.raises(InputError, match="there is no folder"):
        load_choosing_towers(tmp_path / "nowhere", towers)


def test_a_damaged_version_is_passed_over_and_named_if_there_is_no_other(towers_root, tmp_path):
    towers = load_published_towers(towers_root)
    shutil.copytree(towers_root, tmp_path / "towers")
    (old,) = (tmp_path / "towers" / "versions").iterdir()
    store = open_tower_store(tmp_path / "towers")
    with store.begin() as draft:
        save_towers(draft.path, towers)
        store.commit(draft, towers.spec.model_dump(mode="json"))
    weights = store.path(draft.version) / "towers.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert load_choosing_towers(tmp_path / "towers", towers) is not None  # the older one
    shutil.rmtree(old)
    with pytest.raises(CorruptVersion, match=r"towers\.safetensors"):
        load_choosing_towers(tmp_path / "towers", towers)


def test_versions_of_earlier_releases_kept_none_that_chose(towers_root, tmp_path):
    store, towers = open_tower_store(tmp_path / "towers"), load_published_towers(towers_root)
    with store.begin() as draft:
        save_towers(draft.path, towers)
        store.commit(draft, towers.spec.model_dump(mode="json"))
    assert load_choosing_towers(tmp_path / "towers", towers) is None


def test_towers_that_chose_are_found_after_newer_ones_were_published(towers_root, other_towers, tmp_path):
    shutil.copytree(towers_root, tmp_path / "towers")
    store, others = open_tower_store(tmp_path / "towers"), load_published_towers(other_towers)
    with store.begin() as draft:
        save_towers(draft.path, others)
        store.commit(draft, others.spec.model_dump(mode="json"))
    store.publish(draft.version)
    assert load_choosing_towers(tmp_path / "towers", load_published_towers(towers_root)) is not None


@pytest.mark.parametrize(
    ("means", "spread", "chosen"),
    [
        ([0.30, 0.38, 0.40, 0.41], 0.0, 3),  # certain
        ([0.30, 0.38, 0.40, 0.41], 0.12, 2),  # standard errors of the differences: 0.036, 0.024, 0.012
        ([0.30, 0.38, 0.40, 0.41], 0.3, 1),  # 0.09, 0.06, 0.03
        ([0.41, 0.41, 0.41, 0.41], 0.0, 0),
        ([0.41, 0.40, 0.40, 0.30], 0.1, 0),
    ],
)
def test_of_weights_as_good_as_the_best_the_least_is_taken(means, spread, chosen):
    half = spread * np.r_[np.ones(50), -np.ones(50)]
    values = np.array([mean + place * half for place, mean in enumerate(means)])
    assert least_as_good(values) == chosen


def test_an_ad_has_the_score_that_it_has_as_a_candidate(stages):
    retriever, _ = stages
    (answer,) = retriever.answer([Query(USER, None, 40, context=Context(device="phone"))])
    ids = [one.ad_id for one in answer.candidates]
    (scores,) = scores_of_shown(retriever, [(USER, Context(device="phone"), [*ids, "nobody's"])])
    assert np.sort(scores[:-1])[::-1] == pytest.approx([one.score for one in answer.candidates], abs=1e-5)
    assert np.isnan(scores[-1])


def test_where_p_click_says_nothing_retrieval_makes_the_order(validating, standing_in, stages):
    order = fit_on_requests(validating, standing_in[1], saying_nothing(stages[1]))
    assert order.retrieval_weight == LARGEST_WEIGHT
    assert order.gain.low > 0
    assert order.fitted_on == "requests"
    assert 10 <= order.units <= 20  # of the 20 requests of the validation part, those with a click and without


def test_where_retrieval_says_nothing_p_click_makes_the_order(validating, standing_in, stages):
    random, log = np.random.default_rng(1), validating.log
    clicks = log.clicks.copy()
    for request in np.unique(validating.groups[validating.split.test]):
        rows = np.flatnonzero(validating.groups == request)
        clicks[rows] = random.permutation(clicks[rows])
    order = fit_on_requests(clicked(validating, clicks), standing_in[1], stages[1])
    assert order.gain.low <= 0
    assert order.retrieval_weight == 0


def test_the_weight_is_the_best_of_those_that_evaluations_of_both_stages_compare(validating, standing_in, stages):
    known, stand_in = standing_in
    order = fit_on_users(validating, known, stand_in, stages[1])
    found = {
        weight: evaluate_pipeline(validating, stand_in, stages[1], [100], weight, with_baselines=False).comparison
        for weight in {0.0, 1.0, 4.0, 16.0, order.retrieval_weight}
    }
    ndcg = {weight: one.metrics[ranking_of(100)]["ndcg@10"].value for weight, one in found.items()}
    assert ndcg[order.retrieval_weight] == max(ndcg.values())
    assert order.gain.value == pytest.approx(ndcg[order.retrieval_weight] - ndcg[0.0])
    assert (order.fitted_on, order.units) == ("users", found[0.0].users)


def test_users_are_asked_for_where_requests_show_one_ad(data, world, stages, tmp_path):
    ids = [f"{number}" for number in range(len(data.log))]
    alone = replace(data, log=replace(data.log, request_id=CodedColumn.of(ids, "")))
    assert fit_order(alone, world.ads, *stages, tmp_path).fitted_on == "users"


def test_a_validation_part_without_a_click_is_an_error(validating, standing_in, stages):
    clicks = validating.log.clicks.copy()
    clicks[validating.split.test] = 0
    with pytest.raises(
        InputError, match="no request of several ads of the index with a click and an impression without one"
    ):
        fit_on_requests(clicked(validating, clicks), standing_in[1], stages[1])


def test_without_towers_there_is_nothing_to_fit(data, world, tmp_path):
    retriever, model = load_stages(world.index, world.model)
    with pytest.raises(InputError, match="no towers"):
        fit_order(data, world.ads, retriever, model, tmp_path)
    with pytest.raises(InputError, match="no towers"):
        scores_of_shown(retriever, [(USER, Context(), ["running-1"])])
    retriever.close()


@pytest.fixture(scope="module")
def ordered_model(world, tmp_path_factory):
    """Root of model versions of which the published one says an order."""
    root = tmp_path_factory.mktemp("ordered") / "model"
    shutil.copytree(world.model, root)
    save_with_order(open_store(root), load_named(str(root)), ORDER)
    return root


def test_a_version_with_an_order_is_the_same_but_for_it(world, ordered_model):
    before, after = load_named(str(world.model)), load_named(str(ordered_model))
    assert (before.spec.order, after.spec.order) == (None, ORDER)
    assert after.spec.model_copy(update={"order": None}) == before.spec
    for name, tensor in before.model.state_dict().items():
        assert tensor.equal(after.model.state_dict()[name])


def test_the_order_is_what_the_version_says_that_answers(tower_index, world, ordered_model):
    with retrieval_on(tower_index) as retrieval, ranking_on(ordered_model, world.index) as ranking:
        with open_channel(ranking) as channel:
            told = RankingServiceStub(channel).GetModel(ranking_pb2.GetModelRequest())
        with AdPipeline(retrieval, ranking) as pipeline:
            answer, given = (pipeline.recommend(USER, k=20, retrieval_weight=weight) for weight in (None, 0.0))
        asked = recommend_pb2.RecommendRequest(user=types_pb2.UserProfile(user_id="u0", interests="trail"), k=20)
        with gateway(retrieval, ranking) as stub:
            by_gateway = stub.Recommend(asked)
        with gateway(retrieval, ranking, retrieval_weight=0.0) as stub:
            by_p_click = stub.Recommend(asked)
    assert told.retrieval_weight == 1.5
    assert (answer.retrieval_weight, given.retrieval_weight) == (1.5, 0.0)
    values = [np.log(item.p_click / (1 - item.p_click)) + 1.5 * item.retrieval_score for item in answer.items]
    assert values == sorted(values, reverse=True)
    assert [item.p_click for item in given.items] == sorted((item.p_click for item in given.items), reverse=True)
    values = [np.log(one.p_click / (1 - one.p_click)) + 1.5 * one.retrieval_score for one in by_gateway.recommendations]
    assert values == pytest.approx(sorted(values, reverse=True), abs=1e-5)
    p_click = [one.p_click for one in by_p_click.recommendations]
    assert p_click == sorted(p_click, reverse=True)


def test_a_version_without_an_order_keeps_the_default(tower_index, world):
    with retrieval_on(tower_index) as retrieval, ranking_on(world.model, world.index) as ranking:
        with open_channel(ranking) as channel:
            told = RankingServiceStub(channel).GetModel(ranking_pb2.GetModelRequest())
        with AdPipeline(retrieval, ranking) as pipeline:
            assert pipeline.recommend(USER, k=5).retrieval_weight == DEFAULT_RETRIEVAL_WEIGHT
    assert not told.HasField("retrieval_weight")


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_that_cannot_be_is_in_no_version(weight):
    with pytest.raises(ValueError, match="retrieval_weight"):
        OrderBlend(retrieval_weight=weight, fitted_on="users", units=9, gain=ORDER.gain)


def test_the_command_publishes_a_version_that_says_the_order(world, tower_index, towers_root, tmp_path):
    shutil.copytree(world.model, tmp_path / "model")
    files = ["--ads", world.ads, "--clicks", world.clicks, "--users", world.users]
    where = ["--index", tower_index, "--model", tmp_path / "model", "--vectors", tmp_path / "vectors"]
    done = adcascade("fit-order", *files, *where, "--towers", towers_root, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    store = open_store(tmp_path / "model")
    assert store.current_path().name == found["version"] != found["source"]
    assert read_spec(store.current_path()).order.model_dump(mode="json") == found["order"]
    assert found["order"]["fitted_on"] == "requests"
    assert "may be tested" not in done.stderr
    assert "Training on" not in done.stderr  # towers that are kept stand in
