"""The speed harness: contenders take turns, texts are made up, results are kept and shown."""

import pytest
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.speed.commands import app
from benchmarks.speed.contest import Contender, Spread, Turns, take_turns
from benchmarks.speed.display import tables
from benchmarks.speed.machine import Machine
from benchmarks.speed.page import write_page, write_plot
from benchmarks.speed.results import BenchResult, Entry, Verdict
from benchmarks.speed.texts import recombined_ads
from records.ads import Ad
from records.errors import InputError

MACHINE = Machine(
    processor="A <fast> one",
    cores=2,
    threads=2,
    memory_gib=24,
    system="Linux",
    python="3.11",
    packages={"torch": "2"},
    instructions=["avx2"],
    gemm={"float32": 100.0},
    memory_bandwidth=10.0,
)
SLOW = Entry(case="100 ads", contender="slow", milliseconds=Spread(1000, 900, 1100))
FAST = Entry(case="100 ads", contender="ours", milliseconds=Spread(10, 9, 12), times_faster=Spread(98, 80, 120))


def result(**changes):
    verdict = Verdict(
        what="100 ads", target="at least 99 times", reached="98 times", met=False, why="the floor is 9 ms"
    )
    values = {"bench": "rank", "machine": MACHINE, "settings": {"rounds": 5}, "entries": [SLOW, FAST]}
    return BenchResult(**{**values, "verdicts": [verdict], "missing": {"a peer": "no wheel"}, **changes})


def test_contenders_take_turns_and_nobody_always_goes_first():
    calls, done = [], []
    contenders = [Contender(name, lambda name=name: calls.append(name)) for name in "abc"]
    turns = take_turns(contenders, 3, progress=lambda *at: done.append(at))
    assert [sorted(calls[start : start + 3]) for start in range(0, 12, 3)] == [["a", "b", "c"]] * 4
    assert {calls[start] for start in range(3, 12, 3)} == {"a", "b", "c"}
    assert all(len(turns.seconds[name]) == 3 for name in "abc")  # the first round warms up
    assert done == [(number, 12) for number in range(1, 13)]


def test_ratios_are_of_the_same_round():
    turns = Turns({"slow": [10.0, 20.0, 40.0], "fast": [1.0, 2.0, 2.0]})
    assert turns.times_faster("fast", "slow") == Spread(10.0, 10.0, 20.0)
    assert turns.milliseconds("fast") == Spread(2000.0, 1000.0, 2000.0)


def test_recombined_ads_differ_and_read_like_their_sources():
    sources = [Ad(f"ad-{number}", f"word{number} and word{number + 1}", f"body {number}") for number in range(30)]
    ads = list(recombined_ads(sources, 5000))
    assert len({(ad.title, ad.body) for ad in ads}) == len({ad.ad_id for ad in ads}) == 5000
    words = {word for ad in sources for word in ad.title.split()}
    assert all(set(ad.title.split()) <= words for ad in ads)
    assert ads[:50] == list(recombined_ads(sources, 50))
    assert ads[:50] != list(recombined_ads(sources, 50, seed=1))


def test_too_few_sources_are_refused():
    with pytest.raises(InputError, match="fewer than two"):
        next(recombined_ads([Ad("a", "one title")], 1))
    with pytest.raises(InputError, match="make no 1,000 different texts"):
        list(recombined_ads([Ad("a", "one"), Ad("b", "two")], 1000))


def test_results_come_back_as_they_were_kept(tmp_path):
    found = result()
    found.save(tmp_path / "deep" / "rank.json")
    assert BenchResult.load(tmp_path / "deep" / "rank.json") == found
    (tmp_path / "other.json").write_text('{"bench": "rank"}')
    for name in ("other.json", "none.json"):
        with pytest.raises(InputError, match="no result of a benchmark"):
            BenchResult.load(tmp_path / name)


def test_tables_show_targets_what_moved_and_what_is_missing():
    console = Console(width=160, record=True)
    before = result(entries=[SLOW, FAST.model_copy(update={"milliseconds": Spread(33, 30, 40)})])
    console.print(tables(result(), before))
    shown = console.export_text()
    for part in ("98.0 [80.0, 120.0]", "33.0", "at least 99 times", "the floor is 9 ms", "a peer: no wheel", "avx2"):
        assert part in shown


def test_the_page_and_the_plot(tmp_path):
    write_page(tmp_path / "rank.html", result())
    write_plot(tmp_path / "rank.png", result())
    page = (tmp_path / "rank.html").read_text()
    assert "<svg" in page
    assert "A &lt;fast&gt; one" in page
    assert "the floor is 9 ms" in page
    assert (tmp_path / "rank.png").read_bytes().startswith(b"\x89PNG")


def test_help_teaches():
    shown = CliRunner().invoke(app, ["rank", "--help"])
    assert "CrossEncoder.predict" in " ".join(shown.output.split())
