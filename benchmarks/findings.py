"""What a benchmark found, kept as JSON and shown as tables. Knows no models."""

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
from rich.table import Table


@dataclass(frozen=True)
class Finding:
    """One figure beside its target.

    Attributes:
        check: what was done, such as "MovieLens-100k, random 8:1:1".
        target: in words; "" for a figure that has none.
        reached: mean over seeds (or folds).
        low, high: the mean ends of the 95 % intervals, or what `note` says.
        met: whether the target is met; None without one.
    """

    check: str
    figure: str
    target: str
    reached: float
    low: float
    high: float
    met: bool | None
    seeds: int
    minutes: float
    machine: str
    note: str = ""


def machine() -> str:
    """What the figures were measured on."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{platform.machine()}, {psutil.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()}"


def finding(
    check: str,
    figure: str,
    target: str,
    ends: npt.ArrayLike,
    met: bool | None,
    runs: Sequence[object],
    minutes: float,
    note: str = "",
) -> Finding:
    """A figure from `ends`, its value and the ends of its interval; `runs` has one entry for each seed or fold."""
    reached, low, high = np.asarray(ends, np.float64).tolist()
    return Finding(check, figure, target, reached, low, high, met, len(runs), minutes, machine(), note)


def keep(path: Path, findings: Sequence[Finding]) -> None:
    """Writes findings in place of those of the same checks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before, checks = read(path), {finding.check for finding in findings}
    order = list(dict.fromkeys(finding.check for finding in (*before, *findings)))
    kept = [finding for finding in before if finding.check not in checks] + list(findings)
    kept.sort(key=lambda finding: order.index(finding.check))
    path.write_text(json.dumps([asdict(finding) for finding in kept], indent=1) + "\n")


def read(path: Path) -> list[Finding]:
    """What `keep` wrote; empty if there is nothing."""
    return [Finding(**line) for line in json.loads(path.read_text())] if path.exists() else []


def as_table(findings: Iterable[Finding]) -> Table:
    """For a terminal."""
    table = Table(title="Quality", show_lines=True)
    for column in _COLUMNS:
        table.add_column(column)
    for one in findings:
        table.add_row(*_cells(one), style="" if one.met is not False else "yellow")
    return table


def as_markdown(findings: Sequence[Finding]) -> str:
    """For a document, with the machines under the table."""
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *(_cells(one) for one in findings)]
    return f"{_markdown(lines)}\n\nMeasured on: {'; '.join(dict.fromkeys(one.machine for one in findings))}."


def _markdown(lines: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)


_COLUMNS = ("check", "figure", "target", "reached", "met", "seeds", "minutes")


def _cells(one: Finding) -> tuple[str, ...]:
    figure = f"{one.figure} ({one.note})" if one.note else one.figure
    return (one.check, figure, one.target, _reached(one), _met(one), str(one.seeds), f"{one.minutes:.1f}")


def _reached(one: Finding) -> str:
    digits = 2 if abs(one.reached) >= 2 else 4
    return f"{one.reached:.{digits}f} [{one.low:.{digits}f}, {one.high:.{digits}f}]"


def _met(one: Finding) -> str:
    return {True: "yes", False: "no", None: ""}[one.met]
