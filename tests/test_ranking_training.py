"""Training on a small made-up log: it learns, it repeats, and it never reads the future."""

import json

import numpy as np
import pytest
import torch
from conftest import every_feature, tiny_options, write_world_files

from adcascade.records.errors import InputError
from adcascade.training.errors import TrainingError
from ranking.artifact import Ranker, load_base, load_version
from ranking.data.dataset import load_dataset
from ranking.data.text_batches import AdTexts, BatchMaker, make_blocks
from ranking.errors import ModelError
from ranking.evaluation.baselines import CLICK_RATES, POPULARITY
from ranking.evaluation.evaluate import evaluate
from ranking.evaluation.report import text_fit_line
from ranking.evaluation.results import RANKER
from ranking.inputs.features import FEATURES
from ranking.model.shape import ModelShape
from ranking.model.shared_user import SharedUserCrossEncoder
from ranking.store import open_store
from ranking.training.run import train_and_save
from ranking.training.train import train


@pytest.fixture(scope="module")
def data(world):
    return load_dataset(world.ads, world.clicks, world.users)


def test_training_learns_tastes_that_click_rates_cannot_know(data, tiny_bert):
    trained = train(data, tiny_options(tiny_bert, epochs=2))
    metrics = evaluate(data, trained).metrics
    assert metrics[RANKER]["auc"].value > metrics[CLICK_RATES]["auc"].value + 0.1
    assert metrics[RANKER]["auc"].value > metrics[POPULARITY]["auc"].value + 0.1
    assert metrics[RANKER]["auc"].low <= metrics[RANKER]["auc"].value <= metrics[RANKER]["auc"].high


def test_text_that_does_not_help_is_left_out_and_the_report_says_so(data, tiny_bert):
    trained = train(data, tiny_options(tiny_bert, epochs=0.5, min_text_gain=1.0))
    assert trained.model.text_is_untrained
    assert (trained.text_fit.kept_step, trained.text_fit.loss_kept) == (0, trained.text_fit.loss_before)
    assert "leaves its text layers out" in text_fit_line(trained.text_fit)
    before = load_base(str(tiny_bert), "shared_user", 2, ModelShape(id_buckets=256))[0].encoder.state_dict()
    for name, weight in trained.model.encoder.state_dict().items():
        torch.testing.assert_close(weight, before[name])


def test_no_epochs_train_no_text(data, tiny_bert):
    trained = train(data, tiny_options(tiny_bert, epochs=0))
    assert trained.text_fit.steps == 0
    assert trained.model.text_is_untrained
    assert "were not fine-tuned" in text_fit_line(trained.text_fit)


def test_the_same_seed_trains_the_same_model(data, tiny_bert):
    first, second = (train(data, tiny_options(tiny_bert, epochs=1)) for _ in range(2))
    for name, weight in first.model.state_dict().items():
        torch.testing.assert_close(weight, second.model.state_dict()[name], atol=1e-6, rtol=0)
    assert first.spec.calibration == second.spec.calibration


def test_only_what_is_to_be_trained_may_change(data, tiny_bert):
    before = load_base(str(tiny_bert), "shared_user", 2, ModelShape(id_buckets=256))[0].state_dict()
    options = tiny_options(tiny_bert, epochs=1, join_layer=2, min_text_gain=-1.0)
    joined = train(data, options)
    everything = train(data, options.but(train_layers="all"))
    assert joined.text_fit.kept_step > 0
    assert everything.text_fit.kept_step > 0
    lower, upper = "encoder.encoder.layer.0.output.dense.weight", "encoder.encoder.layer.2.output.dense.weight"
    words = "encoder.embeddings.word_embeddings.weight"

    def changed(trained):
        after = trained.model.state_dict()
        return {name for name in (lower, upper, words) if not torch.equal(after[name], before[name])}

    assert changed(joined) == {upper}
    assert changed(everything) == {lower, upper}


def test_the_plain_joint_cross_encoder_trains_and_serves_too(data, tiny_bert, tmp_path):
    report = train_and_save(data, tmp_path, tiny_options(tiny_bert, architecture="joint", epochs=0.3))
    store = open_store(tmp_path)
    loaded = load_version(store, report.version)
    assert loaded.spec.architecture == "joint"
    assert report.evaluation.metrics[RANKER]["auc"].value > 0.5


