"""Slices, peers, the data report and recalibration on made-up logs."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import every_feature, tiny_options

from adcascade.records.clicks import NO_TIME
from adcascade.records.errors import InputError
from ranking.artifact import load_version, save_derived
from ranking.calibration.calibration import Calibration
from ranking.calibration.recalibrate import recalibrate
from ranking.data.dataset import load_dataset
from ranking.data.log_report import report_on
from ranking.evaluation.baselines import (
    ALL_FEATURES,
    BI_ENCODER,
    CLICK_RATES,
    COUNTER_TREES,
    COUNTERS,
    FROZEN_LAYERS,
    IDS,
    POPULARITY,
    TREES,
    ZERO_SHOT,
)
from ranking.evaluation.evaluate import evaluate
from ranking.evaluation.report import log_lines
from ranking.evaluation.results import RANKER
from ranking.evaluation.slices import slices
from ranking.inputs.features import FEATURES
from ranking.store import open_store
from ranking.training.commands import show_log
from ranking.training.run import train_and_save
from ranking.training.train import train
from ranking.training.versions import load_named, warn_of_rows_it_knows

_YEAR = 365 * 86_400 * 1_000_000  # microseconds


@pytest.fixture(scope="module")
def data(world):
    return load_dataset(world.ads, world.clicks, world.users)


@pytest.fixture(scope="module")
def evaluation(data, tiny_bert):
    trained = train(data, tiny_options(tiny_bert, epochs=0))
    return evaluate(data, trained, which_baselines="all", threshold=0.4)


def test_every_peer_is_measured_and_compared(evaluation):
    of_text = {BI_ENCODER, ZERO_SHOT, FROZEN_LAYERS}
    of_features = {ALL_FEATURES, TREES, COUNTERS, COUNTER_TREES}
    assert set(evaluation.metrics) == {RANKER, POPULARITY, CLICK_RATES, IDS} | of_features | of_text
    assert set(evaluation.differences) == set(evaluation.metrics) - {RANKER}
    for name, difference in evaluation.differences.items():
        for metric, value in difference.items():
            want = evaluation.metrics[RANKER][metric].value - evaluation.metrics[name][metric].value
            assert value.value == pytest.approx(want)


def test_a_peer_that_reads_likes_beats_one_that_does_not(evaluation):
    aucs = {name: metrics["auc"].value for name, metrics in evaluation.metrics.items()}
    assert aucs[TREES] > aucs[POPULARITY] + 0.1  # it sees the user's clicks by category
    assert aucs[BI_ENCODER] > aucs[POPULARITY] + 0.1


def test_slices_part_the_whole(evaluation):
    for name in {part.name for part in evaluation.slices}:
        parts = [part for part in evaluation.slices if part.name == name]
        assert sum(part.impressions for part in parts) == evaluation.impressions, name
        assert sum(part.clicks for part in parts) == evaluation.clicks, name
        assert len({part.label for part in parts}) == len(parts)


def test_curves_run_from_nothing_to_everything(evaluation):
    for name, curves in evaluation.curves.items():
        for points in (curves.roc, curves.gain):
            assert points[0] == (0, 0), name
            assert points[-1] == (1, 1), name
            assert (np.diff(np.array(points), axis=0) >= 0).all(), name


def test_surprises_are_wrong_and_of_different_ads(evaluation):
    assert len({row.ad_id for row in evaluation.worst_errors}) == len(evaluation.worst_errors) == 10
    assert all(abs(row.p_click - row.clicks / row.impressions) > 0.5 for row in evaluation.worst_errors[:3])
    assert all(row.ad_text and row.user_text for row in evaluation.worst_errors)


def test_labels_of_slices_are_what_they_say(data):
    rows = data.split.test
    labels = dict(slices(data, rows))
    seen = set(data.log.ad_id[data.split.train])
    assert [label == "in training" for label in labels["ad"]] == [ad in seen for ad in data.log.ad_id[rows]]
    hours = (data.log.time[rows] // 3_600_000_000) % 24
    assert all(int(label[:2]) <= hour <= int(label[3:]) for label, hour in zip(labels["hour"], hours, strict=True))
    assert "position" not in labels  # no row has one
    with_places = replace(data, log=replace(data.log, position=1 + np.arange(len(data.log)) % 7))
    places = dict(slices(with_places, rows))["position"]
    assert sorted(set(places)) == [" 1", " 2", " 3", " 4 to 5", " 6 to 10"]


def test_a_test_without_clicks_is_evaluated_and_says_what_it_cannot_know(data, tiny_bert):
    trained = train(data, tiny_options(tiny_bert, epochs=0))
    quiet = data.with_split(data.split._replace(test=data.split.test[data.log.clicks[data.split.test] == 0]))
    found = evaluate(quiet, trained)
    assert found.clicks == 0
    assert np.isnan(found.metrics[RANKER]["auc"].value)
    assert found.metrics[RANKER]["log_loss"].value > 0


def test_an_empty_test_is_an_error(data, tiny_bert):
    trained = train(data, tiny_options(tiny_bert, epochs=0))
    empty = data.with_split(data.split._replace(test=np.empty(0, np.int64)))
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate(empty, trained)


def test_the_data_report_counts_what_is_there(data, world, tmp_path):
    lines = world.clicks.read_text().splitlines()
    path = tmp_path / "clicks.csv"
    path.write_text("\n".join([*lines, lines[5], lines[5]]) + "\n")
    facts = report_on(load_dataset(world.ads, path, world.users))
    assert (facts.rows, facts.duplicates) == (1202, 2)
    assert (facts.ads, facts.users, facts.requests) == (60, 40, 200)
    assert sum(day.impressions for day in facts.days) == 1202
    assert sum(day.clicks for day in facts.days) == facts.clicks
    text = log_lines(facts)
    assert "2 rows repeat" in text
    assert "CTR by day" in text
    assert report_on(data).duplicates == 0


def test_the_data_report_finds_clicks_from_before_an_ad_began(world, tmp_path):
    ads = [json.loads(line) for line in world.ads.read_text().splitlines()]
    late = [{**ad, "start_time": "2030-01-01T00:00:00Z"} if ad["ad_id"] == "coffee-1" else ad for ad in ads]
    (tmp_path / "ads.jsonl").write_text("".join(json.dumps(ad) + "\n" for ad in late))
    data = load_dataset(tmp_path / "ads.jsonl", world.clicks, world.users)
    facts = report_on(data)
    assert facts.clicks_before_shown == data.log.clicks[data.log.ad_id == "coffee-1"].sum() > 0
    assert "older than the start of their ad" in log_lines(facts)


def test_unseen_ads_are_reported(world):
    facts = report_on(load_dataset(world.ads, world.clicks, world.users, split="ad"))
    assert facts.unseen_ads == 1
    assert facts.unseen_users < 0.1


@pytest.fixture
def root(world, tmp_path):
    import shutil

    shutil.copytree(world.model, tmp_path / "model")
    return tmp_path / "model"


def later(world):
    """The log of the world, a year on."""
    data = load_dataset(world.ads, world.clicks, world.users, split="none")
    return replace(data, log=replace(data.log, time=data.log.time + _YEAR))


def test_recalibration_makes_a_new_version_that_differs_in_calibration_alone(world, root):
    store = open_store(root)
    good = load_version(store, store.current())
    off = good.spec.model_copy(update={"calibration": Calibration(method="platt", slope=1.0, intercept=2.5)})
    before = load_version(store, save_derived(store, good, off, publish=True))
    data = later(world)
    found = recalibrate(store, "", data)
    assert found.rows == len(data.log)
    after = load_version(store, store.current())
    assert (found.source, found.version) == (before.version, after.version)
    assert abs(np.log(found.before)) > 0.5
    assert found.after == pytest.approx(1, abs=0.02)
    assert after.spec.calibration == found.calibration != before.spec.calibration
    same = {"calibration": Calibration(), "metrics": {}}
    assert after.spec.model_copy(update=same) == before.spec.model_copy(update=same)
    for name, weight in after.model.state_dict().items():
        assert weight.equal(before.model.state_dict()[name]), name


def test_recalibration_needs_both_classes(world, root):
    data = later(world)
    without = replace(data, log=replace(data.log, clicks=0 * data.log.clicks))
    with pytest.raises(InputError, match="impressions with a click"):
        recalibrate(open_store(root), "", without)


def test_rows_that_a_version_has_counted_do_not_calibrate_it(world, root):
    store, data = open_store(root), load_dataset(world.ads, world.clicks, world.users, split="none")
    with pytest.raises(InputError, match=r"newer than .* UTC, where the counters of version"):
        recalibrate(store, "", data)
    place = np.arange(len(data.log))
    fresh = replace(data.log, time=np.where(place < 100, NO_TIME, data.log.time + _YEAR * (place >= 900)))
    assert recalibrate(store, "", replace(data, log=fresh)).rows == 300


def test_a_version_that_knows_no_times_may_be_calibrated_on_rows_it_knows(world, tiny_bert, tmp_path, caplog):
    lines = [",".join([*row[:3], *row[4:]]) for row in (line.split(",") for line in world.clicks.open())]
    (tmp_path / "clicks.csv").write_text("".join(lines))
    data = load_dataset(world.ads, tmp_path / "clicks.csv", None)
    train_and_save(data, tmp_path / "model", tiny_options(tiny_bert, epochs=0), which_baselines="none")
    warn_of_rows_it_knows(load_named(str(tmp_path / "model")), data)
    assert "rows that it knows may be tested" not in caplog.text
    every = load_dataset(world.ads, tmp_path / "clicks.csv", None, split="none")
    assert recalibrate(open_store(tmp_path / "model"), "", every).rows == 1200
    warn_of_rows_it_knows(load_named(str(tmp_path / "model")), data)
    assert "rows that it knows may be tested" in caplog.text


def test_recalibration_scores_with_the_counters_of_the_version(world, root):
    loaded = load_version(open_store(root), open_store(root).current())
    data = replace(later(world), counters=loaded.counters)
    found = every_feature(data, loaded.spec.prior_ctr)
    shown, recency = (found[:, FEATURES.index(name)] for name in ("ad_impressions_log", "ad_recency_log"))
    totals = loaded.counters.totals["ad"]
    assert shown == pytest.approx(np.log1p([totals[ad_id].impressions for ad_id in data.log.ad_id]))
    # A year later counters are as old as a server would take them to be: a day beyond their end.
    oldest = [(loaded.counters.end + 86_400 - totals[ad_id].last) / 3600 for ad_id in data.log.ad_id]
    assert recency == pytest.approx(np.log1p(oldest), rel=1e-5)


def test_the_command_recalibrates_and_says_what_changed(world, root, tmp_path):
    header, *lines = world.clicks.read_text().splitlines()
    cells = [line.split(",") for line in lines]
    fresh = [",".join([*row[:3], str(int(row[3]) + _YEAR // 1_000_000), *row[4:]]) for row in cells]
    clicks = tmp_path / "fresh.csv"
    clicks.write_text("\n".join([header, *fresh]))
    command = [sys.executable, "-m", "pipeline.cli", "calibrate", "--model", root, "--ads", world.ads]
    done = subprocess.run(
        [*map(str, command), "--clicks", str(clicks), "--users", str(world.users), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    document = json.loads(done.stdout)
    assert document["version"] == open_store(root).current()
    assert document["predicted_over_actual"]["after"] == pytest.approx(1, abs=0.05)
    assert "1,200 rows" in done.stderr


def test_only_the_newest_rows_are_used_and_older_ones_are_told_of(world, capsys):
    data = load_dataset(world.ads, world.clicks, world.users, newest=500)
    whole = load_dataset(world.ads, world.clicks, world.users).log
    assert data.log.request_id.tolist() == whole.request_id[-500:].tolist()
    assert sum(map(len, data.split)) == 500
    show_log(data)
    assert "700 older rows were left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "is_warned_of"),
    [({}, False), ({"split": "request"}, True), ({"split": "random", "seed": 1}, True), ({"newest": 1000}, True)],
)
def test_a_version_that_may_know_what_is_tested_is_warned_of(world, caplog, other, is_warned_of):
    data = load_dataset(world.ads, world.clicks, world.users, **other)
    warn_of_rows_it_knows(load_named(str(world.model)), data)
    assert ("rows that it knows may be tested" in caplog.text) == is_warned_of


def test_without_the_libraries_of_reports_the_error_says_what_to_install():
    script = "import sys; sys.modules['matplotlib'] = None; import ranking.evaluation.page"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "ModelError: reports need matplotlib: pip install 'adcascade[train]'" in ended.stderr
