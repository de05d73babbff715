"""``adcascade bench load --against REF``: the same calls to these servers and to those of another commit, in turns.

Both run beside each other, over the same index and ranker, and only one of them is asked at a time. What decides is
processor time a call: two cores carry 2 / (seconds of processor time a call) calls a second at most, and what else the
machine does moves it less than it moves any other time.
"""

import io
import statistics
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adcascade.records.errors import InputError
from benchmarks.speed.interleaved_timing import Spread
from benchmarks.speed.open_loop import Answered, one_by_one
from benchmarks.speed.results import Entry
from benchmarks.speed.stages import Made, Servers, as_entry, cache_flags, serving_at

_REPOSITORY = Path(__file__).resolve().parents[2]
_ROUNDS, _CALLS = 5, 100
OURS = "AdCascade"

# Asks a side at one rate: what became of the calls, and the cores that its servers kept busy.
Ask = Callable[[Servers, float], tuple[Answered, float]]


def checked_out(ref: str, folder: Path) -> Path:
    """The files of a commit in `folder`, which is made. Raises InputError where git has no such commit."""
    if ref.startswith("-"):
        raise InputError(f"--against {ref}: that is no name of a commit")
    command = ["git", "-C", str(_REPOSITORY), "archive", "--format=tar", f"{ref}^{{commit}}"]
    try:
        files = subprocess.run(command, check=True, capture_output=True).stdout
    except OSError as error:
        raise InputError(f"--against needs git: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise InputError(f"--against {ref}: {error.stderr.decode(errors='replace').strip()}") from error
    with tarfile.open(fileobj=io.BytesIO(files)) as packed:
        packed.extractall(folder, filter="data")
    return folder


@contextmanager
def serving_commit(ref: str, made: Made, ads: int, folder: Path) -> Iterator[Servers]:
    """Three servers of another commit, until the block ends.

    Raises:
        InputError: git has no such commit.
        StartupError: One of its servers does not start.
    """
    code = checked_out(ref, folder / "against")
    flags, logs = cache_flags(ads), folder / "against-logs"
    with serving_at(made.index, made.model, made.users, logs, flags, code) as servers:
        yield servers


@dataclass(frozen=True)
class Compared:
    """What was found of two sides in turns.

    Attributes:
        milliseconds: of processor time a call, of each server and round, by side and server; one call at a time.
        ladder: what became of the calls at rising rates, by side.
    """

    milliseconds: Mapping[str, Mapping[str, Sequence[float]]]
    ladder: Mapping[str, Sequence[tuple[Answered, float]]]

    def totals(self, side: str) -> list[float]:
        """Milliseconds of processor time a call, of all servers, in each round."""
        return [sum(parts) for parts in zip(*self.milliseconds[side].values(), strict=True)]

    @property
    def ratio(self) -> float:
        """Processor time of a call here over that of the other commit, the median of the rounds."""
        ours, theirs = (self.totals(side) for side in self.milliseconds)
        return statistics.median(here / there for here, there in zip(ours, theirs, strict=True))

    def entries(self) -> list[Entry]:
        """What was found, side by side."""
        found = []
        for side, parts in self.milliseconds.items():
            figures = {f"{name} ms": statistics.median(values) for name, values in parts.items()}
            spread = Spread.of(self.totals(side))
            found.append(Entry(case="processor time of a call", contender=side, milliseconds=spread, figures=figures))
        for side, steps in self.ladder.items():
            for step, cores in steps:
                entry = as_entry(f"in turns: {step.rate:.0f} calls a second", step, cores)
                found.append(entry.model_copy(update={"contender": side}))
        return found


def compare(
    sides: Mapping[str, Servers],
    candidates: int,
    rates: Sequence[float],
    ask: Ask,
    is_carried: Callable[[Answered], bool],
) -> Compared:
    """Asks each side in turns: calls one by one, then at rising `rates` until it carries no more.

    Both have answered as many calls before, from the same users in the same order. Who is asked first changes from
    round to round.
    """
    milliseconds: dict[str, dict[str, list[float]]] = {
        name: {one.name: [] for one in servers.processes} for name, servers in sides.items()
    }
    for servers in sides.values():
        servers.warm_up(candidates)
    in_turns = list(sides.items())
    for number in range(_ROUNDS):
        for name, servers in in_turns[:: 1 if number % 2 == 0 else -1]:
            before = servers.cpu_seconds_of_each()
            one_by_one(servers.asking(candidates), _CALLS)
            for server, seconds in servers.cpu_seconds_of_each().items():
                milliseconds[name][server].append(1000 * (seconds - before[server]) / _CALLS)
    ladder: dict[str, list[tuple[Answered, float]]] = {name: [] for name in sides}
    for number, rate in enumerate(rates):
        for name, servers in in_turns[:: 1 if number % 2 == 0 else -1]:
            if all(is_carried(found) for found, _ in ladder[name]):
                ladder[name].append(ask(servers, rate))
    return Compared(milliseconds, ladder)
