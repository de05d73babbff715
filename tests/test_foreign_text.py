"""Texts of owners and callers are data in every medium: terminal, log, page, plot; and no report costs a result."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from functools import partial

import matplotlib.pyplot as plt
import pytest
from conftest import TOPICS, serving_server, tiny_options, write_world_files
from rich.table import Table

from adcascade.artifacts.hotswap import HotSwap
from adcascade.records.printable import printable, printable_json
from adcascade.reports import figures
from adcascade.reports.page import render
from adcascade.serving.logs import set_up_logging
from adcascade.terminal.console import Console
from adcascade.terminal.exits import clean_exit
from adcascade.v1 import ranking_pb2_grpc, retrieval_pb2_grpc
from adcascade.vectors.encoder import load_encoder
from index_builder.artifact import load_version, open_store
from ranking.artifact import load_version as load_model
from ranking.data.dataset import load_dataset
from ranking.runtime.engine import RankingEngine
from ranking.runtime.engine_settings import EngineSettings
from ranking.service import RankingServicer
from ranking.store import open_store as open_model_store
from ranking.training.run import REPORT_FILE, train_and_save
from retrieval.index import AdIndex
from retrieval.interests import InterestSettings
from retrieval.retriever import Retriever
from retrieval.service import RetrievalServicer

NASTY = [
    r"$\x$",
    r"\$5 and $6 \frac{",
    "[/50%]",
    "[bold]x[/bold] :smile:",
    "\x1b[31mred\x1b]0;title\x07",
    "\x9b2J",
    "<script>alert(1)</script> & \"quotes' {{ 7*7 }} {% raise %}",
    "\u202egnp.exe\u2066",
    "line\nERROR forged\r\u2028",
    "NUL\x00 and \x08",
    "专业键盘 مرحبا 🍕",
    "%s %(name)s {0}",
    "_underscore",
]
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
ENVIRONMENT = {**os.environ, "COLUMNS": "200"}


def adcascade(*arguments, environment=ENVIRONMENT):
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=280, env=environment, check=False)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0, err
    assert not STEERING.search(out + err), repr(STEERING.search(out + err))
    return out, err


def nasty(number):
    return NASTY[number % len(NASTY)]


def test_a_plot_of_the_longest_values_has_room_for_what_it_shows():
    drawn, axes = figures.figure("AUC", "")
    axes.set_yticks([0, 1], [f"{figures.plain('$W' * 128)}  (1,234)"] * 2, fontsize=7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where labels leave a plot no room
        assert f"{'$W' * 15}$…  (1,234)" in figures.svg(drawn)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The made-up platform with nasty texts wherever an owner may write one."""
    folder = tmp_path_factory.mktemp("nasty")
    write_world_files(folder, ads_per_topic=10, users=26)
    ads = [json.loads(line) for line in (folder / "ads.jsonl").read_text().splitlines()]
    for number, ad in enumerate(ads):
        ad |= {
            "title": f"{nasty(number)} {ad['title']}",
            "advertiser": nasty(number),
            "attributes": {nasty(1): nasty(2)},
        }
    (folder / "ads.jsonl").write_text("".join(json.dumps(ad) + "\n" for ad in ads))
    users = [{"user_id": f"u{number}", "age": nasty(number), nasty(0): nasty(5)} for number in range(26)]
    (folder / "users.jsonl").write_text("".join(json.dumps(user) + "\n" for user in users))
    header, *lines = (folder / "clicks.csv").read_text().splitlines()
    names = header.split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines]
    for number, row in enumerate(rows):
        # At most a dozen values, so that they become slices; the name of one is a formula itself.
        row |= {
            "device": nasty(number),
            r"$\y$ [/b]": NASTY[number % 7],
            "clicks": int(row["clicks"]),
            "impressions": 1,
        }
        row["timestamp"] = int(row["timestamp"])
    (folder / "clicks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def log_of(files):
    return ["--ads", files / "ads.jsonl", "--clicks", files / "clicks.jsonl", "--users", files / "users.jsonl"]


@pytest.fixture(scope="module")
def index(files):
    out, _ = adcascade("build", "--ads", files / "ads.jsonl", "--out", files / "index", "--encoder", "hashing:64")
    assert "30 (30 embedded" in out
    return files / "index"


@pytest.fixture(scope="module")
def model(files, log_of, tiny_bert):
    how = ["--epochs", 0, "--behaviour-epochs", 1, "--behaviour-min-steps", 5, "--baselines", "none", "--no-export"]
    sizes = ["--max-user-tokens", 48, "--max-ad-tokens", 24]
    out, err = adcascade("train", *log_of, "--out", files / "model", "--base", tiny_bert, *how, *sizes)
    assert "Report with plots" in out, err
    return files / "model"


def check_page(page):
    """A page says what was written, as text, and its plots are well-formed."""
    assert "<script>alert" not in page
    assert not STEERING.search(page)
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert plots
    for plot in plots:
        ElementTree.fromstring(plot)
    return page


def test_a_training_on_nasty_texts_is_saved_with_its_report(model):
    store = open_model_store(model)
    page = check_page((store.path(store.current()) / REPORT_FILE).read_text())
    assert r"$\x$" in page
    assert r"$\y$ [/b]" in page
    assert "[/50%]" in page
    assert "&lt;script&gt;" in page
    assert r"\x1b[31mred" in page
    assert "{{ 7*7 }}" in page


def test_an_evaluation_and_its_page(model, log_of, tmp_path):
    out, _ = adcascade("evaluate", *log_of, "--model", model, "--baselines", "none", "--report", tmp_path / "page.html")
    assert "ranker" in out
    assert r"$\x$" in check_page((tmp_path / "page.html").read_text())


def test_an_evaluation_of_retrieval_and_its_page(index, log_of, tmp_path):
    page = tmp_path / "[page] $x$.html"
    adcascade("evaluate-retrieval", *log_of, "--index", index, "--no-baselines", "--report", page)
    check_page(page.read_text())


def test_recommendations_are_shown_as_they_are_written(index, model, files, log_of):
    indexes, models = open_store(index), open_model_store(model)

    def retriever_of(version):
        loaded = AdIndex(load_version(indexes, version), "cpu")
        return Retriever(loaded, load_encoder("hashing:64"), InterestSettings(), 10)

    retrievers = HotSwap(indexes, retriever_of)
    engines = HotSwap(models, lambda version: RankingEngine(load_model(models, version), EngineSettings()))
    retrievers.start()
    engines.start()
    retrieval, ranking = RetrievalServicer(retrievers, 32), RankingServicer(engines, None, 1000)
    add = partial(retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server, retrieval)
    add_ranking = partial(ranking_pb2_grpc.add_RankingServiceServicer_to_server, ranking)
    with serving_server("retrieval", add) as (first, _), serving_server("ranking", add_ranking) as (second, _):
        where = ["--retrieval", first.address, "--ranking", second.address, "--ads", files / "ads.jsonl"]
        who = ["--user-id", "u2", "--users", files / "users.jsonl", "--clicks", files / "clicks.jsonl"]
        out, _ = adcascade("recommend", *where, *who, "--k", 20, "--interests", NASTY[4], "--timeout-seconds", 60)
        narrow = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
        assert "p_click" in adcascade("recommend", *where, *who, "--timeout-seconds", 60, environment=narrow)[0]
    for part in (retrieval, ranking, retrievers, engines):
        part.close()
    assert "[/50%]" in out
    assert r"\x1b[31m" in out
    assert "[bold]x[/bold] :smile:" in out


def test_versions_with_a_nasty_problem_are_listed(index):
    version = open_store(index).current()
    broken = index / "versions" / "20200101T000000.000000-[red]x"
    broken.mkdir()
    (broken / "manifest.json").write_text("\x1b[31m[/]")
    out, _ = adcascade("index", "list", index)
    assert version in out
    broken.joinpath("manifest.json").unlink()
    broken.rmdir()


def test_a_report_that_fails_never_costs_the_version(files, tiny_bert, tmp_path, monkeypatch, caplog):
    """A disk quota, a bug of a library: the drawing fails, the training is saved and published, and that is said."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: 1 / 0)
    data = load_dataset(files / "ads.jsonl", files / "clicks.jsonl", files / "users.jsonl")
    options = tiny_options(tiny_bert, epochs=0, behaviour_epochs=1, behaviour_min_steps=2)
    report = train_and_save(data, tmp_path / "model", options, which_baselines="none")
    store = open_model_store(tmp_path / "model")
    assert store.current() == report.version
    store.verify(report.version)
    assert not (store.path(report.version) / REPORT_FILE).exists()
    (warning,) = [record.getMessage() for record in caplog.records if "report failed" in record.getMessage()]
    assert "ZeroDivisionError" in warning
    assert f"adcascade evaluate --version {report.version} --report" in warning


@pytest.mark.parametrize("text", NASTY)
def test_a_terminal_shows_a_text_and_obeys_it_never(text):
    shown = io.StringIO()
    console = Console(file=shown, width=300, force_terminal=True, color_system=None, highlight=False)
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    console.print(table)
    console.print(text)
    console.print(f"{text} beside", style=None)
    assert not STEERING.search(shown.getvalue())
    first = printable(text, "\n\t").split("\n")[0].strip()
    assert shown.getvalue().count(first) >= 4


@pytest.mark.parametrize("text", NASTY)
def test_a_plot_draws_a_text_and_computes_it_never(text):
    drawn, axes = figures.figure(text, text)
    axes.plot([0, 1], [0, 1], label=figures.plain(text))
    axes.set_title(figures.plain(text))
    axes.set_yticks([0, 1], [figures.plain(text)] * 2)
    axes.legend()
    plot = figures.svg(drawn)
    said = "".join(ElementTree.fromstring(plot).itertext())
    assert said.count(printable(text)[:31]) >= 5
    assert not plt.get_fignums()


@pytest.mark.parametrize("text", NASTY)
def test_a_page_shows_a_text_and_runs_it_never(text):
    slices = [("a", "b", [], "")]
    page = render("adcascade.reports", "base.html.j2", title=text, slices=slices)
    title = re.search(r"<h1>(.*?)</h1>", page, re.DOTALL)[1]
    assert "<" not in title
    assert not STEERING.search(page)


@pytest.mark.parametrize("text", NASTY)
def test_a_log_line_stays_a_line(text, capsys):
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    set_up_logging("INFO")
    try:
        try:
            raise ValueError(text)
        except ValueError:
            logging.getLogger("a").exception("refused %s", text)
        logging.getLogger("a").info("refused %s", text)
    finally:
        root.handlers[:], root.level = handlers, level
    said = capsys.readouterr().err
    assert not STEERING.search(said)
    assert sum(line.startswith("20") for line in said.splitlines()) == 2
    assert said.splitlines()[-1].endswith(f"refused {printable(text)}")


@pytest.mark.parametrize("text", NASTY)
def test_an_error_message_steers_no_terminal(text, capsys):
    with pytest.raises(SystemExit), clean_exit(ValueError):
        raise ValueError(f"there is no column {text}")
    assert not STEERING.search(capsys.readouterr().err)


@pytest.mark.parametrize("text", NASTY)
def test_json_for_programs_steers_no_terminal_and_says_the_same(text):
    document = printable_json(json.dumps({text: [text]}, ensure_ascii=False, indent=2))
    assert not STEERING.search(document)
    assert json.loads(document) == {text: [text]}


def test_printable_keeps_what_is_written_and_says_what_is_not():
    assert printable("Größe 42 专业 🍕 مرحبا") == "Größe 42 专业 🍕 مرحبا"
    assert printable("a\x1b\n\u202e\ud800") == r"a\x1b\n\u202e\ud800"
    assert printable("a\nb", keep="\n") == "a\nb"
    assert all(topic in printable(topic) for topic in TOPICS)
