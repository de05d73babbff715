"""Learning from a teacher, and with fewer layers."""

import json

import numpy as np
import pytest
import torch
from conftest import save_tiny_bert, tiny_options
from torch.distributions import Bernoulli

from ranking.artifact import load_base, load_version
from ranking.data.dataset import load_dataset
from ranking.data.scorer import Scored
from ranking.data.text_batches import make_blocks
from ranking.errors import ModelError
from ranking.evaluation.predict import Predictor, predict
from ranking.evaluation.results import RANKER, TEACHER
from ranking.model.shape import ModelShape
from ranking.model.shared_user import JOINT, SHARED_USER
from ranking.runtime.engine import RankingEngine
from ranking.runtime.engine_settings import EngineSettings
from ranking.store import open_store
from ranking.training.distill import keep_layers, make_lessons
from ranking.training.run import REPORT_FILE, REPORT_JSON_FILE, train_and_save
from ranking.training.train import train
from ranking.training.versions import load_named

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(world):
    return load_dataset(world.ads, world.clicks, world.users)


@pytest.fixture(scope="module")
def teacher(data, tiny_bert, tmp_path_factory):
    """The root of a model version whose text layers, all joined, have moved far from where they began."""
    root = tmp_path_factory.mktemp("teacher")
    options = tiny_options(
        tiny_bert, join_layer=0, train_layers="all", learning_rate=3e-3, min_text_gain=-9.0, trees="none"
    )
    train_and_save(data, root, options.but(head_learning_rate=1e-2), which_baselines="none")
    return root


def text_logits(data, ranker):
    """What the text adds for rows of the test part."""
    with_text = predict(data, ranker, data.split.test, CPU, "float32").logits
    kept = [weight.detach().clone() for weight in ranker.model.head.last_weights]
    with torch.no_grad():
        for weight in ranker.model.head.last_weights:
            weight.zero_()
        without = predict(data, ranker, data.split.test, CPU, "float32").logits
        for weight, value in zip(ranker.model.head.last_weights, kept, strict=True):
            weight.copy_(value)
    return with_text - without


def test_a_student_comes_to_say_what_its_teacher_says(data, teacher, tiny_bert):
    loaded = load_named(str(teacher))
    want = text_logits(data, loaded)
    options = tiny_options(
        tiny_bert,
        join_layer=1,
        epochs=4,
        learning_rate=1e-3,
        head_learning_rate=1e-2,
        min_text_gain=-9.0,
        patience=99,
        trees="none",
    )
    alone = train(data, options)
    taught = train(data, options.but(teacher=str(teacher), teacher_weight=1.0))
    apart = [np.abs(text_logits(data, one) - want).mean() for one in (alone, taught)]
    assert apart[1] < 0.7 * apart[0]
    assert taught.teacher.version == loaded.version


def test_a_student_of_another_width_and_shape_learns_and_is_compared_with_its_teacher(data, teacher, world, tmp_path):
    narrow = save_tiny_bert(tmp_path / "narrow", layers=3, width=16)
    options = tiny_options(narrow, epochs=0.5, layers=2, teacher=str(teacher), min_text_gain=-9.0)
    report = train_and_save(data, tmp_path / "student", options, which_baselines="none")
    assert set(report.evaluation.metrics) == {RANKER, TEACHER}
    assert set(report.evaluation.milliseconds) == {RANKER, TEACHER}
    store = open_store(tmp_path / "student")
    folder = store.path(report.version)
    assert "ms a request" in (folder / REPORT_FILE).read_text()
    written = json.loads((folder / REPORT_JSON_FILE).read_text())
    assert written["test"]["ranker_minus"][TEACHER]["auc"]["low"] is not None
    served = load_version(store, report.version)
    assert (served.spec.layers, served.spec.join_layer, len(served.model.layers)) == (2, 1, 2)
    assert "@" in served.spec.training["teacher"]
    RankingEngine(served, EngineSettings(device="cpu")).warm_up()


def test_a_teacher_that_reads_no_text_is_refused(data, tiny_bert, tmp_path):
    train_and_save(data, tmp_path, tiny_options(tiny_bert, epochs=0), which_baselines="none")
    with pytest.raises(ModelError, match="reads no text"):
        train(data, tiny_options(tiny_bert, teacher=str(tmp_path)))


def test_a_teacher_of_other_rows_is_warned_of(world, teacher, tiny_bert, caplog):
    others = load_dataset(world.ads, world.clicks, world.users, split="request")
    train(others, tiny_options(tiny_bert, epochs=0.1, behaviour_min_steps=1, teacher=str(teacher)))
    assert "rows that it knows may be tested" in caplog.text


@pytest.mark.parametrize("weight", ["teacher_weight", "state_weight"])
def test_only_another_than_the_teacher_has_something_to_learn(data, teacher, tiny_bert, weight):
    options = tiny_options(tiny_bert, **{"teacher_weight": 0.0, "state_weight": 0.0, weight: 1.0})
    loaded = load_named(str(teacher))
    taught = Predictor(data, loaded, CPU, "float32")
    lessons = make_lessons(data, loaded, loaded.model, options.teacher, CPU, "float32")
    blocks = make_blocks(data, data.split.test, max_ads=8, merge_requests=False)[:3]
    batch, same = taught.batch(blocks), taught.score(blocks)
    ones = torch.ones(len(batch.rows))
    other = Scored(same.logits + 1, same.states.flip(1))
    best, worse = (float(lessons.loss(batch, scored, ones)) for scored in (same, other))
    entropy = float(Bernoulli(logits=same.logits).entropy().sum())
    assert best == pytest.approx(entropy if weight == "teacher_weight" else 0.0, abs=1e-3)
    assert worse > best + 0.1
    assert float(lessons.loss(batch, other, 2 * ones)) == pytest.approx(2 * worse)


@pytest.mark.parametrize("architecture", [SHARED_USER, JOINT])
@pytest.mark.parametrize(("count", "kept"), [(1, [5]), (2, [0, 5]), (3, [0, 2, 5]), (6, [0, 1, 2, 3, 4, 5])])
def test_kept_layers_are_spread_evenly(tmp_path, architecture, count, kept):
    model, _ = load_base(str(save_tiny_bert(tmp_path, layers=6)), architecture, 0, ModelShape(id_buckets=256))
    before = list(model.encoder.base_model.encoder.layer)
    keep_layers(model, count)
    after = model.encoder.base_model.encoder.layer
    assert [before.index(layer) for layer in after] == kept
    assert model.encoder.config.num_hidden_layers == count


def test_more_layers_than_there_are_cannot_be_kept(data, tiny_bert):
    with pytest.raises(ModelError, match="4 of them cannot be kept"):
        train(data, tiny_options(tiny_bert, layers=4))
    with pytest.raises(ModelError, match="the join layer 1 is not below"):
        train(data, tiny_options(tiny_bert, layers=1, join_layer=1))
