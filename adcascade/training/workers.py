"""Several processes that train one model together, as started by ``torchrun``. Knows no models.

Each process takes its share of every step's batches; gradients are summed before the step, so that all keep the same
weights. Written by hand rather than with `DistributedDataParallel`, which wraps one forward call: a model that reads
users and ads has one for each.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class Workers:
    """How many processes train, and which one this is; one process alone is `Workers()`."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that shows and writes."""
        return self.rank == 0

    def sum_gradients(self, weights: Iterable[nn.Parameter], total: Tensor) -> Tensor:
        """Sums the gradients of all processes in place, and returns the sum of `total`."""
        if self.count == 1:
            return total
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            distributed.all_reduce(weight.grad)
        distributed.all_reduce(total)
        return total

    def agree(self, value: float, device: torch.device) -> float:
        """The first process's value, for all: else they would part where clocks or roundings differ."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=device)
        distributed.broadcast(shared, src=0)
        return float(shared)

    def share(self, make: Callable[[], str], device: torch.device) -> str:
        """The text that the first process makes, for all; the others wait for it."""
        if self.count == 1:
            return make()
        box = [make() if self.is_first else ""]
        distributed.broadcast_object_list(box, src=0, device=device)
        return box[0]


def is_first_worker() -> bool:
    """Whether this process is the one that shows and writes; true without ``torchrun``."""
    return os.environ.get("RANK", "0") == "0"


def join_workers(device: torch.device) -> Workers:
    """The processes that ``torchrun`` started, once they have found each other; one alone without it."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Workers()
    if not distributed.is_initialized():
        # What one process fits for all (trees, a prior of texts) may take it long; the others wait in a broadcast.
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=1))
    return Workers(distributed.get_rank(), count)


def worker_device(device: torch.device) -> torch.device:
    """The GPU of this process among those of its machine; any other device is shared."""
    if device.type != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
