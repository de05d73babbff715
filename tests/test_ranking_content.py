"""How near an ad's words are to those of what its user liked: compared in training as in serving, in any script."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import torch
from conftest import tiny_options, writable

from adcascade.artifacts.errors import CorruptVersion
from adcascade.catalog.words import ANALYZER
from adcascade.records.ads import read_catalog
from adcascade.records.history import with_history
from adcascade.records.users import Context, Event, EventType, UserProfile
from ranking.artifact import CONTENT_FILE, load_version, save_derived, save_version
from ranking.data.content_rows import ContentRows, liked_texts
from ranking.data.dataset import load_dataset
from ranking.errors import ModelError
from ranking.evaluation.baselines import (
    ALL_FEATURES,
    CLICK_RATES,
    COUNTER_TREES,
    COUNTERS,
    IDS,
    POPULARITY,
    TREES,
)
from ranking.evaluation.evaluate import evaluate
from ranking.evaluation.predict import predict
from ranking.inputs.content import ContentSpace, Similarity, hashed_words
from ranking.inputs.features import reads_content
from ranking.inputs.prepare import prepare
from ranking.runtime.engine import RankingEngine
from ranking.runtime.engine_settings import EngineSettings
from ranking.spec import CTR_FILE
from ranking.store import open_store
from ranking.training.content import fit_content
from ranking.training.run import train_and_save
from ranking.training.train import train

# Words of two tastes in two scripts; each ad says three of its own.
TASTES = (["trail", "running", "shoes", "marathon", "jogging"], ["登山", "露营", "帐篷", "徒步", "背包"])
REQUESTS, SHOWN = 240, 4
BEGIN = datetime(2026, 1, 5, tzinfo=UTC)


def write_log(folder, *, seed=0, interests=False):
    """New ads in each request, half of either taste; each user clicks those of theirs, and comes back ten times."""
    random = np.random.default_rng(seed)
    ads, clicks = [], []
    for request in range(REQUESTS):
        user, at = request % (REQUESTS // 10), BEGIN + timedelta(minutes=17 * request)
        for place in range(SHOWN):
            taste, ad_id = place % 2, f"ad{request}-{place}"
            title = " ".join(random.choice(TASTES[taste], 3, replace=False).tolist())
            ads.append({"ad_id": ad_id, "title": title})
            clicked = int(random.random() < (0.8 if taste == user % 2 else 0.05))
            row = {"request_id": f"r{request}", "ad_id": ad_id, "user_id": f"u{user}", "clicks": clicked}
            clicks.append(row | {"impressions": 1, "timestamp": at.isoformat()})
    for name, rows in (("ads", ads), ("clicks", clicks)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    users = None
    if interests:
        users = folder / "users.jsonl"
        said = [{"user_id": f"u{user}", "interests": TASTES[user % 2][0]} for user in range(REQUESTS // 10)]
        users.write_text("".join(json.dumps(row) + "\n" for row in said))
    return load_dataset(folder / "ads.jsonl", folder / "clicks.jsonl", users, split="time")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("content")
    return write_log(folder), folder


@pytest.fixture(scope="module")
def version(log, tiny_bert):
    """Store, name of a version, its data and their folder."""
    data, folder = log
    options = tiny_options(tiny_bert, epochs=0, behaviour_line="auto")
    report = train_and_save(data, folder / "model", options, which_baselines="fast")
    return open_store(folder / "model"), report, data, folder


def test_new_ads_are_ordered_by_what_their_users_liked(version):
    """Counters cannot: each ad is shown once, and users click as often as each other."""
    store, report, _, _ = version
    metrics = report.evaluation.metrics
    assert metrics["ranker"]["auc"].value > 0.8
    aucs = {name: values["auc"].value for name, values in metrics.items()}
    assert max(aucs[name] for name in (COUNTERS, COUNTER_TREES, IDS, CLICK_RATES, POPULARITY)) < 0.65
    assert min(aucs[name] for name in (ALL_FEATURES, TREES)) > 0.75
    spec = load_version(store, report.version).spec
    assert spec.content.analyzer == ANALYZER
    assert [name for name in spec.features if reads_content(name)] == [
        "content_similarity_total",
        "content_similarity_nearest",
        "content_similarity_total_in_request",
        "content_similarity_nearest_in_request",
    ]


def test_it_can_be_left_out(log, tiny_bert):
    trained = train(log[0], tiny_options(tiny_bert, epochs=0, content="none"))
    assert trained.content is None
    assert not any(map(reads_content, trained.spec.features))
    assert fit_content(log[0], 200, most_clicks=100) is None
    with pytest.raises(ModelError, match="content must be auto or always or none"):
        train(log[0], tiny_options(tiny_bert, content="some"))


@pytest.mark.parametrize("interests", [False, True])
def test_serving_compares_as_training(interests, tiny_bert, tmp_path):
    data = write_log(tmp_path, interests=interests)
    report = train_and_save(data, tmp_path / "model", tiny_options(tiny_bert, epochs=0), which_baselines="none")
    loaded = load_version(open_store(tmp_path / "model"), report.version)
    rows = data.split.test[-3 * SHOWN :]
    want = predict(data, loaded, rows, torch.device("cpu"), "float32")
    engine = RankingEngine(loaded, EngineSettings(device="cpu", precision="float32"))
    space, ads = loaded.content, {ad.ad_id: ad for ad in read_catalog(tmp_path / "ads.jsonl").ads}
    similarity = ContentRows(data, space).similarity(data.past, rows)
    assert len(want.rows) == len(rows)
    for start in range(0, len(rows), SHOWN):
        request = rows[start : start + SHOWN]
        user_id, time = data.log.user_id[int(request[0])], int(data.log.time[request[0]])
        profile = data.users.get(user_id, UserProfile(user_id))
        user = with_history(profile, data.histories, time, 200)
        catalog = _Catalog(ads)
        asked = prepare(
            user, Context(), [str(data.log.ad_id[int(row)]) for row in request], catalog, skip_unknown=False
        )
        found = engine._similarity(engine.readable(asked.query))
        np.testing.assert_allclose(found.total, similarity.total[start : start + SHOWN], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.nearest, similarity.nearest[start : start + SHOWN], rtol=1e-5, atol=1e-6)
        assert np.isfinite(found.total).all()


class _Catalog:
    """What `prepare` looks up ids in."""

    def __init__(self, ads):
        self._ads = ads

    def find(self, ids):
        return {ad_id: self._ads[ad_id] for ad_id in ids if ad_id in self._ads}


def test_similarity_of_cosines():
    nan = np.nan
    found = Similarity.of(np.array([[0.5, 0.1, 0.9, 0.3], [0.4, nan, nan, 0.2], [nan, nan, nan, nan]]))
    np.testing.assert_allclose(found.total, [1.8 / 2, 0.6 / np.sqrt(2), nan])
    np.testing.assert_allclose(found.nearest, [1.7 / 3, 0.3, nan])
    nobody = Similarity.of(np.empty((2, 0)))
    assert np.isnan(nobody.total).all()
    assert np.isnan(nobody.nearest).all()


def test_liked_texts_are_those_clicked_before(log):
    """Against going through the log row by row."""
    data, _ = log
    space = fit_content(data, 200).space
    rows = np.arange(len(data.log))
    place, text = liked_texts(data, data.past, rows, 200)
    found = ContentRows(data, space).similarity(data.past, rows)
    names = data.log.ad_id.sorted.names.to_pylist()
    vectors = dict(zip(names, space.vectors([data.ad_text(name) for name in names]), strict=True))
    for row in np.random.default_rng(0).choice(rows, 60, replace=False).tolist():
        earlier = (data.log.time < data.log.time[row]) & (data.log.user_id.codes == data.log.user_id.codes[row])
        liked = [str(data.log.ad_id[int(other)]) for other in np.flatnonzero(earlier & (data.log.clicks > 0))]
        assert [names[number] for number in text[place == row]] == liked
        if not liked:
            assert np.isnan(found.total[row])
            continue
        cosines = np.array([vectors[str(data.log.ad_id[row])] @ vectors[name] for name in liked], np.float64)
        assert found.total[row] == pytest.approx(cosines.sum() / np.sqrt(len(liked)), rel=1e-5, abs=1e-6)
        assert found.nearest[row] == pytest.approx(np.sort(cosines)[-3:].mean(), rel=1e-5, abs=1e-6)


def test_a_space_is_made_of_what_trains_alone(log):
    """Texts of the test part change nothing."""
    data, _ = log
    test = set(data.log.ad_id[data.split.test].tolist())
    ads = {ad_id: replace(ad, title="something else") if ad_id in test else ad for ad_id, ad in data.ads.items()}
    found, other = fit_content(data, 200).space, fit_content(replace(data, ads=ads), 200).space
    np.testing.assert_array_equal(found.words, other.words)
    np.testing.assert_array_equal(found.topics, other.topics)


def test_texts_that_are_repeated_span_no_more_than_they_say(tmp_path):
    """Three hundred ads of a few creatives: a new ad is near the one that it is like, not near what rounding left."""
    random = np.random.default_rng(0)
    creatives = [[f"word{number}{letter}" for letter in "abcdef"] for number in range(25)]
    ads = [{"ad_id": f"ad{number}", "title": " ".join(creatives[number % 25])} for number in range(300)]
    clicks = [
        {"ad_id": f"ad{random.integers(300)}", "user_id": f"u{row % 30}", "clicks": row % 2, "impressions": 1}
        | {"request_id": f"r{row}", "timestamp": (BEGIN + timedelta(minutes=row)).isoformat()}
        for row in range(3000)
    ]
    for name, rows in (("ads", ads), ("clicks", clicks)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_dataset(tmp_path / "ads.jsonl", tmp_path / "clicks.jsonl", None, split="time")
    space = fit_content(data, 200).space
    assert space.width <= 25
    new = space.vectors([" ".join([*words[:5], "unheard"]) for words in creatives])
    cosines = new @ space.vectors([" ".join(words) for words in creatives]).T
    assert np.array_equal(cosines.argmax(axis=1), np.arange(25))
    assert np.diag(cosines).min() > 0.9


@pytest.mark.parametrize("character", ["a ", "山", "\ud55c", "\ufdfa", "\u3300", "\U0001f600"])
def test_no_text_has_many_more_words_than_characters_that_are_read(character):
    """U+FDFA stands for eighteen characters: what is read of a text is bounded whatever a caller writes."""
    assert hashed_words([character * 5000]).sum() <= 2 * 640


def test_a_text_that_was_passed_over_is_read_before_it_is_compared(version):
    """Else it would be read outside the slices of a call, since its other vector is there."""
    store, report, _, folder = version
    engine = RankingEngine(load_version(store, report.version), EngineSettings(device="cpu"))
    ads = read_catalog(folder / "ads.jsonl").ads[:SHOWN]
    user = UserProfile("u", history=(Event(EventType.IMPRESSION, text="passed over", timestamp=BEGIN),))
    asked = prepare(user, Context(timestamp=BEGIN + timedelta(days=9)), ads, None, skip_unknown=False)
    engine.rank([engine.readable(asked.query)])
    assert engine._missing(["passed over"]) == ["passed over"]
    engine._look_up(["passed over"])
    assert engine._missing(["passed over"]) == []


def test_no_space_where_hardly_anybody_is_known_to_like_anything(log, tmp_path):
    data, folder = log
    lines = [json.loads(line) for line in (folder / "clicks.jsonl").read_text().splitlines()]
    once = [line | {"user_id": line["request_id"]} for line in lines]
    (tmp_path / "clicks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in once))
    strangers = load_dataset(folder / "ads.jsonl", tmp_path / "clicks.jsonl", None, split="time")
    assert fit_content(strangers, 200) is None
    assert fit_content(data, 200) is not None


def test_texts_without_known_words_are_like_nothing():
    words = np.unique(hashed_words(["red shoes"]).indices).astype(np.int64)
    space = ContentSpace(words, np.ones(2, np.float32), np.eye(2, dtype=np.float32), events=10)
    vectors = space.vectors(["", "!!!", "unheard of", "shoes " * 1000, "red" + " " * 1000 + "shoes"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [0, 0, 0, 1, 1])
    assert vectors[4] @ vectors[3] == pytest.approx(0)  # what stands behind the first 640 characters is not read
    assert space.vectors([]).shape == (0, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"words": np.array([3, 3], np.int64)},
        {"words": np.array([3, 2], np.int64)},
        {"words": np.array([2.0, 3.0])},
        {"idf": np.ones(3, np.float32)},
        {"idf": np.array([1, np.nan], np.float32)},
        {"topics": np.ones((2, 0), np.float32)},
        {"topics": np.ones((3, 2), np.float32)},
        {"topics": np.full((2, 2), np.inf, np.float32)},
    ],
)
def test_a_file_that_is_no_space_is_refused(change, tmp_path):
    good = ContentSpace(np.array([2, 3], np.int64), np.ones(2, np.float32), np.ones((2, 2), np.float32), events=10)
    good.save(tmp_path / "good")
    assert ContentSpace.load(tmp_path / "good", 10).vectors(["a"]).shape == (1, 2)
    replace(good, **change).save(tmp_path / "bad")
    with pytest.raises(ValueError, match="bad"):
        ContentSpace.load(tmp_path / "bad", 10)


@pytest.fixture
def copy(version):
    """Name of a version that may be damaged."""
    store, report, _, _ = version
    loaded = load_version(store, report.version)
    return save_derived(store, loaded, loaded.spec, publish=False)


def test_a_version_with_a_damaged_space_is_refused(version, copy):
    store = version[0]
    writable(store.path(copy) / CONTENT_FILE).write_bytes(b"no tensors")
    with pytest.raises(CorruptVersion, match="content space"):
        load_version(store, copy)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ({"ads": 9, "analyzer": ANALYZER + 1, "events": 200}, ModelError, "upgrade adcascade"),
        (None, CorruptVersion, "in which space"),
        ({"ads": 9}, CorruptVersion, "another shape"),
        ({"ads": 9, "analyzer": ANALYZER, "events": 3}, CorruptVersion, "another number of past events"),
    ],
)
def test_a_version_that_does_not_say_how_its_words_were_cut_is_refused(content, error, message, version, copy):
    store = version[0]
    path = writable(store.path(copy) / CTR_FILE)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"content": content}))
    with pytest.raises(error, match=message):
        load_version(store, copy)


def test_a_warm_start_keeps_the_space(version, tiny_bert):
    store, report, data, _ = version
    first = load_version(store, report.version)
    again = train(data, tiny_options(tiny_bert, epochs=0, warm_start=f"{store.root}@{report.version}"))
    np.testing.assert_array_equal(again.content.topics, first.content.topics)
    assert again.spec.content == first.spec.content
    start = f"{store.root}@{report.version}"
    with pytest.raises(ModelError, match="leave --content out"):
        train(data, tiny_options(tiny_bert, epochs=0, warm_start=start, content="none"))


def test_texts_change_the_answer_that_is_served(version):
    """An event of a text that is no ad counts like any other that is liked; one that was passed does not."""
    store, report, _, folder = version
    engine = RankingEngine(load_version(store, report.version), EngineSettings(device="cpu"))
    ads = read_catalog(folder / "ads.jsonl").ads[:SHOWN]

    def order(kind):
        past = tuple(Event(kind, text=word, timestamp=BEGIN) for word in TASTES[1])
        user = UserProfile("nobody knows", history=past)
        asked = prepare(user, Context(timestamp=BEGIN + timedelta(days=9)), ads, None, skip_unknown=False)
        return engine.rank([engine.readable(asked.query)])[0].p_click

    liked, passed = order(EventType.CLICK), order(EventType.IMPRESSION)
    assert liked[1::2].min() > liked[::2].max()
    assert not passed[1::2].min() > passed[::2].max()


def test_an_evaluation_of_a_saved_version_says_the_same(version):
    store, report, data, _ = version
    again = evaluate(data, load_version(store, report.version), device="cpu", which_baselines="none")
    said = report.evaluation.metrics["ranker"]["auc"]
    assert again.metrics["ranker"]["auc"].value == pytest.approx(said.value, abs=1e-6)


def test_a_version_that_compares_no_texts_says_nothing_of_them(version):
    """An earlier release, which refuses what it knows nothing of, can read it."""
    store, report, _, _ = version
    loaded = load_version(store, report.version)
    names = tuple(name for name in loaded.spec.features if not reads_content(name))
    described = {"features": names, "feature_mean": (0.0,) * len(names), "feature_std": (1.0,) * len(names)}
    spec = loaded.spec.model_copy(update=described | {"content": None})
    with store.begin() as draft:
        save_version(store, draft, replace(loaded, spec=spec, content=None), loaded.counters)
    assert "content" not in json.loads((store.path(draft.version) / CTR_FILE).read_text())
    assert not (store.path(draft.version) / CONTENT_FILE).exists()
