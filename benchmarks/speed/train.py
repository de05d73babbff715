"""``adcascade bench train``: reading a log, its histories and counters, an epoch, and a whole training."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from adcascade.records.ads import read_catalog
from adcascade.records.click_batches import BatchChecker
from adcascade.records.clicks import ClickLog, read_clicks
from adcascade.records.counters import DECAYED
from adcascade.records.datasets.movielens import DatasetFiles
from adcascade.records.errors import InputError
from adcascade.records.files import read_batches
from adcascade.records.history import PointInTimeHistory
from benchmarks.ad_log import AdLogOptions, make_ad_log
from benchmarks.speed.interleaved_timing import Progress, Spread
from benchmarks.speed.machine import describe
from benchmarks.speed.memory import peak_mib
from benchmarks.speed.results import BenchResult, Entry, TargetResult
from benchmarks.speed.train_behaviour import behaviour_speed
from benchmarks.speed.train_text import text_speed
from benchmarks.speed.train_whole import TARGET_ROWS, train_whole, verdicts
from ranking.data.dataset import load_dataset
from ranking.data.log_keys import LogKeys

PARTS = ("read", "history", "words", "behaviour", "text", "whole")
BY_COLUMN, BY_ROW = "by column", "row by row"
IN_BATCHES, ONE_BY_ONE = "in batches of many users", "users one by one"
_LEAST_READ, _MOST_MIB, _LEAST_HISTORY, _LEAST_LEARNED = 1_000_000, 1536, 500_000, 50_000
_LEAST_WORDS = 100_000
_READ_ROWS = 10_000_000
# Rows whose users are put into words at once, as a training does.
_WORDS_AT_ONCE = 2048


@dataclass(frozen=True)
class TrainSettings:
    """How the benchmark is run.

    Attributes:
        parts: of `PARTS`, which are run.
        read_rows: of the Parquet log that is read and checked.
        row_path_rows: of the log whose rows are checked one by one, for comparison.
        rows: of the log whose histories and counters are made, and which the behaviour part learns from.
        text_rows: of the log that the text layers learn from, of users with five rows each.
        text_steps: of each round.
        against: a commit whose fine-tuning is timed in turns; empty for none.
        whole_rows: of the log that a whole training makes a published version of.
        whole_minutes: after which the clock cuts that training short; 0 for its default options.
        users_per_row: users of each log over its rows.
    """

    parts: tuple[str, ...] = PARTS
    read_rows: int = _READ_ROWS
    row_path_rows: int = 200_000
    rows: int = 1_000_000
    text_rows: int = 50_000
    text_steps: int = 220
    against: str = ""
    whole_rows: int = TARGET_ROWS
    whole_minutes: float = 0.0
    users_per_row: float = 0.2
    ads: int = 20_000
    rounds: int = 3
    seed: int = 0


def bench_train(settings: TrainSettings, folder: Path, progress: Progress = lambda *_: None) -> BenchResult:
    """Times each part on a log of its own size. Raises InputError for a part that there is not."""
    unknown = [part for part in settings.parts if part not in PARTS]
    if unknown:
        raise InputError(f"there is no part {unknown[0]!r}; choose of {', '.join(PARTS)}")
    machine = describe()
    measure = {
        "read": _read,
        "history": _history,
        "words": _words,
        "behaviour": _behaviour,
        "text": _text,
        "whole": _whole,
    }
    found = [measure[part](settings, folder, progress) for part in settings.parts]
    return BenchResult(
        bench="train",
        machine=machine,
        settings=asdict(settings) | {"parts": ",".join(settings.parts)},
        entries=[entry for entries, _ in found for entry in entries],
        verdicts=[verdict for _, verdicts in found for verdict in verdicts],
    )


def _log_of(rows: int, settings: TrainSettings, folder: Path) -> DatasetFiles:
    users = max(1, int(rows * settings.users_per_row))
    return make_ad_log(folder / f"log-{rows}", AdLogOptions(rows, users, settings.ads, seed=settings.seed))


def _timed(work: Callable[[], object], rounds: int, progress: Progress) -> list[tuple[float, float]]:
    """Seconds of each round, on the clock and of the processors."""
    found = []
    for number in range(rounds):
        started, worked = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - started, time.process_time() - worked))
        progress(number + 1, rounds)
    return found


def _entry(case: str, contender: str, seconds: Sequence[tuple[float, float]], rows: int, **further: float) -> Entry:
    """Of rounds, each in seconds on the clock and of the processors, which other work on the machine slows less."""
    milliseconds = Spread.of([1000 * one for one, _ in seconds])
    per_second = 1000 * rows / milliseconds.median
    figures = {"rows a processor's second": rows / min(worked for _, worked in seconds), **further}
    return Entry(
        case=case, contender=contender, milliseconds=milliseconds, figures={"rows a second": per_second, **figures}
    )


def _read(settings: TrainSettings, folder: Path, progress: Progress) -> tuple[list[Entry], list[TargetResult]]:
    """A whole log by column, in processes of their own; and some rows of it one by one."""
    files = _log_of(settings.read_rows, settings, folder)
    command = ["-m", "benchmarks.speed.read_log", str(files.ads), str(files.clicks)]
    rounds = [_seconds_of(command) for _ in range(settings.rounds)]
    progress(settings.rounds, settings.rounds)
    peak = peak_mib(command)
    sample = folder / "sample.parquet"
    rows = min(settings.row_path_rows, settings.read_rows)
    pq.write_table(pa.Table.from_batches([next(pq.ParquetFile(files.clicks).iter_batches(rows))]), sample)
    by_row = _timed(lambda: _read_by_row(files.ads, sample), 1, progress)
    entries = [
        _entry(
            f"read and check {settings.read_rows:,} rows",
            BY_COLUMN,
            rounds,
            settings.read_rows,
            MiB=peak,
        ),
        _entry(f"read and check {rows:,} rows", BY_ROW, by_row, rows),
    ]
    speed = entries[0].figures["rows a second"]
    few = "" if settings.read_rows >= _READ_ROWS else "measured on fewer"
    return entries, [
        TargetResult(
            what=f"reading and checking {settings.read_rows:,} rows of Parquet",
            target=f"at least {_LEAST_READ:,} rows a second",
            reached=f"{speed:,.0f} ({entries[1].figures['rows a second']:,.0f} row by row)",
            met=speed >= _LEAST_READ and not few,
            why=few,
        ),
        TargetResult(
            what=f"memory of reading {settings.read_rows:,} rows",
            target=f"at most {_MOST_MIB:,} MiB for {_READ_ROWS:,}",
            reached=f"{peak:,.0f} MiB",
            met=peak <= _MOST_MIB and not few,
            why=few,
        ),
    ]


def _read_by_row(ads: Path, clicks: Path) -> None:
    """What every row went through before logs were read by column, and what odd rows still go through."""
    check = BatchChecker(_ids_of(ads), {}, datetime.now(UTC))
    for batch in read_batches(clicks):
        check(batch)


def _ids_of(ads: Path) -> frozenset[str]:
    return frozenset(ad.ad_id for ad in read_catalog(ads).ads)


def _seconds_of(arguments: Sequence[str]) -> tuple[float, float]:
    """What `benchmarks.speed.read_log` prints."""
    done = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    clock, processors = map(float, done.stdout.split())
    return clock, processors


def _history(settings: TrainSettings, folder: Path, progress: Progress) -> tuple[list[Entry], list[TargetResult]]:
    """Users' histories, and all counters of each row as of its moment."""
    files = _log_of(settings.rows, settings, folder)
    catalog = {ad.ad_id: ad for ad in read_catalog(files.ads).ads}
    log, _ = read_clicks(files.clicks, catalog.keys())

    def work() -> None:
        fresh = _unsorted(log)
        past = PointInTimeHistory(fresh)
        for key, ids in LogKeys(fresh.ad_id, fresh.user_id, catalog).items():
            past.counts(ids)
            if key in DECAYED:
                past.decayed(ids)

    entry = _entry(
        f"histories and counters of {settings.rows:,} rows",
        BY_COLUMN,
        _timed(work, settings.rounds, progress),
        settings.rows,
    )
    speed = entry.figures["rows a second"]
    return [entry], [
        TargetResult(
            what=f"histories and counters of {settings.rows:,} rows, point in time",
            target=f"at least {_LEAST_HISTORY:,} rows a second",
            reached=f"{speed:,.0f}",
            met=speed >= _LEAST_HISTORY,
        )
    ]


