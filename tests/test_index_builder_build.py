"""Whole builds with a hashing encoder: what a version holds, what is reused, and what must never be published."""

import json
import random
from collections import Counter
from dataclasses import fields
from functools import partial

import faiss
import numpy as np
import pytest
from conftest import writable

from adcascade.artifacts.errors import CorruptVersion, StoreBusy
from adcascade.catalog.ad_text import embedding_text
from adcascade.records.ads import Ad, RejectedAd, read_ads
from adcascade.records.errors import InputError
from adcascade.vectors.encoder import load_encoder
from adcascade.vectors.errors import BuildError
from adcascade.vectors.vector_store import text_key
from index_builder.artifact import load_version, open_store, read_manifest
from index_builder.build import BuildOptions, build

ENCODER = load_encoder("hashing:64")
WORDS = [f"{random.Random(number).getrandbits(24):06x}" for number in range(400)]


class CountingEncoder:
    """The hashing encoder, and every text it was given."""

    def __init__(self, dimension=64):
        inner = load_encoder(f"hashing:{dimension}")
        self.name, self.sha256, self.dimension, self._inner = inner.name, inner.sha256, dimension, inner
        self.max_chars = inner.max_chars
        self.texts = []

    def encode(self, texts):
        self.texts += texts
        return self._inner.encode(texts)


class SpoilingEncoder(CountingEncoder):
    """Puts one bad number into the vectors of its second batch."""

    def __init__(self, bad):
        super().__init__()
        self._bad = bad

    def encode(self, texts):
        vectors = super().encode(texts)
        if len(self.texts) > len(texts):
            vectors[-1, 3] = self._bad
        return vectors