def plant_future_click(folder, world):
    """The same log with one more click of user u0, of a moment after every other row but the last part of the log."""
    lines = world.clicks.read_text().splitlines()
    last = max(int(line.split(",")[3]) for line in lines[1:])
    planted = folder / "planted.csv"
    planted.write_text("\n".join([*lines, f"future,garden-7,u0,{last + 10_000},1,1,tv"]) + "\n")
    return planted


def test_a_planted_future_click_changes_nothing_before_it(data, world, tmp_path):
    planted = load_dataset(world.ads, plant_future_click(tmp_path, world), world.users)
    rows = len(data.log)
    assert len(planted.log) == rows + 1
    assert [planted.user_text(row) for row in range(rows)] == [data.user_text(row) for row in range(rows)]
    np.testing.assert_array_equal(every_feature(planted, 0.4)[:rows], every_feature(data, 0.4))


def test_a_history_in_the_users_file_is_not_read(data, world, tmp_path):
    people = [json.loads(line) for line in world.users.read_text().splitlines()]
    told = [{**person, "history": [{"type": "click", "ad_id": "garden-7"}]} for person in people]
    (tmp_path / "users.jsonl").write_text("".join(json.dumps(person) + "\n" for person in told))
    same = load_dataset(world.ads, world.clicks, tmp_path / "users.jsonl")
    assert any(user.history for user in same.users.values())
    rows = range(len(data.log))
    assert [same.user_text(row) for row in rows] == [data.user_text(row) for row in rows]


def test_the_label_of_a_row_is_in_none_of_its_own_inputs(data, world, tmp_path):
    row = len(data.log) // 2
    clicks = data.log.clicks.copy()
    clicks[row] = 1 - clicks[row]
    lines = world.clicks.read_text().splitlines()
    order = np.argsort([int(line.split(",")[3]) for line in lines[1:]], kind="stable")
    parts = lines[1 + order[row]].split(",")
    parts[4] = str(clicks[row])
    lines[1 + order[row]] = ",".join(parts)
    flipped_file = tmp_path / "flipped.csv"
    flipped_file.write_text("\n".join(lines) + "\n")
    flipped = load_dataset(world.ads, flipped_file, world.users)
    assert flipped.log.clicks[row] != data.log.clicks[row]
    assert flipped.user_text(row) == data.user_text(row)
    np.testing.assert_array_equal(every_feature(flipped, 0.4)[row], every_feature(data, 0.4)[row])


def test_texts_of_several_rows_are_those_of_each(data):
    rows = np.random.default_rng(0).permutation(len(data.log))[:200]
    assert data.user_texts(rows) == [data.user_text(int(row)) for row in rows]


def test_a_block_holds_one_user_and_its_text_is_older_than_all_its_rows(data):
    blocks = make_blocks(data, data.split.train, max_ads=8, merge_requests=True)
    assert sorted(row for block in blocks for row in block) == sorted(data.split.train)
    for block in blocks:
        assert len(set(data.log.user_id[block])) == 1
        assert len(block) <= 8
        assert data.log.time[block[0]] == data.log.time[block].min()
    by_request = make_blocks(data, data.split.train, max_ads=1000, merge_requests=False)
    assert all(len(set(data.log.request_id[block])) == 1 for block in by_request)


def test_a_batch_lines_up_users_ads_features_and_labels(data, tiny_bert):
    model, tokenizer = load_base(str(tiny_bert), "shared_user", 2, ModelShape(id_buckets=256))
    spec = train(data, tiny_options(tiny_bert, epochs=0)).spec
    features = np.arange(len(data.log) * len(FEATURES), dtype=np.float32).reshape(-1, len(FEATURES))
    ads = AdTexts(data, tokenizer, spec.max_ad_tokens)
    behaviour = np.arange(len(data.log), dtype=np.float32)
    of_position = -behaviour
    maker = BatchMaker(data, ads, features, behaviour, of_position, Ranker(model, tokenizer, spec), torch.device("cpu"))
    blocks = make_blocks(data, data.split.train, max_ads=4, merge_requests=True)[:3]
    batch = maker.batch(blocks)
    assert batch.pairs.ads_per_user == tuple(map(len, blocks))
    np.testing.assert_array_equal(batch.pairs.dense.numpy(), features[batch.rows])
    np.testing.assert_array_equal(batch.behaviour.numpy(), behaviour[batch.rows])
    np.testing.assert_array_equal(batch.of_position.numpy(), of_position[batch.rows])
    for place, row in enumerate(batch.rows):
        assert batch.ad_texts[place] == ads.texts[data.log.ad_id[row]]
    assert isinstance(model, SharedUserCrossEncoder)