def _words(settings: TrainSettings, folder: Path, progress: Progress) -> tuple[list[Entry], list[TargetResult]]:
    """What the text layers read of users and ads, for every row that trains as if each were a request of its own."""
    files = _log_of(settings.rows, settings, folder)
    data = load_dataset(files.ads, files.clicks, files.users)
    rows = data.split.train

    def work() -> None:
        for start in range(0, len(rows), _WORDS_AT_ONCE):
            data.user_texts(rows[start : start + _WORDS_AT_ONCE])
        for ad_id in data.ads:
            data.ad_text(ad_id)

    seconds = _timed(work, settings.rounds, progress)
    entry = _entry(f"texts of users and ads of {len(rows):,} rows", BY_COLUMN, seconds, len(rows))
    speed = entry.figures["rows a second"]
    return [entry], [
        TargetResult(
            what=f"user and ad texts of {len(rows):,} rows, for the cross-encoder",
            target=f"at least {_LEAST_WORDS:,} rows a second",
            reached=f"{speed:,.0f}",
            met=speed >= _LEAST_WORDS,
        )
    ]


def _behaviour(settings: TrainSettings, folder: Path, progress: Progress) -> tuple[list[Entry], list[TargetResult]]:
    """An epoch of the behaviour part, in turns with some of its rows one user after the other."""
    files = _log_of(settings.rows, settings, folder)
    found = behaviour_speed(files, rounds=settings.rounds, seed=settings.seed, progress=progress)
    entries = []
    for contender, rows, seconds in zip(
        (ONE_BY_ONE, IN_BATCHES), found.rows, (found.one_by_one, found.in_batches), strict=True
    ):
        milliseconds = Spread.of([1000 * one for one in seconds])
        figures = {"rows a second": 1000 * rows / milliseconds.median}
        case = f"an epoch over {rows:,} rows"
        entries.append(Entry(case=case, contender=contender, milliseconds=milliseconds, figures=figures))
    speed = entries[1].figures["rows a second"]
    return entries, [
        TargetResult(
            what=f"an epoch of the behaviour part over {found.rows[1]:,} rows",
            target=f"at least {_LEAST_LEARNED:,} rows a second",
            reached=f"{speed:,.0f} ({found.times_faster:.1f} x users one by one)",
            met=speed >= _LEAST_LEARNED,
        )
    ]


