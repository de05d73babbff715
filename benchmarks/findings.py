"""What a benchmark found, kept as JSON and shown as tables. Knows no models."""

import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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


def keep(path: Path, findings: Sequence[Finding]) -> list[Finding]:
    """Writes findings in place of those of the same checks, and returns all there are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    checks = {finding.check for finding in findings}
    kept = [finding for finding in read(path) if finding.check not in checks] + list(findings)
    path.write_text(json.dumps([asdict(finding) for finding in kept], indent=1) + "\n")
    return kept


def read(path: Path) -> list[Finding]:
    """What `keep` wrote; empty if there is nothing."""
    return [Finding(**line) for line in json.loads(path.read_text())] if path.exists() else []


def as_table(findings: Iterable[Finding]) -> Table:
    """For a terminal."""
    table = Table(title="Quality")
    for column in _COLUMNS:
        table.add_column(column)
    for finding in findings:
        table.add_row(*_cells(finding), style="" if finding.met is not False else "yellow")
    return table


def as_markdown(findings: Iterable[Finding]) -> str:
    """For a document."""
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *(_cells(finding) for finding in findings)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


_COLUMNS = ("check", "figure", "target", "reached", "interval", "met", "seeds", "minutes")


def _cells(finding: Finding) -> tuple[str, ...]:
    met = {True: "yes", False: "no", None: ""}[finding.met]
    return (
        finding.check,
        f"{finding.figure} ({finding.note})" if finding.note else finding.figure,
        finding.target,
        f"{finding.reached:.4f}",
        f"{finding.low:.4f} to {finding.high:.4f}",
        met,
        str(finding.seeds),
        f"{finding.minutes:.1f}",
    )
