"""From users or vectors to candidates, many queries at a time: encode, search once, merge. Knows no wire.

Belongs to the thread of its batcher.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime

import numpy as np

from adcascade.catalog.schedule import Eligibility
from adcascade.records.errors import InputError
from adcascade.records.users import Event, EventType, UserProfile
from adcascade.serving.slices import Slices, run_through
from adcascade.vectors.encoder import TextEncoder, Vectors
from adcascade.vectors.faiss_index import Rows
from index_builder.artifact import IndexVersion
from retrieval.answer_cache import AnswerCache
from retrieval.candidates import CandidateMerger
from retrieval.index import AdIndex
from retrieval.interests import InterestModel, Interests, InterestSettings, TextInterests
from retrieval.query import Candidate, Query, Retrieved
from retrieval.sources import (
    FAILED,
    INTERESTS,
    NEIGHBOURS,
    POPULARITY,
    SourcePool,
    SourceRequest,
    SourceResult,
    SourceSettings,
    sources_of,
)
from retrieval.text_vectors import TextVectors

log = logging.getLogger(__name__)

# How many more than asked for are looked at by similarity and by neighbours, before the sums of both are compared.
_DEEPER = 100
_WARM_UP_EVENTS = 100
# What a call costs at most is told in vectors to be searched with; reading so many tokens, or looking at so many
# candidates, takes about as long as one. A batch is searched as wide as its widest call.
_TOKENS_A_VECTOR, _CANDIDATES_A_VECTOR = 8, 32
# A call that costs more waits behind the others: one that brings more new text than one slice reads.
LIGHT_COST = 36


def interest_model(loaded: IndexVersion, settings: InterestSettings) -> InterestModel:
    """What turns users into the space of an index version: its user tower if it has one."""
    if loaded.towers is None:
        return TextInterests(loaded, settings)
    from retrieval.tower_interests import TowerInterests  # loads torch, which a version without towers does without

    return TowerInterests(loaded, loaded.towers)


def _ready(vectors: Vectors) -> Interests:
    return Interests(vectors, np.full(len(vectors), 1.0 / len(vectors)), 0)


class Retriever:
    """An index version together with the encoder that spans its space, and its candidate sources.

    Args:
        text_cache_bytes: For vectors of texts that were encoded lately; 0 keeps none.
        sources: How sources share the candidates.
        on_skip: Told of a source that was left out, and why.
        answer_cache_bytes: For answers that were given lately, which whoever asks keeps there; 0 keeps none.

    Attributes:
        texts: Reads texts of users, and keeps what it read lately.
        answers: Given lately by this version.

    Example:
        >>> from pathlib import Path
        >>> from adcascade.records.users import Event, EventType, UserProfile
        >>> from retrieval.loading import load_published
        >>> from retrieval.query import Query
        >>> retriever, _ = load_published(Path("data/index"))
        >>> user = UserProfile(interests="trail running", history=(Event(EventType.CLICK, "ad-002"),))
        >>> (found,) = retriever.answer([Query(user, None, k=5, exclude=frozenset({"ad-002"}), with_ads=True)])
        >>> len(found.candidates), "ad-002" in {one.ad_id for one in found.candidates}
        (5, False)
        >>> best = found.candidates[0]
        >>> best.ad.ad_id == best.ad_id, best.similarity > 0
        (True, True)
        >>> retriever.close()
    """

    def __init__(
        self,
        index: AdIndex,
        encoder: TextEncoder,
        settings: InterestSettings,
        text_cache_bytes: int,
        sources: SourceSettings = SourceSettings(),  # noqa: B008 (a frozen value)
        on_skip: Callable[[str, str], None] = lambda *_: None,
        *,
        answer_cache_bytes: int = 0,
    ) -> None:
        index.loaded.check_encoder(encoder)
        self.index = index
        self.encoder = encoder
        self._model = interest_model(index.loaded, settings)
        self._shares = sources.shares
        self._newcomers_popularity = sources.cold_users_popularity
        self._on_skip = on_skip
        self._pool = SourcePool(sources_of(index.loaded, sources), sources.timeout_seconds, on_skip)
        self._merger = CandidateMerger(index.loaded, self._pool)
        self.texts = TextVectors(encoder, text_cache_bytes)
        self.answers = AnswerCache(answer_cache_bytes)

    def close(self) -> None:
        """Ends the threads of the sources."""
        self._pool.close()

    def warm_up(self) -> None:
        """One query of a user with a past, so that the first real one does not pay for lazy initialisation."""
        events = tuple(Event(EventType.CLICK, ad_id) for ad_id in self.index.loaded.catalog.ids[:_WARM_UP_EVENTS])
        self.answer([Query(UserProfile(interests="warm up", history=events), None, 1)])

    def readable(self, user: UserProfile) -> UserProfile:
        """The user with texts that are cut to what the encoder reads of them."""
        most = self.encoder.max_chars
        history = tuple(
            event if len(event.text) <= most else replace(event, text=event.text[:most]) for event in user.history
        )
        return replace(user, interests=user.interests.strip()[:most], history=history)

    def cost_of(self, query: Query) -> int:
        """About what a query costs; the unit is one vector searched.

        May be called in any thread: texts that are kept by now are looked up, and nothing is changed.
        """
        user = query.user
        texts = self._model.texts_of(user) if user is not None else []
        tokens = self.texts.tokens_to_read(texts)
        vectors = len(query.vectors) if query.vectors is not None else 1
        candidates = query.k + len(query.exclude)
        return vectors + candidates // _CANDIDATES_A_VECTOR + tokens // _TOKENS_A_VECTOR

    def answer(self, queries: Sequence[Query]) -> list[Retrieved | InputError]:
        """Answers a batch with one FAISS call for all with the same eligible ads.

        A query that cannot be answered gets its error.
        """
        return run_through(self.answer_in_slices(queries))

    def answer_in_slices(self, queries: Sequence[Query]) -> Slices[list[Retrieved | InputError]]:
        """The same as `answer`."""
        started = time.perf_counter()
        interests = yield from self._interests(queries)
        encoded = time.perf_counter()
        good = [
            (query, found)
            for query, found in zip(queries, interests, strict=True)
            if isinstance(found, Interests) and len(found.vectors)
        ]
        merged = iter((yield from self._search(good)))
        encode_ms, search_ms = 1000 * (encoded - started), 1000 * (time.perf_counter() - encoded)
        version = self.index.loaded.version
        return [
            found
            if isinstance(found, InputError)
            else Retrieved(*(next(merged) if len(found.vectors) else ([], [])), found, version, encode_ms, search_ms)
            for found in interests
        ]

    def _interests(self, queries: Sequence[Query]) -> Slices[list[Interests | InputError]]:
        """Of each query, those that it brings or those of its user; none where no ad is left to be found by them."""
        users = [query.user for query in queries if query.user is not None]
        texts = yield from self.texts.of([text for user in users for text in self._model.texts_of(user)])
        contexts = [query.context for query in queries if query.user is not None]
        of_users = iter(self._model.of(users, contexts, texts) if users else [])
        yield
        found = [next(of_users) if query.vectors is None else _ready(query.vectors) for query in queries]
        none = Interests(np.empty((0, self.index.dimension), np.float32), np.empty(0), 0)
        return [
            none if isinstance(one, InputError) and self._nothing_left(query) else one
            for query, one in zip(queries, found, strict=True)
        ]

    def _nothing_left(self, query: Query) -> bool:
        """Whether the query excludes every ad, so that its answer is empty whoever asks."""
        ids = self.index.loaded.catalog.row_of
        return query.k > 0 and len(query.exclude) >= len(ids) and query.exclude >= ids.keys()

    def _search(self, queries: Sequence[tuple[Query, Interests]]) -> Slices[list[tuple[list[Candidate], list[str]]]]:
        """Candidates of each query and the sources that were left out: a FAISS call for those with the same ads."""
        if not any(query.k for query, _ in queries):
            return [([], []) for _ in queries]
        wanted = max(query.k + len(query.exclude) for query, _ in queries)
        if NEIGHBOURS in self._pool.names:
            wanted += _DEEPER
        eligible = [self._eligible(query) for query, _ in queries]
        asked = [
            self._ask_sources(query, found, wanted, own) for (query, found), own in zip(queries, eligible, strict=True)
        ]
        nearest = self._nearest([found for _, found in queries], wanted, eligible)
        deadline = self._pool.deadline()
        merged = []
        for (query, found), own, answers in zip(queries, nearest, asked, strict=True):
            merged.append(self._merger.candidates(query, found, own, answers, self._shares_of(query), deadline))
            yield
        return merged

    def eligible_at(self, when: datetime | None) -> Eligibility:
        """The ads that may be shown at a moment; None is now. May be called in any thread."""
        return self.index.loaded.catalog.schedule.at(when)

    def _eligible(self, query: Query) -> Eligibility:
        """The ads that may be shown at the query's time."""
        if query.at_any_time:
            return self.index.loaded.catalog.schedule.everything
        return self.eligible_at(query.context.timestamp)

    def _ask_sources(
        self, query: Query, found: Interests, wanted: int, eligible: Eligibility
    ) -> "dict[str, Future[SourceResult]]":
        """Asks the sources that have a share in the answer; ready vectors are searched with and nothing else."""
        if query.user is None or not query.k:
            return {}
        shares = self._shares_of(query)
        asked = SourceRequest(query.user, found.vectors, wanted, eligible)
        names = [name for name in self._pool.names if name == NEIGHBOURS or shares.get(name, 0.0) > 0]
        return {name: self._pool.ask(name, asked) for name in names}

    def _shares_of(self, query: Query) -> dict[str, float]:
        """Share of each source; a user of whom nothing is known gets what is popular, too."""
        shares = dict(self._shares)
        if query.user is not None and not query.user.history and not query.user.interests.strip():
            shares[POPULARITY] = max(shares.get(POPULARITY, 0.0), self._newcomers_popularity)
        return shares | dict(query.shares)

    def _nearest(
        self, interests: Sequence[Interests], wanted: int, eligible: Sequence[Eligibility]
    ) -> list[tuple[Vectors, Rows] | None]:
        """What each user's vectors find: similarities and rows, [interests, found]; None if the search failed.

        Users with the same eligible ads, mostly all of them, are searched for together.
        """
        together: dict[int, list[int]] = {}
        for place, own in enumerate(eligible):
            together.setdefault(id(own), []).append(place)
        nearest: list[tuple[Vectors, Rows] | None] = [None] * len(interests)
        for places in together.values():
            some = self._nearest_of([interests[place] for place in places], wanted, eligible[places[0]])
            for place, one in zip(places, some, strict=True):
                nearest[place] = one
        return nearest

    def _nearest_of(
        self, interests: Sequence[Interests], wanted: int, eligible: Eligibility
    ) -> list[tuple[Vectors, Rows] | None]:
        try:
            vectors = np.concatenate([found.vectors for found in interests])
            similarities, rows = self.index.search(vectors, wanted, eligible)
        except RuntimeError:
            if not self._pool.names:
                raise
            log.exception("the search by interests failed")
            self._on_skip(INTERESTS, FAILED)
            return [None] * len(interests)
        ends = np.cumsum([len(found.vectors) for found in interests])[:-1]
        return list(zip(np.split(similarities, ends), np.split(rows, ends), strict=True))
