"""Boosted trees beside the network: kept where they help, saved, served as they were trained."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_options

from adcascade.artifacts.errors import CorruptVersion
from adcascade.records.ads import read_catalog
from adcascade.records.counters import CounterSnapshot
from adcascade.records.history import with_history
from adcascade.records.users import UserProfile
from ranking.artifact import TREES_FILE, load_version, save_derived, save_version
from ranking.data.behaviour_rows import BehaviourRows, behaviour_logits, known_logits
from ranking.data.dataset import load_dataset
from ranking.data.labels import labelled_rows
from ranking.data.text_batches import AdTexts
from ranking.evaluation.predict import predict
from ranking.inputs.prepare import prepare
from ranking.model.trees import Blend, BoostedTrees, LabelledRows, as_text, fit_booster, load_trees, of_text
from ranking.runtime.engine import RankingEngine
from ranking.runtime.engine_settings import EngineSettings
from ranking.store import open_store
from ranking.training.run import train_and_save
from ranking.training.train import train
from ranking.training.trees import fit_blend

ROWS = 3000


def steps(seed):
    """Rows whose click rate is a step of one feature times the sign of another, which no line tells."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(ROWS, 3)).astype(np.float32)
    p_click = np.where((features[:, 0] > 0.5) ^ (features[:, 1] > 0), 0.6, 0.1)
    labels = (random.random(ROWS) < p_click).astype(np.int64)
    return LabelledRows(features, labels, np.ones(ROWS, np.int64)), np.log(p_click / (1 - p_click))


class Clicks:
    """Columns of rows that were shown once each."""

    def __init__(self, labels):
        self.clicks, self.impressions = labels, np.ones(len(labels), np.int64)


@pytest.fixture(scope="module")
def booster():
    return fit_booster(steps(0)[0], steps(1)[0])


def test_trees_learn_what_no_line_tells(booster):
    rows, logits = steps(2)
    said = BoostedTrees(booster, Blend(network=1, trees=1, intercept=0)).logits(rows.features)
    assert np.corrcoef(said, logits)[0, 1] > 0.9


def test_trees_are_kept_where_the_network_lacks_what_they_say(booster):
    rows, logits = steps(2)
    noise = np.random.default_rng(0).normal(size=ROWS)
    assert fit_blend(booster, -logits, rows.features, Clicks(rows.labels)) is None  # a network that is wrong is left
    half = np.where(rows.features[:, 1] > 0, 0.3, -0.3)
    helped = fit_blend(booster, half + 0.5 * logits + noise, rows.features, Clicks(rows.labels))
    assert helped is not None
    assert helped.blend.trees > 0.5
    assert helped.blend.network > 0


def test_trees_are_left_out_where_the_network_knows_all(booster):
    rows, logits = steps(2)
    assert fit_blend(booster, logits, rows.features, Clicks(rows.labels)) is None


def test_rows_of_one_class_make_no_trees():
    rows = steps(0)[0]
    none = replace(rows, labels=np.zeros(ROWS, np.int64))
    assert fit_booster(rows, none) is None
    assert fit_booster(none, rows) is None


def test_a_saved_model_says_the_same(booster, tmp_path):
    blend = Blend(network=0.7, trees=0.4, intercept=-0.1)
    trees, features = BoostedTrees(booster, blend), steps(3)[0].features
    trees.save(tmp_path / "trees.txt")
    loaded = load_trees(tmp_path / "trees.txt", blend, 3)
    network = np.linspace(-2, 2, ROWS)
    np.testing.assert_array_equal(loaded.blended(network, features), trees.blended(network, features))
    np.testing.assert_allclose(
        trees.blended(network, features), 0.7 * network + 0.4 * trees.logits(features) - 0.1, rtol=1e-12
    )


@pytest.mark.parametrize("text", ["", "no model", "tree\nversion=v4\nnum_class=1\n"])
def test_a_file_that_is_no_model_is_refused(tmp_path, text):
    (tmp_path / "trees.txt").write_text(text)
    with pytest.raises(ValueError, match=r"no model of LightGBM|features"):
        load_trees(tmp_path / "trees.txt", Blend(network=1, trees=1, intercept=0), 3)


