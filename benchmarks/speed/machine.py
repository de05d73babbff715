"""What figures are measured on: the machine, the versions, and how fast it can be at best. Knows no models."""

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from pydantic import BaseModel, ConfigDict

_PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "openvino",
    "faiss-cpu",
    "faiss-gpu-cuvs",
    "grpcio",
    "numpy",
)
_SIZE = 1024
_BYTES = 256 * 2**20
_ROUNDS = 5


class Machine(BaseModel):
    """What figures were measured on.

    Attributes:
        instructions: of the processor, those that matter to matrix products.
        gemm: billions of multiplications and additions a second in square products, by number type.
        memory_bandwidth: GB a second, reading and writing a large array.
        card: the GPU that was measured on, with its best rates; "" where none was.
    """

    model_config = ConfigDict(frozen=True)

    processor: str
    cores: int
    threads: int
    memory_gib: float
    system: str
    python: str
    packages: dict[str, str]
    instructions: list[str]
    gemm: dict[str, float]
    memory_bandwidth: float
    card: str = ""


def describe() -> Machine:
    """Looks at this machine, and measures its floors (a few seconds)."""
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        memory_gib=psutil.virtual_memory().total / 2**30,
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        packages=_versions(),
        instructions=_instructions(),
        gemm=_gemm_rates(),
        memory_bandwidth=2 * _BYTES / 1e9 / _seconds(_copy_memory()),
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _instructions() -> list[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split(":", 1)[1].split()}
    wanted = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    return [name for name in wanted if name in flags]


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _gemm_rates() -> dict[str, float]:
    """Of the types that this build of torch multiplies."""
    ones = torch.ones(_SIZE, _SIZE)
    half, small = ones.bfloat16(), ones.to(torch.int8)
    products: dict[str, Callable[[], object]] = {
        "float32": lambda: ones @ ones,
        "bfloat16": lambda: half @ half,
        "int8": lambda: torch._int_mm(small, small),
    }
    return {name: 2 * _SIZE**3 / 1e9 / _seconds(product) for name, product in products.items()}


def _copy_memory() -> Callable[[], object]:
    source, target = np.ones(_BYTES, np.uint8), np.empty(_BYTES, np.uint8)
    return lambda: np.copyto(target, source)


def _seconds(work: Callable[[], object]) -> float:
    """Median of several calls, the first left out."""
    work()
    found = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found)
