"""An evaluation of retrieval, or of both stages, as one HTML page that needs nothing else. Knows no models."""

from collections.abc import Sequence
from pathlib import Path

from adcascade.records.errors import InputError
from adcascade.reports.page import render
from retrieval.evaluation.report import COLUMNS, summary, titled_slices
from retrieval.evaluation.results import METRICS, RETRIEVAL, Comparison, RetrievalEvaluation, Slice

try:
    from adcascade.reports.figures import COLOURS, figure, lines_plot, plain, svg
except ModuleNotFoundError as missing:  # said before minutes are spent on what could not be reported
    raise InputError(f"reports need {missing.name}: pip install 'adcascade[train]'") from missing


def write_page(path: Path, found: RetrievalEvaluation, title: str) -> None:
    """Writes the page."""
    metric = f"recall@{found.k}"
    best = found.comparison.best_other(metric)
    path.write_text(
        render(
            "retrieval.evaluation",
            "page.html.j2",
            title=title,
            found=found.comparison,
            heading="Retrieval and its peers",
            names=METRICS,
            ours=RETRIEVAL,
            notes=[*summary(found.comparison, metric), COLUMNS],
            plots=[
                (
                    "Recall by how many candidates are asked for",
                    lines_plot(found.curves, "k", "recall@k", RETRIEVAL, logarithmic=True),
                )
            ],
            slices=[(*titled, _slices_plot(*titled, best, metric)) for titled in titled_slices(found)],
        ),
        encoding="utf-8",
    )


def write_comparison_page(path: Path, found: Comparison, title: str, heading: str, notes: Sequence[str]) -> None:
    """Writes a page of a comparison alone."""
    path.write_text(
        render(
            "retrieval.evaluation",
            "comparison.html.j2",
            title=title,
            heading=heading,
            found=found,
            names=METRICS,
            notes=notes,
            plots=[(f"{metric}, 95 % intervals", _methods_plot(found, metric)) for metric in ("recall@10", "ndcg@10")],
        ),
        encoding="utf-8",
    )


def _methods_plot(found: Comparison, metric: str) -> str:
    """A bar for each method, ours in one colour."""
    shown = {name: metrics[metric] for name, metrics in found.metrics.items() if metric in metrics}
    drawn, axes = figure(metric, "", height=1.0 + 0.34 * len(shown))
    axes.barh(
        range(len(shown)),
        [one.value for one in shown.values()],
        0.6,
        xerr=[
            [one.value - one.low for one in shown.values()],
            [one.high - one.value for one in shown.values()],
        ],
        color=[COLOURS[0] if name in found.lead else COLOURS[1] for name in shown],
        error_kw={"elinewidth": 0.8, "ecolor": "#444"},
    )
    axes.set_yticks(range(len(shown)), list(shown), fontsize=7)
    axes.set_xlim(left=0)
    axes.invert_yaxis()
    return svg(drawn)


def _slices_plot(title: str, first_column: str, slices: Sequence[Slice], best_other: str | None, metric: str) -> str:
    """The metric of retrieval on each part, and of the best other method where it was asked."""
    drawn, axes = figure(metric, first_column, height=1.2 + 0.34 * len(slices))
    shown = [RETRIEVAL] if best_other is None else [RETRIEVAL, best_other]
    for number, name in enumerate(shown):
        parts = [(place, part.recall[name]) for place, part in enumerate(slices) if name in part.recall]
        axes.barh(
            [place + 0.4 * number - 0.2 for place, _ in parts],
            [recall.value for _, recall in parts],
            0.38,
            xerr=[
                [recall.value - recall.low for _, recall in parts],
                [recall.high - recall.value for _, recall in parts],
            ],
            color=COLOURS[number],
            label=plain(name),
            error_kw={"elinewidth": 0.8, "ecolor": "#444"},
        )
    axes.set_yticks(range(len(slices)), [f"{plain(part.name)}  ({part.users:,} users)" for part in slices], fontsize=7)
    axes.invert_yaxis()
    axes.set_title(plain(title), fontsize=9)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return svg(drawn)
