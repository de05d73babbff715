"""A click log joined with its catalog and users, and split. Knows no tensors and no models."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adcascade.records.ads import Ad
from adcascade.records.clicks import NO_TIME, ClickLog, Integers, LogReport
from adcascade.records.coded import NO_VALUE, combinations
from adcascade.records.counters import CounterSnapshot
from adcascade.records.errors import InputError
from adcascade.records.history import Histories, HistoryView, OutOfFoldHistory, PointInTimeHistory
from adcascade.records.history_file import followed_by, read_history
from adcascade.records.joined import Joined, read_joined
from adcascade.records.memory import release_unused
from adcascade.records.packed import blocks, packed_counts, totals
from adcascade.records.splits import Split
from adcascade.records.users import UserProfile
from adcascade.records.users_by_id import who_tell
from ranking.data.block_features import FeatureSource, features_by_block
from ranking.data.content_rows import ContentRows
from ranking.data.feature_table import RowTable, TableLimits
from ranking.data.labels import Labels, thinned_labels
from ranking.data.log_keys import LogKeys
from ranking.data.splitting import MOST_HELD_OUT, bounded, split_rows, why_not_by_time
from ranking.data.user_texts import user_texts
from ranking.inputs.content import ContentSpace
from ranking.inputs.context import CONTEXT_WORDS, context_hashes
from ranking.inputs.features import FEATURES, LEAST_KNOWN, features_for
from ranking.inputs.text import HISTORY_EVENTS, render_ad
from ranking.training.options import CommonOptions

# Splits in which each row looks back on what is strictly earlier.
_BY_TIME = ("time", "user", "none")
_FOLDS = 5
_MINUTE = 60_000_000  # microseconds


@dataclass(frozen=True)
class Dataset:
    """A click log joined with its catalog and users.

    Attributes:
        keys: for each of `ranking.inputs.features.COUNTED`, what each row's counters are looked up by.
        split: rows to train on, to validate on and to test on.
        split_by: how they were chosen, one of `ranking.data.splitting.SPLITS`, or none.
        counters: of a model version, which then stand in for those of the log; None for the log's own.
        context_words: how many values of an impression are read; see `ranking.inputs.context`.
        history: what users did that is no row of the log: events that they look back on, and that nothing counts.
        limits: how much of what is made of the rows is in memory at once.
    """

    log: ClickLog
    report: LogReport
    ads: Mapping[str, Ad]
    users: Mapping[str, UserProfile]
    keys: LogKeys
    split: Split
    split_by: str
    counters: CounterSnapshot | None = None
    context_words: int = CONTEXT_WORDS
    history: ClickLog | None = None
    limits: TableLimits = field(default_factory=TableLimits)

    def forget(self) -> None:
        """Lets go of what was made of the rows, on disk, too; whatever is asked for again is made anew."""
        for name in ("past", "context_kinds", "_tables", "_content_rows"):
            self.__dict__.pop(name, None)

    @cached_property
    def events(self) -> ClickLog:
        """What rows look back on: the rows of the log, and after them those of `history`, which are no rows of it."""
        return self.log if self.history is None else followed_by(self.log, self.history)

    def with_split(self, split: Split) -> "Dataset":
        """The same log with other rows to train on, validate on and test on."""
        return replace(self, split=split)

    def reading(self, context_words: int) -> "Dataset":
        """The same log with so many values of an impression read."""
        return self if context_words == self.context_words else replace(self, context_words=context_words)

    @property
    def words_of_context(self) -> list[str]:
        """Names of all values that an impression may have, in the order in which they are read."""
        timed = ["hour", "weekday"] if (self.log.time != NO_TIME).any() else []
        context = sorted(self.log.context.keys() - {"page_text"})
        users = sorted({f"user {name}" for user in who_tell(self.users).values() for name in user.attributes})
        return [*timed, *context, *users]

    @cached_property
    def training_sha256(self) -> str:
        """Hash of the log, the history and the texts of their ads, and of which rows train and validate."""
        return self._sha256_with(self.events.ad_id.sorted_names.to_pylist())

    def is_training_of(self, sha256: str) -> bool:
        """Whether a model with this `training_sha256` learned from exactly these rows.

        Earlier releases hashed the texts of the whole catalog, whether the log had the ads or not.
        """
        return sha256 == self.training_sha256 or sha256 == self._sha256_with(sorted(self.ads))

    def _sha256_with(self, ad_ids: Sequence[str]) -> str:
        digest = hashlib.sha256()
        for part in (self.split.train, self.split.valid):
            digest.update(f"{len(part)} ".encode())
            _hash_numbers(digest, part)
        for log in (self.log,) if self.history is None else (self.log, self.history):
            for column in (log.request_id, log.ad_id, log.user_id):
                column.hash_into(digest)
            for numbers in (log.time, log.clicks, log.impressions, log.conversions):
                _hash_numbers(digest, numbers)
        for ad_id in ad_ids:
            digest.update(f"{ad_id}\0{render_ad(self.ads[ad_id])}\0".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    @cached_property
    def prior_ctr(self) -> float:
        """Clicks per impression of the training part."""
        return self.log.ctr_of(self.split.train)

    @cached_property
    def histories(self) -> Histories:
        """Every user's events, for serving."""
        return Histories(self.events)

    @cached_property
    def fold(self) -> Integers:
        """The fold of each row that `past` goes by; a split by time, of all or of each user, has but one."""
        if self._looks_back_in_time:
            return np.broadcast_to(np.int64(0), len(self.log))
        return self._draw_folds(np.random.default_rng(0))

    @cached_property
    def past(self) -> HistoryView:
        """What each row may look back on."""
        if self._looks_back_in_time:
            return PointInTimeHistory(self.log, self.events)
        return OutOfFoldHistory(self.log, self.fold)

    @property
    def _looks_back_in_time(self) -> bool:
        return self.split_by in _BY_TIME

    def redrawn_history(self, generator: np.random.Generator) -> HistoryView:
        """The same with other folds, so that no training row is seen in one way only."""
        return self.past if self._looks_back_in_time else OutOfFoldHistory(self.log, self._draw_folds(generator))

    def _draw_folds(self, generator: np.random.Generator) -> Integers:
        """A fold for each training row, -1 for others; what the split keeps together is in one fold."""
        units = {"request": self.log.request_id, "ad": self.log.ad_id}.get(self.split_by)
        if units is None:
            fold = generator.integers(0, _FOLDS, len(self.log))
        else:
            fold = generator.integers(0, _FOLDS, len(units.sorted.names))[units.sorted.codes]
        of_training = np.full(len(self.log), -1)
        of_training[self.split.train] = fold[self.split.train]
        return of_training

    def feature_table(
        self, past: HistoryView, ctr: float, names: Sequence[str] = FEATURES, content: ContentSpace | None = None
    ) -> RowTable:
        """The named features of each row from what it may look back on, float32 [rows, features], not normalised.

        That of `past` is made once, since training and evaluation read it alike.

        Args:
            content: where texts are compared; None if no named feature needs it.

        Raises:
            InputError: The folder for temporary files has no room for it.
        """
        key = (ctr, tuple(names), content)
        if past is not self.past:
            return features_by_block(self._source(past, ctr, names, content), self.limits)
        if key not in self._tables:
            self._tables.clear()
            self._tables[key] = features_by_block(self._source(past, ctr, names, content), self.limits)
        return self._tables[key]

    def _source(
        self, past: HistoryView, ctr: float, names: Sequence[str], content: ContentSpace | None = None
    ) -> FeatureSource:
        similarity = None if content is None else partial(self._in(content).similarity, past)
        return FeatureSource(
            self.log, self.keys, past, self.counters, ctr, tuple(names), self.groups, self.request_rows, similarity
        )

    def _in(self, content: ContentSpace) -> ContentRows:
        if content not in self._content_rows:
            self._content_rows.clear()
            self._content_rows[content] = ContentRows(self, content)
        return self._content_rows[content]

    @cached_property
    def _content_rows(self) -> dict[ContentSpace, ContentRows]:
        return {}

    @cached_property
    def _tables(self) -> dict[tuple[float, tuple[str, ...], ContentSpace | None], RowTable]:
        return {}

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features that this log can teach without comparing texts."""
        timed = bool((self.log.time != NO_TIME).any())
        counted = [key for key in self.keys if key == "ad" or self.keys.known_share(key) >= LEAST_KNOWN]
        return features_for(timed=timed, request_rows=self.rows_per_request, counted=counted)

    @property
    def rows_per_request(self) -> float:
        """Rows of a request in the mean."""
        return len(self.log) / max(1, len(self.request_rows))

    @cached_property
    def context_kinds(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]]:
        """`ranking.inputs.context.context_hashes` of each combination of values that rows have, and which each row has.

        Returns:
            uint64 [kinds, words], and the kind of each row, int32 [rows].
        """
        log = self.log
        hours = np.empty(len(log), np.int16)  # of a week, on the clock on the wall
        for some in blocks(len(log)):
            minutes = np.where(log.time[some] != NO_TIME, log.time[some] // _MINUTE + log.utc_offset[some], 0)
            hours[some] = np.where(log.time[some] != NO_TIME, minutes // 60 % (7 * 24), NO_VALUE)
        words = [column.codes for name, column in log.context.items() if name != "page_text"]
        first, kind = combinations([hours, self._kinds_of_users, *words])
        found = []
        for row in first.tolist():
            context = log.context_at(row)
            user = self.users.get(log.user_id[row], UserProfile())
            found.append(context_hashes(user, context, context.timestamp, self.context_words))
        return np.array(found, np.uint64).reshape(len(first), self.context_words), kind.astype(np.int32, copy=False)

    @property
    def _kinds_of_users(self) -> npt.NDArray[np.int32]:
        """A number for each row, equal where users have equal attributes; int32 [rows]."""
        numbers: dict[tuple[tuple[str, str], ...], int] = {}
        telling = who_tell(self.users)

        def kind(user_id: str) -> int:
            attributes = telling.get(user_id, UserProfile()).attributes
            return numbers.setdefault(tuple(sorted(attributes.items())), len(numbers))

        return self.log.user_id.of_names(kind, kind(""), np.int32)

    @cached_property
    def groups(self) -> Integers:
        """Number of each row's request, in the order of their ids, int32 [rows]."""
        return self.log.request_id.sorted.codes.astype(np.int32, copy=False)

    @cached_property
    def request_rows(self) -> Integers:
        """Rows of each request of `groups`, int32 [requests]; int64 where a request has so many."""
        return packed_counts(totals(self.groups, int(self.groups.max(initial=-1)) + 1))

    def labels(self, options: CommonOptions) -> Labels:
        """What is learned from the training part."""
        return thinned_labels(self.log, self.groups, self.split.train, options.negative_rate, options.seed)

    def ad_text(self, ad_id: str) -> str:
        """What the model reads of an ad."""
        return render_ad(self.ads[ad_id])

    def user_text(self, row: int) -> str:
        """What the model reads of the user just before the impression of `row`."""
        return self.user_texts(np.array([row]))[0]

    def user_texts(self, rows: Integers) -> list[str]:
        """The same of each of some rows.

        The history is that of `events`, never that of the users' file, which may tell of later ones.
        """
        offsets, events = self.past.spans(rows, HISTORY_EVENTS).recent()
        return user_texts(self.log, rows, (self.events, offsets, events), self.users, self.ads)


