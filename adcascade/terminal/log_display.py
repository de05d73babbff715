"""What every command that reads a click log shows of it, on standard error."""

from collections.abc import Collection
from pathlib import Path

from rich.console import Console

from adcascade.records.clicks import ClickLog, LogReport
from adcascade.records.log_summary import summary_lines, warning_lines


def show_log_read(
    log: ClickLog, report: LogReport, users: Collection[str] | None = None, rejected_file: Path | None = None
) -> None:
    """Prints a log's span, what was left out of it and where that is listed, and what looks wrong.

    Args:
        users: ids of the users file; None if none was given.
    """
    console = Console(stderr=True)
    lines = summary_lines(log, report, users)
    if rejected_file is not None and report.rejected:
        lines.append(f"The rows that were left out are in {rejected_file}.")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for line in warning_lines(log, users):
        console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)
