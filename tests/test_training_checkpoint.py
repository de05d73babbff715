"""Damaged and foreign checkpoints of a training: each is refused, said so, and the training begins again."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import save_tiny_bert, tiny_options
from safetensors import safe_open
from safetensors.torch import save_file
from test_training_loop import PLAN, KilledError, fit

from adcascade.training.checkpoint import Checkpoint
from ranking.data.dataset import load_dataset
from ranking.training.train import train

WEIGHT = "weight/1.weight"


@pytest.fixture
def killed(tmp_path):
    """The plan of a run that was killed at its step 13, and the bytes of its checkpoint."""
    plan = replace(PLAN, checkpoint=tmp_path / "run" / "test.safetensors", checkpoint_every=4, identity="of this run")
    with pytest.raises(KilledError):
        fit(plan, kill_at=13)
    return plan, plan.checkpoint.read_bytes()


@pytest.fixture(scope="module")
def untouched():
    """Weights and fit of a run that nobody killed."""
    return fit(PLAN)[:2]


def read(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata()  # noqa: SIM118


def alter(path, change_tensors=lambda _: None, change_numbers=lambda _: None):
    tensors, numbers = read(path)
    change_tensors(tensors)
    change_numbers(numbers)
    save_file(tensors, path, numbers)


def tensor(name, value):
    return lambda path: alter(path, lambda tensors: tensors.update({name: value}))


def number(name, value):
    return lambda path: alter(path, change_numbers=lambda numbers: numbers.update({name: value}))


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "cut in its header": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "garbage": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "a lying header": lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
    "a pickle": lambda path: torch.save({"weight": torch.ones(3)}, path),
    "NaN weight": tensor(WEIGHT, torch.tensor([[1.0, float("nan"), 2.0]])),
    "infinite moment": tensor("optimizer/1.weight/exp_avg", torch.full((1, 3), float("inf"))),
    "another shape": tensor(WEIGHT, torch.ones(1, 4)),
    "moment of another shape": tensor("optimizer/1.weight/exp_avg", torch.ones(7)),
    "a weight too many": tensor("weight/2.weight", torch.ones(3)),
    "a state too many": tensor("optimizer/2.weight/exp_avg", torch.ones(3)),
    "another name": tensor("nonsense", torch.ones(3)),
    "a weight less": lambda path: alter(path, lambda tensors: tensors.pop(WEIGHT)),
    "a number less": lambda path: alter(path, change_numbers=lambda numbers: numbers.pop("step")),
    "a step of NaN": number("step", "nan"),
    "a step below zero": number("step", "-3.0"),
    "half a step": number("step", "2.5"),
    "a word for a number": number("seconds", "long"),
    "no best loss": number("best_loss", "nan"),
    "another run": number("identity", "of another run"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_the_training_begins_again(killed, untouched, name, caplog):
    plan, _ = killed
    DAMAGES[name](plan.checkpoint)
    with caplog.at_level(logging.WARNING):
        weights, found, told = fit(plan)
    assert f"the stage 'test' begins again: its checkpoint {plan.checkpoint} is not used" in caplog.text
    assert told[0].step == 0
    want, want_fit = untouched
    assert found == want_fit
    assert all(torch.equal(weight, want[name]) for name, weight in weights.items())


def test_what_a_checkpoint_is_written_over_stays_until_the_new_one_is_whole(killed, caplog):
    plan, before = killed
    (plan.checkpoint.parent / "test.writing").mkdir()  # nobody can write there
    (plan.checkpoint.parent / "test.writing" / "x").touch()
    Checkpoint({"a": torch.ones(2)}, {"step": 1.0}).save(plan.checkpoint)
    assert plan.checkpoint.read_bytes() == before
    assert "the training goes on without a new checkpoint" in caplog.text


@pytest.fixture(scope="module")
def data(world):
    return load_dataset(world.ads, world.clicks, world.users)


def test_a_checkpoint_of_another_base_model_in_the_same_folder_is_not_taken_up(data, tmp_path, caplog):
    base = save_tiny_bert(tmp_path / "base", seed=1)
    options = tiny_options(base, behaviour_min_steps=20, epochs=0.2)

    def kill(step):
        if step.stage == "text" and step.step:
            raise KilledError

    with pytest.raises(KilledError):
        train(data, options, kill, checkpoints=tmp_path / "unfinished")
    assert (tmp_path / "unfinished" / "behaviour.safetensors").exists()
    save_tiny_bert(base, seed=2)
    steps = []
    train(data, options, lambda step: steps.append((step.stage, step.step)), checkpoints=tmp_path / "unfinished")
    assert ("behaviour", 0) in steps
    assert "data, options or weights to begin with" in caplog.text
