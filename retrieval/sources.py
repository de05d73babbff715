"""Candidate sources beside the search by interests: words, recent popularity, fresh ads. Knows no wire.

Each is asked in a thread of its own and has little time: one that is late or fails is left out of the answer, counted,
and named in it.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from adcascade.catalog.lexical import LexicalIndex
from adcascade.catalog.schedule import Eligibility
from adcascade.records.errors import InputError
from adcascade.records.popularity import Floats
from adcascade.records.users import EventType, UserProfile
from adcascade.towers.item_to_item import ItemToItem
from adcascade.vectors.encoder import Vectors
from adcascade.vectors.faiss_index import Rows
from adcascade.vectors.vector_file import StoredVectors
from index_builder.artifact import IndexVersion

log = logging.getLogger(__name__)

INTERESTS, NEIGHBOURS, LEXICAL, POPULARITY, FRESH = "interests", "neighbours", "lexical", "popularity", "fresh"
# Those that share the candidates; what neighbours say is added to the similarity to interests, and takes no share.
SOURCES = (INTERESTS, LEXICAL, POPULARITY, FRESH)
LATE, FAILED = "late", "failed"

_RECENT_DAYS = 14.0
# Ads that popularity can bring, and fresh ads that are looked through.
_MOST_POPULAR, _FRESHEST = 5000, 20_000
# Rows that are looked at together for those that may be shown.
_LOOKED_AT = 65_536
_SEARCHES = 3
# Characters of searches and interests in which words are looked for.
_SEARCHED_CHARS = 8192


@dataclass(frozen=True)
class SourceSettings:
    """How sources share the candidates; see `retrieval.settings`.

    Attributes:
        fresh_below: impressions below which an ad is fresh.
        timeout_seconds: how long a batch of requests waits for sources, once the search by interests is done.
    """

    shares: Mapping[str, float] = field(default_factory=lambda: {LEXICAL: 0.1, POPULARITY: 0.0, FRESH: 0.02})
    cold_users_popularity: float = 0.5
    neighbours: bool = True
    fresh_below: int = 10
    timeout_seconds: float = 0.05


def check_shares(shares: Mapping[str, float]) -> None:
    """Raises InputError for a source that there is not, or shares that are no shares."""
    for name, share in shares.items():
        if name not in SOURCES:
            raise InputError(f"there is no candidate source {name!r}; choose of {', '.join(SOURCES)}")
        if not 0 <= share <= 1:
            raise InputError(f"the share of the source {name} is {share}; it must be 0 to 1")
    if sum(shares.values()) > 1 + 1e-6:
        raise InputError(f"the shares of the sources add up to {sum(shares.values()):.3f}, more than 1")


@dataclass(frozen=True)
class SourceRequest:
    """What a source may know of a request.

    Attributes:
        interests: the user's vectors, float32 [interests, dimension].
        wanted: how many rows are of use, excluded ones among them.
        eligible: the ads that may be found.
    """

    user: UserProfile
    interests: Vectors
    wanted: int
    eligible: Eligibility


@dataclass(frozen=True)
class ScoreBoost:
    """What a source adds to the similarity to interests.

    Attributes:
        to: what is added to each row of the catalog, float32 [ads].
        best: rows that gain most, best first, int64.
    """

    to: Vectors
    best: Rows


# Rows of the catalog, best first, or additions.
SourceResult = Sequence[int] | ScoreBoost


class Source(Protocol):
    """Anything that finds rows of the catalog for a user; called from threads of its own."""

    def find(self, asked: SourceRequest) -> SourceResult:
        """What the source finds; nothing if it has nothing to say of this user."""


class NeighbourSource:
    """Ads that go together with those the user met.

    Args:
        row_of: Row of each ad id.
    """

    def __init__(self, neighbours: ItemToItem, weight: float, ids: Sequence[str], row_of: Mapping[str, int]) -> None:
        self._neighbours = neighbours
        self._strengths = weight * neighbours.over(ids)
        self._row_of = row_of

    def find(self, asked: SourceRequest) -> ScoreBoost:
        """See `Source`."""
        event_weight = self._neighbours.event_weight(asked.user, self._row_of)
        met = self._strengths[np.array(list(event_weight), np.int64)]
        times = np.repeat(np.array(list(event_weight.values()), np.float32), np.diff(met.indptr))
        added = np.bincount(met.indices, met.data * times, minlength=self._strengths.shape[1]).astype(np.float32)
        rows = asked.eligible.rows
        wanted = min(asked.wanted, len(rows))
        if not wanted:
            return ScoreBoost(added, rows)
        own = added if asked.eligible.is_everything else added[rows]
        best = rows[np.argpartition(-own, wanted - 1)[:wanted]]
        return ScoreBoost(added, best[np.argsort(-added[best], kind="stable")])


class LexicalSource:
    """Ads that share words with the interests text and the newest searches."""

    def __init__(self, index: LexicalIndex) -> None:
        self._index = index

    def find(self, asked: SourceRequest) -> Sequence[int]:
        """See `Source`."""
        searches = [event.text for event in asked.user.history if event.type is EventType.SEARCH and event.text]
        text = " ".join([*searches[: -_SEARCHES - 1 : -1], asked.user.interests])[:_SEARCHED_CHARS]
        found: list[int] = self._index.search(text, asked.wanted, asked.eligible).tolist() if text.strip() else []
        return found


class PopularitySource:
    """The ads with most clicks lately; `clicks` is float64 [ads]."""

    def __init__(self, clicks: Floats) -> None:
        order = np.argsort(-clicks, kind="stable")
        self._rows: Rows = order[clicks[order] > 0]

    def find(self, asked: SourceRequest) -> Sequence[int]:
        """See `Source`."""
        found: list[int] = _first(self._rows, asked.eligible, min(asked.wanted, _MOST_POPULAR)).tolist()
        return found


class FreshSource:
    """Ads that were hardly shown yet, nearest to the user's interests, whatever their popularity."""

    def __init__(self, rows: Rows, vectors: StoredVectors, *, has_bias: bool) -> None:
        self._fresh, self._all_vectors, self._first = rows, vectors, int(has_bias)
        self._eligible: Eligibility | None = None
        self._rows, self._vectors = rows[:0], np.empty((0, vectors.shape[1] - self._first), np.float32)

    def find(self, asked: SourceRequest) -> Sequence[int]:
        """See `Source`."""
        if asked.eligible is not self._eligible:  # mostly the same from one request to the next
            self._look_at(asked.eligible)
        likeness = (asked.interests[:, self._first :] @ self._vectors.T).max(axis=0)
        nearest: list[int] = self._rows[np.argsort(-likeness, kind="stable")[: asked.wanted]].tolist()
        return nearest

    def _look_at(self, eligible: Eligibility) -> None:
        self._rows = _first(self._fresh, eligible, _FRESHEST)
        self._vectors = np.ascontiguousarray(self._all_vectors[self._rows][:, self._first :])
        self._eligible = eligible


