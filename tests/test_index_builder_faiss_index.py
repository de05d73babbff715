"""Every kind of index keeps the same contract: it finds what exact search finds, to the measured share."""

import errno
import resource
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from adcascade.vectors.encoder import load_encoder
from adcascade.vectors.errors import BuildError
from adcascade.vectors.exact_search import exact_search
from adcascade.vectors.faiss_index import (
    build_index,
    factory_strings,
    gpu_count,
    import_faiss,
    new_index,
    read_index,
    set_search_parameters,
    to_gpu,
    write_index,
)
from index_builder.recall import draw_queries, reach_recall

ROOT = Path(__file__).parent.parent
KINDS = ("flat", "hnsw", "hnsw8", "ivf", "compact", "IVF16,SQ8")


def random_vectors(count, dimension=32, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, dimension), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS = random_vectors(2000)
QUERY_ROWS = draw_queries(len(VECTORS), 500, seed=0)


def build(kind, vectors=VECTORS, held_out=QUERY_ROWS):
    return build_index(vectors, factory_strings(kind, *vectors.shape, is_unit=True)[0], held_out, 0, lambda _: None)


def numpy_search(vectors, queries, k):
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]


def share_found(index, vectors, rows, k):
    """Recall by numpy alone; an ad does not count as its own neighbour."""
    found = index.search(vectors[rows], k + 1)[1]
    truth = numpy_search(vectors, vectors[rows], k + 1)
    shares = [
        len((set(want) & set(got)) - {row}) / k
        for row, want, got in zip(rows.tolist(), truth.tolist(), found.tolist(), strict=True)
    ]
    return float(np.mean(shares))


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_finds_what_exact_search_finds_to_the_measured_share(kind):
    index = build(kind)
    assert (index.ntotal, index.d, index.metric_type) == (2000, 32, faiss.METRIC_INNER_PRODUCT)
    recall = reach_recall(index, VECTORS, QUERY_ROWS, k=20, minimum=0.9)
    assert recall.recall >= (1 if kind == "flat" else 0.9)
    assert (recall.k, recall.queries) == (20, len(QUERY_ROWS))
    last = recall.curve[-1]
    assert (last.search_parameters, last.recall) == (recall.search_parameters, recall.recall)
    assert all(point.recall < 0.9 and point.milliseconds > 0 for point in recall.curve[:-1])
    assert share_found(index, VECTORS, QUERY_ROWS, 20) == pytest.approx(recall.recall, abs=0.01)
    others = np.setdiff1d(np.arange(2000), QUERY_ROWS)[:300]
    assert share_found(index, VECTORS, others, 20) == pytest.approx(recall.recall, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_similarities_are_inner_products_and_fall(kind):
    index = build(kind)
    similarity, rows = index.search(VECTORS[:5], 10)
    assert (np.diff(similarity, axis=1) <= 1e-6).all()
    found = rows >= 0
    want = np.take_along_axis(VECTORS[:5] @ VECTORS.T, np.maximum(rows, 0), axis=1)
    np.testing.assert_allclose(
        similarity[found], want[found], atol=0.02 if "SQ8" in kind or kind in ("compact", "hnsw8") else 1e-5
    )
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_survives_a_file_with_its_search_parameters(kind, tmp_path):
    index = build(kind)
    recall = reach_recall(index, VECTORS, QUERY_ROWS, k=20, minimum=0.9)
    write_index(index, tmp_path / "index.faiss")
    again = read_index(tmp_path / "index.faiss", recall.search_parameters)
    for mine, other in zip(index.search(VECTORS[:50], 10), again.search(VECTORS[:50], 10), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("kind", ["flat", "ivf", "compact", "IVF16,SQ8"])  # FAISS links an HNSW graph in no fixed order
def test_a_build_with_one_seed_is_repeatable(kind):
    for mine, other in zip(build(kind).search(VECTORS[:50], 10), build(kind).search(VECTORS[:50], 10), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a file that is always full")
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("count", [20, 2000, 12_000])
def test_writing_to_a_full_disk_raises_and_never_leaves_half_an_index_in_silence(kind, count):
    index = faiss.index_factory(32, factory_strings(kind, count, 32, is_unit=True)[0], faiss.METRIC_INNER_PRODUCT)
    index.add(random_vectors(count))
    with pytest.raises(OSError, match="No space left") as caught:
        write_index(index, Path("/dev/full"))
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("count", [1, 30, 500])
def test_exact_search_agrees_with_numpy(count):
    vectors, queries = random_vectors(count), random_vectors(20, seed=1)
    found = exact_search(vectors, queries, 10)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, numpy_search(vectors, queries, 10))


def test_exact_search_over_several_chunks_agrees_with_numpy():
    vectors, queries = random_vectors(150_000, dimension=8), random_vectors(3, dimension=8, seed=1)
    found = exact_search(vectors, queries, 50)
    np.testing.assert_array_equal(found, numpy_search(vectors, queries, 50))
    assert {row // 65_536 for row in found.ravel().tolist()} == {0, 1, 2}


@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 999, 1000, 4999, 5000, 200_000])
def test_queries_are_distinct_rows_in_order_and_follow_their_seed(count):
    rows = draw_queries(count, 500, seed=0)
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()
    assert 0 <= rows[0] <= rows[-1] < count
    assert 1 <= len(rows) <= 500
    np.testing.assert_array_equal(rows, draw_queries(count, 500, seed=0))
    if count > 1000:
        assert len(rows) == min(500, count // 10)
        assert not np.array_equal(rows, draw_queries(count, 500, seed=1))


def test_all_of_a_tiny_catalog_are_queries():
    assert draw_queries(30, 500, seed=0).tolist() == list(range(30))
    assert len(draw_queries(30, 7, seed=0)) == 7


@pytest.mark.parametrize(
    ("kind", "count", "factory"),
    [
        ("auto", 100_000, "Flat"),
        ("auto", 1_000_000, "HNSW24,SQ8"),
        ("compact", 1_000_000, "IVF4000,PQ16x4fs,Refine(SQ8)"),
        ("compact", 5, "IVF1,PQ16x4fs,Refine(SQ8)"),
        ("flat", 1_000_000, "Flat"),
        ("hnsw", 5, "HNSW32"),
        ("hnsw8", 5, "HNSW24,SQ8"),
        ("ivf", 5, "IVF1,Flat"),
        ("ivf", 440, "IVF10,Flat"),
        ("IVF256,PQ16", 7, "IVF256,PQ16"),
    ],
)
def test_a_kind_becomes_a_factory_string_that_suits_the_catalog(kind, count, factory):
    assert factory_strings(kind, count, 32, is_unit=True)[0] == factory


def test_vectors_of_different_length_are_not_searched_by_a_graph():
    assert factory_strings("auto", 1_000_000, 33, is_unit=False) == ["IVF4000,PQ33x4fs,Refine(SQ8)"]


def test_progress_counts_up_to_the_last_vector():
    told = []
    build_index(random_vectors(70_000, dimension=8), "Flat", np.arange(1), 0, told.append)
    assert told == [65_536, 70_000]


@pytest.mark.parametrize("factory", ["nonsense", "", "IVF3000,Flat", "IDMap,Flat"])
def test_what_faiss_refuses_is_a_build_error_that_names_the_kinds(factory):
    with pytest.raises(
        BuildError, match="Choose --index from auto, flat, hnsw, hnsw8, ivf, compact, or another factory string"
    ):
        build(factory)


def test_a_wider_search_is_tried_until_the_recall_is_reached():
    index = build("IVF32,Flat")
    probes = [reach_recall(index, VECTORS, QUERY_ROWS, 20, minimum).search_parameters for minimum in (0, 0.6, 1.0)]
    assert probes[0] == {"nprobe": 1}
    assert probes[2] == {"nprobe": 32}
    assert 1 < probes[1]["nprobe"] < 32
    assert faiss.extract_index_ivf(index).nprobe == 32


def test_a_recall_that_no_search_reaches_is_a_build_error():
    with pytest.raises(BuildError, match=r"recall@20 is 0\.\d+ with the widest search \(nothing to widen\)"):
        reach_recall(build("SQ4"), VECTORS, QUERY_ROWS, 20, 0.999)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_recall_of_a_tiny_catalog_counts_only_the_neighbours_there_are(count):
    vectors = random_vectors(count)
    recall = reach_recall(build("flat", vectors, np.arange(count)), vectors, np.arange(count), 100, 0.99)
    assert (recall.recall, recall.k) == (1.0, count - 1)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_equally_similar_ads_may_stand_in_for_each_other(kind):
    vectors = np.tile(random_vectors(10), (200, 1))
    assert reach_recall(build(kind, vectors), vectors, QUERY_ROWS, 100, 0.99).recall >= 0.99


def test_an_unknown_search_parameter_is_a_build_error():
    with pytest.raises(BuildError, match="no search parameter 'nprobe'"):
        set_search_parameters(build("flat"), {"nprobe": 4})


@pytest.mark.parametrize("content", [b"", b"not an index", None])
def test_a_file_that_is_no_index_is_a_build_error(tmp_path, content):
    path = tmp_path / "index.faiss"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BuildError, match=r"FAISS cannot read .*index\.faiss"):
        read_index(path, {})


def test_a_truncated_index_is_a_build_error(tmp_path):
    write_index(build("flat"), tmp_path / "index.faiss")
    whole = (tmp_path / "index.faiss").read_bytes()
    (tmp_path / "index.faiss").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BuildError, match="FAISS cannot read"):
        read_index(tmp_path / "index.faiss", {})


