"""A click log as batches of (user, ads): what training and evaluation feed to the model.

Rows of one user stand together, so that the user is read once for many ads. A block's user text is made from events
strictly before its first row; the counters of each row from rows strictly before that row.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ranking.artifact import CtrSpec
from ranking.batch import PairBatch, TokenIds, pad, tokenize
from ranking.features import Features, Vectors, dense_features, taste_of
from ranking.model import TextVectors
from ranking.text import HISTORY_EVENTS, render_ad, render_user
from records.ads import Ad, RejectedAd, read_ads
from records.clicks import NO_TIME, ClickLog, Integers, LogReport, read_clicks, split_by_request, split_by_time
from records.history import Counts, Histories, counts_before, earlier_windows
from records.users import Context, UserProfile, context_from_row, read_users

_MAX_BLOCK_MICROSECONDS = 24 * 3600 * 1_000_000


@dataclass(frozen=True)
class Dataset:
    """A click log joined with its catalog and users.

    Attributes:
        ad_counts, user_counts: impressions and clicks of each row's ad and user in strictly earlier rows.
        parts: row indices of training, validation and test.
        split: how the parts were made: "time" or "request".
    """

    log: ClickLog
    report: LogReport
    ads: Mapping[str, Ad]
    users: Mapping[str, UserProfile]
    histories: Histories
    ad_counts: Counts
    user_counts: Counts
    parts: tuple[Integers, ...]
    split: str

    @property
    def sha256(self) -> str:
        """Hash of the log and of the texts it refers to."""
        digest = hashlib.sha256()
        for column in (self.log.request_id, self.log.ad_id, self.log.user_id):
            digest.update("\0".join(column).encode("utf-8", "surrogatepass"))
        for numbers in (self.log.time, self.log.clicks, self.log.impressions):
            digest.update(numbers.tobytes())
        for ad_id in sorted(self.ads):
            digest.update(f"{ad_id}\0{render_ad(self.ads[ad_id])}\0".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    @property
    def prior_ctr(self) -> float:
        """Clicks per impression of the training part."""
        return self.log.take(self.parts[0]).ctr

    def features(self, text_vectors: Mapping[str, Vectors], ctr: float) -> Features:
        """Dense features of each row from strictly earlier rows, float32 [rows, features], not normalised.

        Args:
            text_vectors: Unit vector of each ad's text, by ad id.
            ctr: What rates shrink to.
        """
        taste = np.zeros(len(self.log))
        names, codes = np.unique(self.log.ad_id.astype(str), return_inverse=True)
        vectors = np.stack([text_vectors[name] for name in names])[codes]
        liked = self.log.clicks > 0
        for rows, past, seen in earlier_windows(self.log, HISTORY_EVENTS):
            taste[rows] = taste_of(vectors[rows], vectors[past], liked[past], ctr, seen)
        return dense_features(self.ad_counts, self.user_counts, taste, ctr)

    def context(self, row: int) -> Context:
        """Where the impression of a row happened, from the log's further columns."""
        values = {name: column[row] for name, column in self.log.context.items()}
        return context_from_row({name: value for name, value in values.items() if value is not None})

    def user_text(self, row: int) -> str:
        """What the model reads of the user just before the impression of `row`."""
        user_id = str(self.log.user_id[row])
        time = int(self.log.time[row])
        user = self.users.get(user_id, UserProfile(user_id))
        if time != NO_TIME:
            user = replace(user, history=self.histories.before(user_id, time, HISTORY_EVENTS))
        return render_user(user, self.context(row), self.ads.get)


def load_dataset(ads: Path, clicks: Path, users: Path | None, *, seed: int = 0, max_rejected: float = 0.01) -> Dataset:
    """Reads and joins the three files and splits the log 8:1:1, by time where every row has one, else by request.

    Raises:
        InputError: A file cannot be read, too many rows are unusable, or the log is too small to split.
    """
    catalog = {ad.ad_id: ad for ad in read_ads(ads) if not isinstance(ad, RejectedAd)}
    profiles = {user.user_id: user for user in read_users(users)} if users else {}
    log, report = read_clicks(clicks, catalog.keys(), max_rejected=max_rejected)
    by_time = log.has_time
    parts = split_by_time(log) if by_time else split_by_request(log, seed)
    counts = counts_before(log.ad_id, log), counts_before(log.user_id, log)
    return Dataset(log, report, catalog, profiles, Histories(log), *counts, parts, "time" if by_time else "request")


