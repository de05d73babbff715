"""``adcascade bench build``: ad texts to vectors to an index version, against `SentenceTransformer.encode`."""

import gc
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from adcascade.catalog.ad_text import embedding_text
from adcascade.records.ads import Ad
from adcascade.vectors.bulk_encoder import load_bulk_encoder
from adcascade.vectors.encoder import TextEncoder, Vectors, embedded_model_path
from adcascade.vectors.exact_search import exact_search
from benchmarks.speed.catalog import write_catalog
from benchmarks.speed.flops import token_layers
from benchmarks.speed.interleaved_timing import Contender, Progress, Spread, Turns, interleave
from benchmarks.speed.machine import Machine, describe
from benchmarks.speed.memory import peak_mib
from benchmarks.speed.models import movielens_files
from benchmarks.speed.results import BenchResult, Entry, Line, Plot, TargetResult
from benchmarks.speed.texts import real_ads, recombined_ads
from index_builder.build import BuildOptions, build

REFERENCE, OURS, REBUILD = "SentenceTransformer.encode", "AdCascade", "a rebuild"
_K, _QUERIES = 100, 500
_WARM_UP = 1
_CHANGED = 0.01
_FASTER, _LEAST_RECALL, _REBUILD_SHARE, _MOST_MIB = 5.0, 0.98, 0.05, 4096


@dataclass(frozen=True)
class BuildSettings:
    """How the benchmark is run.

    Attributes:
        texts: that each contender embeds in a round.
        catalog: ads of the build and of the rebuild after it.
        memory_ads: ads of the largest build whose memory is measured, with hashed vectors of the same size.
    """

    texts: int = 1000
    catalog: int = 20_000
    memory_ads: int = 1_000_000
    rounds: int = 5
    seed: int = 0


