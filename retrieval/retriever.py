"""From users or vectors to candidates, many queries at a time: encode, search once, merge. Knows no wire.

Belongs to the thread of its batcher.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index_builder.encoder import TextEncoder, Vectors
from index_builder.faiss_index import Rows
from records.ads import Ad
from records.errors import InputError
from records.users import UserProfile
from retrieval.index import AdIndex
from retrieval.interests import Interests, InterestSettings, compute_interests, quotas, texts_of

MAX_K = 1000
SOURCE = "interests"


@dataclass(frozen=True)
class Query:
    """What is asked: a user, or unit vectors.

    Attributes:
        user: Who asks; None if `vectors` are given.
        vectors: Ready interests, float32 [vectors, dimension].
        k: How many candidates; 0 for the interests alone.
        exclude: Ids that must not come back.
        with_ads: Also return the ads' texts.
    """

    user: UserProfile | None
    vectors: Vectors | None
    k: int
    exclude: frozenset[str] = frozenset()
    with_ads: bool = False


@dataclass(frozen=True)
class Candidate:
    """An ad that was found, by which interest, and its inner product with it."""

    ad_id: str
    similarity: float
    interest: int
    ad: Ad | None


@dataclass(frozen=True)
class Retrieved:
    """The answer to a query."""

    candidates: list[Candidate]
    interests: Interests
    index_version: str
    encode_ms: float
    search_ms: float


class Retriever:
    """An index version together with the encoder that spans its space."""

    def __init__(self, index: AdIndex, encoder: TextEncoder, settings: InterestSettings, text_cache: int) -> None:
        index.loaded.check_encoder(encoder)
        self.index = index
        self._encoder = encoder
        self._settings = settings
        self._text_cache = text_cache
        self._encoded: OrderedDict[str, Vectors] = OrderedDict()

    def warm_up(self) -> None:
        """One small query, so that the first real one does not pay for lazy initialisation."""
        self.answer([Query(UserProfile(interests="warm up"), None, 1)])

    def answer(self, queries: Sequence[Query]) -> list[Retrieved | InputError]:
        """Answers a batch with one encoder call and one FAISS call; a query that cannot be answered gets its error."""
        started = time.perf_counter()
        texts = self._encode([text for query in queries if query.user for text in texts_of(query.user)])
        interests = [self._interests(query, texts) for query in queries]
        encoded = time.perf_counter()
        good = [(query, found) for query, found in zip(queries, interests, strict=True) if isinstance(found, Interests)]
        merged = iter(self._search(good))
        encode_ms, search_ms = 1000 * (encoded - started), 1000 * (time.perf_counter() - encoded)
        version = self.index.loaded.version
        return [
            Retrieved(next(merged), found, version, encode_ms, search_ms) if isinstance(found, Interests) else found
            for found in interests
        ]

    def _encode(self, texts: list[str]) -> dict[str, Vectors]:
        """Vector of each text, remembering the last ones used."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._encoded]
        self._encoded.update(zip(fresh, self._encoder.encode(fresh), strict=True))
        found = {text: self._encoded[text] for text in texts}
        for text in found:
            self._encoded.move_to_end(text)
        while len(self._encoded) > self._text_cache:
            self._encoded.popitem(last=False)
        return found

    def _interests(self, query: Query, texts: dict[str, Vectors]) -> Interests | InputError:
        if query.vectors is not None:
            count = len(query.vectors)
            return Interests(query.vectors, np.full(count, 1.0 / count), 0)
        assert query.user is not None
        try:
            return compute_interests(query.user, self._ad_vectors, texts, self._settings)
        except InputError as error:
            return error

    def _ad_vectors(self, ad_ids: list[str]) -> tuple[list[int], Vectors]:
        row_of = self.index.loaded.catalog.row_of
        places = [place for place, ad_id in enumerate(ad_ids) if ad_id in row_of]
        return places, np.asarray(self.index.loaded.vectors[[row_of[ad_ids[place]] for place in places]])

    def _search(self, queries: Sequence[tuple[Query, Interests]]) -> list[list[Candidate]]:
        """One search for the interests of all queries, wide enough for the widest of them."""
        if not any(query.k for query, _ in queries):
            return [[] for _ in queries]
        wanted = max(query.k + len(query.exclude) for query, _ in queries)
        similarities, rows = self.index.search(np.concatenate([found.vectors for _, found in queries]), wanted)
        results, start = [], 0
        for query, found in queries:
            part = slice(start, start + len(found.vectors))
            results.append(self._candidates(query, found, similarities[part], rows[part]))
            start = part.stop
        return results

    def _candidates(self, query: Query, found: Interests, similarities: Vectors, rows: Rows) -> list[Candidate]:
        if query.k == 0:
            return []
        catalog = self.index.loaded.catalog
        excluded = {catalog.row_of[ad_id] for ad_id in query.exclude if ad_id in catalog.row_of}
        merged = merge(similarities, rows, found.weights, query.k, excluded)
        ads: list[Ad] | list[None] = (
            catalog.ads([row for row, _, _ in merged]) if query.with_ads else [None] * len(merged)
        )
        return [
            Candidate(catalog.ids[row], similarity, interest, ad)
            for (row, similarity, interest), ad in zip(merged, ads, strict=True)
        ]


def merge(
    similarities: Vectors, rows: Rows, weights: npt.NDArray[np.float64], k: int, excluded: set[int]
) -> list[tuple[int, float, int]]:
    """Merges what several interests found into `k` candidates.

    Each interest first brings its best up to its quota, so that a small interest is not drowned by a large one; the
    rest goes to the most similar, whoever found them.

    Args:
        similarities, rows: [interests, found], best first; row -1 for none.
        weights: Share of each interest.
        excluded: Rows that must not come back.

    Returns:
        (row, similarity, interest), most similar first; each row once, with the nearest interest that found it.
    """
    best: dict[int, tuple[float, int]] = {}
    order = np.argsort(-similarities, axis=None, kind="stable")
    for flat in order.tolist():
        interest, place = divmod(flat, rows.shape[1])
        row = int(rows[interest, place])
        if row >= 0 and row not in excluded:
            best.setdefault(row, (float(similarities[interest, place]), interest))
    left = quotas(weights, k)
    chosen: list[int] = []
    spare: list[int] = []
    for row, (_, interest) in best.items():
        if left[interest] > 0 and len(chosen) < k:
            left[interest] -= 1
            chosen.append(row)
        else:
            spare.append(row)
    chosen += spare[: k - len(chosen)]
    chosen.sort(key=lambda row: -best[row][0])
    return [(row, *best[row]) for row in chosen]
