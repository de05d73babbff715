"""A result as one HTML page that needs nothing else, and its plot as PNG. Knows no models."""

from pathlib import Path

from matplotlib.figure import Figure

from adcascade.reports.figures import COLOURS, figure, svg
from adcascade.reports.page import render
from benchmarks.speed.display import cell, columns_of, machine_line, spread
from benchmarks.speed.results import BenchResult, Plot

_BARS_WIDTH = 7.0


def write_page(path: Path, found: BenchResult) -> None:
    """Writes the page."""
    page = render(
        "benchmarks.speed",
        "page.html.j2",
        title=f"AdCascade, bench {found.bench}",
        found=found,
        machine=machine_line(found),
        spread=spread,
        columns=columns_of(found),
        cell=cell,
        plots=[svg(drawn) for drawn in _plots(found)],
    )
    path.write_text(page, encoding="utf-8")


def write_plot(path: Path, found: BenchResult) -> None:
    """Writes what matters most as PNG: the first of its plots, or else the bars of its entries."""
    _plots(found)[0].savefig(path, dpi=150)


def _plots(found: BenchResult) -> list[Figure]:
    return [*(_lines(plot, found) for plot in found.plots), *([_bars(found)] if found.entries else [])]


def _lines(plot: Plot, found: BenchResult) -> Figure:
    """The lines, and with a star what the table has of each."""
    drawn, axes = figure(plot.x_label, plot.y_label)
    for number, line in enumerate(plot.lines):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(line.x, line.y, color=colour, label=line.name, marker="o", markersize=3)
        own = [one for one in found.entries if one.contender == line.name and plot.x_label in one.figures]
        x, y = [one.figures[plot.x_label] for one in own], [one.milliseconds.median for one in own]
        axes.plot(x, y, "*", color=colour, markersize=11, label=f"{line.name}, in the table" if own else None)
    if plot.logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)
    return drawn


def _bars(found: BenchResult) -> Figure:
    """Milliseconds of each contender in each case, as bars on a logarithmic axis."""
    cases = list(dict.fromkeys(one.case for one in found.entries))
    contenders = list(dict.fromkeys(one.contender for one in found.entries))
    height = 1.2 + 0.25 * len(found.entries)
    drawn, axes = figure("milliseconds a call (logarithmic)", "", width=_BARS_WIDTH, height=height)
    thickness = 0.8 / len(contenders)
    for number, name in enumerate(contenders):
        own = [(cases.index(one.case), one.milliseconds) for one in found.entries if one.contender == name]
        axes.barh(
            [place + (number + 0.5) * thickness - 0.4 for place, _ in own],
            [value.median for _, value in own],
            thickness,
            xerr=[[value.median - value.low for _, value in own], [value.high - value.median for _, value in own]],
            color=COLOURS[number % len(COLOURS)],
            label=name,
            error_kw={"elinewidth": 0.8, "ecolor": "#444"},
        )
    axes.set_xscale("log")
    axes.set_yticks(range(len(cases)), cases, fontsize=7)
    axes.invert_yaxis()
    drawn.legend(fontsize=7, loc="outside lower left", ncols=3, frameon=False)
    return drawn
