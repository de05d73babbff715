"""``adcascade bench gpu --part rank``: requests of many candidates through a ranking server on the GPU.

Candidates are ids of an index version whose ads the server has read, as a gateway asks. `CrossEncoder.predict` reads
the same texts on the same card.
"""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import torch
from sentence_transformers import CrossEncoder

from adcascade.records.ads import Ad
from adcascade.records.datasets.movielens import DatasetFiles
from adcascade.records.users import Context, UserProfile
from adcascade.v1 import ranking_pb2
from adcascade.v1.ranking_pb2_grpc import RankingServiceStub
from adcascade.vectors.encoder import embedded_model_path, load_encoder
from adcascade.wire import user_to_wire
from benchmarks.speed.gpu.card import describe_with_card, faster, timed
from benchmarks.speed.interleaved_timing import Progress, Spread
from benchmarks.speed.models import kept_ranker
from benchmarks.speed.results import BenchResult, Entry, TargetResult
from benchmarks.speed.servers import served
from benchmarks.speed.texts import real_ads, user_of_tokens
from index_builder.build import BuildOptions, build
from ranking.inputs.text import render_ad, render_user

SERVER, DEFAULTS, TUNED = "AdCascade", "CrossEncoder.predict", "CrossEncoder.predict, bfloat16, batches of 256"
_P99_MS, _PAIRS = 5.0, 100_000
_TIMEOUT_SECONDS = 60.0
_READ_SECONDS = 60.0


@dataclass(frozen=True)
class _Rate:
    """Pairs of user and ad a second, and the share of the calls that was refused."""

    pairs: float
    refused: float


@dataclass(frozen=True)
class RankOnGpuSettings:
    """How the benchmark is run.

    Attributes:
        calls: requests of each size, one after the other, each of another user.
        in_flight: requests that wait at once while pairs a second are counted.
        seconds: how long they are counted.
    """

    candidates: tuple[int, ...] = (100, 1000)
    user_tokens: int = 40
    calls: int = 300
    in_flight: int = 32
    seconds: float = 8.0


def bench_rank_on_gpu(
    settings: RankOnGpuSettings, files: DatasetFiles, folder: Path, progress: Progress = lambda *_: None
) -> BenchResult:
    """Times the ranking server on the GPU beside a cross-encoder on the same card.

    Args:
        files: MovieLens-100k as a catalog, a click log and users.
        folder: For the ranker, the index and the servers' logs.

    Raises:
        InputError: There is no GPU.
        StartupError: The ranking server does not start.
    """
    machine = describe_with_card()
    ads = real_ads(files.ads)
    root, ranker = kept_ranker(folder, files)
    index = folder / "index"
    build(files.ads, index, load_encoder(), BuildOptions())
    user = user_of_tokens(settings.user_tokens, ads, ranker.tokenizer)
    entries: list[Entry] = []
    flags = ["--model", str(root), "--index", str(index), "--device", "cuda"]
    with served("ranking", flags, folder) as channel:
        rank = RankingServiceStub(channel)
        backend = rank.GetModel(ranking_pb2.GetModelRequest()).backend
        _wait_until_read(rank, user, ads)
        for number, count in enumerate(settings.candidates):
            entries += _one_by_one(rank, user, ads[:count], settings)
            progress(number + 1, len(settings.candidates) + 1)
        in_server = _in_server(rank, user, ads[: max(settings.candidates)])
        by_count = {count: _pairs_a_second(rank, user, ads[:count], settings) for count in settings.candidates}
    entries += [_throughput(count, rate, settings) for count, rate in by_count.items()]
    return BenchResult(
        bench="gpu-rank",
        machine=machine,
        settings={**{name: str(value) for name, value in asdict(settings).items()}, "chosen_backend": backend},
        entries=entries,
        verdicts=_verdicts(entries, by_count),
        remarks=[f"{max(settings.candidates):,} candidates, {SERVER}, medians: in the server: {in_server}"],
    )


def _request(user: UserProfile, ads: list[Ad], number: int) -> ranking_pb2.RankRequest:
    """Of another user with the same history, whose text has as many tokens."""
    aged = replace(user, attributes={**user.attributes, "age": str(100 + number)})
    candidates = [ranking_pb2.RankCandidate(ad_id=ad.ad_id) for ad in ads]
    return ranking_pb2.RankRequest(user=user_to_wire(aged), candidates=candidates)


def _wait_until_read(rank: RankingServiceStub, user: UserProfile, ads: list[Ad]) -> None:
    """Until the server knows the ads' states, as it does soon after its start."""
    end = time.monotonic() + _READ_SECONDS
    asked = _request(user, ads[:1000], 0)
    while rank.Rank(asked, timeout=_TIMEOUT_SECONDS).cached_ads < len(asked.candidates) and time.monotonic() < end:
        time.sleep(0.2)


