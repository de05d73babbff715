"""What was counted of a whole log, for serving, written without ever being in memory as a whole. Knows no models."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from adcascade.records.clicks import ClickLog
from adcascade.records.counter_table import SCHEMA
from adcascade.records.counters import CounterSnapshot
from adcascade.records.memory import release_unused
from ranking.data.log_keys import LogKeys


class LogCounters:
    """Counters of a log by the end of it: those that `CounterSnapshot.of` makes of all rows at once.

    Args:
        most_rows: that are counted at once, about; all rows of an id are.
    """

    def __init__(self, log: ClickLog, keys: LogKeys, most_rows: int) -> None:
        self._log, self._keys, self._most_rows = replace(log, context={}), keys, most_rows

    def save(self, path: Path) -> None:
        """Writes what `CounterSnapshot.load` reads; ids of a part stand together."""
        with pq.ParquetWriter(path, SCHEMA) as writer:
            for key in self._keys:
                part, parts = self._keys.parts(key, self._most_rows)
                for number in range(parts):
                    rows = slice(None) if parts == 1 else np.flatnonzero(part == number)
                    log, ids = self._log.take(rows), self._keys.take(rows)[key]
                    CounterSnapshot.of(log, {key: ids}).write(writer)
                    del log, ids
                release_unused()
