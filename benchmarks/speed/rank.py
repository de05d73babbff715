"""``adcascade bench rank``: one request of many candidates, against reading every pair with a cross-encoder.

The ranker, trained on MovieLens, is asked over gRPC in a server process of its own, with the ad texts in the request.
`CrossEncoder.predict` (sentence-transformers, with its defaults) reads the very same texts, with a network of the same
size; its speed does not depend on its weights, so its head is a random one. infinity-emb serves the same over HTTP.
"""

import logging
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import grpc
from sentence_transformers import CrossEncoder

from adcascade.records.ads import Ad
from adcascade.records.errors import InputError
from adcascade.records.users import Context, UserProfile
from adcascade.serving.channel import is_serving
from adcascade.v1 import ranking_pb2
from adcascade.v1.ranking_pb2_grpc import RankingServiceStub
from adcascade.vectors.encoder import embedded_model_path
from adcascade.wire import ad_to_wire, user_to_wire
from benchmarks.speed.flops import token_layers
from benchmarks.speed.interleaved_timing import Contender, Progress, interleave
from benchmarks.speed.machine import Machine, describe
from benchmarks.speed.models import JOIN_LAYER, kept_ranker, movielens_files
from benchmarks.speed.peers import PeerMissing, RerankPeer, rerank_peer
from benchmarks.speed.rank_results import (
    AGAIN,
    COLD,
    CROSS_ENCODER,
    EMPTY_CALL,
    INFINITY,
    WARM,
    RankCase,
    entries,
    of_quality,
    verdicts,
)
from benchmarks.speed.results import BenchResult, Entry
from benchmarks.speed.servers import served
from benchmarks.speed.texts import real_ads, recombined_ads, user_of_tokens
from ranking.artifact import ModelVersion
from ranking.inputs.text import render_ad, render_user
from ranking.runtime.backends import BACKENDS

_MADE_ADS = 10**7
_WARM_UP, _EXPLAINED = 1, 9
_TIMEOUT_SECONDS = 120.0


CASES = (
    RankCase(100, 40, warm_target=40, cold_target=15),
    RankCase(100, 256, warm_target=100),
    RankCase(10, 40),
    RankCase(1000, 40),
)


@dataclass(frozen=True)
class RankSettings:
    """How the benchmark is run.

    Attributes:
        join_layer: first layer in which ads attend to the user.
        backend: see `ranking.runtime.engine.EngineSettings`.
    """

    join_layer: int = JOIN_LAYER
    backend: str = "auto"
    rounds: int = 5
    seed: int = 0


def bench_rank(
    settings: RankSettings,
    folder: Path,
    kept: Path,
    progress: Progress = lambda *_: None,
    cases: Sequence[RankCase] = CASES,
) -> BenchResult:
    """Times each case.

    Args:
        folder: For what is made on the way.
        kept: For the ranker, which is used again by the next run.

    Raises:
        InputError: MovieLens-100k, whose texts are read, is not installed, or there is no such backend.
        StartupError: The ranking server does not start.
    """
    if settings.backend not in BACKENDS:
        raise InputError(f"there is no backend {settings.backend!r}; choose of {', '.join(BACKENDS)}")
    files = movielens_files(folder)
    sources = real_ads(files.ads)
    root, ranker = kept_ranker(kept, files, join_layer=settings.join_layer, seed=settings.seed)
    machine = describe()
    slow = _cross_encoder()
    found: list[Entry] = []
    remarks: list[str] = []
    empty: list[float] = []
    fresh = recombined_ads(sources, _MADE_ADS, settings.seed)
    flags = ["--model", str(root), "--backend", settings.backend]
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        channel = stack.enter_context(served("ranking", flags, folder))
        chosen = RankingServiceStub(channel).GetModel(ranking_pb2.GetModelRequest()).backend
        peer = _reranker(stack, slow, folder, missing)
        for number, case in enumerate(cases):
            asked = _Asked.of(case, user_of_tokens(case.user_tokens, sources, ranker.tokenizer), fresh, settings.rounds)
            turns = interleave(
                _contenders(asked, channel, slow, peer),
                settings.rounds,
                progress=_part_of(progress, number, len(cases)),
            )
            empty.append(turns.milliseconds(EMPTY_CALL).median)
            floors = _floors(asked, ranker, machine, empty[-1])
            remarks.append(f"{case.name}, {WARM}, medians: {_where_time_goes(asked, channel)}")
            found += entries(case, turns, floors)
    return BenchResult(
        bench="rank",
        machine=machine,
        settings={**asdict(settings), "chosen_backend": chosen},
        entries=found,
        verdicts=[*verdicts(cases, found), *of_quality(ranker.spec.exports)],
        floors={EMPTY_CALL: min(empty)},
        peers={} if peer is None else {peer.name: peer.version},
        missing=missing,
        remarks=remarks,
    )


def _part_of(progress: Progress, number: int, parts: int) -> Progress:
    return lambda done, total: progress(number * total + done, parts * total)


