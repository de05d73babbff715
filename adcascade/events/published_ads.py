"""Advertiser and category of each ad of the published index version, as of now. Loads no texts and no vectors."""

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from adcascade.artifacts.errors import ArtifactError
from adcascade.artifacts.store import VersionStore
from adcascade.events.values import AdKeys

log = logging.getLogger(__name__)

_ADS_FILE, _COLUMNS = "ads.parquet", ("ad_id", "advertiser", "category")


class PublishedAds:
    """Looks ads up, and looks for a new version before it says that there is no such ad.

    Args:
        root: of the index versions.
        poll_seconds: how long a version is believed to be the published one.

    Raises:
        ArtifactError: No version is published, or its ads cannot be read.
    """

    def __init__(self, root: Path, poll_seconds: float = 1.0) -> None:
        self._store, self._poll_seconds = VersionStore(root, "index"), poll_seconds
        self._lock = threading.Lock()
        self._version = ""
        self._ads: Mapping[str, AdKeys] = {}
        self._load()
        self._looked = time.monotonic()

    def __call__(self, ad_id: str) -> AdKeys | None:
        """Of an ad; None if the published version does not have it."""
        found = self._ads.get(ad_id)
        if found is None or time.monotonic() - self._looked > self._poll_seconds:
            self._look()
            found = self._ads.get(ad_id)
        return found

    def _look(self) -> None:
        with self._lock:
            if time.monotonic() - self._looked <= min(self._poll_seconds, 0.1):
                return
            self._looked = time.monotonic()
            try:
                self._load()
            except ArtifactError as error:
                log.warning("ads of the index version before stay in use: %s", error)

    def _load(self) -> None:
        folder = self._store.current_path()
        if folder.name == self._version:
            return
        path = folder / _ADS_FILE
        try:
            table = pq.read_table(path, columns=list(_COLUMNS), memory_map=False)
        except (OSError, pa.ArrowException) as error:
            raise ArtifactError(f"{path} holds no ads that can be read: {error}") from error
        ids, advertisers, categories = (table[name].to_pylist() for name in _COLUMNS)
        self._ads = {
            ad_id: AdKeys(advertiser or "", category or "")
            for ad_id, advertiser, category in zip(ids, advertisers, categories, strict=True)
        }
        self._version = folder.name
