"""Which GPU figures were measured on, and how fast it can be at best. Knows no models."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from adcascade.records.errors import InputError
from benchmarks.speed.interleaved_timing import Spread
from benchmarks.speed.machine import Machine, describe

_SIZE = 8192
_BYTES = 4 * 2**30
_ROUNDS = 10


def describe_with_card() -> Machine:
    """This machine with its first GPU, whose best rates are measured in a few seconds.

    Raises:
        InputError: torch sees no GPU.
    """
    if not torch.cuda.is_available():
        raise InputError("torch sees no GPU here: this benchmark needs one, and the build of torch for it")
    left, right = (torch.randn(_SIZE, _SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(_BYTES, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    gemm = 2 * _SIZE**3 / 1e9 / _seconds(lambda: left @ right)
    copied = 2 * _BYTES / 1e9 / _seconds(lambda: target.copy_(source))
    properties = torch.cuda.get_device_properties(0)
    found = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return describe().model_copy(update={"card": f"{found}; bfloat16 {gemm:,.0f} GFLOP/s, memory {copied:,.0f} GB/s"})


def _seconds(work: Callable[[], object]) -> float:
    """Median by the device's own clock, warm."""
    work()
    found = []
    for _ in range(_ROUNDS):
        begin, end = _event(), _event()
        begin.record()
        work()
        end.record()
        end.synchronize()
        found.append(float(begin.elapsed_time(end)) / 1000)
    return statistics.median(found)


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def timed(work: Callable[[], object], rounds: int, warm_up: int = 2) -> list[float]:
    """Milliseconds of each call by the wall clock; `work` must wait for the device itself."""
    found = []
    for number in range(warm_up + rounds):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if number >= warm_up:
            found.append(1000 * (time.perf_counter() - started))
    return found


def faster(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times less the median of `fast` is than that of `slow`; least and most by their extremes."""
    median = statistics.median(slow) / statistics.median(fast)
    return Spread(median, min(slow) / max(fast), max(slow) / min(fast))
