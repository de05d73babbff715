"""What long work tells of itself while it runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from serving.terminal import Console

# Told (stage, done, total); total is 0 while it is not known.
Progress = Callable[[str, int, int], None]

_STAGES = {"read": "Reading ads", "embed": "Embedding", "towers": "Ad tower", "index": "Indexing", "ask": "Asking"}


@contextmanager
def build_progress() -> Iterator[Progress]:
    """Progress bars on standard error, one a stage."""
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        tasks = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(_STAGES.get(stage, stage), total=None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield show
