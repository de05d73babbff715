"""Plots of an evaluation as SVG text. Knows no models."""

from collections.abc import Mapping, Sequence

from adcascade.reports.figures import COLOURS, cycle, figure, lines_plot, plain, svg
from ranking.evaluation.results import RANKER, CurvePoint, Curves, Slice

# A line through so few points says nothing of how a loss fell.
_FEW_POINTS = 2


def roc_plot(curves: Mapping[str, Curves]) -> str:
    """ROC curve of each model."""
    return lines_plot(
        {name: curve.roc for name, curve in curves.items()},
        "False positive rate",
        "True positive rate",
        RANKER,
        diagonal=True,
    )


def gain_plot(curves: Mapping[str, Curves]) -> str:
    """Share of the clicks that the best impressions hold."""
    return lines_plot(
        {name: curve.gain for name, curve in curves.items()},
        "Share of impressions, highest p_click first",
        "Share of clicks",
        RANKER,
        diagonal=True,
    )


def lift_plot(curves: Mapping[str, Curves]) -> str:
    """How many times more clicks the best impressions hold than impressions at random."""
    lifts = {name: [(x, y / x) for x, y in curve.gain if x >= 0.02] for name, curve in curves.items()}
    return lines_plot(lifts, "Share of impressions, highest p_click first", "Lift over random", RANKER)


def reliability_plot(curves: Mapping[str, Curves]) -> str:
    """Actual against predicted CTR."""
    drawn, axes = figure("Predicted CTR", "Actual CTR")
    shown = {name: curve.reliability for name, curve in curves.items()}
    for colour, (name, points) in zip(cycle(), shown.items(), strict=False):
        x, y = zip(*points, strict=True)
        if name == RANKER:
            axes.plot(x, y, "o-", color=colour, label=plain(name), zorder=3)
        else:
            axes.plot(x, y, "-", color=colour, label=plain(name), linewidth=0.8, alpha=0.7)
    highest = max(max(x, y) for points in shown.values() for x, y in points)
    axes.plot([0, highest], [0, highest], ":", color="grey")
    axes.legend(fontsize=7)
    return svg(drawn)


def loss_plot(losses: Sequence[CurvePoint], stage: str) -> str:
    """Training and validation loss of a stage by step."""
    points = [point for point in losses if point.stage == stage]
    drawn, axes = figure("TrainingProgress", "Loss")
    axes.plot(
        [p.step for p in points],
        [p.training_loss for p in points],
        "o-",
        color=COLOURS[1],
        label="training, all losses",
    )
    axes.plot([p.step for p in points], [p.validation_loss for p in points], "o-", color=COLOURS[0], label="validation")
    if len(points) <= _FEW_POINTS:
        axes.set_title(f"validated {len(points)} times only: no course to be seen", fontsize=8)
    axes.legend(fontsize=8)
    return svg(drawn)


def slices_plot(name: str, parts: Sequence[Slice]) -> str:
    """AUC of the ranker and of the best peer on each part."""
    drawn, axes = figure("AUC", "", height=0.9 + 0.34 * len(parts))
    places = range(len(parts))
    axes.barh([place - 0.2 for place in places], [p.auc for p in parts], 0.38, color=COLOURS[0], label=RANKER)
    axes.barh(
        [place + 0.2 for place in places], [p.best_peer_auc for p in parts], 0.38, color=COLOURS[1], label="best peer"
    )
    axes.set_yticks(list(places), [f"{plain(part.label)}  ({part.impressions:,})" for part in parts], fontsize=7)
    known = [value for part in parts for value in (part.auc, part.best_peer_auc) if value == value]
    # A bar that ends where the axis begins would not be seen.
    low, high = (min(0.5, *known), max(known)) if known else (0.5, 1.0)
    axes.set_xlim(max(0.0, low - 0.02) if low < 0.5 else low, min(1.0, high + 0.02))
    axes.axvline(0.5, color="grey", linewidth=0.8, linestyle=":")
    axes.invert_yaxis()
    axes.set_title(plain(name), fontsize=9)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return svg(drawn)
