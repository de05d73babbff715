"""What benchmarks found: kept in one order, and shown as tables that a document can hold."""

import io

from rich.console import Console

from benchmarks.findings import as_markdown, finding, keep, read
from benchmarks.runs import Run


def found(check, value, *, figure="AUC", target="at least 0.8"):
    return finding(check, figure, target, (value, value - 0.1, value + 0.1), value >= 0.8, [0, 1, 2], 2.0)


def test_a_check_measured_again_takes_the_place_of_what_it_found_before(tmp_path):
    path = tmp_path / "quality.json"
    keep(path, [found("first", 0.7), found("first", 0.6, figure="log loss")])
    keep(path, [found("second", 0.9)])
    keep(path, [found("first", 0.8)])
    assert [(one.check, one.figure, one.reached) for one in read(path)] == [
        ("first", "AUC", 0.8),
        ("second", "AUC", 0.9),
    ]


def test_every_line_of_a_table_has_the_cells_of_its_header():
    findings = [found("a", 0.9), found("b", 0.7, figure="pairs with |z| > 1"), found("c", 0.5, target="")]
    lines = [line for line in as_markdown(findings).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "| yes |" in as_markdown(findings[:1])
    assert "| no |" in as_markdown(findings[1:2])


def test_each_seed_is_measured_and_its_minutes_are_told(tmp_path):
    told = io.StringIO()
    run = Run(3, tmp_path, None, None, Console(file=told))
    values, minutes = run.for_each_seed("check", lambda seed: seed * seed)
    assert values == [0, 1, 4]
    assert minutes >= 0
    lines = [line for line in told.getvalue().splitlines() if line.endswith("minutes")]  # beside those of progress
    assert [line.split(":")[0] for line in lines] == [f"check, seed {n}" for n in range(3)]
