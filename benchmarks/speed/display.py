"""A result as tables for a terminal. Knows no models."""

from rich.console import Group, RenderableType
from rich.table import Table

from adcascade.terminal.console import Console
from benchmarks.speed.interleaved_timing import Spread
from benchmarks.speed.results import BenchResult, Entry

_TIMES, _FLOOR = "times faster", "floor's share"


def tables(found: BenchResult, before: BenchResult | None = None) -> RenderableType:
    """What took how long, beside `before` if that is given, and the targets."""
    parts: list[RenderableType] = [_entries(found, before)]
    if found.verdicts:
        parts.append(_verdicts(found, before))
    parts.append(machine_line(found))
    parts += found.remarks
    parts += [f"Compared with: {name} {version}" for name, version in found.peers.items()]
    parts += [f"Not run: {name}: {why}" for name, why in found.missing.items()]
    return Group(*parts)


def machine_line(found: BenchResult) -> str:
    """The machine, its rates and the floors in words."""
    machine = found.machine
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in machine.gemm.items())
    floors = "; ".join(f"{name} {value:.2f} ms" for name, value in found.floors.items())
    card = f" GPU: {machine.card}." if machine.card else ""
    return (
        f"{machine.processor}, {machine.cores} cores ({' '.join(machine.instructions) or 'no known extensions'}), "
        f"{machine.memory_gib:.0f} GiB, Python {machine.python}. Matrix products, GFLOP/s: {rates}; memory "
        f"{machine.memory_bandwidth:.0f} GB/s{'; ' + floors if floors else ''}.{card}"
    )


def spread(value: Spread, digits: int = 1) -> str:
    """Median [least, most]."""
    return f"{value.median:,.{digits}f} [{value.low:,.{digits}f}, {value.high:,.{digits}f}]"


def columns_of(found: BenchResult) -> list[str]:
    """What is shown of entries beside their milliseconds: what any of them has."""
    figures = list(dict.fromkeys(name for one in found.entries for name in one.figures))
    times = [_TIMES] if any(one.times_faster for one in found.entries) else []
    floors = [_FLOOR] if any(one.floor is not None for one in found.entries) else []
    return [*times, *floors, *figures]


def cell(one: Entry, column: str) -> str:
    """A column of `columns_of` for an entry."""
    if column == _TIMES:
        return spread(one.times_faster) if one.times_faster else ""
    if column == _FLOOR:
        return f"{one.share_of_floor:.0%}" if one.share_of_floor is not None else ""
    if column not in one.figures:
        return ""
    value = one.figures[column]
    return f"{value:,.3f}" if abs(value) < 1 else f"{value:,.1f}"


def _entries(found: BenchResult, before: BenchResult | None) -> Table:
    title = f"bench {found.bench}: milliseconds a call, median [least, most] of rounds taken in turns"
    table = Table(title=title)
    columns = columns_of(found)
    for column in ("case", "contender", "ms", *columns, *(("ms before", "change") if before else ())):
        table.add_column(column, justify="left" if column in ("case", "contender") else "right")
    last = ""
    for one in found.entries:
        case, last = ("" if one.case == last else one.case), one.case
        row = [case, one.contender, spread(one.milliseconds), *(cell(one, column) for column in columns)]
        if before is not None:
            row += _beside(one, before.entry(one.case, one.contender))
        table.add_row(*row, end_section=False)
    return table


def _beside(one: Entry, earlier: Entry | None) -> tuple[str, str]:
    """The median of an earlier run, and by how much this one's is more or less."""
    if earlier is None:
        return "", ""
    before = earlier.milliseconds.median
    return f"{before:,.1f}", f"{one.milliseconds.median / before - 1:+.0%}"


def _verdicts(found: BenchResult, before: BenchResult | None) -> Table:
    table = Table(title="Targets")
    for column in ("what", "target", "reached", *(("before",) if before else ()), "met"):
        table.add_column(column)
    reached_before = {one.what: one.reached for one in before.verdicts} if before else {}
    for one in found.verdicts:
        earlier = [reached_before.get(one.what, "")] if before else []
        met = "yes" if one.met else "no"
        table.add_row(one.what, one.target, one.reached, *earlier, met, style="" if one.met else "yellow")
        if one.why and not one.met:
            table.add_row("", one.why, style="dim")
    return table


def terminal() -> Console:
    """Standard output; wide enough for the tables where that is a file."""
    console = Console()
    return console if console.is_terminal else Console(width=140)