def test_the_faiss_module_is_imported_only_when_it_is_needed():
    assert import_faiss() is faiss
    code = "import sys; import index_builder.build, index_builder.commands; sys.exit('faiss' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_without_faiss_the_error_names_the_extras():
    code = (
        "import sys; sys.modules['faiss'] = None; from adcascade.vectors import faiss_index; faiss_index.import_faiss()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "BuildError: FAISS is not installed" in done.stderr
    assert "pip install 'adcascade[serve]', or 'adcascade[gpu]'" in done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["flat", "ivf", "IVF16,SQ8"])
def test_a_gpu_clone_agrees_with_the_cpu_index(kind):
    skip_without_gpu()
    index = build(kind)
    recall = reach_recall(index, VECTORS, QUERY_ROWS, k=20, minimum=0.9)
    clone = to_gpu(index, float16=False)
    set_gpu_probes(clone, recall.search_parameters)
    similarity, rows = index.search(VECTORS[QUERY_ROWS], 20)
    gpu_similarity, gpu_rows = clone.search(VECTORS[QUERY_ROWS], 20)
    np.testing.assert_allclose(gpu_similarity, similarity, atol=1e-3)
    assert np.mean([np.isin(want, got).mean() for want, got in zip(rows, gpu_rows, strict=True)]) > 0.99


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["hnsw", "compact"])
def test_an_index_without_a_gpu_form_is_refused_by_faiss_and_built_on_the_cpu(kind):
    skip_without_gpu()
    with pytest.raises(RuntimeError, match="not implemented on GPU"):
        to_gpu(build(kind))


