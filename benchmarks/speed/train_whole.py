"""A log to a published version by ``adcascade train``, in a process of its own, whose peak of memory is told."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from adcascade.records.datasets.movielens import DatasetFiles
from benchmarks.speed.memory import watch_peak
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


def train_whole(files: DatasetFiles, rows: int, out: Path, options: Sequence[str] = ()) -> WholeTraining:
    """Trains with the default options and publishes the version under `out`.

    Args:
        rows: of the log.
        options: flags of ``adcascade train`` in place of the defaults.

    Raises:
        RuntimeError: It failed; the message has its last lines.
    """
    command = [sys.executable, "-m", "pipeline.cli", "train", "--ads", str(files.ads), "--clicks", str(files.clicks)]
    command += ["--users", str(files.users), "--out", str(out), *options]
    log = out.with_suffix(".txt")
    started = time.monotonic()
    with log.open("w") as lines:
        ended = _ended(subprocess.Popen(command, stdout=lines, stderr=lines))
    minutes = (time.monotonic() - started) / 60
    if ended.code:
        raise RuntimeError(f"adcascade train failed: {log.read_text()[-2000:].strip()}")
    return WholeTraining(rows, minutes, ended.processor_seconds / 60, ended.peak_mib / 1024)


class _Ended(NamedTuple):
    code: int
    processor_seconds: float
    peak_mib: float


def _ended(process: "subprocess.Popen[bytes]") -> _Ended:
    """The exit code of a process and what it used, once it has ended; it does not outlive who waits for it."""
    peak = [0.0]
    watcher = threading.Thread(target=watch_peak, args=(psutil.Process(process.pid), peak))
    watcher.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    return _Ended(process.returncode, usage.ru_utime + usage.ru_stime, peak[0])


def verdicts(found: WholeTraining, *, was_cut_short: bool = False) -> list[TargetResult]:
    """Whether a training was fast and small enough; one of fewer rows than a target names tells nothing of it.

    Args:
        was_cut_short: by the clock: then its minutes tell nothing either.
    """

    def verdict(what: str, reached: str, is_met: bool, target: str, rows: int) -> TargetResult:
        why = "" if found.rows >= rows else "measured on fewer rows"
        if was_cut_short and rows == TARGET_ROWS:
            why = "the clock cut it short"
        return TargetResult(
            what=what, target=f"less than {target} for {rows:,} rows", reached=reached, met=is_met and not why, why=why
        )

    return [
        verdict(
            f"a log of {found.rows:,} rows to a published version",
            f"{found.minutes:.1f} minutes ({found.processor_minutes:.1f} of processors)",
            found.minutes < MOST_MINUTES,
            f"{MOST_MINUTES:.0f} minutes",
            TARGET_ROWS,
        ),
        verdict(
            f"peak memory of a training of {found.rows:,} rows",
            f"{found.peak_gib:.2f} GiB",
            found.peak_gib < MOST_GIB,
            f"{MOST_GIB:.0f} GiB",
            MOST_MEMORY_ROWS,
        ),
    ]
