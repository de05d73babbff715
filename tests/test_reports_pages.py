"""Pages and plots as people see them: tables that scroll, and one measurement for a plot and its table."""

import re

import pytest
from test_benchmarks_speed import FAST, MACHINE
from typer.testing import CliRunner

from adcascade.records.errors import InputError
from adcascade.reports.interval import Interval
from benchmarks.speed.commands import app as bench
from benchmarks.speed.contestants import Contestant, deep_enough
from benchmarks.speed.page import _lines, write_plot
from benchmarks.speed.results import BenchResult, Entry, Line, Plot
from benchmarks.speed.retrieve import _ask_in_turns, _curves
from benchmarks.training_time import TrainingTime, markdown
from pipeline.cli import app as adcascade
from retrieval.evaluation.page import write_comparison_page
from retrieval.evaluation.results import METRICS, Comparison


def comparison():
    names = ["retrieval", "ranking of 100", "popularity"]
    metrics = {name: dict.fromkeys(METRICS, Interval(0.2, 0.1, 0.3)) for name in names}
    lead = {"retrieval": {name: dict.fromkeys(METRICS, Interval(0.0, -0.1, 0.1)) for name in names[1:]}}
    return Comparison(10, 20, metrics, lead, dict.fromkeys(names, 0.5), dict.fromkeys(names, 2.0))


def test_every_table_scrolls_in_a_box_of_its_own(tmp_path):
    write_comparison_page(tmp_path / "page.html", comparison(), "A <b>title</b>", "Both", ["one & another"])
    page = (tmp_path / "page.html").read_text()
    assert page.count("<table>") == page.count('<div class="table"><table>') == page.count("</table></div>") == 2
    style = page[page.index("<style>") : page.index("</style>")]
    assert re.search(r"\.table \{[^}]*overflow-x: auto", style)
    assert "display: block; overflow-x" not in style
    assert 'name="viewport"' in page
    assert "A &lt;b&gt;title&lt;/b&gt;" in page
    assert "one &amp; another" in page
    assert page.count("<svg") == 2


@pytest.mark.parametrize(
    ("package", "template"),
    [
        ("ranking.evaluation", "page.html.j2"),
        ("retrieval.evaluation", "page.html.j2"),
        ("retrieval.evaluation", "comparison.html.j2"),
        ("benchmarks.speed", "page.html.j2"),
    ],
)
def test_no_template_has_a_table_that_cannot_scroll(package, template):
    from importlib.resources import files

    source = files(package).joinpath(template).read_text()
    assert source.count("<table>") == source.count('<div class="table"><table>')


def test_evaluate_pipeline_writes_a_page(world, tower_index, tmp_path):
    files = ["--ads", str(world.ads), "--clicks", str(world.clicks), "--users", str(world.users)]
    args = ["evaluate-pipeline", "--index", str(tower_index), "--model", str(world.model), *files, "--candidates", "20"]
    refused = CliRunner().invoke(adcascade, [*args, "--report", str(tmp_path)])
    assert isinstance(refused.exception, InputError)  # before the work
    assert "no page can be written" in str(refused.exception)
    page = tmp_path / "new" / "page.html"
    shown = CliRunner().invoke(adcascade, [*args, "--report", str(page)])
    assert shown.exit_code == 0, shown.output
    text = page.read_text()
    for said in ("ranking of 20", "recent popularity", "nDCG@10 of ranking of 20 minus retrieval", "<svg"):
        assert said in text
    assert "Report with plots" in shown.output


def test_a_plot_and_its_table_come_from_the_same_measurement():
    """The table's figure is a point of the curve, timed in the same turns."""
    truth = [list(range(100))] * 5
    slower = iter(range(10**6))

    def search(row, effort):  # slower with every call, so that what is timed apart would differ
        return 1.0 + 0.01 * next(slower) + effort / 1000, list(range(min(100, 60 + effort // 4)))

    one = deep_enough("peer", search, truth, 1.0)
    assert one.depths
    turns = _ask_in_turns([one], 20, lambda *_: None)
    (plot,) = _curves([one], turns)
    (line,) = plot.lines
    points = dict(zip(line.x, line.y, strict=True))
    assert points[one.recall] == turns.milliseconds("peer").median
    assert line.x == sorted(line.x)
    assert len(line.x) == 1 + len(one.depths)
    shallow = Contestant("alone", lambda row: (1.0, []), 1.0, "")
    assert _curves([shallow], _ask_in_turns([shallow], 3, lambda *_: None)) == []


def drawn_result():
    plot = Plot(x_label="recall@100", y_label="ms", lines=[Line(name="ours", x=[0.9, 0.95], y=[8.0, 10.0])])
    entry = Entry(**{**FAST.model_dump(), "figures": {"recall@100": 0.95}})
    return BenchResult(bench="retrieve", machine=MACHINE, settings={}, entries=[entry], plots=[plot])


def test_a_plot_marks_what_the_table_has():
    result = drawn_result()
    axes = _lines(result.plots[0], result).axes[0]
    line, star = axes.get_lines()
    assert (list(star.get_xdata()), list(star.get_ydata())) == ([0.95], [10.0])
    assert (0.95, 10.0) in list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_targets_draw_the_plots_of_the_same_files(tmp_path):
    result = drawn_result()
    result.save(tmp_path / "retrieve.json")
    (tmp_path / "retrieve.png").write_bytes(b"of another run")
    ran = CliRunner().invoke(bench, ["targets", "--out", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    write_plot(tmp_path / "again.png", result)
    assert (tmp_path / "retrieve.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_the_table_of_training_times_adds_up():
    found = TrainingTime(ads=1000, rows=20_000, embedding=60.0, towers=6.0, behaviour=15.0, text=120.0)
    assert found.minutes == pytest.approx((60 + 2 * 25 * 6 + 8 * 15 + 120) / 60)
    table = markdown([found], "A machine.")
    assert "| 1,000 | 20,000 | 60.0 s | 6.0 s | 15.0 s | 120.0 s | 10 min |" in table
    wrong = CliRunner().invoke(bench, ["training", "--size", "many:rows"])
    assert isinstance(wrong.exception, InputError)