def _hash_numbers(digest: "hashlib._Hash", numbers: npt.NDArray[np.integer[Any]]) -> None:
    """Updates a digest with numbers as int64, of however few bits they are."""
    for some in blocks(len(numbers)):
        digest.update(numbers[some].astype(np.int64, copy=False).tobytes())


def load_dataset(
    ads: Path,
    clicks: Path,
    users: Path | None,
    *,
    split: str = "auto",
    seed: int = 0,
    max_rejected: float = 0.01,
    newest: int | None = None,
    rejected_file: Path | None = None,
    history: Path | None = None,
) -> Dataset:
    """Reads and joins the three files and splits the log 8:1:1 (by user 7:1:2).

    Args:
        split: "time" (the newest rows test), "user" (each user's newest fifth tests), "random" (rows), "request"
            (whole requests), "ad" (the test holds ads that were never trained on), or "auto": by time where that can
            be, else by request; the report says why. "none" makes no parts: each row looks back on strictly earlier
            ones. For a split by time or user, a few rows without a timestamp are left out.
        seed: for a split at random.
        max_rejected, newest, rejected_file: see `adcascade.records.clicks.read_clicks`.
        history: What users did before the log; see `adcascade.records.history_file`.

    Raises:
        InputError: A file cannot be read, too many rows are unusable, the log is too small to split, or there is a
            history and the split is none in which rows look back in time.
    """
    read = read_joined(
        ads,
        clicks,
        users,
        max_rejected=max_rejected,
        newest=newest,
        timed=split in ("auto", "time", "user"),
        rejected_file=rejected_file,
    )
    # In order once and for all: as numbers of requests, codes then need no other column beside them.
    read = replace(read, log=replace(read.log, request_id=read.log.request_id.sorted))
    release_unused()
    log, report = read.log, read.report
    if split == "auto":
        why = why_not_by_time(log)
        split = "request" if why else "time"
        report = report.noted(f"Split by request, not by time: {why}.") if why else report
    before, note = _history_before(history, read, split, max_rejected)
    parts, drawn = bounded(log, split_rows(log, split, seed), MOST_HELD_OUT, in_time=split in _BY_TIME)
    release_unused()
    return Dataset(
        log,
        report.noted(*note, *drawn),
        read.ads,
        read.users,
        LogKeys(log.ad_id, log.user_id, read.ads),
        parts,
        split,
        history=before,
    )


def _history_before(
    path: Path | None, read: Joined, split: str, max_rejected: float
) -> tuple[ClickLog | None, tuple[str, ...]]:
    """What users did before a log, and what is to be said of it; None and nothing if there is no file."""
    if path is None:
        return None, ()
    if split not in _BY_TIME:
        raise InputError(
            f"a history is of earlier times, and with a split by {split} no row looks back in time: give a log with "
            "timestamps, and split it by time or by user"
        )
    history, note = read_history(path, read.log, read.ads, read.report.has_zones, max_rejected=max_rejected)
    return history, (note,)
