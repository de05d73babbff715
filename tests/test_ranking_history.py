"""A history before the log: what users look back on, and nothing that is counted, split, learned from or judged."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TOPICS, every_context_hash, every_feature, tiny_options
from typer.testing import CliRunner

from adcascade.records.counters import CounterSnapshot
from adcascade.records.errors import InputError
from pipeline.cli import app
from ranking.artifact import load_version
from ranking.data.behaviour_rows import BehaviourRows, behaviour_logits
from ranking.data.dataset import load_dataset
from ranking.data.log_report import report_on
from ranking.data.text_batches import AdTexts
from ranking.evaluation.evaluate import evaluate
from ranking.store import open_store
from ranking.training.train import train

BEGIN = 1_700_000_000  # of the made-up log, seconds
USERS = 40


def write_history(folder, *, users=USERS, times=(-180_000, -179_000, -178_001), name="history.csv"):
    """A click of each user on an ad of their topic at some seconds from the log's begin."""
    topics = list(TOPICS)
    lines = ["user_id,ad_id,timestamp"]
    for user in range(users):
        lines += [f"u{user},{topics[user % 3]}-{(user + time) % 20},{BEGIN + time}" for time in times]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def load(world, history=None, **options):
    return load_dataset(world.ads, world.clicks, world.users, history=history, **options)


@pytest.fixture(scope="module")
def plain(world):
    return load(world)


@pytest.fixture(scope="module")
def data(world, tmp_path_factory):
    return load(world, write_history(tmp_path_factory.mktemp("history")))


def test_nothing_that_is_counted_or_split_changes(data, plain):
    assert len(data.history) == 3 * USERS
    assert len(data.log) == len(plain.log)
    for part, want in zip(data.split, plain.split, strict=True):
        np.testing.assert_array_equal(part, want)
    assert data.prior_ctr == plain.prior_ctr
    assert data.feature_names == plain.feature_names
    features = every_feature(data, data.prior_ctr, data.feature_names)
    np.testing.assert_array_equal(features, every_feature(plain, plain.prior_ctr, plain.feature_names))
    np.testing.assert_array_equal(every_context_hash(data), every_context_hash(plain))
    np.testing.assert_array_equal(data.request_rows, plain.request_rows)
    found, want = (CounterSnapshot.of(one.log, one.keys).totals for one in (data, plain))
    assert {key: dict(totals) for key, totals in found.items()} == {key: dict(one) for key, one in want.items()}
    assert report_on(data) == report_on(plain)


def test_users_look_back_on_it_from_their_first_row_on(data, plain):
    first = int(np.flatnonzero(data.log.user_id == "u1")[0])
    assert "coffee" not in plain.user_text(first)
    for time in (-180_000, -179_000, -178_001):
        title = data.ads[f"coffee-{(1 + time) % 20}"].title
        assert title in data.user_text(first)
    assert len(data.histories.before("u1", BEGIN * 1_000_000, 10)) == 3
    assert plain.histories.before("u1", BEGIN * 1_000_000, 10) == ()


def test_an_event_is_seen_by_later_rows_alone(world, plain, tmp_path):
    rows = np.arange(len(plain.log))
    moment = int(plain.log.time[len(rows) // 2] // 1_000_000) - BEGIN  # of some rows of the log
    planted = load(world, write_history(tmp_path, times=(moment,)))
    kept = set(planted.history.user_id)  # without those who meet the ad in the log within a day
    assert len(kept) == len(planted.history) > USERS // 4
    more = np.diff(planted.past.spans(rows, 200).recent()[0]) - np.diff(plain.past.spans(rows, 200).recent()[0])
    later = (plain.log.time > (BEGIN + moment) * 1_000_000) & plain.log.user_id.among(kept)
    np.testing.assert_array_equal(more, later)
    assert planted.user_texts(rows[~later]) == plain.user_texts(rows[~later])
    after = load(world, write_history(tmp_path, times=(10_000_000,)))
    assert after.user_texts(rows) == plain.user_texts(rows)


def test_the_attention_reads_it_and_no_event_of_the_future(world, data, plain, tmp_path):
    store = open_store(world.model)
    loaded = load_version(store, store.current())

    def logits(some):
        ads = AdTexts(some, loaded.tokenizer, loaded.spec.max_ad_tokens)
        rows = BehaviourRows(some, ads, loaded, torch.device("cpu"))
        return behaviour_logits(loaded.model.behaviour, rows, np.arange(len(some.log))).click

    without = logits(plain)
    assert ((logits(data) - without).abs() > 1e-4).float().mean() > 0.9
    future = logits(load(world, write_history(tmp_path, times=(10_000_000,))))
    torch.testing.assert_close(future, without, atol=1e-5, rtol=1e-5)


def test_another_history_is_another_training(world, data, plain, tmp_path):
    fewer = load(world, write_history(tmp_path, times=(-180_000,)))
    assert len({one.training_sha256 for one in (plain, data, fewer)}) == 3
    assert data.is_training_of(data.training_sha256)
    assert not data.is_training_of(plain.training_sha256)
    assert replace(data, history=None).training_sha256 == plain.training_sha256


def test_a_training_and_its_baselines_take_a_history(data, tiny_bert):
    trained = train(data, tiny_options(tiny_bert, epochs=0.2))
    evaluation = evaluate(data, trained, which_baselines="fast")
    assert evaluation.impressions == len(data.split.test)


@pytest.mark.parametrize("split", ["random", "request", "ad"])
def test_a_split_that_does_not_look_back_in_time_takes_none(world, tmp_path, split):
    with pytest.raises(InputError, match=f"with a split by {split} no row looks back in time"):
        load(world, write_history(tmp_path), split=split)


def test_a_log_without_times_takes_none(world, tmp_path):
    lines = [",".join([*row[:3], *row[4:]]) for row in (line.split(",") for line in world.clicks.open())]
    (tmp_path / "clicks.csv").write_text("".join(lines))
    with pytest.raises(InputError, match="give a log with timestamps"):
        load_dataset(world.ads, tmp_path / "clicks.csv", None, history=write_history(tmp_path))


@pytest.mark.parametrize("split", ["user", "none"])
def test_other_splits_by_time_take_one(world, tmp_path, split):
    assert len(load(world, write_history(tmp_path), split=split).history) == 3 * USERS


def test_the_commands_take_a_history_and_say_what_is_in_it(world, tiny_bert, tmp_path):
    history = write_history(tmp_path, users=USERS + 2)
    files = ["--ads", world.ads, "--clicks", world.clicks, "--users", world.users, "--history", history]
    how = ["--epochs", 0, "--behaviour-epochs", 1, "--behaviour-min-steps", 5, "--no-export", "--baselines", "none"]

    def run(*arguments):
        ran = CliRunner().invoke(app, [str(one) for one in arguments])
        assert ran.exit_code == 0, ran.output
        return ran

    ran = run("train", *files, "--out", tmp_path / "model", "--base", tiny_bert, *how, "--json")
    assert json.loads(ran.stdout)["rows"] == 1200
    said = " ".join(ran.stderr.split())
    assert "adds 120 events of 40 users; left out: 6 of users that the log does not have." in said
    again = run("evaluate", "--model", tmp_path / "model", *files, "--baselines", "none", "--json")
    assert json.loads(again.stdout)["test"]["impressions"] == 120
