"""What long work tells where standard error is no terminal: lines, not bars that nobody sees."""

import io
import subprocess
import sys
import time

import pytest
from conftest import write_world_files
from rich.console import Console
from rich.progress import BarColumn, TextColumn

from adcascade.terminal.progress import LongWork, tracked, working


def console_of(*, terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100)


def lines(console):
    return [line.rstrip() for line in console.file.getvalue().splitlines() if line.strip()]


def columns():
    return TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:g} of {task.total:g}")


def test_a_file_gets_a_line_at_each_tenth():
    console = console_of(terminal=False)
    with LongWork(*columns(), console=console) as bars:
        task = bars.add_task("Working", total=1000)
        for done in range(1001):
            bars.update(task, completed=done)
    assert lines(console) == [f"Working {done} of 1000" for done in range(0, 1001, 100)]


def test_a_terminal_gets_bars():
    console = console_of(terminal=True)
    with LongWork(*columns(), console=console) as bars:
        task = bars.add_task("Working", total=10)
        for _ in range(10):
            bars.advance(task)
    assert "━" in console.file.getvalue()


def test_work_whose_length_nobody_knows_tells_of_itself_from_time_to_time(monkeypatch):
    monkeypatch.setattr("adcascade.terminal.progress._LINE_SECONDS", 0.2)
    console = console_of(terminal=False)
    with LongWork(TextColumn("{task.description} {task.completed:g}"), console=console) as bars:
        task = bars.add_task("Reading", total=None)
        end, done = time.monotonic() + 1.0, 0
        while time.monotonic() < end:
            done += 1
            bars.update(task, completed=done)
    assert 2 <= len(lines(console)) <= 6


def test_several_tasks_tell_each_their_own():
    console = console_of(terminal=False)
    with LongWork(*columns(), console=console) as bars:
        tasks = [bars.add_task(name, total=10) for name in ("one", "two")]
        for done in (5, 10):
            for task in tasks:
                bars.update(task, completed=done)
    assert lines(console) == ["one 5 of 10", "two 5 of 10", "one 10 of 10", "two 10 of 10"]


@pytest.mark.parametrize("terminal", [True, False])
def test_work_without_progress_is_named(terminal):
    console = console_of(terminal=terminal)
    with working("Exporting", console):
        pass
    assert "Exporting" in console.file.getvalue()
    assert ("Exporting: 0 s" in lines(console)) is not terminal


def test_tracked_items_come_back_in_order(capsys):
    assert list(tracked(list(range(20)), "Ranking")) == list(range(20))
    assert "Ranking" in capsys.readouterr().err


def test_a_build_into_a_log_file_shows_how_far_it_is(tmp_path):
    write_world_files(tmp_path)
    ads = str(tmp_path / "ads.jsonl")
    command = [sys.executable, "-m", "pipeline.cli", "build", "--ads", ads, "--encoder", "hashing:64"]
    with (tmp_path / "log").open("wb") as log:
        subprocess.run([*command, "--out", str(tmp_path / "index")], stdout=log, stderr=log, check=True, timeout=120)
    text = (tmp_path / "log").read_text()
    for stage in ("Reading ads", "Embedding", "Indexing"):
        assert stage in text
