"""What long work tells of itself while it runs: bars on a terminal, lines where standard error is a file or a pipe."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bars,
)

from adcascade.terminal.console import Console

Item = TypeVar("Item")

# Told (stage, done, total); total is 0 while it is not known.
Progress = Callable[[str, int, int], None]

_STAGES = {"read": "Reading ads", "embed": "Embedding", "towers": "Ad tower", "index": "Indexing", "ask": "Asking"}
# Between two lines of one task, unless it came a tenth further.
_LINE_SECONDS = 10.0


class LongWork(Bars):
    """Bars on standard error if that is a terminal; elsewhere a line at each tenth of a task and every ten seconds."""

    def __init__(self, *columns: ProgressColumn, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self._columns_of_text = [column for column in columns if not isinstance(column, BarColumn)]
        self._told: dict[TaskID, tuple[float, int]] = {}

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """See `rich.progress.Progress`."""
        super().update(task_id, **changes)
        self._tell(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """See `rich.progress.Progress`."""
        super().advance(task_id, advance)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        if self.console.is_terminal:
            return
        task, now = self._tasks[task_id], time.monotonic()
        tenth = int(10 * task.completed / task.total) if task.total else 0
        told = self._told.get(task_id)
        if told is None or tenth > told[1] or now - told[0] >= _LINE_SECONDS:
            self._told[task_id] = (now, tenth)
            columns = (
                one for one in self.columns if isinstance(one, ProgressColumn) and not isinstance(one, BarColumn)
            )
            shown = (column(task) for column in columns)
            self.console.print(" ".join(str(one) for one in shown), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def build_progress() -> Iterator[Progress]:
    """The progress of each stage of a build."""
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with LongWork(*columns, TimeRemainingColumn()) as bars:
        tasks = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(_STAGES.get(stage, stage), total=None)
            bars.update(tasks[stage], completed=done, total=total or None)

        yield show


def tracked(items: "list[Item]", description: str) -> Iterable[Item]:
    """The items, with the progress of whoever takes them."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with LongWork(*columns, TimeRemainingColumn()) as bars:
        yield from bars.track(items, description=description)


@contextmanager
def working(what: str, console: Console | None = None) -> Iterator[None]:
    """Says that something is being done that tells no progress, and elsewhere than on a terminal how long it took."""
    console = console or Console(stderr=True)
    if console.is_terminal:
        with console.status(what):
            yield
        return
    started = time.monotonic()
    console.print(f"{what} ...", markup=False, highlight=False)
    yield
    console.print(f"{what}: {time.monotonic() - started:.0f} s", markup=False, highlight=False)