@dataclass(frozen=True)
class _Asked:
    """What the contenders of a case are given: everything but the work, made before the clock runs.

    Attributes:
        warm: a request for each call, each of another user, who must be read.
        cold: the same of ads that the server has never seen.
    """

    user_text: str
    ad_texts: list[str]
    warm: list[ranking_pb2.RankRequest]
    cold: list[ranking_pb2.RankRequest]

    @classmethod
    def of(cls, case: RankCase, user: UserProfile, fresh: Iterator[Ad], rounds: int) -> "_Asked":
        """Of so many candidates, which nobody has been asked of before."""
        ads = list(islice(fresh, case.candidates))
        calls = _WARM_UP + rounds
        return cls(
            render_user(user, Context(), lambda _: None),
            [render_ad(ad) for ad in ads],
            [_request(_aged(user, number), ads) for number in range(calls + _EXPLAINED)],
            [_request(_aged(user, -number), list(islice(fresh, case.candidates))) for number in range(calls)],
        )


def _aged(user: UserProfile, number: int) -> UserProfile:
    """Another user with the same history, whose text has as many tokens."""
    return replace(user, attributes={**user.attributes, "age": str(100 + number)})


def _contenders(asked: _Asked, channel: grpc.Channel, slow: CrossEncoder, peer: RerankPeer | None) -> list[Contender]:
    pairs = [(asked.user_text, text) for text in asked.ad_texts]
    rank = RankingServiceStub(channel).Rank
    warm, cold = iter(asked.warm), iter(asked.cold)
    found = [
        Contender(CROSS_ENCODER, lambda: slow.predict(pairs)),
        Contender(WARM, lambda: rank(next(warm), timeout=_TIMEOUT_SECONDS)),
        Contender(COLD, lambda: rank(next(cold), timeout=_TIMEOUT_SECONDS)),
        Contender(AGAIN, lambda: rank(asked.warm[0], timeout=_TIMEOUT_SECONDS)),
        Contender(EMPTY_CALL, lambda: is_serving(channel)),
    ]
    if peer is not None:
        found.append(Contender(INFINITY, lambda: peer.rerank(asked.user_text, asked.ad_texts)))
    return found


def _reranker(stack: ExitStack, slow: CrossEncoder, folder: Path, missing: dict[str, str]) -> RerankPeer | None:
    """infinity-emb with the same network, if it is installed."""
    slow.save(str(folder / "cross-encoder"))
    try:
        return stack.enter_context(rerank_peer(folder / "cross-encoder", folder / "infinity.log"))
    except PeerMissing as why:
        missing[INFINITY] = str(why)
        return None


def _floors(asked: _Asked, ranker: ModelVersion, machine: Machine, empty: float) -> dict[str, float]:
    """Milliseconds that the matrix products of each contender take at this machine's best rates, and an empty call.

    A cross-encoder with its defaults multiplies in float32; ours, in the best type that there is.
    """
    tokens = [len(ids) for ids in ranker.tokenizer([asked.user_text, *asked.ad_texts])["input_ids"]]
    user, ads = tokens[0], sum(tokens[1:])
    layers, join = ranker.spec.layers, ranker.spec.join_layer
    hidden = int(ranker.model.encoder.config.hidden_size)
    pairs = len(asked.ad_texts) * user + ads
    joined = ads * (layers - 1 - join) + len(asked.ad_texts)
    best, exact = max(machine.gemm.values()), machine.gemm["float32"]

    def milliseconds(count: int, rate: float) -> float:
        return token_layers(hidden, count) / rate / 1e6

    slowest = milliseconds(pairs * layers, exact)
    return {
        CROSS_ENCODER: slowest,
        INFINITY: slowest,
        WARM: empty + milliseconds(user * layers + joined, best),
        COLD: empty + milliseconds(user * layers + joined + ads * join, best),
        AGAIN: empty + milliseconds(joined, best),
    }


def _request(user: UserProfile, ads: Sequence[Ad]) -> ranking_pb2.RankRequest:
    return ranking_pb2.RankRequest(
        user=user_to_wire(user), candidates=[ranking_pb2.RankCandidate(ad=ad_to_wire(ad)) for ad in ads]
    )


def _where_time_goes(asked: _Asked, channel: grpc.Channel) -> str:
    """What the server says of warm calls, after the timed ones."""
    rank = RankingServiceStub(channel).Rank
    timings = [rank(request, timeout=_TIMEOUT_SECONDS).timing for request in asked.warm[-_EXPLAINED:]]
    parts = {
        "waiting": statistics.median(one.queue_ms for one in timings),
        "tokenizing the user": statistics.median(one.tokenize_ms for one in timings),
        "computing": statistics.median(one.compute_ms for one in timings),
    }
    return "in the server: " + ", ".join(f"{name} {value:.1f} ms" for name, value in parts.items())


def _cross_encoder() -> CrossEncoder:
    """With the defaults of sentence-transformers, on the CPU like the server."""
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)  # that its head is new
    slow: CrossEncoder = CrossEncoder(str(embedded_model_path()), num_labels=1, device="cpu")
    return slow
