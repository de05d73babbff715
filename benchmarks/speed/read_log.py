"""Reads a log as a training does, in a process of its own, so that its memory is that of reading alone.

Prints the seconds that it took, on the clock and of the processors.
"""

import sys
import time
from pathlib import Path

from adcascade.records.ads import read_catalog
from adcascade.records.clicks import read_clicks


def main(ads: Path, clicks: Path) -> None:
    """Reads both."""
    known = frozenset(ad.ad_id for ad in read_catalog(ads).ads)
    started, worked = time.perf_counter(), time.process_time()
    read_clicks(clicks, known)
    print(time.perf_counter() - started, time.process_time() - worked)  # noqa: T201


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