def _one_by_one(rank: RankingServiceStub, user: UserProfile, ads: list[Ad], settings: RankOnGpuSettings) -> list[Entry]:
    requests = iter([_request(user, ads, number) for number in range(settings.calls + 20)])
    ours = timed(lambda: rank.Rank(next(requests), timeout=_TIMEOUT_SECONDS), settings.calls, warm_up=20)
    pairs = [(render_user(user, Context(), lambda _: None), render_ad(ad)) for ad in ads]
    place = str(embedded_model_path())
    plain = CrossEncoder(place, num_labels=1, device="cuda")
    tuned = CrossEncoder(place, num_labels=1, device="cuda", model_kwargs={"torch_dtype": torch.bfloat16})
    slow = timed(partial(plain.predict, pairs, show_progress_bar=False), 10)
    less_slow = timed(partial(tuned.predict, pairs, batch_size=256, show_progress_bar=False), 10)
    case = f"{len(ads):,} candidates, user of {settings.user_tokens} tokens"
    return [_entry(case, *one, slow) for one in ((DEFAULTS, slow), (TUNED, less_slow), (SERVER, ours))]


def _entry(case: str, name: str, found: list[float], slow: list[float]) -> Entry:
    p99 = {"p99 ms": float(np.percentile(found, 99))} if len(found) >= 100 else {}
    return Entry(
        case=case,
        contender=name,
        milliseconds=Spread(statistics.median(found), min(found), max(found)),
        times_faster=None if name == DEFAULTS else faster(slow, found),
        figures=p99,
    )


def _in_server(rank: RankingServiceStub, user: UserProfile, ads: list[Ad]) -> str:
    timings = [rank.Rank(_request(user, ads, 10_000 + number), timeout=_TIMEOUT_SECONDS).timing for number in range(30)]
    parts = {
        "waiting": statistics.median(one.queue_ms for one in timings),
        "tokenizing the user": statistics.median(one.tokenize_ms for one in timings),
        "computing": statistics.median(one.compute_ms for one in timings),
    }
    return ", ".join(f"{name} {value:.1f} ms" for name, value in parts.items())


def _pairs_a_second(rank: RankingServiceStub, user: UserProfile, ads: list[Ad], settings: RankOnGpuSettings) -> _Rate:
    """Pairs of user and ad that are answered a second while so many requests are in flight."""
    requests = [_request(user, ads, 20_000 + number) for number in range(512)]
    end = time.perf_counter() + settings.seconds

    def ask(first: int) -> tuple[int, int]:
        answered = refused = 0
        while time.perf_counter() < end:
            try:
                rank.Rank(requests[(first + answered * settings.in_flight) % len(requests)], timeout=_TIMEOUT_SECONDS)
                answered += 1
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                refused += 1
                time.sleep(0.001)
        return answered, refused

    with ThreadPoolExecutor(settings.in_flight) as clients:
        outcomes = list(clients.map(ask, range(settings.in_flight)))
    answered, refused = (sum(counts) for counts in zip(*outcomes, strict=True))
    return _Rate(answered * len(ads) / settings.seconds, refused / max(1, answered + refused))


def _throughput(count: int, rate: _Rate, settings: RankOnGpuSettings) -> Entry:
    milliseconds = 1000 * count / max(rate.pairs, 1e-9)
    return Entry(
        case=f"{count:,} candidates, {settings.in_flight} requests in flight",
        contender=SERVER,
        milliseconds=Spread(milliseconds, milliseconds, milliseconds),
        figures={"pairs a second": rate.pairs, "refused %": 100 * rate.refused},
    )


def _verdicts(entries: list[Entry], by_count: dict[int, _Rate]) -> list[TargetResult]:
    most = max(by_count)
    ours = next(one for one in entries if one.contender == SERVER and one.case.startswith(f"{most:,} candidates, user"))
    p99 = ours.figures["p99 ms"]
    best = max(rate.pairs for rate in by_count.values())
    return [
        TargetResult(
            what=f"{most:,} candidates through the server",
            target=f"p99 under {_P99_MS:g} ms",
            reached=f"p50 {ours.milliseconds.median:.1f} ms, p99 {p99:.1f} ms",
            met=p99 < _P99_MS,
        ),
        TargetResult(
            what="pairs of user and ad a second, 32 requests in flight",
            target=f"at least {_PAIRS:,}",
            reached=", ".join(f"{rate.pairs:,.0f} with {count:,} candidates" for count, rate in by_count.items()),
            met=best >= _PAIRS,
        ),
    ]
