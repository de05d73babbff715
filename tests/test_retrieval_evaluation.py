"""Retrieval against what users clicked next: the peers, the judge, the page, the command."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from typer.testing import CliRunner

from adcascade.catalog.schedule import Schedule
from adcascade.records.errors import InputError
from adcascade.towers.evaluation.metrics import NOT_FOUND
from adcascade.towers.training.data import load_retrieval_data
from adcascade.vectors.encoder import load_encoder
from index_builder.build import BuildOptions
from index_builder.refresh import refresh
from pipeline.cli import app
from retrieval.evaluation.baselines import baselines
from retrieval.evaluation.evaluate import evaluate_retrieval, judge_of
from retrieval.evaluation.evaluator import RetrievalEvaluator
from retrieval.evaluation.page import write_page
from retrieval.evaluation.results import METRICS, RETRIEVAL, ZERO_SHOT
from retrieval.loading import load_published


@pytest.fixture(scope="module")
def retriever(tower_index):
    found, _ = load_published(tower_index)
    yield found
    found.close()


@pytest.fixture(scope="module")
def found(tower_data, retriever):
    return evaluate_retrieval(tower_data, retriever)


@pytest.fixture(scope="module")
def scores():
    """What each peer makes of four users and five ads; ads 0 and 1 go together, and so do 2 and 3."""
    clicks = csr_matrix(np.array([[1, 1, 0, 0, 0], [1, 1, 0, 0, 1], [0, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]))

    class Popularity:
        def clicks(self, ad_ids, days):
            assert len(ad_ids) == 5
            return np.array([2.0, 2, 2, 1, 1]) if days == np.inf else np.array([0.0, 0, 0, 0, 1])

    return {
        name: peer(clicks.astype(float), np.arange(5))
        for name, peer in baselines(5, Popularity(), list("abcde")).items()
    }


def test_peers_that_know_no_user(scores):
    assert scores["popularity"].tolist() == [[2, 2, 2, 1, 1]] * 5
    assert scores["recent popularity"].tolist() == [[0, 0, 0, 0, 1]] * 5


def test_neighbours_by_hand(scores):
    """User 3 clicked ad 2, which 2 users clicked, 1 of them ad 3 as well: cosine 1 / sqrt(2 x 1)."""
    assert scores["item-kNN"][3] == pytest.approx([0, 0, 0, 1 / np.sqrt(2), 0])
    assert scores["item-kNN"][0] == pytest.approx([1, 1, 0, 0, 2 / np.sqrt(2)])


@pytest.mark.parametrize("name", ["EASE", "ALS", "item-kNN"])
def test_strong_peers_see_what_goes_together(scores, name):
    assert scores[name][3, 3] > max(scores[name][3, [0, 1, 4]])
    assert not scores[name][4].any()


def test_retrieval_is_judged_beside_its_peers(found, tower_data):
    compared = found.comparison
    assert set(compared.metrics) == {
        RETRIEVAL, ZERO_SHOT, "popularity", "recent popularity", "item-kNN", "ALS", "EASE",
    }  # fmt: skip
    for metrics in compared.metrics.values():
        assert list(metrics) == list(METRICS)
        assert all(0 <= one.low <= one.value <= one.high <= 1 for one in metrics.values())
        assert metrics["recall@100"].value == 1  # of 60 ads
    ours = compared.metrics[RETRIEVAL]["recall@10"].value
    assert ours > compared.metrics["popularity"]["recall@10"].value
    lead = compared.lead[RETRIEVAL]["popularity"]["recall@10"]
    assert lead.value == pytest.approx(ours - compared.metrics["popularity"]["recall@10"].value)
    assert [part.name for part in found.known_events] == ["0", "1", "3", "all"]
    assert sum(part.users for part in found.by_events) == compared.users
    assert sum(part.clicks for part in found.by_ads) == compared.clicks
    for points in found.curves.values():
        values = [value for _, value in points]
        assert [k for k, _ in points] == [1, 2, 5, 10, 20, 50]
        assert 0 <= min(values) <= max(values) <= 1


def test_a_peer_is_asked_for_the_ads_of_the_moment_alone(tower_data):
    """The ad that a user clicked is first by its score; it was over before anybody was asked for."""
    judge, _ = judge_of(tower_data)
    ads, clicked = len(tower_data.ads), int(judge.judged.clicked[0][0])
    over = min(context.timestamp for context in judge.judged.contexts)
    scores = (np.arange(ads) == clicked).astype(np.float32)
    place = {}
    for name, end in (("over", over), ("running", None)):
        one = RetrievalEvaluator(
            judge.judged, np.ones(ads), Schedule.of([(None, end if ad == clicked else None) for ad in range(ads)])
        )
        one.add_scores(name, lambda _: scores)
        place[name] = int(one.places[name][0].first[0])
    assert place["running"] == 0
    assert place["over"] == NOT_FOUND


def test_the_judge_counts_by_hand(tower_data):
    judge, _ = judge_of(tower_data)
    ads = len(tower_data.ads)
    small = RetrievalEvaluator(judge.judged, np.r_[4.0, np.ones(ads - 1)])
    clicked = judge.judged.clicked
    small.add_lists("all of them", clicked, 500)
    small.add_lists("nothing", [np.empty(0, np.int64)] * len(clicked), 500)
    small.add_lists("ten of them", [ads[:10] for ads in clicked], 10)
    small.add_scores("the first", lambda _: -np.arange(ads, dtype=np.float32))
    compared = small.comparison(["all of them"])
    assert [compared.metrics["all of them"][name].value for name in METRICS] == [1] * len(METRICS)
    assert [compared.metrics["nothing"][name].value for name in METRICS] == pytest.approx([0] * len(METRICS), abs=1e-6)
    lead = compared.lead["all of them"]["nothing"]["mrr"]
    assert (lead.value, lead.low, lead.high) == pytest.approx((1, 1, 1))
    assert "recall@50" not in compared.metrics["ten of them"]
    assert "recall@50" not in compared.lead["all of them"]["ten of them"]
    assert compared.coverage["nothing"] == 0
    assert compared.coverage["all of them"] == len(np.unique(np.concatenate(clicked))) / ads
    seen = judge.judged.seen[0]
    left = np.setdiff1d(np.arange(ads), seen)
    places = [int(np.flatnonzero(left == ad)[0]) for ad in clicked[0]]
    assert small.places["the first"][0].first.tolist() == places
    assert set(small.places["the first"][0].tied.tolist()) == {1}


def test_as_if_nothing_were_known_is_below_all_that_is(found):
    few = {part.name: part for part in found.known_events}
    assert set(few["1"].recall) == {RETRIEVAL, "popularity", "recent popularity"}
    assert set(few["all"].recall) == set(found.comparison.metrics)
    assert few["1"].lead.keys() == {"popularity", "recent popularity"}


def test_ads_that_were_never_shown_are_a_slice(world, retriever):
    data = load_retrieval_data(world.ads, world.clicks, world.users, load_encoder("hashing:64"), split="ad")
    parts = evaluate_retrieval(data, retriever, with_baselines=False).by_ads
    assert [part.name for part in parts] == ["never shown"]


def test_nobody_to_judge_by_is_an_error(tower_data, retriever):
    split = replace(tower_data.split, test=np.empty(0, np.int64))
    with pytest.raises(InputError, match="keeps no rows to test"):
        evaluate_retrieval(replace(tower_data, split=split), retriever)
    nobody = replace(tower_data.log, clicks=np.zeros_like(tower_data.log.clicks))
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate_retrieval(replace(tower_data, log=nobody), retriever)


def test_towers_that_know_other_rows_are_warned_of(world, tower_data, retriever, caplog):
    evaluate_retrieval(tower_data, retriever, with_baselines=False)
    assert "may know what they are tested on" not in caplog.text
    other = load_retrieval_data(world.ads, world.clicks, world.users, load_encoder("hashing:64"), split="user")
    evaluate_retrieval(other, retriever, with_baselines=False)
    assert "may know what they are tested on" in caplog.text


def test_an_index_that_was_refreshed_with_the_test_is_warned_of(world, tower_data, tower_index, tmp_path, caplog):
    shutil.copytree(tower_index, tmp_path / "index")
    refresh(tmp_path / "index", world.clicks, BuildOptions().assembly)
    refreshed, _ = load_published(tmp_path / "index")
    evaluate_retrieval(tower_data, refreshed, with_baselines=False)
    refreshed.close()
    assert "knows how popular ads are then" in caplog.text


def test_the_page_shows_all_of_it(found, tmp_path):
    write_page(tmp_path / "page.html", found, "A <title> of ours")
    page = (tmp_path / "page.html").read_text()
    assert "A &lt;title&gt; of ours" in page
    assert page.count("<svg") == 4
    for name in (*found.comparison.metrics, "As if only so many clicks"):
        assert name in page


def test_the_command_prints_and_writes(world, tower_index, tmp_path):
    files = ["--ads", str(world.ads), "--clicks", str(world.clicks), "--users", str(world.users)]
    args = ["evaluate-retrieval", "--index", str(tower_index), *files, "--no-baselines"]
    shown = CliRunner().invoke(app, [*args, "--report", str(tmp_path / "new" / "page.html")])
    assert shown.exit_code == 0, shown.output
    assert "recall@10 of retrieval" in " ".join(shown.output.split())
    assert "<svg" in (tmp_path / "new" / "page.html").read_text()
    assert (tmp_path / "new" / "page.html").exists()
    for place in (tmp_path, tmp_path / "new" / "page.html" / "deeper.html"):
        refused = CliRunner().invoke(app, [*args, "--report", str(place)])
        assert isinstance(refused.exception, InputError)
        assert "no page can be written" in str(refused.exception)
    other = CliRunner().invoke(app, [*args, "--split", "user", "--json"])
    assert json.loads(other.stdout)["comparison"]["users"] > 0


def test_a_page_without_matplotlib_says_what_to_install():
    script = "import sys; sys.modules['matplotlib'] = None; import retrieval.evaluation.page"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "pip install 'adcascade[train]'" in ran.stderr