def _first(rows: Rows, eligible: Eligibility, count: int) -> Rows:
    """The first `count` of `rows` that may be shown."""
    if eligible.is_everything:
        return rows[:count]
    found: list[Rows] = [rows[:0]]
    for start in range(0, len(rows), _LOOKED_AT):
        if sum(map(len, found)) >= count:
            break
        found.append(eligible.of(rows[start : start + _LOOKED_AT]))
    return np.concatenate(found)[:count]


def sources_of(loaded: IndexVersion, settings: SourceSettings) -> dict[str, Source]:
    """The sources that an index version can feed, beside the search by interests."""
    found: dict[str, Source] = {}
    if loaded.lexical is not None:
        found[LEXICAL] = LexicalSource(loaded.lexical)
    if loaded.towers is not None:
        popularity, ids = loaded.towers.popularity, loaded.catalog.ids
        neighbours, weight = loaded.towers.neighbours, loaded.towers.spec.neighbour_weight
        if neighbours is not None and weight > 0 and settings.neighbours:
            found[NEIGHBOURS] = NeighbourSource(neighbours, weight, ids, loaded.catalog.row_of)
        found[POPULARITY] = PopularitySource(popularity.clicks(ids, _RECENT_DAYS))
        fresh = np.flatnonzero(popularity.impressions(ids) < settings.fresh_below)
        if len(fresh):
            found[FRESH] = FreshSource(fresh, loaded.searched_vectors, has_bias=True)
    return found


class SourcePool:
    """Asks sources side by side, and waits for none of them too long.

    Args:
        timeout_seconds: How long a batch of requests waits for all of them, once the search by interests is done.
        on_skip: Told the source and why (`LATE` or `FAILED`) each time one is left out.
    """

    def __init__(
        self, sources: Mapping[str, Source], timeout_seconds: float, on_skip: Callable[[str, str], None]
    ) -> None:
        self.names = tuple(sources)
        self._sources = sources
        self._timeout_seconds = timeout_seconds
        self._on_skip = on_skip
        self._threads = {name: ThreadPoolExecutor(1, f"source-{name}") for name in sources}

    def ask(self, name: str, asked: SourceRequest) -> "Future[SourceResult]":
        """Asks a source; `result_of` waits for it."""
        return self._threads[name].submit(self._sources[name].find, asked)

    def deadline(self) -> float:
        """Until when a batch waits from now on, on the monotonic clock."""
        return time.monotonic() + self._timeout_seconds

    def result_of(self, name: str, answer: "Future[SourceResult]", deadline: float) -> SourceResult | None:
        """What the source found, or None if it is late or failed."""
        try:
            return answer.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            answer.cancel()
            self._on_skip(name, LATE)
        except Exception:
            log.exception("the candidate source %r failed", name)
            self._on_skip(name, FAILED)
        return None

    def close(self) -> None:
        """Ends the threads without waiting for what they do."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)
