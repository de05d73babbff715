"""Training with each of its options, on a made-up world: they do what they say, and can be served."""

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_options, write_world_files

from adcascade.artifacts.errors import ArtifactError
from ranking.artifact import load_version
from ranking.data.dataset import load_dataset
from ranking.errors import ModelError
from ranking.evaluation.predict import predict
from ranking.evaluation.report import text_fit_line
from ranking.evaluation.request_metrics import pair_accuracies
from ranking.evaluation.results import RANKER
from ranking.inputs.features import FEATURES
from ranking.store import open_store
from ranking.training.run import REPORT_FILE, REPORT_JSON_FILE, _unfinished, train_and_save
from ranking.training.train import _calibration_blocks, train


@pytest.fixture(scope="module")
def data(world):
    return load_dataset(world.ads, world.clicks, world.users)


def weights_of(trained):
    return trained.model.state_dict()


@pytest.mark.parametrize("at", [("behaviour", 120), ("text", 3)])
def test_a_killed_training_goes_on_to_the_same_model(data, tiny_bert, tmp_path, at):
    options = tiny_options(tiny_bert, epochs=0.5, behaviour_min_steps=150)  # a checkpoint after 100
    whole, steps = [], []
    want = train(data, options, lambda step: whole.append(step.stage))

    def kill(step):
        if (step.stage, step.step) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, options, kill, checkpoints=tmp_path)
    found = train(data, options, lambda step: steps.append(step.stage), checkpoints=tmp_path)
    assert steps.count("behaviour") <= whole.count("behaviour") - 100
    for name, weight in weights_of(found).items():
        assert torch.equal(weight, weights_of(want)[name]), name
    assert found.spec == want.spec


def test_a_finished_training_leaves_no_checkpoints_and_a_report(data, tiny_bert, tmp_path):
    report = train_and_save(data, tmp_path, tiny_options(tiny_bert, epochs=0.2))
    assert not list((tmp_path / "unfinished").iterdir())
    folder = open_store(tmp_path).path(report.version)
    page = (folder / REPORT_FILE).read_text()
    assert page.count("<svg") >= 6
    assert "LightGBM on all features" in page
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*', page)  # it needs nothing but itself
    document = json.loads((folder / REPORT_JSON_FILE).read_text())
    assert document["test"]["metrics"][RANKER]["auc"]["value"] > 0.6
    assert {"ad", "user", "events before", "hour"} <= {part["name"] for part in document["test"]["slices"]}
    assert open_store(tmp_path).verify(report.version)


def test_adapters_train_little_and_are_merged_away(data, tiny_bert):
    options = tiny_options(tiny_bert, epochs=1, lora_rank=2, min_text_gain=-1.0, join_layer=2, learning_rate=1e-2)
    trained = train(data, options)
    before = train(data, tiny_options(tiny_bert, epochs=0, join_layer=2))
    changed = {
        name for name, weight in weights_of(trained).items() if not torch.equal(weight, weights_of(before)[name])
    }
    assert set(weights_of(trained)) == set(weights_of(before))  # no trace of adapters
    of_encoder = {name for name in changed if name.startswith("encoder.")}
    assert of_encoder
    assert all(".layer.2.attention.self." in name and name.endswith(".weight") for name in of_encoder)
    assert any(name.startswith("head.") for name in changed)


@pytest.fixture(scope="module")
def paradox(tmp_path_factory):
    """Good ads win within every request, but stand mostly in requests where nobody clicks (Simpson 1951)."""
    folder, random = tmp_path_factory.mktemp("paradox"), np.random.default_rng(0)
    ads, lines = [], ["request_id,ad_id,clicks,impressions"]
    for request in range(120):
        rate, kinds = (0.4, "gbbbb") if request % 2 else (0.04, "ggggb")
        for kind in kinds:
            ad_id, name = f"ad-{len(ads)}", {"g": "good", "b": "bad"}[kind]
            ads.append({"ad_id": ad_id, "title": f"{name} offer {len(ads)}", "category": name})
            clicks = random.binomial(2000, rate * (1.5 if kind == "g" else 1.0))
            lines.append(f"test-{request},{ad_id},{clicks},2000")
    (folder / "ads.jsonl").write_text("".join(json.dumps(ad) + "\n" for ad in ads))
    (folder / "clicks.csv").write_text("\n".join(lines) + "\n")
    data = load_dataset(folder / "ads.jsonl", folder / "clicks.csv", None)
    # What stands beside an ad tells of which kind its request is, so it is not read.
    data.__dict__["feature_names"] = FEATURES
    return data


def right_pairs(data, base, **options):
    """Share of pairs of a request that differ for certain and are in the right order, on the test part."""
    trained = train(data, tiny_options(base, epochs=0, **options))
    cpu = torch.device("cpu")
    found = predict(data, trained, data.split.test, cpu, "float32")
    log = data.log.take(found.rows)
    return pair_accuracies(found.logits, log.clicks, log.impressions, data.groups[found.rows])[1]


@pytest.mark.parametrize("kind", ["listwise", "pairwise"])
def test_a_loss_within_requests_learns_the_order_that_click_rates_hide(paradox, tiny_bert, kind):
    assert right_pairs(paradox, tiny_bert) < 0.7
    assert right_pairs(paradox, tiny_bert, group_loss=kind, group_weight=1.0) > 0.9


def test_the_text_gets_the_time_that_behaviour_leaves(data, tiny_bert):
    told = []

    def watch(step):
        told.append((step.stage, step.done, time.monotonic()))

    train(data, tiny_options(tiny_bert, epochs=1000, max_minutes=0.1, behaviour_share=0.05, patience=10**6), watch)
    of_text = [moment for stage, _, moment in told if stage == "text"]
    assert of_text[-1] - of_text[0] > 0.5 * 6  # seconds; by its own share, behaviour has 0.3 of them
    assert told[-1][:2] == ("text", 1.0)


