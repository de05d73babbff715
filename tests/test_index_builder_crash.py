"""Builds that are killed at any moment: the published version always loads, and the next build cleans up."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from adcascade.vectors.encoder import load_encoder
from index_builder.artifact import load_version, open_store
from index_builder.build import BuildOptions, build

ROOT = Path(__file__).parent.parent
ENCODER = load_encoder("hashing:64")
ADS = 1500
KILLS = 20


def write_catalog(path, edition):
    """Ads that all change from one edition to the next, so that nothing can be reused."""
    chosen = random.Random(edition)
    with path.open("w") as file:
        for number in range(ADS):
            words = " ".join(f"{chosen.getrandbits(24):06x}" for _ in range(20))
            file.write(json.dumps({"ad_id": f"a{number}", "title": f"edition {edition}", "body": words}) + "\n")
    return path


def start_build(ads, root):
    command = [sys.executable, "-m", "index_builder", "--ads", ads, "--out", root, "--encoder", "hashing:64"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*command, "--index", "ivf"], cwd=ROOT, **quiet)


def names(folder):
    try:
        return set(os.listdir(folder))
    except FileNotFoundError:  # a build removes drafts/ just before it opens its own
        return set()


def wait_for_another(process, folder, before):
    """Waits until the process has put something new into the folder."""
    while process.poll() is None and not names(folder) - before:
        time.sleep(0.001)


def measure(ads, root):
    """Seconds until an undisturbed build opens its draft, and until it ends."""
    started, opened = time.perf_counter(), None
    with start_build(ads, root) as process:
        while process.poll() is None:
            if opened is None and names(root / "drafts"):
                opened = time.perf_counter() - started
            time.sleep(0.002)
    assert process.returncode == 0
    assert opened is not None
    return opened, time.perf_counter() - started


def assert_serves(root):
    """The published version is whole, loads, and finds an ad by its own text; returns its edition."""
    store = open_store(root)
    current = store.current()
    store.verify(current)
    version = load_version(store, current)
    ad = version.catalog.ads([77])[0]
    query = ENCODER.encode([f"{ad.title}. {ad.body}"])
    np.testing.assert_allclose(version.vectors[77], query[0], atol=1e-6)
    assert version.faiss_index.search(query, 1)[1].tolist() == [[77]]
    assert all(not info.problem for info in store.versions())
    return int(ad.title.removeprefix("edition "))


@pytest.mark.slow
def test_a_build_killed_at_any_moment_never_spoils_the_published_version(tmp_path):
    root, ads = tmp_path / "index", tmp_path / "ads.jsonl"
    opened, whole = measure(write_catalog(ads, 0), root)
    assert assert_serves(root) == 0
    chosen, killed, caught_writing, serving = random.Random(7), 0, 0, 0
    for edition in range(1, KILLS + 1):
        write_catalog(ads, edition)
        # Most of a short build is imports, where nothing can break; a fifth dies between commit and publication.
        folder, longest = (root / "versions", 0.01) if edition % 5 == 0 else (root / "drafts", whole - opened)
        before = names(folder)
        with start_build(ads, root) as process:
            wait_for_another(process, folder, before)
            time.sleep(chosen.uniform(0, longest))
            process.kill()
        killed += process.returncode == -9
        caught_writing += bool(names(root / "drafts"))
        now = assert_serves(root)
        assert now in (serving, edition)
        serving = now
    assert killed >= KILLS // 2
    assert caught_writing >= 3  # else the moments missed what the test is about
    report = build(write_catalog(ads, 99), root, ENCODER, BuildOptions(index="ivf"))
    assert report.manifest.ad_count == ADS
    assert assert_serves(root) == 99
    assert names(root / "drafts") == set()
