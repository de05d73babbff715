"""Boosted trees beside the network: kept where they help, saved, served as they were trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import tiny_options

from adcascade.artifacts.errors import CorruptVersion
from ranking.artifact import TREES_FILE, load_version, save_version
from ranking.data.behaviour_rows import BehaviourRows, behaviour_logits, known_logits
from ranking.data.dataset import load_dataset
from ranking.data.labels import labelled_rows
from ranking.data.text_batches import AdTexts
from ranking.errors import ModelError
from ranking.evaluation.predict import predict
from ranking.model.trees import Blend, BoostedTrees, LabelledRows, fit_booster, load_trees
from ranking.runtime.engine import RankingEngine
from ranking.runtime.engine_settings import EngineSettings
from ranking.store import open_store
from ranking.training.run import train_and_save
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


def test_a_version_serves_its_trees_as_evaluation_reads_them(world, tmp_path):
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
    engine = RankingEngine(loaded, EngineSettings("cpu"))
    engine.warm_up()
    (store.path(draft.version) / TREES_FILE).unlink()
    with pytest.raises((CorruptVersion, ModelError)):
        load_version(store, draft.version)
