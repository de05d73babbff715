"""``adcascade bench gpu --part embed``: ad texts to vectors on the GPU, against two CPU cores of the same machine."""

import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch

from adcascade.catalog.ad_text import embedding_text
from adcascade.vectors.encoder import EMBEDDED, SentenceTransformerEncoder
from benchmarks.speed.build import recall_of
from benchmarks.speed.gpu.card import describe_with_card, faster, timed
from benchmarks.speed.interleaved_timing import Progress, Spread
from benchmarks.speed.results import BenchResult, Entry, TargetResult
from benchmarks.speed.texts import real_ads, recombined_ads

GPU, DEFAULTS, CPU = (
    "AdCascade on the GPU",
    "SentenceTransformer.encode on the GPU",
    "SentenceTransformer.encode, 2 cores",
)
_TIMES, _LEAST_RECALL = 20.0, 0.98
_CPU_TEXTS = 2_000
_RECALL_TEXTS = 5_000


@dataclass(frozen=True)
class EmbedSettings:
    """How the benchmark is run; `texts` is how many the GPU embeds in a round."""

    texts: int = 100_000
    rounds: int = 3
    seed: int = 0


def bench_embed(settings: EmbedSettings, ads: Path, progress: Progress = lambda *_: None) -> BenchResult:
    """Times embedding. Raises InputError if there is no GPU.

    Args:
        ads: a catalog whose texts are recombined.
    """
    machine = describe_with_card()
    wanted = max(settings.texts, _RECALL_TEXTS)
    texts = [embedding_text(ad) for ad in islice(recombined_ads(real_ads(ads), wanted, settings.seed), wanted)]
    ours, theirs = SentenceTransformerEncoder(EMBEDDED, "cuda"), SentenceTransformerEncoder(EMBEDDED, "cuda")
    theirs.model.float()
    seconds: dict[str, list[float]] = {}
    seconds[GPU] = _per_text(lambda: ours.encode(texts[: settings.texts]), settings.texts, settings.rounds)
    progress(1, 3)
    few = texts[: min(20_000, settings.texts)]
    seconds[DEFAULTS] = _per_text(lambda: theirs.model.encode(few, show_progress_bar=False), len(few), settings.rounds)
    progress(2, 3)
    seconds[CPU] = _on_two_cores(texts[:_CPU_TEXTS])
    progress(3, 3)
    recall = recall_of(theirs.model, ours, texts[:_RECALL_TEXTS])
    entries = [_entry(name, seconds, recall if name == GPU else None) for name in (CPU, DEFAULTS, GPU)]
    times = faster(seconds[CPU], seconds[GPU])
    return BenchResult(
        bench="gpu-embed",
        machine=machine,
        settings=asdict(settings),
        entries=entries,
        verdicts=[
            TargetResult(
                what="embedding on the GPU against two cores of the same machine",
                target=f"at least {_TIMES:g} times faster",
                reached=f"{times.median:.0f} times ({times.low:.0f} to {times.high:.0f})",
                met=times.median >= _TIMES,
            ),
            TargetResult(
                what="recall@100 of these vectors against float32",
                target=f"at least {_LEAST_RECALL}",
                reached=f"{recall:.4f}",
                met=recall >= _LEAST_RECALL,
            ),
        ],
    )


def _per_text(work: Callable[[], object], texts: int, rounds: int) -> list[float]:
    """Milliseconds for a thousand texts in each round."""
    return [1000 * value / texts for value in timed(work, rounds, warm_up=1)]


def _on_two_cores(texts: list[str]) -> list[float]:
    slow = SentenceTransformerEncoder(EMBEDDED, "cpu")
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    try:
        torch.set_num_threads(2)
        os.sched_setaffinity(0, set(sorted(cores)[:2]))
        return _per_text(lambda: slow.model.encode(texts, show_progress_bar=False), len(texts), 3)
    finally:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)


def _entry(name: str, seconds: dict[str, list[float]], recall: float | None) -> Entry:
    found = seconds[name]
    median = statistics.median(found)
    figures = {"texts a second": 1e6 / median}
    return Entry(
        case="embedding 1,000 ad texts",
        contender=name,
        milliseconds=Spread(median, min(found), max(found)),
        times_faster=None if name == CPU else faster(seconds[CPU], found),
        figures=figures if recall is None else {**figures, "recall@100": recall},
    )
