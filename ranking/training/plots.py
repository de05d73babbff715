"""Plots of an evaluation as SVG text. Knows no models."""

import io
from collections.abc import Iterable, Mapping, Sequence

import matplotlib

matplotlib.use("Agg")  # before pyplot: no window is ever opened
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ranking.training.results import RANKER, CurvePoint, Curves, Slice

_WIDTH, _HEIGHT = 4.6, 3.8
# Colours that people with any kind of colour vision tell apart (Okabe and Ito 2008).
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")


def roc_plot(curves: Mapping[str, Curves]) -> str:
    """ROC curve of each model."""
    return _of_models(
        {name: curve.roc for name, curve in curves.items()},
        "False positive rate",
        "True positive rate",
        diagonal=True,
    )


def gain_plot(curves: Mapping[str, Curves]) -> str:
    """Share of the clicks that the best impressions hold."""
    return _of_models(
        {name: curve.gain for name, curve in curves.items()},
        "Share of impressions, highest p_click first",
        "Share of clicks",
        diagonal=True,
    )


def lift_plot(curves: Mapping[str, Curves]) -> str:
    """How many times more clicks the best impressions hold than impressions at random."""
    lifts = {name: [(x, y / x) for x, y in curve.gain if x >= 0.02] for name, curve in curves.items()}
    return _of_models(lifts, "Share of impressions, highest p_click first", "Lift over random")


def reliability_plot(curves: Mapping[str, Curves]) -> str:
    """Actual against predicted CTR."""
    figure, axes = _axes("Predicted CTR", "Actual CTR")
    shown = {name: curve.reliability for name, curve in curves.items()}
    for colour, (name, points) in zip(_cycle(), shown.items(), strict=False):
        x, y = zip(*points, strict=True)
        if name == RANKER:
            axes.plot(x, y, "o-", color=colour, label=name, zorder=3)
        else:
            axes.plot(x, y, "-", color=colour, label=name, linewidth=0.8, alpha=0.7)
    highest = max(max(x, y) for points in shown.values() for x, y in points)
    axes.plot([0, highest], [0, highest], ":", color="grey")
    axes.legend(fontsize=7)
    return _svg(figure)


def loss_plot(losses: Sequence[CurvePoint], stage: str) -> str:
    """Training and validation loss of a stage by step."""
    points = [point for point in losses if point.stage == stage]
    figure, axes = _axes("Step", "Loss")
    axes.plot(
        [p.step for p in points],
        [p.training_loss for p in points],
        "o-",
        color=_COLOURS[1],
        label="training, all losses",
    )
    axes.plot(
        [p.step for p in points], [p.validation_loss for p in points], "o-", color=_COLOURS[0], label="validation"
    )
    axes.legend(fontsize=8)
    return _svg(figure)


def slices_plot(name: str, parts: Sequence[Slice]) -> str:
    """AUC of the ranker and of the best peer on each part."""
    figure, axes = plt.subplots(figsize=(_WIDTH, 0.9 + 0.34 * len(parts)), layout="constrained")
    places = range(len(parts))
    axes.barh([place - 0.2 for place in places], [p.auc for p in parts], 0.38, color=_COLOURS[0], label=RANKER)
    axes.barh(
        [place + 0.2 for place in places], [p.best_peer_auc for p in parts], 0.38, color=_COLOURS[1], label="best peer"
    )
    axes.set_yticks(list(places), [f"{part.label}  ({part.impressions:,})" for part in parts], fontsize=7)
    known = [value for part in parts for value in (part.auc, part.best_peer_auc) if value == value]
    axes.set_xlim(min(0.5, *known) if known else 0.5, min(1.0, max(known) + 0.02) if known else 1.0)
    axes.invert_yaxis()
    axes.set_xlabel("AUC")
    axes.set_title(name, fontsize=9)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _of_models(
    points: Mapping[str, Iterable[tuple[float, float]]], x_label: str, y_label: str, *, diagonal: bool = False
) -> str:
    figure, axes = _axes(x_label, y_label)
    drawn = {name: list(line) for name, line in points.items()}
    for colour, (name, line) in zip(_cycle(), drawn.items(), strict=False):
        x, y = zip(*line, strict=True) if line else ((), ())
        axes.plot(x, y, color=colour, label=name, linewidth=2.2 if name == RANKER else 1.0)
    if diagonal:
        axes.plot([0, 1], [0, 1], ":", color="grey")
    axes.legend(fontsize=7)
    return _svg(figure)


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _cycle() -> tuple[str, ...]:
    return _COLOURS * 2


def _svg(figure: Figure) -> str:
    """The figure as an <svg> element, for a page; texts stay texts."""
    with io.StringIO() as text, matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "adcascade"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
        plt.close(figure)
        drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]