def test_thinned_negatives_give_probabilities_of_the_whole_log(data, tiny_bert, tmp_path):
    report = train_and_save(data, tmp_path, tiny_options(tiny_bert, epochs=0, negative_rate=0.3))
    spec = load_version(open_store(tmp_path), report.version).spec
    assert report.evaluation.predicted_over_actual == pytest.approx(1, abs=0.2)
    assert report.evaluation.metrics[RANKER]["auc"].value > 0.7
    assert spec.training["negative_rate"] == 0.3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"group_loss": "listwize"}, "group_loss must be none or listwise or pairwise"),
        ({"train_layers": "some"}, "train_layers must be joined or all"),
        ({"negative_rate": 0.0}, "negative_rate must be above 0"),
        ({"conversions_over": "everything"}, "conversions_over must be impressions or clicks"),
    ],
)
def test_an_option_that_does_not_exist_is_refused(data, tiny_bert, wrong, message):
    with pytest.raises(ModelError, match=message):
        train(data, tiny_options(tiny_bert, **wrong))


def test_a_warm_start_goes_on_from_an_earlier_version(data, world, tiny_bert, tmp_path):
    options = tiny_options(tiny_bert, epochs=0, warm_start=str(world.model), behaviour_epochs=0)
    store = open_store(world.model)
    before = load_version(store, store.current())
    same = train(data, options)
    for name, weight in same.model.state_dict().items():
        assert torch.equal(weight, before.model.state_dict()[name]), name
    assert ("as the earlier version had them" in text_fit_line(same.text_fit)) is same.text_fit.reads_text
    few_rows = data.with_split(data.split._replace(train=data.split.train[:60]))
    small = tiny_options(tiny_bert, epochs=0, behaviour_min_steps=20)
    warm = train(few_rows, small.but(warm_start=f"{world.model}@{before.version}"))
    cold = train(few_rows, small)
    assert warm.text_fit.loss_before < cold.text_fit.loss_before - 0.02


def test_adapters_leave_a_classifiers_own_head_to_be_trained(data, tiny_bert):
    options = tiny_options(tiny_bert, architecture="joint", epochs=0.5, lora_rank=2, min_text_gain=-1.0, trees="none")
    trained, before = train(data, options), train(data, options.but(epochs=0, lora_rank=0))
    changed = {
        name for name, weight in weights_of(trained).items() if not torch.equal(weight, weights_of(before)[name])
    }
    assert "encoder.classifier.weight" in changed
    assert not any("intermediate" in name or "embeddings" in name for name in changed)


def test_a_warm_start_from_nothing_or_another_kind_is_refused(data, world, tiny_bert, tmp_path):
    with pytest.raises(ArtifactError):
        train(data, tiny_options(tiny_bert, warm_start=str(tmp_path)))
    with pytest.raises(ModelError, match="is shared_user, not joint"):
        train(data, tiny_options(tiny_bert, warm_start=str(world.model), architecture="joint"))


def test_tensorboard_files_are_written(data, tiny_bert, tmp_path):
    train_and_save(data, tmp_path / "model", tiny_options(tiny_bert, epochs=0, tensorboard=tmp_path / "curves"))
    assert [file.name for file in (tmp_path / "curves").glob("events.out.tfevents*")]


def test_the_place_on_the_page_is_learned_and_left_out_of_scores(tmp_path, tiny_bert):
    write_world_files(tmp_path, users=60)
    random = np.random.default_rng(0)
    lines = (tmp_path / "clicks.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    with_place = [lines[0] + ",position"]
    for number, row in enumerate(rows):
        place = 1 + number % 6
        row[4] = str(int(row[4]) if random.random() < 1.2 - 0.2 * place else 0)
        with_place.append(",".join([*row, str(place)]))
    (tmp_path / "clicks.csv").write_text("\n".join(with_place) + "\n")
    data = load_dataset(tmp_path / "ads.jsonl", tmp_path / "clicks.csv", None)
    model = train(data, tiny_options(tiny_bert, epochs=0)).model.behaviour
    effects = model.positions.weight[:7, 0].detach()
    assert effects[0] == 0
    assert effects[1] > effects[3] > effects[6]
    assert float(effects[1:].mean()) == pytest.approx(0, abs=0.05)


def test_calibration_takes_its_own_number_of_rows_if_text_is_read(data, tiny_bert):
    options = tiny_options(tiny_bert, epochs=0)
    model = train(data, options).model
    everything = len(data.split.valid)
    rows = {"no text": sum(map(len, _calibration_blocks(model, data, options.but(calibration_rows=20))))}
    model.head.wide.weight.data.fill_(0.1)
    for wanted in (20, 60):
        rows[wanted] = sum(map(len, _calibration_blocks(model, data, options.but(calibration_rows=wanted))))
    assert 20 <= rows[20] < rows[60] < rows["no text"] == everything


@pytest.mark.parametrize("changed", ["position", "context", "users"])
def test_a_training_on_other_data_does_not_go_on_from_a_killed_one(data, tiny_bert, tmp_path, changed):
    log = data.log
    others = {
        "position": lambda: replace(data, log=replace(log, position=log.position + 1)),
        "context": lambda: replace(data, log=replace(log, context={**log.context, "page": log.request_id})),
        "users": lambda: replace(data, users={}),
    }
    options = tiny_options(tiny_bert)
    assert _unfinished(data, Path(), options) == _unfinished(replace(data), Path(), options)
    assert _unfinished(others[changed](), Path(), options) != _unfinished(data, Path(), options)
