"""``adcascade bench gpu --part search``: exact search of millions of vectors, and an index built on the GPU."""

import gc
import importlib
import itertools
import statistics
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from adcascade.records.errors import InputError
from adcascade.vectors.encoder import Vectors
from adcascade.vectors.faiss_index import build_index, factory_strings, import_faiss, to_gpu
from benchmarks.speed.gpu.card import describe_with_card, faster, timed
from benchmarks.speed.interleaved_timing import Progress, Spread
from benchmarks.speed.results import BenchResult, Entry, TargetResult

GPU, CPU, PRODUCT = "FAISS Flat on the GPU, float16", "FAISS Flat on the CPU", "torch: product and topk, float16"
_TARGET_MS = 10.0
_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class SearchSettings:
    """How the benchmark is run.

    Attributes:
        ads: how many vectors are searched, in millions.
        widths: numbers of a vector.
        batches: vectors that one call searches for.
        beside_cpu: how many are also searched on the CPU, in millions at most; more take minutes to lay out there.
        built: vectors of the index that is trained and filled on the GPU and on the CPU; 0 for none.
    """

    ads: tuple[int, ...] = (1, 4, 10)
    widths: tuple[int, ...] = (96, 384)
    batches: tuple[int, ...] = (1, 64)
    k: int = 100
    beside_cpu: int = 1
    built: int = 500_000
    rounds: int = 50
    seed: int = 0


def bench_search(settings: SearchSettings, progress: Progress = lambda *_: None) -> BenchResult:
    """Times exact search on the GPU beside the CPU, and the building of an IVF index on both.

    Raises:
        InputError: There is no GPU, or this FAISS cannot use it.
    """
    machine = describe_with_card()
    faiss = import_faiss()
    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        raise InputError("this FAISS was built without GPU support: pip install 'adcascade[gpu]'")
    entries: list[Entry] = []
    total = len(settings.widths) * len(settings.ads)
    for number, (width, millions) in enumerate(itertools.product(settings.widths, settings.ads)):
        entries += _searched(1_000_000 * millions, width, settings)
        gc.collect()
        torch.cuda.empty_cache()
        progress(number + 1, total)
    for width in settings.widths if settings.built else ():
        entries += _built(random_unit_vectors(settings.built, width, settings.seed), settings)
    return BenchResult(
        bench="gpu-search",
        machine=machine,
        settings={name: str(value) for name, value in asdict(settings).items()},
        entries=entries,
        verdicts=_verdicts(entries, settings),
        peers={"faiss": str(faiss.__version__)},
    )


def random_unit_vectors(count: int, width: int, seed: int) -> Vectors:
    """Unit vectors in random directions, float32 [count, width]."""
    return np.ascontiguousarray(_random_on_gpu(count, width, seed).cpu().numpy())


def _random_on_gpu(count: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    found = torch.randn(count, width, device="cuda", generator=generator)
    return torch.nn.functional.normalize(found, dim=1)


def _searched(count: int, width: int, settings: SearchSettings) -> list[Entry]:
    """Of so many ads, which are made and added on the device: a host that lays out ten million takes minutes."""
    faiss = import_faiss()
    importlib.import_module("faiss.contrib.torch_utils")  # so that an index takes tensors
    on_cpu = faiss.IndexFlatIP(width)
    on_gpu, vectors = to_gpu(on_cpu), torch.empty((count, width), device="cuda")
    beside_cpu = count <= 1_000_000 * settings.beside_cpu
    for start in range(0, count, _AT_ONCE):
        block = _random_on_gpu(min(_AT_ONCE, count - start), width, settings.seed + start)
        vectors[start : start + len(block)] = block
        if beside_cpu:
            on_cpu.add(block.cpu().numpy())
    on_gpu.add(vectors)  # all at once: by the million, each step would copy those before it
    half = vectors.half()
    del vectors, block
    torch.cuda.empty_cache()
    entries = []
    for batch in settings.batches:
        queries = random_unit_vectors(batch, width, settings.seed + 1)
        case = f"{count / 1e6:g} million ads of {width} numbers, batch of {batch}"
        slow = _timed_search(on_cpu, queries, settings.k, 3) if beside_cpu else []
        fast = _timed_search(on_gpu, queries, settings.k, settings.rounds)
        least = timed(partial(_product_and_top, half, queries, settings.k), settings.rounds)
        want, got = _product_and_top(half, queries, settings.k)[1], on_gpu.search(queries, settings.k)[1]
        recall = float(np.mean([np.isin(got[row], want[row]).mean() for row in range(batch)]))
        entries += [_entry(case, CPU, slow, None, {})] if slow else []
        entries.append(_entry(case, GPU, fast, faster(slow, fast) if slow else None, {f"recall@{settings.k}": recall}))
        entries.append(_entry(case, PRODUCT, least, faster(slow, least) if slow else None, {}))
    return entries


def _timed_search(index: Any, queries: Vectors, k: int, rounds: int) -> list[float]:
    return timed(partial(index.search, queries, k), rounds, warm_up=1)


def _product_and_top(vectors: torch.Tensor, queries: Vectors, k: int) -> tuple[np.ndarray[Any, Any], ...]:
    """What a matrix product and `topk` find: the least that any exact search on this card does."""
    asked = torch.from_numpy(queries).cuda().half()
    values, rows = (asked @ vectors.T).topk(k, dim=1)
    return values.cpu().numpy(), rows.cpu().numpy()


def _built(vectors: Vectors, settings: SearchSettings) -> list[Entry]:
    """Seconds to train and fill an IVF index on the GPU, as a build does, and on the CPU."""
    factory = factory_strings("ivf", len(vectors), vectors.shape[1], is_unit=True)[0]
    held_out = np.zeros(0, np.int64)
    seconds = {}
    for name, on_gpu in ((CPU, False), (GPU, True)):
        started = time.perf_counter()
        build_index(vectors, factory, held_out, settings.seed, lambda _: None, on_gpu=on_gpu)
        seconds[name] = 1000 * (time.perf_counter() - started)
    case = f"train and fill {factory} with {len(vectors):,} vectors of {vectors.shape[1]} numbers"
    return [
        _entry(case, "FAISS on the CPU", [seconds[CPU]], None, {}),
        _entry(case, "FAISS on the GPU", [seconds[GPU]], faster([seconds[CPU]], [seconds[GPU]]), {}),
    ]


def _entry(case: str, name: str, found: list[float], times: Spread | None, figures: dict[str, float]) -> Entry:
    p99 = {"p99 ms": float(np.percentile(found, 99))} if len(found) >= 20 else {}
    return Entry(
        case=case,
        contender=name,
        milliseconds=Spread(statistics.median(found), min(found), max(found)),
        times_faster=times,
        figures={**p99, **figures},
    )


def _verdicts(entries: list[Entry], settings: SearchSettings) -> list[TargetResult]:
    largest = f"{max(settings.ads):g} million"
    return [
        TargetResult(
            what=one.case,
            target=f"exact, under {_TARGET_MS:g} ms a batch",
            reached=f"{one.milliseconds.median:.1f} ms ({one.milliseconds.low:.1f} to {one.milliseconds.high:.1f})",
            met=one.milliseconds.median < _TARGET_MS,
        )
        for one in entries
        if one.contender == GPU and one.case.startswith(largest)
    ]