@pytest.mark.gpu
def test_a_gpu_trains_on_as_many_vectors_as_a_cpu(capfd):
    """FAISS finds no inverted lists in the GPU form of an index; k-means then sees too few vectors, and complains."""
    skip_without_gpu()
    vectors = random_vectors(70_000, dimension=8)
    build_index(vectors, "IVF1000,Flat", np.zeros(0, np.int64), 0, lambda _: None)
    assert "please provide" not in "".join(capfd.readouterr())


def skip_without_gpu():
    if not gpu_count(faiss):
        pytest.skip("this FAISS was built without GPU support")


def set_gpu_probes(index, parameters):
    for name, value in parameters.items():
        faiss.GpuParameterSpace().set_index_parameter(index, name, value)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_an_index_built_on_a_gpu_comes_back_in_cpu_form(kind, tmp_path):
    index = build(kind)
    assert "Gpu" not in type(index).__name__
    write_index(index, tmp_path / "index.faiss")
    assert read_index(tmp_path / "index.faiss", {}).ntotal == 2000


def test_real_texts_are_found_by_similar_texts():
    encoder = load_encoder("hashing:64")
    texts = [
        f"{color} {thing}" for color in ("red", "green", "yellow") for thing in ("running shoes", "teapot", "bike")
    ]
    vectors = encoder.encode(texts)
    found = build("flat", vectors, np.arange(3)).search(encoder.encode(["yellow teapots"]), 1)[1]
    assert texts[found[0, 0]] == "yellow teapot"


@pytest.mark.parametrize("claimed", [2**60, 2**38, 2**31, 500_000_000])
@pytest.mark.parametrize("place", [8, 37])
def test_a_file_that_claims_more_vectors_than_it_has_is_refused_before_there_is_room_for_them(tmp_path, place, claimed):
    path = tmp_path / "index.faiss"
    index = new_index(8, "Flat")
    index.add(np.eye(8, dtype=np.float32))
    write_index(index, path)
    data = bytearray(path.read_bytes())
    data[place : place + 8] = claimed.to_bytes(8, "little")  # the number of vectors, or of their codes
    path.write_bytes(data)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BuildError, match=r"FAISS cannot read .*index\.faiss"):
        read_index(path, {})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 100 * 1024


@pytest.mark.parametrize("kind", ["flat", "hnsw", "hnsw8", "ivf", "compact"])
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_an_index_of_any_kind_that_is_cut_short_is_refused(tmp_path, kind, kept):
    vectors = np.random.default_rng(0).normal(size=(2000, 16)).astype(np.float32)
    (factory,) = factory_strings(kind, len(vectors), 16, is_unit=True)
    path = tmp_path / "index.faiss"
    write_index(build_index(vectors, factory, np.arange(0), 0, lambda _: None), path)
    assert read_index(path, {}).ntotal == 2000
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(BuildError, match="FAISS cannot read"):
        read_index(path, {})
