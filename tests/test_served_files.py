"""Files of a version that are cut short while a server answers from it: the server lives, and none is mapped."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import writable

from adcascade.artifacts.errors import CorruptVersion
from adcascade.serving.channel import open_channel
from adcascade.v1 import ranking_pb2, retrieval_pb2, types_pb2
from adcascade.v1.ranking_pb2_grpc import RankingServiceStub
from adcascade.v1.retrieval_pb2_grpc import RetrievalServiceStub
from adcascade.vectors.vector_file import VectorFile
from index_builder.artifact import load_version as load_index_version
from index_builder.artifact import open_store as open_index_store
from ranking.artifact import load_version as load_model_version
from ranking.store import open_store as open_model_store

ROOT = Path(__file__).parent.parent
USER = types_pb2.UserProfile(
    interests="coffee and roses",
    history=[
        types_pb2.Event(type=types_pb2.EVENT_TYPE_CLICK, ad_id="running-1"),
        types_pb2.Event(type=types_pb2.EVENT_TYPE_SEARCH, text="espresso beans"),
    ],
)


@contextlib.contextmanager
def server(folder, module, *arguments):
    """A server of its own process once it has loaded, and its address."""
    address = folder / f"{module}.json"
    command = [sys.executable, "-m", module, "--port", "0", "--address-file", str(address), *map(str, arguments)]
    log = folder / f"{module}.log"
    with log.open("w") as lines, subprocess.Popen(command, cwd=ROOT, stdout=lines, stderr=lines) as process:
        try:
            end = time.monotonic() + 240
            while "] serving" not in (said := log.read_text()) and " serving\n" not in said:
                assert process.poll() is None, said
                assert time.monotonic() < end, said
                time.sleep(0.05)
            yield process, json.loads(address.read_text())["address"], log
        finally:
            process.terminate()
            process.wait(60)


def mapped(pid, folder):
    """Files below a folder that a process has mapped into memory."""
    return sorted(
        {line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if str(folder) in line}
    )


def cut_each_file(version, call):
    """Cuts one file of a version after the other, and asks after each; an error is an answer, too."""
    for path in sorted(path for path in version.rglob("*") if path.is_file()):
        os.truncate(writable(path), 0)
        for _ in range(2):
            with contextlib.suppress(grpc.RpcError):
                call()


@pytest.fixture
def roots(world, tmp_path):
    for name in ("index", "model"):
        shutil.copytree(getattr(world, name), tmp_path / name)
    return tmp_path / "index", tmp_path / "model"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_servers_outlive_every_file_of_their_versions(roots, tmp_path):
    index, model = roots
    with (
        server(tmp_path, "retrieval", "--index", index) as (retrieval, to_retrieval, _),
        server(tmp_path, "ranking", "--model", model, "--index", index) as (ranking, to_ranking, _),
        open_channel(to_retrieval) as a,
        open_channel(to_ranking) as b,
    ):
        ask = retrieval_pb2.RetrieveRequest(user=USER, k=20)
        rank = ranking_pb2.RankRequest(
            user=USER, candidates=[ranking_pb2.RankCandidate(ad_id=f"coffee-{n}") for n in range(20)]
        )
        assert len(RetrievalServiceStub(a).Retrieve(ask, timeout=60).candidates) == 20
        assert len(RankingServiceStub(b).Rank(rank, timeout=60).ads) == 20
        for process in (retrieval, ranking):
            assert mapped(process.pid, index) == mapped(process.pid, model) == []
        cut_each_file(open_index_store(index).current_path(), lambda: RetrievalServiceStub(a).Retrieve(ask, timeout=60))
        cut_each_file(open_model_store(model).current_path(), lambda: RankingServiceStub(b).Rank(rank, timeout=60))
        assert (retrieval.poll(), ranking.poll()) == (None, None)
        # All that these need is in memory.
        assert len(RetrievalServiceStub(a).Retrieve(ask, timeout=60).candidates) == 20
        assert len(RankingServiceStub(b).Rank(rank, timeout=60).ads) == 20


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_no_file_of_a_loaded_version_stays_mapped(world, tower_index):
    index, model = open_index_store(tower_index), open_model_store(world.model)
    loaded = load_index_version(index, index.current()), load_model_version(model, model.current())
    assert mapped("self", world.folder) == []
    assert loaded[0].event_vectors is not None


# ---- vectors that stay on disk


@pytest.fixture
def vectors(tmp_path):
    values = np.random.default_rng(0).normal(size=(100, 7)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", values)
    return tmp_path / "vectors.npy", values


def test_rows_of_a_file_are_those_of_the_array(vectors):
    path, values = vectors
    file = VectorFile(path)
    assert (len(file), file.shape) == (100, (100, 7))
    for rows in ([3, 1, 1, 99], [-1, 0], np.array([5]), [], slice(10, 20), slice(None), slice(90, 200), slice(0, 9, 4)):
        np.testing.assert_array_equal(file[rows], values[rows] if len(np.atleast_1d(rows)) else values[:0])
    np.testing.assert_array_equal(np.asarray(file), values)
    for rows in ([100], [-101]):
        with pytest.raises(IndexError):
            file[rows]


def test_a_file_that_is_cut_short_or_replaced_by_nothing_raises_and_does_not_kill(vectors):
    path, values = vectors
    file = VectorFile(path)
    os.truncate(path, path.stat().st_size - 7 * 4 * 50)
    np.testing.assert_array_equal(file[[3]], values[[3]])
    for rows in ([3, 99], slice(0, 100)):
        with pytest.raises(CorruptVersion, match="has been cut short"):
            file[rows]
    path.unlink()
    np.testing.assert_array_equal(file[[3]], values[[3]])


def header(shape, descr="<f4", fortran=False):
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape!r}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        header((2**60, 7)),
        header((100, 2**40)),
        header((-1, 7)),
        header((1, 2)) + bytes(7),
        header((1, 2)) + bytes(9),
        header((2,)) + bytes(8),
        header((1, 2), "<f8") + bytes(16),
        header((1, 2), "|O") + bytes(16),
        header((2, 2), fortran=True) + bytes(16),
    ],
)
def test_a_file_whose_header_lies_is_refused_before_anything_is_read(tmp_path, content):
    (tmp_path / "vectors.npy").write_bytes(content)
    with pytest.raises(CorruptVersion, match=r"vectors\.npy"):
        VectorFile(tmp_path / "vectors.npy")
