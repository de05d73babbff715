"""Figures for pages: one look, as SVG text. Knows nothing of what is drawn."""

import io
import os
import warnings
from collections.abc import Iterable, Mapping

from adcascade.records.printable import printable
from adcascade.reports.font_cache import font_cache_folder

if "MPLCONFIGDIR" not in os.environ:  # read as it is imported
    os.environ["MPLCONFIGDIR"] = font_cache_folder()
import matplotlib

matplotlib.use("Agg")  # before pyplot: no window is ever opened
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

_WIDTH, _HEIGHT = 4.6, 3.8
_OURS, _OTHERS = 2.2, 1.0
_LABEL_CHARS = 32
# Colours that people with any kind of colour vision tell apart (Okabe and Ito 2008).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")


def figure(x_label: str, y_label: str, *, width: float = _WIDTH, height: float = _HEIGHT) -> tuple[Figure, Axes]:
    """An empty figure of one plot; `width` and `height` in inches."""
    drawn, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.set_xlabel(plain(x_label))
    axes.set_ylabel(plain(y_label))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn, axes


def plain(text: str) -> str:
    """A text of others as a label: a dollar is a dollar and begins no formula, and none is wider than its plot."""
    shown = printable(text)
    return (shown if len(shown) <= _LABEL_CHARS else f"{shown[: _LABEL_CHARS - 1]}…").replace("$", r"\$")


def cycle() -> tuple[str, ...]:
    """Colours enough for a plot of many lines."""
    return COLOURS * 2


def lines_plot(
    points: Mapping[str, Iterable[tuple[float, float]]],
    x_label: str,
    y_label: str,
    ours: str,
    *,
    diagonal: bool = False,
    logarithmic: bool = False,
) -> str:
    """A line for each name, the one called `ours` the thickest; `logarithmic` is for the horizontal axis."""
    drawn, axes = figure(x_label, y_label)
    kept = {name: list(line) for name, line in points.items()}
    for colour, (name, line) in zip(cycle(), kept.items(), strict=False):
        x, y = zip(*line, strict=True) if line else ((), ())
        axes.plot(x, y, color=colour, label=plain(name), linewidth=_OURS if name == ours else _OTHERS)
    if diagonal:
        axes.plot([0, 1], [0, 1], ":", color="grey")
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.legend(fontsize=7)
    return svg(drawn)


def svg(drawn: Figure) -> str:
    """The figure as an <svg> element, for a page; texts stay texts. The figure is closed."""
    as_text = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "adcascade"})
    try:
        with io.StringIO() as text, as_text, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has fonts of its own
            drawn.savefig(text, format="svg", metadata={"Date": None})
            written = text.getvalue()
    finally:
        plt.close(drawn)
    return written[written.index("<svg") :]