DAMAGE = {
    "cut": lambda text: text[: len(text) // 3],
    "cut between trees": lambda text: text[: text.index("Tree=3")] + text[text.index("end of trees") :],
    "other features": lambda text: text.replace("split_feature=0", "split_feature=9", 1),
    "two numbers a row": lambda text: text.replace("num_tree_per_iteration=1", "num_tree_per_iteration=2"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_refused_before_lightgbm_ends_the_process_over_it(booster, tmp_path, damage):
    text = booster.model_to_string()
    assert damage(text) != text
    (tmp_path / "trees.txt").write_text(damage(text))
    with pytest.raises(ValueError, match="no model of LightGBM"):
        load_trees(tmp_path / "trees.txt", Blend(network=1, trees=1, intercept=0), 3)


def test_a_model_of_other_features_is_refused(booster, tmp_path):
    BoostedTrees(booster, Blend(network=1, trees=1, intercept=0)).save(tmp_path / "trees.txt")
    with pytest.raises(ValueError, match="reads 3 features, not 4"):
        load_trees(tmp_path / "trees.txt", Blend(network=1, trees=1, intercept=0), 4)


@pytest.fixture(scope="module")
def without_behaviour(world, tiny_bert, tmp_path_factory):
    """Root and name of a version whose behaviour part learned nothing."""
    root = tmp_path_factory.mktemp("trees")
    data = load_dataset(world.ads, world.clicks, world.users)
    options = tiny_options(tiny_bert, epochs=0, behaviour_epochs=0, trees="auto")
    report = train_and_save(data, root, options, which_baselines="none")
    return root, report.version


def test_a_training_that_leaves_out_behaviour_leaves_out_trees(without_behaviour):
    root, version = without_behaviour
    assert load_version(open_store(root), version).trees is None


def blended(loaded, data):
    """The version with trees of its own training part."""
    rows = BehaviourRows(data, AdTexts(data, loaded.tokenizer, loaded.spec.max_ad_tokens), loaded, torch.device("cpu"))
    train, valid = (labelled_rows(data.log, rows.dense, part) for part in (data.split.train, data.split.valid))
    booster = fit_booster(train, valid)
    assert booster is not None
    trees = BoostedTrees(booster, Blend(network=0.6, trees=0.5, intercept=0.2))
    return replace(loaded, trees=trees, spec=loaded.spec.model_copy(update={"trees": trees.blend})), rows


def test_a_saved_version_is_evaluated_with_its_trees(world, tmp_path):
    data = load_dataset(world.ads, world.clicks, world.users)
    plain = load_version(open_store(world.model), open_store(world.model).current())
    ranker, rows = blended(plain, data)
    store = open_store(tmp_path)
    with store.begin() as draft:
        save_version(store, draft, ranker, plain.counters)
    loaded = load_version(store, draft.version)
    wanted = data.split.test[:50]
    network = behaviour_logits(loaded.model.behaviour, rows, wanted).click.double().numpy()
    want = 0.6 * network + 0.5 * ranker.trees.logits(rows.dense[wanted]) + 0.2
    known = known_logits(loaded, rows, wanted).click.numpy()
    np.testing.assert_allclose(known, want, atol=1e-5)
    predicted = predict(data, loaded, wanted, torch.device("cpu"), "float32")
    assert not np.allclose(predicted.logits, predict(data, plain, wanted, torch.device("cpu"), "float32").logits)
    (store.path(draft.version) / TREES_FILE).unlink()
    with pytest.raises(CorruptVersion):
        load_version(store, draft.version)


def test_trees_go_from_process_to_process_as_a_text(booster):
    trees, features = BoostedTrees(booster, Blend(network=0.7, trees=0.4, intercept=-0.1)), steps(3)[0].features
    other = of_text(as_text(trees))
    assert other.blend == trees.blend
    np.testing.assert_array_equal(other.logits(features), trees.logits(features))
    assert of_text(as_text(None)) is None


def test_no_tree_is_added_after_the_time_is_over_and_each_is_told():
    told = []
    booster = fit_booster(steps(0)[0], steps(1)[0], seconds=0.0, on_round=lambda *at: told.append(at))
    assert booster.num_trees() == 1
    assert [trees for _, trees, _ in told] == [1, 1, 1]  # of three settings
    assert told[0][0] < told[1][0] < told[2][0] < 1


def test_the_same_rows_make_the_same_trees(booster):
    assert fit_booster(steps(0)[0], steps(1)[0]).model_to_string() == booster.model_to_string()


def test_many_clicks_are_not_compared_with_the_fewest_leaves():
    rows, told = steps(0)[0], []
    many = replace(rows, weights=20 * rows.weights)
    fit_booster(many, steps(1)[0], seconds=0.0, on_round=lambda *at: told.append(at))
    assert [trees for _, trees, _ in told] == [1, 1]


def test_a_few_clicks_leave_the_shares_near_what_is_expected(booster):
    rows, _ = steps(2)
    network = np.where(rows.features[:, 1] > 0, 0.3, -0.3) - 1  # knows little of what the trees know
    few, many = (fit_blend(booster, network[:n], rows.features[:n], Clicks(rows.labels[:n])) for n in (60, ROWS))
    assert 0.25 < few.blend.trees < many.blend.trees
    assert few.blend.network == pytest.approx(0.75, abs=0.1)


def test_too_few_rows_to_compare_keep_no_trees(booster):
    rows, logits = steps(2)
    few = slice(0, 8)
    assert fit_blend(booster, logits[few] * 0.1, rows.features[few], Clicks(rows.labels[few])) is None


def test_a_damaged_model_is_named(world, tmp_path):
    data = load_dataset(world.ads, world.clicks, world.users)
    plain = load_version(open_store(world.model), open_store(world.model).current())
    store = open_store(tmp_path)
    with store.begin() as draft:
        save_version(store, draft, blended(plain, data)[0], plain.counters)
    (store.path(draft.version) / TREES_FILE).write_text("no model")
    with pytest.raises(CorruptVersion, match=r"trees\.txt holds no boosted trees"):
        load_version(store, draft.version)


def test_the_engine_answers_with_what_saved_trees_say_of_the_features_of_training(without_behaviour, world, tmp_path):
    root, version = without_behaviour
    loaded = load_version(open_store(root), version)  # it reads no text
    data = load_dataset(world.ads, world.clicks, world.users)
    ranker, rows = blended(loaded, data)
    trees = replace(ranker.trees, blend=Blend(network=0.0, trees=1.0, intercept=0.3))
    row = int(0.9 * len(data.log))
    request = np.flatnonzero(data.log.request_id == data.log.request_id[row])
    earlier = data.log.time < data.log.time[row]
    counters = CounterSnapshot.of(data.log.take(earlier), {key: ids[earlier] for key, ids in data.keys.items()})
    ads = {ad.ad_id: ad for ad in read_catalog(world.ads).ads}
    shown = [ads[ad_id] for ad_id in data.log.ad_id[request].tolist()]
    profile = data.users.get(data.log.user_id[row], UserProfile(data.log.user_id[row]))
    seen = with_history(profile, data.histories, int(data.log.time[row]), 200)
    # Without a catalog, an event tells what its ad said.
    user = replace(seen, history=tuple(replace(event, text=data.ad_text(event.ad_id)) for event in seen.history))
    context = data.log.context_at(row)
    query = prepare(user, context, shown, None, skip_unknown=False, shown=len(request)).query
    store, spec = open_store(tmp_path), loaded.spec.model_copy(update={"trees": trees.blend})
    with store.begin() as draft:
        save_version(store, draft, replace(loaded, trees=trees, spec=spec), counters)
    engine = RankingEngine(load_version(store, draft.version), EngineSettings("cpu"))
    said = trees.booster.predict(rows.dense[request], raw_score=True)
    assert said.std() > 0.01
    want = loaded.spec.calibration.probability(said + 0.3)
    np.testing.assert_allclose(engine.rank([query])[0].p_click, want, atol=1e-4)


@pytest.fixture(scope="module")
def with_trees(world, tiny_bert, tmp_path_factory):
    """Root and name of a version whose network hardly learned, so that trees help."""
    root = tmp_path_factory.mktemp("with-trees")
    options = tiny_options(tiny_bert, epochs=0, behaviour_epochs=1, behaviour_min_steps=2)
    told = []
    data = load_dataset(world.ads, world.clicks, world.users)
    assert train(data, options, told.append).trees is not None
    assert [one.done for one in told if one.stage == "trees"][-1] == 1.0
    return root, train_and_save(data, root, options, which_baselines="none").version, data


def test_a_training_keeps_trees_that_help_and_so_does_what_is_made_of_its_version(with_trees):
    root, version, _ = with_trees
    store = open_store(root)
    loaded = load_version(store, version)
    assert loaded.trees.blend == loaded.spec.trees
    assert loaded.trees.blend.trees > 0
    derived = load_version(store, save_derived(store, loaded, loaded.spec, publish=False))
    features = np.random.default_rng(0).normal(size=(5, len(loaded.spec.features))).astype(np.float32)
    np.testing.assert_array_equal(derived.trees.logits(features), loaded.trees.logits(features))


@pytest.mark.parametrize(("why", "options"), [("order", {"group_loss": "listwise"}), ("none", {"trees": "none"})])
def test_no_trees_where_they_are_not_wanted_or_would_turn_the_order_around(with_trees, tiny_bert, why, options):
    few = tiny_options(tiny_bert, epochs=0, behaviour_epochs=1, behaviour_min_steps=2, **options)
    assert train(with_trees[2], few).trees is None


def test_no_trees_where_places_are_known_which_they_do_not_know(with_trees, tiny_bert):
    data = with_trees[2]
    placed = replace(data, log=replace(data.log, position=np.ones(len(data.log), data.log.position.dtype)))
    assert train(placed, tiny_options(tiny_bert, epochs=0, behaviour_epochs=1, behaviour_min_steps=2)).trees is None


def test_a_warm_start_without_trees_says_that_those_of_the_version_are_left_out(with_trees, tiny_bert, caplog):
    root, version, data = with_trees
    options = tiny_options(tiny_bert, epochs=0, behaviour_epochs=0, warm_start=f"{root}@{version}")
    assert train(data, options).trees is None
    assert f"version {version} has boosted trees" in caplog.text


def test_the_trees_up_to_the_best_are_kept_when_the_time_is_over():
    random, told = np.random.default_rng(0), {}
    noise = [replace(steps(seed)[0], labels=random.integers(0, 2, ROWS)) for seed in (0, 1)]  # all trees but a few hurt

    def on_round(done, trees, loss):
        told.setdefault(int(3 * done), []).append(loss)
        if trees == 30:
            time.sleep(1.1)

    booster = fit_booster(*noise, seconds=3.0, on_round=on_round)
    assert len(told) == 3
    assert max(map(len, told.values())) <= 30
    best = min(told.values(), key=min)
    assert booster.best_iteration == 1 + int(np.argmin(best)) < len(best)
