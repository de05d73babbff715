"""Towers that were trained too little say so, and are not published where what needs no training finds more."""

import json
from dataclasses import replace

import pytest
from conftest import tiny_towers
from typer.testing import CliRunner

from adcascade.records.datasets.synthetic import SyntheticOptions, make_synthetic
from adcascade.terminal.exits import clean_exit
from adcascade.towers.artifact import TowerSpec, load_published_towers, load_towers, save_towers
from adcascade.towers.findings import Lead, Passes, Spread, TowerComparison
from adcascade.towers.store import open_store
from adcascade.towers.training.commands import compared_lines, report_table, warnings_of
from adcascade.towers.training.data import load_retrieval_data
from adcascade.towers.training.train import train_and_save, train_towers
from adcascade.vectors.encoder import load_encoder
from adcascade.vectors.errors import BuildError, NotPublished
from index_builder.artifact import open_store as open_index_store
from pipeline.cli import app

ENCODER = load_encoder("hashing:64")
# What being new adds is so loud that ads which nobody clicks come first.
NOVELTY_ALONE = 1000.0


def lead(value, width):
    return Lead(value=value, low=value - width, high=value + width)


def comparison(at_10, at_100, narrow=None):
    leads = {96: {"popularity": {10: at_10, 100: at_100}}}
    if narrow is not None:
        leads[48] = {"popularity": {10: narrow, 100: narrow}}
    return TowerComparison(users=50, towers={}, others={}, lead=leads)


@pytest.mark.parametrize(
    ("at_10", "at_100", "is_better"),
    [
        (lead(-0.1, 0.05), lead(-0.1, 0.05), True),
        (lead(-0.1, 0.05), lead(0.01, 0.05), True),
        (lead(0.01, 0.05), lead(-0.1, 0.05), True),
        (lead(-0.1, 0.05), lead(0.1, 0.05), False),  # fewer of the first ten for more of the hundred that ranking gets
        (lead(-0.05, 0.1), lead(-0.05, 0.1), False),  # of a few dozen users: 0.150 against 0.206 may be chance
        (lead(0.1, 0.05), lead(0.1, 0.05), False),
    ],
)
def test_what_is_better_is_better_by_more_than_chance(at_10, at_100, is_better):
    assert comparison(at_10, at_100).better_than() == (("popularity",) if is_better else ())


def test_a_width_between_two_that_were_compared_is_no_better_than_the_narrower():
    found = comparison(lead(0.1, 0.05), lead(0.1, 0.05), narrow=lead(-0.1, 0.05))
    assert found.better_than() == found.better_than(96) == found.better_than(200) == ()
    for width in (95, 48, 20):
        assert found.better_than(width) == ("popularity",)
    assert TowerComparison(users=0, towers={}, others={}, lead={}).better_than(48) == ()


def test_a_training_says_how_far_it_came():
    cut = Passes(made=3, planned=25, steps=410, seconds=60.0)
    assert str(cut) == "stopped after pass 3 of 25, by --max-minutes"
    assert (cut.cut_short, cut.minutes_of_all) == (True, pytest.approx(25 / 3))
    at_once = Passes(made=0, planned=25, steps=2, seconds=1.0)
    assert str(at_once) == "stopped within pass 1 of 25, by --max-minutes"
    assert at_once.minutes_of_all is None
    assert str(Passes(made=25, planned=25, steps=410, seconds=60.0)) == "all 25 passes"


def test_a_training_that_the_clock_ended_says_so_everywhere(tower_data, tmp_path):
    report = train_and_save(tower_data, ENCODER, tmp_path, tiny_towers(max_minutes=0.0), publish_anyway=True)
    for stage in ("choose", "train"):
        assert str(report.spec.passes[stage]) == "stopped within pass 1 of 50, by --max-minutes"
    warned = "\n".join(warnings_of(report.spec))
    assert "training on all of them stopped within pass 1 of 50, by --max-minutes" in warned
    cells = [str(cell) for column in report_table(report).columns for cell in column.cells]
    assert any("on all rows: stopped within pass 1 of 50, by --max-minutes" in cell for cell in cells)
    store = open_store(tmp_path)
    assert store.manifest(report.version).content["passes"]["train"]["made"] == 0
    assert load_published_towers(tmp_path).spec.passes == report.spec.passes


def test_what_the_clock_allows_is_told_with_what_all_of_it_would_take(tower_data):
    spec = train_towers(tower_data, ENCODER, tiny_towers(epochs=10**6, max_minutes=0.04)).spec
    assert spec.passes["train"].cut_short
    if spec.passes["train"].made:
        assert "at this pace all of them take" in "\n".join(warnings_of(spec))


@pytest.fixture(scope="module")
def popular(tmp_path_factory):
    """A log in which all users like the same ads."""
    made = SyntheticOptions(
        ads=150, users=150, requests=1500, places=6, quality=2.0, taste=0.0, drift=0.0, cold_share=0.0, seed=1
    )
    return make_synthetic(tmp_path_factory.mktemp("popular"), made)


@pytest.fixture(scope="module")
def popular_data(popular):
    return load_retrieval_data(popular.ads, popular.clicks, popular.users, ENCODER)


def arguments(files, out, *more):
    sizes = ["--encoder", "hashing:64", "--width", "32", "--heads", "2", "--epochs", "1", "--history", "20"]
    paths = ["--ads", files.ads, "--clicks", files.clicks, "--users", files.users, "--out", out]
    return [str(one) for one in ("train-retrieval", *paths, *sizes, *more)]