def make_blocks(log: ClickLog, rows: Integers, *, max_ads: int, merge_requests: bool) -> list[Integers]:
    """Groups rows so that each group reads its user once.

    Args:
        rows: Row indices in the order of time.
        max_ads: Rows in a block, at most.
        merge_requests: Put a user's consecutive requests of one day into one block (fewer user passes, histories up
            to a day old); otherwise a block is one request, as in serving.
    """
    blocks: dict[tuple[str, str], list[list[int]]] = {}
    for row in rows.tolist():
        user, request = str(log.user_id[row]), str(log.request_id[row])
        key = (user, "") if merge_requests and user else (user, request)
        groups = blocks.setdefault(key, [])
        if groups and len(groups[-1]) < max_ads and log.time[row] - log.time[groups[-1][0]] <= _MAX_BLOCK_MICROSECONDS:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [np.array(group, np.int64) for groups in blocks.values() for group in groups]


@dataclass(frozen=True)
class LabelledBatch:
    """Pairs with what happened: float32 [pairs] each. `ad_texts` are in the order of the pairs."""

    pairs: PairBatch
    clicks: Tensor
    impressions: Tensor
    rows: Integers
    ad_texts: tuple[str, ...]


class AdTexts:
    """The ads of a log as texts, tokens and vectors, for one model."""

    def __init__(self, data: Dataset, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self.texts = {ad_id: render_ad(data.ads[ad_id]) for ad_id in np.unique(data.log.ad_id.astype(str)).tolist()}
        rows = tokenize(tokenizer, list(self.texts.values()), max_tokens)
        self.tokens: dict[str, TokenIds] = dict(zip(self.texts, rows, strict=True))

    @torch.no_grad()
    def vectors(self, text: TextVectors, pad_id: int, *, chunk: int = 1024) -> dict[str, Vectors]:
        """Unit text vector of each ad, by ad id."""
        rows = list(self.tokens.values())
        parts = [text(pad(rows[start : start + chunk], pad_id)).numpy() for start in range(0, len(rows), chunk)]
        return dict(zip(self.texts, np.concatenate(parts), strict=True))


class BatchMaker:
    """Turns blocks of a dataset into batches for one model.

    Args:
        features: Normalised dense features of every row of the log, float32 [rows, features].
    """

    def __init__(
        self,
        data: Dataset,
        ads: AdTexts,
        features: Features,
        tokenizer: PreTrainedTokenizerBase,
        spec: CtrSpec,
        device: torch.device,
    ) -> None:
        self._data = data
        self._ads = ads
        self._features = features
        self._tokenizer = tokenizer
        self._spec = spec
        self._device = device
        self._pad_id = int(tokenizer.pad_token_id or 0)

    def batch(self, blocks: Sequence[Integers]) -> LabelledBatch:
        """One batch of several blocks."""
        rows = np.concatenate(blocks)
        log = self._data.log
        texts = [self._data.user_text(int(block[0])) for block in blocks]
        users = pad(tokenize(self._tokenizer, texts, self._spec.max_user_tokens), self._pad_id)
        ads = pad([self._ads.tokens[ad_id] for ad_id in log.ad_id[rows]], self._pad_id)
        dense = torch.from_numpy(self._features[rows])
        return LabelledBatch(
            PairBatch(users.to(self._device), ads.to(self._device), tuple(map(len, blocks)), dense.to(self._device)),
            torch.from_numpy(log.clicks[rows].astype(np.float32)).to(self._device),
            torch.from_numpy(log.impressions[rows].astype(np.float32)).to(self._device),
            rows,
            tuple(self._ads.texts[ad_id] for ad_id in log.ad_id[rows]),
        )

    def batches(self, blocks: Sequence[Integers], pairs_per_batch: int) -> Iterator[LabelledBatch]:
        """Batches of whole blocks with about `pairs_per_batch` pairs, in the given order."""
        waiting: list[npt.NDArray[Any]] = []
        for block in blocks:
            waiting.append(block)
            if sum(map(len, waiting)) >= pairs_per_batch:
                yield self.batch(waiting)
                waiting = []
        if waiting:
            yield self.batch(waiting)