def make_rows(count, seed=0):
    chosen = random.Random(seed)
    return [
        {"ad_id": f"a{number}", "title": " ".join(chosen.choices(WORDS, k=6)), "category": f"c{number % 7}"}
        for number in range(count)
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def catalog(tmp_path):
    return partial(write, tmp_path / "ads.jsonl")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "index"


@pytest.fixture(scope="module")
def two_thousand(tmp_path_factory):
    return write(tmp_path_factory.mktemp("catalog") / "ads.jsonl", make_rows(2000))


# ---- what a version holds


def test_a_report_says_what_was_built(catalog, root):
    rows = make_rows(300)
    report = build(
        catalog([*rows, rows[0], {"ad_id": "x"}]), root, ENCODER, BuildOptions(max_rejected=0.1, recall_k=10)
    )
    store, manifest = open_store(root), report.manifest
    assert report.published
    assert store.current() == report.version
    assert report.rejected == {"repeated_ad": 1, "empty_text": 1}
    assert (manifest.ad_count, manifest.embedded, manifest.reused) == (300, 300, 0)
    assert (manifest.encoder_name, manifest.encoder_sha256) == ("hashing:64", ENCODER.sha256)
    assert (manifest.dimension, manifest.metric, manifest.factory) == (64, "inner_product", "Flat")
    assert (manifest.recall, manifest.recall_k, manifest.search_parameters) == (1.0, 10, {})
    assert manifest.index_bytes == (store.path(report.version) / "index.faiss").stat().st_size >= 300 * 64 * 4
    assert manifest.bytes_per_ad == manifest.index_bytes / 300
    assert 0 < manifest.build_seconds < 60
    assert read_manifest(store, report.version)[1] == manifest
    files = {path.name for path in store.path(report.version).iterdir()}
    assert files == {"manifest.json", "index.faiss", "ads.parquet", "vectors.npy", "lexical"}
    store.verify(report.version)


def test_row_i_of_the_ads_is_row_i_of_the_vectors_and_of_the_index(catalog, root):
    source = catalog(make_rows(250))
    version = load_version(open_store(root), build(source, root, ENCODER, BuildOptions()).version)
    ads = list(read_ads(source))
    assert version.catalog.ids == [ad.ad_id for ad in ads]
    assert version.catalog.ads([7, 3]) == [ads[7], ads[3]]
    want = ENCODER.encode([embedding_text(ad) for ad in ads])
    np.testing.assert_array_equal(version.vectors, want)
    np.testing.assert_allclose(np.linalg.norm(version.vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(version.faiss_index.reconstruct_n(0, 250), want)
    assert version.vectors.dtype == np.float32


def test_the_catalog_of_a_version_finds_ads_by_id(catalog, root):
    texts = ("title", "body", "advertiser", "category", "language", "landing_url", "image_uri")
    others = {
        "keywords": ["a", "b,c"],
        "color": "red",
        "start_time": 1_700_000_000,
        "end_time": 1_700_000_001,
        "bid_micros": 9,
    }
    rows = [
        {"ad_id": "é", **{name: f"a {name}" for name in texts}, **others},
        *make_rows(20),
    ]
    source = catalog(rows)
    found = load_version(open_store(root), build(source, root, ENCODER, BuildOptions()).version).catalog
    ads = {ad.ad_id: ad for ad in read_ads(source)}
    assert all(getattr(ads["é"], one.name) for one in fields(Ad))  # no field is left out of what is compared
    assert found.find(["a3", "nobody", "é", "a3"]) == {name: ads[name] for name in ("a3", "é")}
    assert len(found) == 21
    assert found.row_of["a3"] == 4


def test_a_text_is_made_of_everything_that_describes_the_ad():
    ad = Ad("x", " Red shoes ", "", "Acme", "sport", ("run", "trail"), landing_url="https://example.com")
    assert embedding_text(ad) == "Red shoes. run, trail. sport. Acme"
    assert len(text_key(embedding_text(ad))) == 16
    assert text_key("a") != text_key("b")


def test_the_same_catalog_has_the_same_content_hash_and_another_one_has_not(catalog, root):
    rows = make_rows(30)
    hashes = [build(catalog(each), root, ENCODER, BuildOptions()).manifest.content_sha256 for each in (rows, rows)]
    for other in (rows[::-1], [{**rows[0], "title": "other"}, *rows[1:]], [{**rows[0], "ad_id": "z"}, *rows[1:]]):
        hashes.append(build(catalog(other), root, ENCODER, BuildOptions()).manifest.content_sha256)
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4


def test_progress_is_told_for_every_stage(catalog, root):
    told = []
    build(catalog(make_rows(120)), root, ENCODER, BuildOptions(), lambda *stage: told.append(stage))
    assert [stage for stage in told if stage[1] == stage[2]] == [
        ("read", 120, 120),
        ("embed", 120, 120),
        ("index", 120, 120),
    ]


@pytest.mark.parametrize("count", [1, 2, 43, 44, 88, 101, 102, 200])
@pytest.mark.parametrize("index", ["flat", "ivf", "hnsw"])
def test_a_catalog_of_any_size_can_be_built(catalog, root, index, count):
    report = build(catalog(make_rows(count)), root, ENCODER, BuildOptions(index=index))
    version = load_version(open_store(root), report.version)
    found = version.faiss_index.search(np.ascontiguousarray(version.vectors[:1]), 1)[1]
    assert found.tolist() == [[0]]


def test_unpublished_builds_change_nothing_for_servers(catalog, root):
    before = build(catalog(make_rows(50)), root, ENCODER, BuildOptions()).version
    report = build(catalog(make_rows(60)), root, ENCODER, BuildOptions(publish=False))
    store = open_store(root)
    assert not report.published
    assert store.current() == before
    store.publish(report.version)
    assert load_version(store, store.current()).manifest.ad_count == 60


# ---- what is reused


def test_only_ads_whose_text_changed_are_embedded_again(catalog, root):
    rows = make_rows(300)
    build(catalog(rows), root, ENCODER, BuildOptions())
    changed = [{**row, "title": f"new {row['ad_id']}"} if number % 100 == 0 else row for number, row in enumerate(rows)]
    moved = [{"ad_id": "new", "title": "quite new"}, *({**row, "bid_micros": 5} for row in reversed(changed[10:]))]
    encoder = CountingEncoder()
    report = build(catalog(moved), root, encoder, BuildOptions())
    assert (report.manifest.embedded, report.manifest.reused) == (3, 288)
    assert Counter(encoder.texts) == Counter(["quite new", "new a100. c2", "new a200. c4"])
    version = load_version(open_store(root), report.version)
    np.testing.assert_array_equal(
        version.vectors, ENCODER.encode([embedding_text(ad) for ad in read_ads(catalog(moved))])
    )
    assert version.catalog.ads([1])[0].bid_micros == 5


def test_another_encoder_embeds_everything_again(catalog, root):
    source = catalog(make_rows(80))
    build(source, root, ENCODER, BuildOptions())
    encoder = CountingEncoder(dimension=32)
    report = build(source, root, encoder, BuildOptions())
    assert (report.manifest.embedded, report.manifest.reused, report.manifest.dimension) == (80, 0, 32)
    assert len(encoder.texts) == 80


@pytest.mark.parametrize("damaged", ["vectors.npy", "ads.parquet", "manifest.json"])
def test_a_damaged_published_version_is_not_reused(catalog, root, damaged):
    source = catalog(make_rows(80))
    before = build(source, root, ENCODER, BuildOptions()).version
    path = open_store(root).path(before) / damaged
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    report = build(source, root, ENCODER, BuildOptions())
    assert (report.manifest.embedded, report.manifest.reused) == (80, 0)
    assert open_store(root).current() == report.version != before


def test_a_damaged_current_is_repaired_by_the_next_build(catalog, root):
    source = catalog(make_rows(20))
    build(source, root, ENCODER, BuildOptions())
    (root / "CURRENT").write_text("{")
    report = build(source, root, ENCODER, BuildOptions())
    assert open_store(root).current() == report.version


# ---- what is refused


def nothing_published(root):
    return open_store(root).versions() == [] and not list(root.glob("drafts/*"))


def test_rejected_ads_are_listed_with_their_reasons(catalog, root):
    rows = make_rows(100)
    damaged = [{"ad_id": "empty"}, {**rows[0], "title": "again"}, {"ad_id": "x", "title": 3, "keywords": 3}]
    report = build(catalog([*rows, *damaged]), root, ENCODER, BuildOptions(max_rejected=0.03))
    assert report.rejected == {"empty_text": 1, "duplicate_id": 1, "bad_row": 1}
    assert report.rejected_file == root / "rejected.jsonl"
    lines = [RejectedAd(**json.loads(line)) for line in report.rejected_file.read_text().splitlines()]
    assert [(line.source, line.row, line.ad_id, line.reason) for line in lines] == [
        ("ads.jsonl", 101, "empty", "empty_text"),
        ("ads.jsonl", 102, "a0", "duplicate_id"),
        ("ads.jsonl", 103, "x", "bad_row"),
    ]
    assert all(line.detail for line in lines)
    build(catalog(rows), root, ENCODER, BuildOptions())
    assert report.rejected_file.read_text() == ""


def test_more_rejected_ads_than_allowed_fail_and_leave_the_published_version(catalog, root):
    before = build(catalog(make_rows(99)), root, ENCODER, BuildOptions()).version
    source = catalog([*make_rows(99, seed=1), {"ad_id": "bad"}, {"title": "bad"}])
    with pytest.raises(
        BuildError, match=r"2 of 101 .*1 empty_text, 1 missing_id.*--max-rejected 1\.0%.*rejected\.jsonl"
    ):
        build(source, root, ENCODER, BuildOptions())
    store = open_store(root)
    assert [info.version for info in store.versions()] == [store.current()] == [before]
    store.verify(before)
    assert len((root / "rejected.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("rows", [[], [{"ad_id": "bad"}]])
def test_a_catalog_without_a_usable_ad_fails(catalog, root, rows):
    with pytest.raises(BuildError, match="holds no usable ad"):
        build(catalog(rows), root, ENCODER, BuildOptions(max_rejected=1))
    assert nothing_published(root)


def test_a_missing_catalog_fails_and_leaves_nothing_behind(tmp_path, root):
    with pytest.raises(InputError, match="does not exist"):
        build(tmp_path / "none.jsonl", root, ENCODER, BuildOptions())
    assert nothing_published(root)
    assert not [path for path in root.iterdir() if path.suffix == ".tmp"]


@pytest.mark.parametrize(
    "value", ['"\\ud83d"', "1" + "0" * 30, "9" * 400], ids=["surrogate", "30 digits", "400 digits"]
)
@pytest.mark.parametrize("field", ["ad_id", "bid_micros", "brand"])
def test_a_hostile_row_costs_at_most_itself(tmp_path, root, field, value):
    rows = "".join(json.dumps(row) + "\n" for row in make_rows(20))
    (tmp_path / "ads.jsonl").write_text(f'{{"ad_id": "x", "title": "hostile", "{field}": {value}}}\n{rows}')
    report = build(tmp_path / "ads.jsonl", root, ENCODER, BuildOptions(max_rejected=0.1))
    assert report.manifest.ad_count + sum(report.rejected.values()) == 21
    assert report.manifest.ad_count >= 20
    load_version(open_store(root), report.version)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_are_refused(two_thousand, tmp_path, root, bad):
    rows = make_rows(4100)  # more than one batch
    with pytest.raises(BuildError, match="'hashing:64' made NaN or infinite vectors"):
        build(write(tmp_path / "ads.jsonl", rows), root, SpoilingEncoder(bad), BuildOptions())
    assert nothing_published(root)


def test_a_recall_below_the_minimum_fails_and_publishes_nothing(two_thousand, root):
    with pytest.raises(BuildError, match=r"recall@100 is 0\.\d+ .*below the minimum of 0\.99.*lower --min-recall"):
        build(two_thousand, root, ENCODER, BuildOptions(index="SQ4", min_recall=0.99))
    assert nothing_published(root)
    assert build(two_thousand, root, ENCODER, BuildOptions(index="SQ4", min_recall=0.5)).manifest.recall < 0.99


def test_a_kind_of_index_that_faiss_does_not_know_is_refused_before_the_catalog_is_read(root, tmp_path):
    with pytest.raises(BuildError, match="FAISS knows no index 'IVF16,Nonsense' of 64 dimensions"):
        build(tmp_path / "not-even-there.jsonl", root, ENCODER, BuildOptions(index="IVF16,Nonsense"))


@pytest.mark.parametrize("index", ["nonsense", "", "IVF16,Nonsense", "IVF5000,Flat"])
def test_an_index_that_faiss_cannot_build_is_refused_with_the_kinds(two_thousand, root, index):
    with pytest.raises(BuildError, match="Choose --index from auto, flat, hnsw, hnsw8, ivf") as caught:
        build(two_thousand, root, ENCODER, BuildOptions(index=index))
    assert repr(index) in str(caught.value)
    assert nothing_published(root)


def test_two_builds_at_once_are_refused(catalog, root):
    with open_store(root).begin(), pytest.raises(StoreBusy):
        build(catalog(make_rows(5)), root, ENCODER, BuildOptions())


# ---- recall


def ivf_probes(index):
    return faiss.extract_index_ivf(index).nprobe


def hnsw_effort(index):
    return faiss.downcast_index(index).hnsw.efSearch


@pytest.mark.parametrize(
    ("index", "name", "applied", "minima"),
    [("ivf", "nprobe", ivf_probes, (0.0, 0.5, 0.99)), ("HNSW4", "efSearch", hnsw_effort, (0.0, 0.9))],
)
def test_the_search_is_widened_until_the_recall_is_reached(two_thousand, root, index, name, applied, minima):
    chosen = []
    for minimum in minima:
        report = build(two_thousand, root, ENCODER, BuildOptions(index=index, min_recall=minimum))
        version = load_version(open_store(root), report.version)
        assert report.manifest.recall >= minimum
        assert applied(version.faiss_index) == report.manifest.search_parameters[name]
        assert recall_of(version, k=100) == pytest.approx(report.manifest.recall, abs=0.05)
        chosen.append(report.manifest.search_parameters[name])
    assert chosen == sorted(set(chosen))


def recall_of(version, k, queries=200):
    """Recall of the loaded index by numpy alone, on other queries than the build drew."""
    rows = np.random.default_rng(99).choice(len(version.vectors), queries, replace=False)
    similarity = version.vectors[rows] @ version.vectors.T
    similarity[np.arange(queries), rows] = -np.inf
    truth = np.argsort(-similarity, axis=1)[:, :k]
    found = version.faiss_index.search(np.ascontiguousarray(version.vectors[rows]), k + 1)[1]
    return np.mean([np.isin(want, got).mean() for want, got in zip(truth, found, strict=True)])


@pytest.mark.parametrize("index", ["flat", "ivf", "hnsw"])
def test_ads_with_one_and_the_same_text_do_not_spoil_the_recall(catalog, root, index):
    rows = [{"ad_id": f"a{number}", "title": f"{WORDS[number % 10]} shoes"} for number in range(2000)]
    report = build(catalog(rows), root, ENCODER, BuildOptions(index=index, min_recall=0.99))
    assert report.manifest.recall >= 0.99


@pytest.mark.parametrize("copies", [200, 2])
def test_auto_takes_another_index_where_a_graph_does_not_reach_the_recall(monkeypatch, caplog, catalog, root, copies):
    monkeypatch.setattr("adcascade.vectors.faiss_index._FLAT_LIMIT", 100)  # a large catalog would take minutes
    # Neighbours of an ad with many copies are all copies, unless more are looked at than there are.
    monkeypatch.setattr("adcascade.vectors.faiss_index._LINKING_EFFORT", 40)
    rows = [
        {"ad_id": f"a{number}", "title": f"{WORDS[number // copies % 10]} {number // copies}"} for number in range(2000)
    ]
    report = build(catalog(rows), root, ENCODER, BuildOptions(min_recall=0.99))
    assert report.manifest.recall >= 0.99
    assert [point["recall"] for point in report.manifest.recall_curve][-1] == report.manifest.recall
    is_graph = report.manifest.factory.startswith("HNSW")
    assert is_graph == ("another index" not in caplog.text)
    assert is_graph == (copies == 2)


# ---- loading


def test_a_version_whose_files_do_not_fit_together_is_refused(catalog, root):
    store = open_store(root)
    small = build(catalog(make_rows(30)), root, ENCODER, BuildOptions()).version
    big = build(catalog(make_rows(40)), root, ENCODER, BuildOptions()).version
    for name in ("vectors.npy", "ads.parquet", "index.faiss"):
        mine = store.path(big) / name
        kept = mine.read_bytes()
        writable(mine).write_bytes((store.path(small) / name).read_bytes())
        with pytest.raises(CorruptVersion, match="do not fit together"):
            load_version(store, big)
        mine.write_bytes(kept)
    load_version(store, big)


def test_an_index_that_faiss_cannot_read_is_refused(catalog, root):
    store = open_store(root)
    version = build(catalog(make_rows(30)), root, ENCODER, BuildOptions()).version
    writable(store.path(version) / "index.faiss").write_bytes(b"not an index")
    with pytest.raises(BuildError, match="FAISS cannot read"):
        load_version(store, version)


def test_a_version_names_the_encoder_it_needs(catalog, root):
    version = load_version(open_store(root), build(catalog(make_rows(30)), root, ENCODER, BuildOptions()).version)
    version.check_encoder(load_encoder("hashing:64"))
    with pytest.raises(BuildError, match=r"made by the encoder 'hashing:64' .* but 'hashing:32' has"):
        version.check_encoder(load_encoder("hashing:32"))


@pytest.mark.parametrize("name", ["hashing:", "hashing:7", "hashing:8193", "hashing:x"])
def test_a_hashing_encoder_needs_a_sensible_dimension(name):
    with pytest.raises(BuildError, match="expected hashing:DIM"):
        load_encoder(name)


def test_hashed_texts_are_unit_vectors_and_similar_texts_are_near():
    vectors = ENCODER.encode(["red running shoes", "red running shoe", "green tea", "", "!?"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert vectors[0] @ vectors[1] > 0.7 > vectors[0] @ vectors[2]
    assert ENCODER.encode([]).shape == (0, 64)


def test_vectors_are_taken_over_from_the_whole_version_before_a_damaged_one(catalog, root, caplog):
    store = open_store(root)
    build(catalog(make_rows(30)), root, ENCODER, BuildOptions())
    damaged = build(catalog(make_rows(40)), root, ENCODER, BuildOptions()).version
    writable(store.path(damaged) / "vectors.npy").write_bytes(b"damaged")
    again = build(catalog(make_rows(40)), root, ENCODER, BuildOptions())
    assert (again.manifest.reused, again.manifest.embedded) == (30, 10)
    assert f"the published index version {damaged} cannot be used" in caplog.text
    store.verify(again.version)
