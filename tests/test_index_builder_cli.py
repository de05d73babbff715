"""`python -m index_builder` as a user runs it: real processes, exit codes, standard output fit for a program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adcascade.vectors.encoder import load_encoder
from index_builder.artifact import load_version, open_store
from index_builder.build import BuildOptions, build

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "COLUMNS": "120", "ADCASCADE_ENCODER": "hashing:64"}
WITHOUT_FAISS = "import sys, runpy; sys.modules['faiss'] = None; runpy.run_module('index_builder', run_name='__main__')"


def index_builder(*arguments, start=("-m", "index_builder")):
    command = [sys.executable, *start, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT, check=False)


def write_ads(path, count, word="shoes"):
    rows = [{"ad_id": f"a{number}", "title": f"{word} number {number}"} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def assert_refused(done, message):
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.fixture
def two_versions(tmp_path):
    """A root with two published versions, and their names, oldest first."""
    root, encoder = tmp_path / "index", load_encoder("hashing:64")
    catalogs = [write_ads(tmp_path / f"{count}.jsonl", count) for count in (30, 40)]
    return root, [build(ads, root, encoder, BuildOptions()).version for ads in catalogs]


def test_a_build_prints_its_report_as_json(tmp_path):
    ads = write_ads(tmp_path / "ads.jsonl", 99)
    with ads.open("a") as file:
        file.write('{"ad_id": "empty"}\n')
    done = index_builder("--ads", ads, "--out", tmp_path / "index", "--json", "--recall-k", 10, "--index", "hnsw")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    version = load_version(open_store(tmp_path / "index"), report["version"])
    assert report["published"] is True
    assert open_store(tmp_path / "index").current() == report["version"]
    assert (report["ad_count"], report["embedded"], report["reused"]) == (99, 99, 0)
    assert (report["encoder_name"], report["dimension"], report["factory"]) == ("hashing:64", 64, "HNSW32")
    assert (report["recall_k"], report["rejected"]) == (10, {"empty_text": 1})
    assert report["bytes_per_ad"] == round(version.manifest.bytes_per_ad, 1)
    assert "Embedding" in done.stderr


def test_a_build_shows_people_a_table(tmp_path):
    done = index_builder("--ads", write_ads(tmp_path / "ads.jsonl", 30), "--out", tmp_path / "index", "--no-publish")
    assert done.returncode == 0, done.stderr
    assert "30 (30 embedded, 0 reused)" in done.stdout
    assert "(published)" not in done.stdout
    store = open_store(tmp_path / "index")
    assert store.current() is None
    assert len(store.versions()) == 1


def test_versions_are_listed_as_json_and_as_a_table(two_versions):
    root, versions = two_versions
    listed = json.loads(index_builder("list", root, "--json").stdout)
    assert [(line["version"], line["published"]) for line in listed] == [(versions[0], False), (versions[1], True)]
    assert all(line["bytes"] > 0 and line["created_at"] and line["problem"] == "" for line in listed)
    table = index_builder("list", root)
    assert table.returncode == 0
    assert all(version in table.stdout for version in versions)


def test_verify_says_that_files_are_intact_or_which_is_not(two_versions):
    root, (old, new) = two_versions
    assert f"{new}: 9 files are intact" in index_builder("verify", root).stdout
    assert f"{old}: 9 files are intact" in index_builder("verify", root, old).stdout
    damaged = open_store(root).path(old) / "vectors.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert_refused(index_builder("verify", root, old), "vectors.npy differs from its checksum")
    assert_refused(index_builder("publish", root, old), "vectors.npy differs from its checksum")
    assert open_store(root).current() == new


def test_versions_are_rolled_back_published_and_pruned(two_versions):
    root, (old, new) = two_versions
    assert f"{old} is published again" in index_builder("rollback", root).stdout
    assert open_store(root).current() == old
    assert_refused(index_builder("rollback", root), f"no version was published before {old}")
    assert f"{new} is published" in index_builder("publish", root, new).stdout
    assert open_store(root).current() == new
    assert "nothing to remove" in index_builder("prune", root).stdout
    assert f"removed 1: {old}" in index_builder("prune", root, "--keep", "0").stdout
    assert [info.version for info in open_store(root).versions()] == [new]


def test_a_missing_catalog_is_one_message(tmp_path):
    done = index_builder("--ads", tmp_path / "none.jsonl", "--out", tmp_path / "index")
    assert_refused(done, f"error: {tmp_path / 'none.jsonl'} does not exist")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--encoder", "hashing:1"], "expected hashing:DIM"),
        (["--index", "nonsense"], "Choose --index from auto, flat, hnsw, hnsw8, ivf"),
        (["--min-recall", "1.5"], "--min-recall"),
        (["--out", "/dev/null/index"], "cannot write under /dev/null/index"),
    ],
)
def test_wrong_options_are_one_message(tmp_path, options, message):
    ads = write_ads(tmp_path / "ads.jsonl", 30)
    assert_refused(index_builder("--ads", ads, "--out", tmp_path / "index", *options), message)


def test_too_many_rejected_ads_are_one_message_that_says_where_to_look(tmp_path):
    (tmp_path / "ads.jsonl").write_text('{"ad_id": "a", "title": "fine"}\n{"ad_id": "b"}\n')
    done = index_builder("--ads", tmp_path / "ads.jsonl", "--out", tmp_path / "index")
    assert_refused(done, f"see {tmp_path / 'index' / 'rejected.jsonl'}")


def test_a_build_without_its_two_paths_is_refused(tmp_path):
    assert_refused(index_builder("--out", tmp_path), "a build needs --ads and --out")


@pytest.mark.parametrize("command", [["verify"], ["rollback"], ["publish", "no-such-version"]])
def test_commands_on_an_empty_root_are_refused(tmp_path, command):
    assert_refused(index_builder(command[0], tmp_path, *command[1:]), str(tmp_path))


def test_help_names_every_command_and_option():
    done = index_builder("--help")
    for word in ("list", "verify", "publish", "rollback", "prune", "--ads", "--out", "--min-recall", "--max-rejected"):
        assert word in done.stdout


def test_without_faiss_the_message_names_the_extras(tmp_path):
    ads = write_ads(tmp_path / "ads.jsonl", 30)
    done = index_builder("--ads", ads, "--out", tmp_path / "index", start=("-c", WITHOUT_FAISS))
    assert_refused(done, "pip install 'adcascade[serve]', or 'adcascade[gpu]'")