def bench_build(settings: BuildSettings, folder: Path, progress: Progress = lambda *_: None) -> BenchResult:
    """Times embedding, a build and a rebuild, and measures what a large build takes in memory.

    Raises:
        InputError: MovieLens-100k, whose texts are read, is not installed.
    """
    sources = real_ads(movielens_files(folder).ads)
    ads = list(recombined_ads(sources, settings.catalog, settings.seed))
    texts = [embedding_text(ad) for ad in ads]
    slow = SentenceTransformer(str(embedded_model_path()), device="cpu")
    fast = load_bulk_encoder()
    machine = describe()
    catalogs = iter(_changing_catalogs(ads, folder, settings.rounds))
    gc.collect()
    gc.freeze()  # as the command does, so that no build pays for what the benchmark holds
    full = _build(next(catalogs), fast, folder)
    turns = interleave(
        [
            Contender(REFERENCE, lambda: slow.encode(texts[: settings.texts])),
            Contender(OURS, lambda: fast.encode(texts[: settings.texts])),
            Contender(REBUILD, lambda: _build(next(catalogs), fast, folder)),
        ],
        settings.rounds,
        warm_up=_WARM_UP,
        progress=progress,
    )
    floor = _floor(slow, texts[: settings.texts], machine)
    recall = recall_of(slow, fast, texts[: 5 * settings.texts])
    sizes = [max(1, settings.memory_ads // 10), settings.memory_ads]
    peaks = [_peak_of(sources, size, folder, settings.seed) for size in sizes]
    return BenchResult(
        bench="build",
        machine=machine,
        settings=asdict(settings),
        entries=_entries(settings, turns, recall, floor),
        verdicts=[
            *_embedding_verdicts(turns, recall, floor),
            _rebuild_verdict(settings, turns, full),
            _memory_verdict(sizes, peaks),
        ],
        plots=[
            Plot(x_label="ads", y_label="MiB at most", lines=[Line(name="a build", x=[*map(float, sizes)], y=peaks)])
        ],
    )


def _floor(slow: SentenceTransformer, texts: Sequence[str], machine: Machine) -> float:
    """Milliseconds that the matrix products of these texts take at the best rate of a type that keeps the vectors."""
    tokens = sum(len(ids) for ids in slow.tokenizer(list(texts), truncation=True)["input_ids"])
    config: Any = slow[0].auto_model.config  # type: ignore[union-attr]
    best = max(machine.gemm["float32"], machine.gemm["bfloat16"])
    return token_layers(config.hidden_size, tokens * config.num_hidden_layers) / best / 1e6


def recall_of(slow: SentenceTransformer, fast: TextEncoder, texts: Sequence[str]) -> float:
    """recall@100 of the fast vectors, asked with themselves, of what the vectors of `slow` find, 0 to 1."""
    want: Vectors = np.asarray(slow.encode(list(texts), normalize_embeddings=True), np.float32)
    got = fast.encode(texts)
    truth, found = (exact_search(one, np.ascontiguousarray(one[:_QUERIES]), _K) for one in (want, got))
    return float(np.mean([len(np.intersect1d(*both)) / _K for both in zip(truth, found, strict=True)]))


def _changing_catalogs(ads: Sequence[Ad], folder: Path, rounds: int) -> list[Path]:
    """A catalog, and for each round the one before it with another hundredth of its ads changed."""
    changed = max(1, int(_CHANGED * len(ads)))
    now, paths = list(ads), []
    for number in range(1 + _WARM_UP + rounds):
        if number:
            for place in range((number - 1) * changed, number * changed):
                now[place % len(now)] = _with_price(now[place % len(now)], str(place))
        paths.append(folder / f"catalog-{number}.jsonl")
        write_catalog(paths[-1], now)
    return paths


def _build(catalog: Path, encoder: TextEncoder, folder: Path) -> float:
    """Seconds of a build; what an earlier one has embedded is used again."""
    started = time.perf_counter()
    build(catalog, folder / "index", encoder, BuildOptions())
    return time.perf_counter() - started


def _with_price(ad: Ad, price: str) -> Ad:
    return Ad(ad_id=ad.ad_id, title=f"{ad.title}, now {price}", body=ad.body, category=ad.category)


def _peak_of(sources: Sequence[Ad], count: int, folder: Path, seed: int) -> float:
    """MiB that a build of so many ads takes at most, in a process of its own.

    Vectors are hashed: memory depends on their size alone, and a million real ones take a quarter of an hour.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        write_catalog(Path(place) / "ads.jsonl", recombined_ads(sources, count, seed))
        flags = ["--ads", f"{place}/ads.jsonl", "--out", f"{place}/index", "--encoder", "hashing:384"]
        return peak_mib(["-m", "index_builder", *flags, "--min-recall", "0"])


def _entries(settings: BuildSettings, turns: Turns, recall: float, floor: float) -> list[Entry]:
    case = f"embedding {settings.texts:,} ad texts"

    def entry(name: str, own_recall: float) -> Entry:
        milliseconds = turns.milliseconds(name)
        return Entry(
            case=case,
            contender=name,
            milliseconds=milliseconds,
            times_faster=None if name == REFERENCE else turns.times_faster(name, REFERENCE),
            figures={"texts a second": 1000 * settings.texts / milliseconds.median, f"recall@{_K}": own_recall},
            floor=floor,
        )

    rebuild = Entry(case=_rebuild_case(settings), contender=OURS, milliseconds=turns.milliseconds(REBUILD))
    return [entry(REFERENCE, 1.0), entry(OURS, recall), rebuild]


def _rebuild_case(settings: BuildSettings) -> str:
    return f"rebuild of {settings.catalog:,} ads with {_CHANGED:.0%} changed"


def _embedding_verdicts(turns: Turns, recall: float, floor: float) -> list[TargetResult]:
    times = turns.times_faster(OURS, REFERENCE)
    most = turns.milliseconds(REFERENCE).median / floor
    return [
        TargetResult(
            what=f"embedding: {OURS} against {REFERENCE}",
            target=f"at least {_FASTER:g} times faster",
            reached=f"{times.median:.1f} times ({times.low:.1f} to {times.high:.1f})",
            met=times.median >= _FASTER,
            why=f"matrix products alone, at the best rate of a type that keeps recall, allow {most:.1f} times; int8 is "
            "faster, but loses recall",
        ),
        TargetResult(
            what=f"recall@{_K} of the vectors against float32",
            target=f"at least {_LEAST_RECALL}",
            reached=f"{recall:.4f}",
            met=recall >= _LEAST_RECALL,
        ),
    ]


def _rebuild_verdict(settings: BuildSettings, turns: Turns, full: float) -> TargetResult:
    """Of each round, the time of the rebuild over that of embedding all, reckoned from what was embedded in it."""
    all_texts = settings.catalog / settings.texts
    share = Spread.of(
        [
            rebuilt / (all_texts * some)
            for rebuilt, some in zip(turns.seconds[REBUILD], turns.seconds[OURS], strict=True)
        ]
    )
    rebuilt, embedding = (turns.milliseconds(name).median / 1000 for name in (REBUILD, OURS))
    return TargetResult(
        what=_rebuild_case(settings),
        target=f"under {_REBUILD_SHARE:.0%} of the time to embed all",
        reached=f"{share.median:.1%} ({share.low:.1%} to {share.high:.1%}; {rebuilt:.1f} s, embedding takes "
        f"{all_texts * embedding:.1f} s, the first build took {full:.1f} s)",
        met=share.median < _REBUILD_SHARE,
        why="reading and checking the catalog, verifying the version and making its FAISS and word indexes take "
        "the rest",
    )


def _memory_verdict(sizes: Sequence[int], peaks: Sequence[float]) -> TargetResult:
    return TargetResult(
        what=f"memory of a build of {sizes[-1]:,} ads",
        target=f"under {_MOST_MIB:,} MiB for a million",
        reached=f"{peaks[-1]:,.0f} MiB ({peaks[0]:,.0f} MiB for {sizes[0]:,})",
        met=peaks[-1] < _MOST_MIB and sizes[-1] >= 1_000_000,
        why="" if sizes[-1] >= 1_000_000 else "measured on fewer",
    )
