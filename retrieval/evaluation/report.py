"""An evaluation of retrieval as tables for people. Knows no models."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from adcascade.reports.interval import Interval
from retrieval.evaluation.results import METRICS, RETRIEVAL, Comparison, RetrievalEvaluation, Slice

_HEADS = {"ndcg@10": "nDCG", "mrr": "MRR", "hit@10": "hit"}


def evaluation_tables(found: RetrievalEvaluation) -> Group:
    """All that was found."""
    slices = [_slices(*titled, found.k) for titled in titled_slices(found)]
    notes = [*summary(found.comparison, f"recall@{found.k}"), COLUMNS]
    return Group(methods_table(found.comparison), Text("\n".join(notes)), *slices)


def titled_slices(found: RetrievalEvaluation) -> list[tuple[str, str, list[Slice]]]:
    """Title, name of the first column, and the parts."""
    return [
        ("As if only so many clicks of each user were known", "clicks", found.known_events),
        ("Users by their events", "events", found.by_events),
        ("Clicks by the clicks that their ads had", "clicks", found.by_ads),
    ]


def methods_table(found: Comparison) -> Table:
    """A line for each method, ours in bold."""
    table = _table(f"{found.clicks:,} clicks of {found.users:,} users, among all ads")
    table.add_column("recall", no_wrap=True)
    for column in (*(_HEADS.get(metric, metric.removeprefix("recall")) for metric in METRICS), "cov.", "lift"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, metrics in found.metrics.items():
        cells = [f"{metrics[metric].value:.3f}" if metric in metrics else "" for metric in METRICS]
        extra = (f"{found.coverage[name]:.0%}", f"{found.popularity_lift[name]:.1f}")
        table.add_row(name, *cells, *extra, style="bold" if name in found.lead else "")
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def summary(found: Comparison, metric: str) -> list[str]:
    """Sentences: a metric of each of ours, and its lead over the best other method."""
    lines = []
    best = found.best_other(metric)
    for ours, leads in found.lead.items():
        lead = "" if best is None else f"; minus the best other, {best}: {_in_brackets(leads[best][metric], '+')}"
        lines.append(f"{metric} of {ours}: {_in_brackets(found.metrics[ours][metric])}{lead}.")
    return lines


COLUMNS = (
    "Brackets are 95 % bootstrap intervals over users. nDCG and hit (users who clicked one or more of them) are of the "
    "first 10; cov.: ads in somebody's first 100; lift: how many times the clicks of the mean ad these have."
)


def _slices(title: str, first_column: str, slices: Sequence[Slice], k: int) -> Table:
    """A line for each method and a column for each part."""
    table = _table(f"{title}: recall@{k}")
    table.add_column(first_column, no_wrap=True)
    for part in slices:
        table.add_column(part.name, justify="right")
    table.add_row("users", *(f"{part.users:,}" for part in slices), style="dim")
    for name in dict.fromkeys(name for part in slices for name in part.recall):
        cells = [f"{part.recall[name].value:.3f}" if name in part.recall else "" for part in slices]
        table.add_row(name, *cells, style="bold" if name == RETRIEVAL else "")
    return table


def _in_brackets(interval: Interval, sign: str = "") -> str:
    return f"{interval.value:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"
