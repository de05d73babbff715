"""From a click log to an index that has learned from it, on the command line."""

import json

import pytest
from typer.testing import CliRunner

from adcascade.records.errors import InputError
from adcascade.vectors.errors import BuildError
from index_builder.__main__ import app as index_builder
from index_builder.artifact import load_version, open_store
from pipeline.cli import app as adcascade

SIZES = ["--width", "16", "--heads", "2", "--epochs", "2", "--history", "20"]


def run(app, *arguments):
    ran = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    return ran


@pytest.fixture(scope="module")
def files(world):
    return ["--ads", world.ads, "--clicks", world.clicks, "--users", world.users]


@pytest.fixture(scope="module")
def towers(files, tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    ran = run(adcascade, "train-retrieval", *files, "--out", root, "--encoder", "hashing:64", *SIZES, "--json")
    assert ran.exit_code == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["spec"]["shape"]["width"] == 16
    assert "Training to choose by later rows" in ran.stderr
    return root


def test_towers_are_versions(towers):
    (version,) = json.loads(run(adcascade, "towers", "list", towers, "--json").stdout)
    assert version["problem"] == ""
    assert "files are intact" in run(adcascade, "towers", "verify", towers).stdout


@pytest.mark.parametrize("app", [adcascade, index_builder])
def test_a_build_with_towers_can_be_refreshed(world, towers, tmp_path, app):
    root = tmp_path / "index"
    build = ["build"] if app is adcascade else []
    built = run(app, *build, "--ads", world.ads, "--towers", towers, "--out", root, "--encoder", "hashing:64", "--json")
    assert json.loads(built.stdout)["dimension"] == 17
    refreshed = json.loads(run(app, "refresh", "--index", root, "--clicks", world.clicks, "--json").stdout)
    assert (refreshed["embedded"], refreshed["reused"]) == (0, 60)
    store = open_store(root)
    assert store.current() == refreshed["version"] != json.loads(built.stdout)["version"]
    assert load_version(store, store.current()).towers is not None
    bad = world.clicks.read_text() + "broken\n"
    (tmp_path / "bad.csv").write_text(bad)
    rejected = ["--rejected", tmp_path / "list.jsonl"]
    told = run(app, "refresh", "--index", root, "--clicks", tmp_path / "bad.csv", "--no-publish", *rejected)
    assert json.loads((tmp_path / "list.jsonl").read_text())["reason"] == "bad_row"
    assert not (root / "rejected-clicks.jsonl").exists()
    assert str(tmp_path / "list.jsonl") in "".join(told.stderr.split())
    again = run(app, "refresh", "--index", root, "--clicks", world.clicks)
    assert "nothing was made" in again.stderr
    assert store.current() == refreshed["version"]


def test_what_needs_towers_says_so(world, towers, tmp_path, caplog):
    flags = ["--ads", world.ads, "--out", tmp_path / "index", "--encoder", "hashing:64"]
    with pytest.raises(BuildError, match="give their root with --towers"):
        run(adcascade, "build", *flags, "--width", "8")
    shown = run(adcascade, "build", *flags, "--towers", towers)
    assert "popularity of" in shown.stdout
    assert "has towers" not in caplog.text
    run(adcascade, "build", *flags)
    assert "the published version has towers and this one will have none" in caplog.text


def test_vectors_are_cut_and_not_stretched(world, towers, tmp_path):
    build = ["build", "--ads", world.ads, "--towers", towers, "--out", tmp_path, "--encoder", "hashing:64", "--width"]
    assert json.loads(run(adcascade, *build, 8, "--json").stdout)["dimension"] == 9
    ran = CliRunner().invoke(adcascade, [str(argument) for argument in (*build, 17)])
    assert "cannot be cut from those of the towers, which have 16" in str(ran.exception)
    assert "Embedding" not in ran.stderr  # it is known before any text is embedded


def test_other_encoders_are_refused_by_name(world, towers, tmp_path):
    with pytest.raises(Exception, match="build with the same encoder"):
        run(adcascade, "build", "--ads", world.ads, "--towers", towers, "--out", tmp_path, "--encoder", "hashing:32")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--heads", "5"], "cannot be divided among 5 heads"),
        (["--split", "moon"], "no split 'moon'"),
        (["--clicks", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_bad_input_says_what_to_do(files, tmp_path, flags, message):
    arguments = [*files, "--out", tmp_path / "towers", "--encoder", "hashing:64", *SIZES, *flags]
    with pytest.raises(Exception, match=message):
        run(adcascade, "train-retrieval", *arguments)
    assert not (tmp_path / "towers" / "CURRENT").exists()


def test_a_log_without_times_cannot_teach_retrieval(world, tmp_path):
    clicks = tmp_path / "clicks.csv"
    clicks.write_text("request_id,ad_id,user_id,clicks,impressions\nr1,coffee-1,u1,1,1\nr2,coffee-2,u1,0,1\n")
    with pytest.raises(InputError, match="the log needs user_id and timestamp"):
        run(adcascade, "train-retrieval", "--ads", world.ads, "--clicks", clicks, "--out", tmp_path / "towers", *SIZES)