@pytest.mark.parametrize("at", ["behaviour", "text"])
def test_a_killed_training_leaves_the_published_version_untouched(world, data, tiny_bert, at):
    store = open_store(world.model)
    before = store.current()

    def stop(step):
        if (step.stage, step.step) == (at, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), store.begin() as draft:
        train(data, tiny_options(tiny_bert), stop)
    assert store.current() == before
    assert not draft.path.exists()


def test_an_aggregated_log_without_users_and_times_trains(tmp_path, tiny_bert):
    write_world_files(tmp_path)
    random = np.random.default_rng(0)
    ads = [json.loads(line)["ad_id"] for line in (tmp_path / "ads.jsonl").read_text().splitlines()]
    lines = ["request_id,ad_id,clicks,impressions"]
    lines += [f"test{n // 3},{random.choice(ads)},{random.integers(0, 50)},{1000 + n}" for n in range(150)]
    (tmp_path / "tests.csv").write_text("\n".join(lines) + "\n")
    data = load_dataset(tmp_path / "ads.jsonl", tmp_path / "tests.csv", None)
    assert data.split_by == "request"
    trained = train(data, tiny_options(tiny_bert, epochs=0.5))
    evaluation = evaluate(data, trained)
    assert evaluation.impressions == data.log.impressions[data.split.test].sum()
    assert 0.3 < evaluation.predicted_over_actual < 3


@pytest.mark.gpu
def test_gpu_trains_and_predicts_as_the_cpu_does(data, tiny_bert):
    trained = train(data, tiny_options(tiny_bert, epochs=0.3, device="cuda", precision="float32"))
    on_gpu, on_cpu = (evaluate(data, trained, device=device, precision="float32") for device in ("cuda", "cpu"))
    for name, metric in on_gpu.metrics[RANKER].items():
        assert metric.value == pytest.approx(on_cpu.metrics[RANKER][name].value, abs=1e-4)


def test_a_log_without_a_click_is_refused(tmp_path, tiny_bert):
    write_world_files(tmp_path)
    lines = (tmp_path / "clicks.csv").read_text().splitlines()
    none = [lines[0], *(",".join([*line.split(",")[:4], "0", *line.split(",")[5:]]) for line in lines[1:])]
    (tmp_path / "none.csv").write_text("\n".join(none) + "\n")
    data = load_dataset(tmp_path / "ads.jsonl", tmp_path / "none.csv", None)
    with pytest.raises(InputError, match="no clicks to learn from: 0 clicks on 960 impressions"):
        train(data, tiny_options(tiny_bert))


@pytest.mark.parametrize("architecture", ["foo", ""])
def test_an_architecture_that_does_not_exist_is_refused(data, tiny_bert, architecture):
    with pytest.raises(ModelError, match="architecture must be shared_user or joint"):
        train(data, tiny_options(tiny_bert, architecture=architecture))


def test_a_log_of_unknown_ads_is_refused(world, tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text("request_id,ad_id,clicks,impressions\nr1,nobody,1,1\n")
    with pytest.raises(InputError, match="1 unknown_ad"):
        load_dataset(world.ads, bad, None)


def test_a_learning_rate_that_explodes_is_an_error_and_not_a_model(data, tiny_bert):
    with pytest.raises(TrainingError, match="not a number"):
        train(data, tiny_options(tiny_bert, learning_rate=1e30, head_learning_rate=1e30, epochs=5))
    with pytest.raises(TrainingError, match="lower --behaviour-learning-rate"):
        train(data, tiny_options(tiny_bert, behaviour_learning_rate=1e38))
