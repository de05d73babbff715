"""Text fine-tuning on users with five rows each: (user, ad) pairs a second, in turns with those of another commit."""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from adcascade.records.datasets.movielens import DatasetFiles
from benchmarks.speed import text_steps
from benchmarks.speed.against import checked_out
from benchmarks.speed.interleaved_timing import Progress, Spread
from benchmarks.speed.results import Entry, TargetResult

_REPOSITORY = Path(__file__).resolve().parents[2]
_LEAST = 4.0
# Steps that are not counted: the first ones begin many things.
_FIRST = 20
OURS = "AdCascade"


@dataclass(frozen=True)
class TextSpeed:
    """Pairs a second in each round, by whose code it is; the rounds are taken in turns."""

    pairs_a_second: dict[str, list[float]]

    @property
    def times_faster(self) -> float | None:
        """Of ours over those of the other commit, the median of the rounds; None without another one."""
        ours, *other = self.pairs_a_second.values()
        return statistics.median(here / there for here, there in zip(ours, *other, strict=True)) if other else None

    def entries(self) -> list[Entry]:
        """What was found, side by side."""
        return [
            Entry(
                case="a pair in fine-tuning, users of five rows",
                contender=name,
                milliseconds=Spread.of([1000 / rate for rate in rates]),
                figures={"pairs a second": statistics.median(rates)},
            )
            for name, rates in self.pairs_a_second.items()
        ]

    def verdicts(self, against: str) -> list[TargetResult]:
        """Whether it is fast enough; nothing without another commit."""
        times = self.times_faster
        if times is None:
            return []
        ours, theirs = (statistics.median(rates) for rates in self.pairs_a_second.values())
        return [
            TargetResult(
                what=f"text fine-tuning against commit {against}, users of five rows",
                target=f"at least {_LEAST:.0f} times the pairs a second",
                reached=f"{times:.2f} times ({ours:,.0f} and {theirs:,.0f})",
                met=times >= _LEAST,
            )
        ]


def text_speed(
    files: DatasetFiles, folder: Path, against: str, *, steps: int, rounds: int, progress: Progress = lambda *_: None
) -> TextSpeed:
    """Times steps of the text layers in processes of their own.

    Args:
        against: A commit of this repository; empty for none.
        steps: Of each round.

    Raises:
        InputError: git has no such commit.
        RuntimeError: A training failed; the message has its last lines.
    """
    code = {OURS: _REPOSITORY}
    if against:
        code[f"commit {against}"] = checked_out(against, folder / "against")
    found: dict[str, list[float]] = {name: [] for name in code}
    for number in range(rounds):
        for name, where in list(code.items())[:: 1 if number % 2 == 0 else -1]:
            found[name].append(_pairs_a_second(files, where, steps))
        progress(number + 1, rounds)
    return TextSpeed(found)


def _pairs_a_second(files: DatasetFiles, code: Path, steps: int) -> float:
    """In the code that lies in a folder; the first steps do not count."""
    paths = [text_steps.__file__, files.ads, files.clicks, files.users]
    command = [sys.executable, *map(str, paths), str(steps + _FIRST)]
    # Threads that spin while they wait slow each other down beside any other work; older code lets them.
    environment = os.environ | {"PYTHONPATH": str(code), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=code, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"a training with the code in {code} failed: {done.stderr[-2000:].strip()}")
    measured = json.loads(done.stdout)
    seconds = measured["seconds"][_FIRST:]
    if not seconds:
        raise RuntimeError(f"the log is too small for {steps} steps of the text layers")
    return float(measured["pairs"] * len(seconds) / sum(seconds))