def _text(settings: TrainSettings, folder: Path, progress: Progress) -> tuple[list[Entry], list[TargetResult]]:
    """Steps of the text layers, in turns with those of another commit."""
    rows = settings.text_rows
    options = AdLogOptions(rows, users=rows // 5, ads=max(100, rows // 25), seed=settings.seed)
    files = make_ad_log(folder / f"text-{rows}", options)
    found = text_speed(
        files, folder, settings.against, steps=settings.text_steps, rounds=settings.rounds, progress=progress
    )
    return found.entries(), found.verdicts(settings.against)


def _whole(settings: TrainSettings, folder: Path, progress: Progress) -> tuple[list[Entry], list[TargetResult]]:
    """A log to a published version, once."""
    rows, minutes = settings.whole_rows, settings.whole_minutes
    options = ["--max-minutes", str(minutes)] if minutes else []
    found = train_whole(_log_of(rows, settings, folder), rows, folder / f"model-{rows}", options)
    progress(1, 1)
    seconds = [(60 * found.minutes, 60 * found.processor_minutes)]
    contender = " ".join(["adcascade train", *options])
    entry = _entry(f"a log of {rows:,} rows to a version", contender, seconds, rows, GiB=found.peak_gib)
    return [entry], verdicts(found, was_cut_short=minutes > 0)


def _unsorted(log: ClickLog) -> ClickLog:
    """The same log without what its columns remember of an earlier round."""
    return replace(log, **{name: replace(getattr(log, name)) for name in ("request_id", "ad_id", "user_id")})
