"""From users or vectors to candidates, many queries at a time: encode, search once, merge. Knows no wire.

Belongs to the thread of its batcher.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from index_builder.artifact import IndexVersion
from index_builder.encoder import TextEncoder, Vectors
from index_builder.faiss_index import Rows
from index_builder.interest_merge import merge
from records.ads import Ad
from records.errors import InputError
from records.users import UserProfile
from retrieval.index import AdIndex
from retrieval.interests import InterestModel, Interests, InterestSettings, TextInterests

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


def interest_model(loaded: IndexVersion, settings: InterestSettings) -> InterestModel:
    """What turns users into the space of an index version: its user tower if it has one."""
    if loaded.towers is None:
        return TextInterests(loaded, settings)
    from retrieval.tower_interests import TowerInterests  # loads torch, which a version without towers does without

    return TowerInterests(loaded, loaded.towers)


def _ready(vectors: Vectors) -> Interests:
    return Interests(vectors, np.full(len(vectors), 1.0 / len(vectors)), 0)


class Retriever:
    """An index version together with the encoder that spans its space."""

    def __init__(self, index: AdIndex, encoder: TextEncoder, settings: InterestSettings, text_cache: int) -> None:
        index.loaded.check_encoder(encoder)
        self.index = index
        self._encoder = encoder
        self._model = interest_model(index.loaded, settings)
        self._text_cache = text_cache
        self._encoded: OrderedDict[str, Vectors] = OrderedDict()

    def warm_up(self) -> None:
        """One small query, so that the first real one does not pay for lazy initialisation."""
        self.answer([Query(UserProfile(interests="warm up"), None, 1)])

    def answer(self, queries: Sequence[Query]) -> list[Retrieved | InputError]:
        """Answers a batch with one encoder call and one FAISS call; a query that cannot be answered gets its error."""
        started = time.perf_counter()
        interests = self._interests(queries)
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

    def _interests(self, queries: Sequence[Query]) -> list[Interests | InputError]:
        """Of each query, those that it brings or those of its user."""
        users = [query.user for query in queries if query.user is not None]
        texts = self._encode([text for user in users for text in self._model.texts_of(user)])
        of_users = iter(self._model.of(users, texts) if users else [])
        return [next(of_users) if query.vectors is None else _ready(query.vectors) for query in queries]

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
