"""A catalog with its text vectors, a click log and its users, for training and judging retrieval."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from adcascade.catalog.ad_text import embedding_text
from adcascade.records.ads import Ad
from adcascade.records.clicks import ClickLog, LogReport
from adcascade.records.joined import Joined, read_joined
from adcascade.records.users import UserProfile
from adcascade.terminal.progress import Progress
from adcascade.towers.training.split import TowerSplit, split_log
from adcascade.vectors.encoder import TextEncoder, Vectors

_TEXTS_AT_ONCE = 512


@dataclass(frozen=True)
class RetrievalData:
    """What the owner brings, read and split.

    Attributes:
        ads: the catalog.
        texts: unit text vectors of its ads, float32 [ads, text width].
        users: by id.
    """

    ads: list[Ad]
    texts: Vectors
    log: ClickLog
    report: LogReport
    users: Mapping[str, UserProfile]
    split: TowerSplit

    @classmethod
    def of(
        cls,
        ads: list[Ad],
        log: ClickLog,
        report: LogReport,
        users: Mapping[str, UserProfile],
        split: TowerSplit,
        encoder: TextEncoder,
        progress: Progress = lambda *_: None,
    ) -> "RetrievalData":
        """Embeds the texts of what was read and split."""
        texts = np.empty((len(ads), encoder.dimension), np.float32)
        for start in range(0, len(ads), _TEXTS_AT_ONCE):
            some = ads[start : start + _TEXTS_AT_ONCE]
            texts[start : start + len(some)] = encoder.encode([embedding_text(ad) for ad in some])
            progress("embed", start + len(some), len(ads))
        return cls(ads, texts, log, report, users, split)

    @cached_property
    def ad_ids(self) -> list[str]:
        """Ids of the ads, in order."""
        return [ad.ad_id for ad in self.ads]

    @cached_property
    def number_of(self) -> dict[str, int]:
        """Number of each ad by its id."""
        return {ad_id: number for number, ad_id in enumerate(self.ad_ids)}

    @cached_property
    def training_sha256(self) -> str:
        """Hash of the rows that are trained on."""
        rows, digest = self.split.train, hashlib.sha256()
        for column in (self.log.ad_id, self.log.user_id):
            column[rows].hash_into(digest)
        for numbers in (self.log.time, self.log.clicks, self.log.impressions):
            digest.update(numbers[rows].astype(np.int64, copy=False).tobytes())
        return digest.hexdigest()


def load_retrieval_data(
    ads: Path,
    clicks: Path,
    users: Path | None,
    encoder: TextEncoder,
    *,
    split: str = "time",
    seed: int = 0,
    max_rejected: float = 0.01,
    newest: int | None = None,
    rejected_file: Path | None = None,
    progress: Progress = lambda *_: None,
    on_read: Callable[[Joined], None] = lambda _: None,
) -> RetrievalData:
    """Reads the three files, splits the log and embeds the texts.

    A few rows without a timestamp (no more than may be rejected) are left out.

    Args:
        split, seed: see `split.split_log`.
        max_rejected, newest, rejected_file: see `adcascade.records.clicks.read_clicks`.
        on_read: Called with what was read, before it is split and embedded.

    Raises:
        InputError: A file cannot be read, too many rows are unusable, or the log cannot be split so.
    """
    read = read_joined(
        ads, clicks, users, max_rejected=max_rejected, newest=newest, timed=True, rejected_file=rejected_file
    )
    on_read(read)
    rows = split_log(read.log, split, seed)
    return RetrievalData.of(list(read.ads.values()), read.log, read.report, read.users, rows, encoder, progress)
