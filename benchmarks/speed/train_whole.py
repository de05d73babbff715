"""A log to a published version by ``adcascade train``, in a process of its own, whose peak of memory is told."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from adcascade.records.datasets.movielens import DatasetFiles
from benchmarks.speed.results import TargetResult

TARGET_ROWS, MOST_MINUTES, MOST_MEMORY_ROWS, MOST_GIB = 10_000_000, 30.0, 50_000_000, 6.0


@dataclass(frozen=True)
class WholeTraining:
    """What a training of so many rows took.

    Attributes:
        peak_gib: most memory that it had at any time (resident), GiB.
        processor_minutes: of all threads together.
    """

    rows: int
    minutes: float
    processor_minutes: float
    peak_gib: float


def train_whole(files: DatasetFiles, rows: int, out: Path) -> WholeTraining:
    """Trains with the default options and publishes the version under `out`.

    Raises:
        RuntimeError: It failed; the message has its last lines.
    """
    command = [sys.executable, "-m", "pipeline.cli", "train", "--ads", files.ads, "--clicks", files.clicks]
    log = out.with_suffix(".txt")
    started = time.monotonic()
    with log.open("w") as lines:
        process = subprocess.Popen(
            [*map(str, command), "--users", str(files.users), "--out", str(out)], stdout=lines, stderr=lines
        )
        _, status, usage = os.wait4(process.pid, 0)
    minutes = (time.monotonic() - started) / 60
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"adcascade train failed: {log.read_text()[-2000:].strip()}")
    return WholeTraining(rows, minutes, (usage.ru_utime + usage.ru_stime) / 60, usage.ru_maxrss / 2**20)


def verdicts(found: WholeTraining) -> list[TargetResult]:
    """Whether a training was fast and small enough; one of fewer rows than a target names tells nothing of it."""
    fast, small = ("" if found.rows >= rows else "measured on fewer rows" for rows in (TARGET_ROWS, MOST_MEMORY_ROWS))
    return [
        TargetResult(
            what=f"a log of {found.rows:,} rows to a published version",
            target=f"less than {MOST_MINUTES:.0f} minutes for {TARGET_ROWS:,} rows",
            reached=f"{found.minutes:.1f} minutes ({found.processor_minutes:.1f} of processors)",
            met=found.minutes < MOST_MINUTES and not fast,
            why=fast,
        ),
        TargetResult(
            what=f"peak memory of a training of {found.rows:,} rows",
            target=f"less than {MOST_GIB:.0f} GiB for {MOST_MEMORY_ROWS:,} rows",
            reached=f"{found.peak_gib:.2f} GiB",
            met=found.peak_gib < MOST_GIB and not small,
            why=small,
        ),
    ]
