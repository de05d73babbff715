"""From what the interests and the other sources found to candidates, best first. Knows no encoder and asks nobody."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from adcascade.records.ads import Ad
from adcascade.towers.interest_merge import merge
from adcascade.vectors.encoder import Vectors
from adcascade.vectors.faiss_index import Rows
from index_builder.artifact import IndexVersion
from retrieval.interests import Interests
from retrieval.merge import merge_sources
from retrieval.query import Candidate, Query
from retrieval.sources import INTERESTS, NEIGHBOURS, ScoreBoost, SourcePool, SourceResult


class CandidateMerger:
    """Merges what was found among the ads of an index version; `pool` has the sources that were asked."""

    def __init__(self, loaded: IndexVersion, pool: SourcePool) -> None:
        self._loaded = loaded
        self._pool = pool

    def candidates(
        self,
        query: Query,
        found: Interests,
        nearest: tuple[Vectors, Rows] | None,
        answers: "dict[str, Future[SourceResult]]",
        shares: Mapping[str, float],
        deadline: float,
    ) -> tuple[list[Candidate], list[str]]:
        """The candidates of a query, best first, and the sources that were left out.

        Args:
            nearest: What its interests found: similarities and rows, [interests, found]; None if the search failed.
            answers: What its sources are about to say, each waited for until the `deadline`.
            shares: Share of each source.
        """
        if query.k == 0:
            return [], []
        catalog = self._loaded.catalog
        excluded = {catalog.row_of[ad_id] for ad_id in query.exclude if ad_id in catalog.row_of}
        by_source, added, skipped = self._collected(answers, deadline, excluded)
        if nearest is None:
            skipped.insert(0, INTERESTS)
            none = (len(found.vectors), 0)
            nearest = np.empty(none, np.float32), np.empty(none, np.int64)
        own = self._with_neighbours(query.k, found, nearest, added, excluded)
        by_source[INTERESTS] = list(own)
        merged = merge_sources(by_source, _filled_up(shares, by_source), query.k)
        rows = [one.row for one in merged]
        self._add_others(own, rows, found.vectors)
        ads: list[Ad] | list[None] = catalog.ads(rows) if query.with_ads else [None] * len(rows)
        alone = (
            own.keys() if added is None else {row for row, _, _ in merge(*nearest, found.weights, query.k, excluded)}
        )
        scores = self._scores(rows, own, added)
        candidates = []
        for one, score, ad in zip(merged, scores, ads, strict=True):
            similarity, interest = own[one.row]
            source = NEIGHBOURS if one.source == INTERESTS and one.row not in alone else one.source
            candidates.append(Candidate(catalog.ids[one.row], similarity, score, interest, source, ad))
        return candidates, skipped

    def _scores(
        self, rows: Sequence[int], own: Mapping[int, tuple[float, int]], added: ScoreBoost | None
    ) -> list[float]:
        """Of these rows, highest first; see `Candidate.score`."""
        if self._loaded.towers is None:
            return [0.0] * len(rows)
        return sorted((own[row][0] + _added_to(row, added) for row in rows), reverse=True)

    def _collected(
        self, answers: "dict[str, Future[SourceResult]]", deadline: float, excluded: set[int]
    ) -> tuple[dict[str, Sequence[int]], ScoreBoost | None, list[str]]:
        """Rows of each source, the additions of neighbours, and the sources that were left out."""
        by_source: dict[str, Sequence[int]] = {INTERESTS: []}  # first: equals stay in this order
        added: ScoreBoost | None = None
        skipped = []
        for name, answer in answers.items():
            rows = self._pool.result_of(name, answer, deadline)
            if rows is None:
                skipped.append(name)
            elif isinstance(rows, ScoreBoost):
                added = rows
            else:
                by_source[name] = [row for row in rows if row not in excluded]
        return by_source, added, skipped

    def _with_neighbours(
        self,
        k: int,
        found: Interests,
        nearest: tuple[Vectors, Rows],
        added: ScoreBoost | None,
        excluded: set[int],
    ) -> dict[int, tuple[float, int]]:
        """The `k` rows of the highest similarity and addition together, best first, with similarity and interest."""
        similarities, rows = nearest
        if added is not None:
            similarities = np.hstack([similarities, found.vectors @ self._vectors(added.best).T])
            rows = np.hstack([rows, np.broadcast_to(added.best, (len(rows), len(added.best)))])
            similarities = similarities + added.to[rows]  # what stands at the row -1, for none, is left out by its row
        merged = merge(similarities, rows, found.weights, k, excluded)
        return {row: (score - _added_to(row, added), interest) for row, score, interest in merged}

    def _add_others(self, own: dict[int, tuple[float, int]], rows: Sequence[int], interests: Vectors) -> None:
        """Similarity, and the nearest interest, of rows that another source found."""
        missing = [row for row in rows if row not in own]
        if missing:
            similarities = interests @ self._vectors(np.array(missing)).T
            best = similarities.argmax(axis=0)
            for place, row in enumerate(missing):
                own[row] = (float(similarities[best[place], place]), int(best[place]))

    def _vectors(self, rows: Rows) -> Vectors:
        return np.asarray(self._loaded.searched_vectors[rows])


def _added_to(row: int, added: ScoreBoost | None) -> float:
    return 0.0 if added is None else float(added.to[row])


def _filled_up(shares: Mapping[str, float], found: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Shares of the sources that found something; the search by interests takes what the others leave."""
    taken = {name: shares.get(name, 0.0) for name, rows in found.items() if name != INTERESTS and rows}
    left = max(0.0, 1.0 - sum(taken.values()))
    return {name: taken.get(name, 0.0) for name in found} | {INTERESTS: shares.get(INTERESTS, left)}