def test_towers_that_find_less_than_popularity_are_kept_but_not_published(popular, tmp_path):
    worse = ["--exploration", str(NOVELTY_ALONE)]
    ran = CliRunner().invoke(app, arguments(popular, tmp_path, *worse))
    assert isinstance(ran.exception, NotPublished)
    assert "popularity" in str(ran.exception)
    store = open_store(tmp_path)
    (version,) = (one.version for one in store.versions())
    assert f"adcascade towers publish {tmp_path} {version}" in str(ran.exception)
    assert store.current() is None
    assert "(not published)" in ran.stdout
    assert load_towers(store.path(version)).spec.better_than()
    with pytest.raises(SystemExit) as ended, clean_exit(BuildError):
        raise ran.exception
    assert ended.value.code == 3
    anyway = CliRunner().invoke(app, arguments(popular, tmp_path, *worse, "--publish-anyway", "--json"))
    assert anyway.exit_code == 0, anyway.output
    report = json.loads(anyway.stdout)
    assert report["published"]
    assert store.current() == report["version"]
    assert "found more than these towers" in anyway.stderr


def test_a_published_version_stays_where_the_new_one_is_refused(popular_data, tmp_path):
    # Two passes come near popularity, and with some seeds not near enough.
    good = train_and_save(popular_data, ENCODER, tmp_path, tiny_towers(epochs=2, seed=1))
    worse = train_and_save(popular_data, ENCODER, tmp_path, tiny_towers(epochs=1, exploration=NOVELTY_ALONE))
    assert (good.published, worse.published) == (True, False)
    store = open_store(tmp_path)
    assert store.current() == good.version
    assert {one.version for one in store.versions()} == {good.version, worse.version}


def test_recall_is_compared_at_ten_and_at_a_hundred_for_every_width(popular_data):
    spec = train_towers(popular_data, ENCODER, tiny_towers(epochs=1)).spec
    found = spec.compared
    assert found.users > 20
    for of in (*found.towers.values(), *found.others.values()):
        assert 0 < of[10] < of[100] <= 1
    shown = dict(compared_lines(spec))
    for k in (10, 100):
        for name in ("32 numbers", "16 numbers", "of popularity", "of recent popularity", "of likeness of texts"):
            assert name in shown[k]
    # All like the same, so popularity is the best there is, and what is served holds it.
    assert found.others["popularity"][10] > found.others["likeness of texts"][10] + 0.1
    assert found.towers[32][10] == pytest.approx(found.others["popularity"][10], abs=0.1)


def test_one_ad_first_for_nearly_all_users_is_warned_of_by_name(popular_data, tower_data):
    spec = train_towers(popular_data, ENCODER, tiny_towers(max_minutes=0.0)).spec
    assert spec.spread.is_collapsed
    warned = "\n".join(warnings_of(spec))
    assert f"put the ad {spec.spread.first_ad} first for {spec.spread.first_of} of 100 users" in warned
    assert f"{spec.spread.shown:,} of 150 ads" in warned
    apart = train_towers(tower_data, ENCODER, tiny_towers()).spec
    assert apart.spread.users == 40
    assert not apart.spread.is_collapsed
    assert not any("hardly tell users apart" in line for line in warnings_of(apart))
    spread = Spread(users=100, ads=60, first_ad="a", first_of=95, shown=40)
    assert spread.is_collapsed
    for change in ({"users": 3, "first_of": 3}, {"first_of": 60}, {"first_of": 60, "shown": 15}):
        # Three users may well like the same, and of few ads everybody's first ten have many in common.
        assert not spread.model_copy(update=change).is_collapsed
    assert spread.model_copy(update={"first_of": 60, "shown": 15, "ads": 5000}).is_collapsed


def test_an_index_of_too_narrow_vectors_is_not_published(world, towers_root, tmp_path):
    towers = load_published_towers(towers_root)
    compared = comparison(lead(0.1, 0.05), lead(0.1, 0.05), narrow=lead(-0.1, 0.05))
    compared = compared.model_copy(update={"lead": {32: compared.lead[96], 16: compared.lead[48]}})
    store = open_store(tmp_path / "towers")
    with store.begin() as draft:
        spec = towers.spec.model_copy(update={"compared": compared})
        save_towers(draft.path, replace(towers, spec=spec))
        store.commit(draft, {})
    store.publish(draft.version)
    build = ["build", "--ads", world.ads, "--towers", tmp_path / "towers", "--encoder", "hashing:64"]

    def run(out, *more):
        return CliRunner().invoke(app, [str(one) for one in (*build, "--out", tmp_path / out, *more)])

    refused = run("index", "--width", 20)
    assert isinstance(refused.exception, NotPublished)
    assert "cut to 20 numbers, these towers found less than popularity" in str(refused.exception)
    assert open_index_store(tmp_path / "index").versions() == []
    for more in (["--width", "32"], ["--width", "16", "--publish-anyway"], ["--width", "16", "--no-publish"], []):
        ran = run("index", *more)
        assert ran.exit_code == 0, ran.exception


def test_towers_of_before_are_read_and_nothing_is_said_of_them(towers_root):
    spec = load_published_towers(towers_root).spec.model_dump(mode="json")
    for name in ("compared", "passes", "spread"):
        spec.pop(name)
    old = TowerSpec.model_validate({**spec, "recall_beside": {"towers": 0.1}, "better": ["popularity"]})
    assert (old.better_than(), old.better_than(8), warnings_of(old)) == ((), (), [])
