"""Trainings of towers that were killed: the next one goes on to the same towers, and takes up nothing of another."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_towers

from adcascade.records.users import UserProfile
from adcascade.towers.artifact import load_published_towers
from adcascade.towers.store import open_store
from adcascade.towers.training.train import _unfinished, train_and_save, train_towers
from adcascade.vectors.encoder import load_encoder

ENCODER = load_encoder("hashing:64")
# 40 users: five steps a pass, 150 in all, against a sample of the ads, so that all that is drawn is drawn.
OPTIONS = tiny_towers(epochs=30, users_per_step=8, sampled_above=10, sampled_ads=16, hard_negatives=8)


class KilledError(Exception):
    pass


def weights_of(trained):
    return trained.spec.model_dump(exclude={"passes"})


@pytest.fixture(scope="module")
def untouched(tower_data):
    """What a training that nobody killed makes."""
    return train_towers(tower_data, ENCODER, OPTIONS)


@pytest.mark.parametrize(("stage", "at"), [("choose", 130), ("train", 103)])
def test_a_killed_training_goes_on_to_the_same_towers(tower_data, untouched, tmp_path, stage, at):
    def kill(step):
        if (step.stage, step.step) == (stage, at):
            raise KilledError

    with pytest.raises(KilledError):
        train_and_save(tower_data, ENCODER, tmp_path, OPTIONS, watch=kill)
    assert open_store(tmp_path).versions() == []
    told = []
    report = train_and_save(tower_data, ENCODER, tmp_path, OPTIONS, publish_anyway=True, watch=told.append)
    first = {name: next((step.step for step in told if step.stage == name), None) for name in ("choose", "train")}
    assert first == ({"choose": 101, "train": 0} if stage == "choose" else {"choose": None, "train": 101})
    assert weights_of(load_published_towers(tmp_path)) == weights_of(untouched)
    assert [passes.steps for passes in report.spec.passes.values()] == [150, 150]
    assert not list((tmp_path / "unfinished").iterdir())


def test_the_time_before_a_kill_counts(tower_data, tmp_path):
    """Three seconds of a limit of thirty a stage went by before the checkpoint."""
    options = replace(OPTIONS, epochs=10**6, max_minutes=1.0)
    told = []

    def kill(step):
        told.append(step)
        if step.step == 50:
            time.sleep(3)
        if step.step == 101:
            raise KilledError

    for _ in range(2):
        with pytest.raises(KilledError):
            train_towers(tower_data, ENCODER, options, kill, checkpoints=tmp_path)
    before, after = (step.done for step in told if step.step == 101)
    assert before > 0.1
    assert after > 0.1


def test_the_checkpoint_of_other_weights_to_begin_with_is_not_taken_up(tower_data, tmp_path, caplog):
    def kill(step):
        if step.step == 110:
            raise KilledError

    with pytest.raises(KilledError):
        train_towers(tower_data, ENCODER, OPTIONS, kill, checkpoints=tmp_path)
    assert (tmp_path / "choose.safetensors").exists()
    told = []
    other = train_towers(tower_data, ENCODER, replace(OPTIONS, seed=1), told.append, checkpoints=tmp_path)
    assert told[0].step == 0
    assert "the stage 'choose' begins again" in caplog.text
    alone = train_towers(tower_data, ENCODER, replace(OPTIONS, seed=1))
    assert weights_of(other) == weights_of(alone)


def test_every_input_of_a_training_has_a_folder_of_checkpoints_of_its_own(tower_data, tmp_path):
    data, log, split = tower_data, tower_data.log, tower_data.split
    clicks, texts, conversions = log.clicks.copy(), data.texts.copy(), log.conversions.copy()
    row = int(split.train[0])
    clicks[row], conversions[row] = 1 - clicks[row], 1 - conversions[row]
    texts[0] = -texts[0]
    user = next(iter(data.users))
    others = {
        "a click": (replace(data, log=replace(log, clicks=clicks)), OPTIONS),
        "a conversion": (replace(data, log=replace(log, conversions=conversions)), OPTIONS),
        "a context": (replace(data, log=replace(log, context={**log.context, "page": log.user_id})), OPTIONS),
        "a text": (replace(data, texts=texts), OPTIONS),
        "an attribute": (replace(data, users={**data.users, user: UserProfile(user, attributes={"a": "b"})}), OPTIONS),
        "the split": (replace(data, split=replace(split, fit=split.fit[:-1])), OPTIONS),
        "an option": (data, replace(OPTIONS, dropout=0.21)),
        "the time": (data, replace(OPTIONS, max_minutes=1.0)),
    }
    folders = {name: _unfinished(one, ENCODER, tmp_path, options) for name, (one, options) in others.items()}
    folders["the encoder"] = _unfinished(data, load_encoder("hashing:32"), tmp_path, OPTIONS)
    folders["nothing"] = _unfinished(data, ENCODER, tmp_path, OPTIONS)
    assert len(set(folders.values())) == len(folders)
    assert folders["nothing"] == _unfinished(replace(data, texts=np.array(data.texts)), ENCODER, tmp_path, OPTIONS)


def test_a_command_that_was_killed_goes_on_where_it_was(world, tmp_path):
    flags = ["--encoder", "hashing:64", "--width", "32", "--heads", "2", "--history", "40", "--users-per-step", "8"]
    paths = ["--ads", world.ads, "--clicks", world.clicks, "--users", world.users, "--publish-anyway"]
    command = [sys.executable, "-m", "pipeline.cli", "train-retrieval", *paths, *flags, "--epochs", "40", "--out"]

    def run(root):
        return subprocess.Popen([*map(str, command), str(root)], stderr=subprocess.PIPE, text=True, env=os.environ)

    with run(tmp_path / "killed") as killed:
        while killed.poll() is None and not list((tmp_path / "killed" / "unfinished").glob("*/*.safetensors")):
            time.sleep(0.005)
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL, "it ended before it could be killed"
    (checkpoint,) = (tmp_path / "killed" / "unfinished").glob("*/choose.safetensors")
    written = checkpoint.read_bytes()
    assert written
    for root in (tmp_path / "killed", tmp_path / "alone"):
        with run(root) as process:
            said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said
        assert "begins again" not in said
    went_on, alone = (load_published_towers(tmp_path / name) for name in ("killed", "alone"))
    assert weights_of(went_on) == weights_of(alone)
    assert not list((tmp_path / "killed" / "unfinished").iterdir())
