"""Several processes train one model: the same steps as one process with as many batches, and one version is written."""

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
from test_training_loop import PLAN
from torch import distributed, multiprocessing, nn

from adcascade.training.loop import Loop
from adcascade.training.workers import Workers
from ranking.store import open_store

INPUTS = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
TARGETS = INPUTS @ torch.tensor([1.0, -2.0, 0.5])


def fit(plan, workers, bias=0.0):
    """Weights after a fit whose validation loss comes out `bias` times its number of steps too high."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def loss(rows):
        return (model(INPUTS[rows])[:, 0] - TARGETS[rows]).square().sum(), float(len(rows))

    checks = itertools.count()

    def validate():
        with torch.no_grad():
            return float((model(INPUTS)[:, 0] - TARGETS).square().mean()) + bias * next(checks)

    weights = dict(model.named_parameters())
    groups = [{"params": list(weights.values()), "lr": 0.05}]
    # Seven batches an epoch: the last step of an epoch has none for the second process.
    loop = Loop(plan, weights, groups, validate, lambda _: None, workers)
    loop.run(lambda _: torch.arange(64).split(8)[:7], loss)
    return torch.cat([weight.detach().ravel() for weight in weights.values()])


def work(rank, port, folder, biases=(0.0, 0.0)):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    # An operation that the other process does not take part in fails instead of waiting for good.
    distributed.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=30))
    torch.save(fit(replace(PLAN, steps=60), Workers(rank, 2), biases[rank]), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("biases", [(0.0, 9.0), (9.0, 0.0)])
def test_processes_stop_together_though_their_validation_losses_differ(tmp_path, free_port, biases):
    multiprocessing.spawn(work, (free_port, tmp_path, biases), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first, second)
    alone = fit(replace(PLAN, steps=60, accumulate=2), Workers(), biases[0])
    torch.testing.assert_close(first, alone, atol=1e-6, rtol=1e-5)


def test_two_processes_make_the_steps_of_one_with_twice_the_batches(tmp_path, free_port):
    multiprocessing.spawn(work, (free_port, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = fit(replace(PLAN, steps=60, accumulate=2), Workers())
    assert torch.equal(first, second)
    torch.testing.assert_close(first, alone, atol=1e-6, rtol=1e-5)


def test_torchrun_trains_one_version(world, tiny_bert, tmp_path):
    flags = ["--ads", world.ads, "--clicks", world.clicks, "--users", world.users, "--out", tmp_path / "model"]
    small = ["--base", tiny_bert, "--epochs", "0.3", "--behaviour-min-steps", "60", "--behaviour-epochs", "1"]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*run, "-m", "pipeline.cli", "train", *flags, *small, "--device", "cpu", "--baselines", "none"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    versions = open_store(tmp_path / "model").versions()
    assert len(versions) == 1
    assert done.stdout.count("Model version") == 1
