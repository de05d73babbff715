"""How long a request's interests take, and what faster indexes lose on vectors of towers."""

import time

import numpy as np

from adcascade.records.datasets.movielens import export_movielens, find_movielens
from adcascade.records.users import Context, UserProfile
from adcascade.towers.artifact import load_published_towers
from adcascade.towers.training.data import load_retrieval_data
from adcascade.towers.training.options import TowerOptions
from adcascade.towers.training.train import train_and_save
from adcascade.vectors.encoder import load_encoder
from benchmarks.findings import Finding, finding
from benchmarks.runs import Run
from index_builder.build import BuildOptions, build
from retrieval.evaluation.evaluate import judge_of, profiles_of
from retrieval.interests import InterestSettings
from retrieval.loading import load_published
from retrieval.query import Query
from retrieval.retriever import Retriever, interest_model

_CHECK = "MovieLens-100k, retrieval, speed and index"
_INDEXES = ("ivf",)
_MINUTES, _USERS, _EVENTS, _CANDIDATES = 1.0, 200, 100, 100


def retrieval_speed(run: Run) -> list[Finding]:
    """Milliseconds of a user with a hundred events, and recall of approximate indexes against exact search."""
    files = export_movielens(find_movielens(), run.folder / "movielens")
    encoder = load_encoder()

    def measure(seed: int) -> dict[str, float]:
        root = run.folder / f"retrieval-speed-{seed}"
        data = load_retrieval_data(files.ads, files.clicks, files.users, encoder, split="user")
        train_and_save(data, encoder, root / "towers", TowerOptions(seed=seed, max_minutes=_MINUTES))
        towers = load_published_towers(root / "towers")
        found = {}
        for index in _INDEXES:
            built = build(files.ads, root / index, encoder, BuildOptions(index=index, min_recall=0.98), towers=towers)
            found[index] = built.manifest.recall
        retriever, _ = load_published(root / _INDEXES[0])
        judge, _ = judge_of(data)
        users = [user for user in profiles_of(data, judge.judged) if len(user.history) >= _EVENTS][:_USERS]
        users = [UserProfile(user.user_id, "", user.attributes, user.history[-_EVENTS:]) for user in users]
        found |= _milliseconds(retriever, users)
        retriever.close()
        return found

    measured, minutes = run.for_each_seed(_CHECK, measure)

    def of(name: str, figure: str, target: str, bound: float | None, note: str) -> Finding:
        values = [one[name] for one in measured]
        ends = (float(np.mean(values)), min(values), max(values))
        met = None if bound is None else bool(ends[0] <= bound if name.endswith("ms") else ends[0] >= bound)
        return finding(_CHECK, figure, target, ends, met, measured, minutes, f"{note}; interval: least and most seed")

    note = f"median of {_USERS} users with {_EVENTS} events"
    return [
        of("tower ms", "milliseconds of the user tower for one user", "at most 5", 5.0, note),
        of("answer ms", f"milliseconds of a whole request for {_CANDIDATES} candidates", "", None, note),
        *(
            of(index, f"recall@100 of {index} against exact search", "at least 0.98", 0.98, "queries: users")
            for index in _INDEXES
        ),
    ]


def _milliseconds(retriever: Retriever, users: list[UserProfile]) -> dict[str, float]:
    model = interest_model(retriever.index.loaded, InterestSettings())
    tower, answer = [], []
    for user in users:
        started = time.perf_counter()
        model.of([user], [Context()], {})
        between = time.perf_counter()
        retriever.answer([Query(user, None, _CANDIDATES)])
        tower.append(between - started)
        answer.append(time.perf_counter() - between)
    return {"tower ms": 1000 * float(np.median(tower)), "answer ms": 1000 * float(np.median(answer))}
