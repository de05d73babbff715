"""An evaluation of retrieval as tables for people. Knows no models."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from index_builder.training.ranks import Interval
from retrieval.evaluation.results import METRICS, RETRIEVAL, RetrievalEvaluation, Slice


def evaluation_tables(found: RetrievalEvaluation) -> Group:
    """All that was found."""
    few = _slices("As if only so many clicks were known", found.known_events)
    return Group(_methods(found), Text(_lines(found)), few, _slices("Users by their events", found.by_events))


def _methods(found: RetrievalEvaluation) -> Table:
    table = Table(title=f"{found.clicks:,} clicks of {found.users:,} users, among all ads")
    table.add_column("recall")
    for column in (*(metric.removeprefix("recall") for metric in METRICS), "coverage", "lift"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, metrics in found.metrics.items():
        cells = [f"{metrics[metric].value:.3f}" for metric in METRICS]
        extra = (f"{found.coverage[name]:.0%}", f"{found.popularity_lift[name]:.1f}")
        table.add_row(name, *cells, *extra, style="bold" if name == RETRIEVAL else "")
    return table


def _lines(found: RetrievalEvaluation) -> str:
    recall = found.metrics[RETRIEVAL]["recall@100"]
    lines = [f"recall@100 of retrieval: {_in_brackets(recall)} (95 % bootstrap interval over users)."]
    others = {name: metrics["recall@100"].value for name, metrics in found.metrics.items() if name != RETRIEVAL}
    if others:
        best = max(others, key=lambda name: others[name])
        lead = found.lead[best][100]
        lines.append(f"Minus the best other, {best}: {lead.value:+.3f} [{lead.low:+.3f}, {lead.high:+.3f}].")
    lines.append("coverage: ads in somebody's first 100; lift: how many times the clicks of the mean ad these have.")
    return "\n".join(lines)


def _slices(title: str, slices: Sequence[Slice]) -> Table:
    methods = list(slices[0].recall)
    table = Table(title=f"{title}: recall@100")
    for column in ("events", "users", *methods):
        table.add_column(column, justify="left" if column == "events" else "right")
    for part in slices:
        cells = [f"{part.recall[name].value:.3f}" if name in part.recall else "" for name in methods]
        table.add_row(part.name, f"{part.users:,}", *cells)
    return table


def _in_brackets(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
