"""Builds on a full disk: they end with a clear error, and the published version stays."""

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_index_builder_build import ENCODER, make_rows, write

from adcascade.artifacts.errors import StorageFull
from adcascade.catalog.ad_text import embedding_text
from index_builder.artifact import load_version, open_store
from index_builder.build import BuildOptions, build

ROOT = Path(__file__).parent.parent


def run_build(ads, root, *options, limit=None):
    """`python -m index_builder` in a process whose files may not grow beyond `limit` bytes."""

    def limit_files():
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "index_builder", "--ads", ads, "--out", root, "--encoder", "hashing:64", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, preexec_fn=limit_files, check=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with a published version and other catalogs, and the size of every file that a build of them writes."""
    folder = tmp_path_factory.mktemp("full-disk")
    options = BuildOptions(index="hnsw", max_rejected=1)
    before = write(folder / "before.jsonl", make_rows(300))
    after = write(folder / "after.jsonl", [*make_rows(300, seed=1), *[{"ad_id": f"bad{n}"} for n in range(2500)]])
    trial = build(after, folder / "trial", ENCODER, options)
    sizes = {path.name: path.stat().st_size for path in open_store(folder / "trial").path(trial.version).iterdir()}
    sizes["rejected.jsonl"] = trial.rejected_file.stat().st_size
    build(before, folder / "root", ENCODER, options)
    write(folder / "usable.jsonl", make_rows(300, seed=1))
    return folder, sizes


@pytest.fixture
def full_disk(measured, tmp_path):
    folder, sizes = measured
    shutil.copytree(folder / "root", tmp_path / "root")
    return folder, tmp_path / "root", sizes


def assert_unchanged(root, version):
    store = open_store(root)
    assert [info.version for info in store.versions()] == [store.current()] == [version]
    assert not list((root / "drafts").iterdir())
    store.verify(version)
    loaded = load_version(store, version)
    texts = [embedding_text(ad) for ad in loaded.catalog.ads(range(len(loaded.catalog)))]
    np.testing.assert_array_equal(loaded.vectors, ENCODER.encode(texts))


def test_the_files_grow_in_the_order_that_the_limits_below_rely_on(measured):
    sizes = measured[1]
    assert sizes["ads.parquet"] < sizes["vectors.npy"] < sizes["index.faiss"] < sizes["rejected.jsonl"]


@pytest.mark.parametrize(
    ("rejected", "smaller", "full"),
    [
        (False, None, "any file"),
        (False, None, "ads.parquet"),
        (False, "ads.parquet", "vectors.npy"),
        (False, "vectors.npy", "index.faiss"),
        (True, "index.faiss", "rejected.jsonl"),
    ],
)
def test_a_full_disk_ends_the_build_and_leaves_the_published_version(full_disk, rejected, smaller, full):
    folder, root, sizes = full_disk
    version = open_store(root).current()
    limit = (sizes.get(smaller, 0) + sizes.get(full, 0)) // 2
    ads = folder / ("after.jsonl" if rejected else "usable.jsonl")
    done = run_build(ads, root, "--index", "hnsw", "--max-rejected", "1", limit=limit)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: no room left to write under" in done.stderr
    assert "Traceback" not in done.stderr
    assert_unchanged(root, version)


def test_a_build_in_this_process_raises_storage_full(full_disk):
    folder, root, sizes = full_disk
    version = open_store(root).current()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes["vectors.npy"] // 2, hard))
    try:
        with pytest.raises(StorageFull, match="The published version is untouched"):
            build(folder / "usable.jsonl", root, ENCODER, BuildOptions(index="hnsw"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_unchanged(root, version)
