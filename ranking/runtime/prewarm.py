"""Reads the ads of the index version before anybody asks for them, a few at a time. Knows no wire."""

import logging
import time

from adcascade.artifacts.hotswap import HotSwap
from ranking.inputs.known_ads import KnownAd, PartsOf
from ranking.inputs.prepare import CatalogVersion
from ranking.runtime.engine import RankingEngine

log = logging.getLogger(__name__)

# So few that a call which comes meanwhile hardly waits.
_ADS_AT_ONCE = 8


class AdCachePrewarmer:
    """Fills the ad states of whatever model version is loaded, from whatever index version is, until no more fit.

    Belongs to the thread of the model.
    """

    def __init__(self, engines: HotSwap[RankingEngine], catalogs: HotSwap[CatalogVersion]) -> None:
        self._engines = engines
        self._catalogs = catalogs
        self._versions = ("", "")
        self._kept = 0
        self._is_done = False
        self._started = 0.0

    def step(self) -> bool:
        """Reads a few ads; False if there is nothing left to do until a version changes."""
        if not self._engines.is_loaded or not self._catalogs.is_loaded:
            return False
        with self._engines.lease() as engine, self._catalogs.lease() as loaded:
            versions = (engine.loaded.version, loaded.version)
            if versions != self._versions:
                self._versions, self._kept, self._is_done, self._started = versions, 0, False, time.monotonic()
            if not self._is_done:
                self._is_done = not self._keep_some(engine, loaded)
            return not self._is_done

    def _keep_some(self, engine: RankingEngine, loaded: CatalogVersion) -> bool:
        """Whether there is more to keep, and room for it."""
        ads = len(loaded.catalog)
        rows = range(self._kept, min(self._kept + _ADS_AT_ONCE, ads))
        known = [KnownAd.of(ad) for ad in loaded.catalog.ads(rows)]
        if not engine.prefetch([one.text for one in known], PartsOf(known)):
            if self._kept:
                log.info("the states of %d of %d ads fill the memory for them (cache_mib)", self._kept, ads)
            return False
        self._kept = rows.stop
        if self._kept == ads:
            log.info("read all %d ads in %.1f s, before anybody asked", ads, time.monotonic() - self._started)
        return self._kept < ads
