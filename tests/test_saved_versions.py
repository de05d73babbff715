"""Versions that earlier releases saved: today's code loads them and says of the same requests what they said then."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import writable
from google.protobuf.json_format import ParseDict

from adcascade.artifacts.errors import CorruptVersion
from adcascade.catalog.ads_file import AdCatalog, write_ads
from adcascade.records.ads import Ad
from adcascade.towers.artifact import load_published_towers, load_towers, save_towers
from adcascade.towers.model import EVENT_TYPES, UserEvents, attribute_buckets, gap_class
from adcascade.towers.store import open_store as open_tower_store
from adcascade.v1.ranking_pb2 import RankRequest
from adcascade.vectors.encoder import load_encoder
from adcascade.wire import context_from_wire, user_from_wire
from ranking.artifact import load_version, save_version
from ranking.inputs.features import FEATURES, REGISTRY
from ranking.inputs.prepare import prepare
from ranking.model.shape import ModelShape
from ranking.runtime.engine import EngineSettings, RankingEngine
from ranking.service import _candidates, _counter_overrides
from ranking.store import open_store
from ranking.training.options import TrainOptions

SAVED = Path(__file__).parent / "versions"
OF_TOWERS = json.loads((SAVED / "towers.json").read_text())
OF_THEN = json.loads((SAVED / "model.json").read_text())


def unpacked(name, folder):
    """Root of the versions in an archive."""
    with tarfile.open(SAVED / name) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(unpacked("model.tar.gz", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    path = tmp_path_factory.mktemp("catalog") / "ads.parquet"
    write_ads(((Ad(**ad), bytes(16)) for ad in OF_THEN["ads"]), path)
    return AdCatalog(path)


def assert_says_the_same(store, version, catalog):
    engine = RankingEngine(load_version(store, version), EngineSettings(device="cpu", precision="float32"))
    for answer in OF_THEN["answers"]:
        request = ParseDict(answer["request"], RankRequest())
        asked = prepare(
            user_from_wire(request.user),
            context_from_wire(request.context),
            _candidates(request),
            catalog,
            skip_unknown=False,
            counter_overrides=_counter_overrides(request),
        )
        (found,) = engine.rank([asked.query])
        np.testing.assert_allclose(found.p_click, answer["p_click"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.p_conversion, answer["p_conversion"], rtol=0, atol=1e-6)


def test_a_model_of_an_earlier_release_scores_as_it_did_then(store, catalog):
    store.verify(store.current())
    assert_says_the_same(store, store.current(), catalog)


def test_what_earlier_releases_did_not_write_down_was_the_same_in_all_of_them(store):
    spec = load_version(store, store.current()).spec
    assert spec.shape == ModelShape(id_buckets=256)
    assert spec.shape.model_dump() == {
        "id_buckets": 256,
        "context_words": 24,
        "context_buckets": 4096,
        "width": 32,
        "heads": 4,
        "hidden": 64,
        "history_events": 200,
        "event_classes": 3,
        "time_gap_ends": (1, 10, 60, 300, 1800, 21_600, 86_400, 604_800, 5_184_000),
        "positions": 64,
        "text_hidden": 64,
        "text_vectors": "centred mean of word embeddings",
    }


def test_the_options_that_an_earlier_release_wrote_down_are_the_flags_of_today(store):
    written = dict(load_version(store, store.current()).spec.training)
    written["ema_decay"] = written.pop("average_decay")  # renamed since
    # Flags that came since, as they are unless given.
    later = {
        "trees": "auto",
        "behaviour_line": "auto",
        "text_prior": "auto",
        "content": "auto",
        "text_rows": 200_000,
    }
    assert written.keys() | later.keys() == TrainOptions().flags.keys()
    assert TrainOptions.of(**written).flags == later | written


def test_an_earlier_model_that_is_saved_anew_says_its_shape_and_scores_the_same(store, catalog, tmp_path):
    loaded, other = load_version(store, store.current()), open_store(tmp_path)
    with other.begin() as draft:
        save_version(other, draft, loaded, loaded.counters)
    document = json.loads((other.path(draft.version) / "ctr.json").read_text())
    assert document["shape"]["width"] == 32
    assert "id_buckets" not in document
    assert_says_the_same(other, draft.version, catalog)


def test_one_more_feature_in_the_registry_changes_no_earlier_version(store, catalog, monkeypatch):
    monkeypatch.setitem(REGISTRY, "hour_of_day", lambda inputs: inputs.timestamp_s // 3600 % 24)
    assert load_version(store, store.current()).spec.features == FEATURES
    assert_says_the_same(store, store.current(), catalog)


def test_a_version_reads_its_own_features_in_its_own_order(store, catalog, tmp_path, monkeypatch):
    """The same network with its features turned round: weights, means and names moved together say the same."""
    monkeypatch.setitem(REGISTRY, "hour_of_day", lambda inputs: inputs.timestamp_s // 3600 % 24)
    loaded, other = load_version(store, store.current()), open_store(tmp_path)
    count = len(FEATURES)
    turned = torch.arange(count - 1, -1, -1)
    behaviour, head = loaded.model.behaviour, loaded.model.head
    with torch.no_grad():
        for weight in (behaviour.wide.weight, behaviour.deep[0].weight):
            weight[:, :count] = weight[:, turned]
        for weight in (head.wide.weight, head.deep[0].weight):
            weight[:, -count:] = weight[:, -count:][:, turned]
    names = {name: getattr(loaded.spec, name)[::-1] for name in ("features", "feature_mean", "feature_std")}
    with other.begin() as draft:
        spec = loaded.spec.model_copy(update=names)
        save_version(other, draft, replace(loaded, spec=spec), loaded.counters)
    assert_says_the_same(other, draft.version, catalog)


def test_towers_of_an_earlier_release_make_the_vectors_that_they_made_then(tmp_path):
    towers = load_published_towers(unpacked("towers.tar.gz", tmp_path))
    texts = load_encoder("hashing:16").encode(list(OF_TOWERS["texts"].values()))
    ad_ids, user = list(OF_TOWERS["texts"]), OF_TOWERS["user"]
    kinds = {kind.name: place for place, kind in enumerate(EVENT_TYPES)}
    events = towers.event_vectors(ad_ids, texts)
    with torch.no_grad():
        interests = towers.towers.users.interests(
            UserEvents(
                torch.from_numpy(events[None, : len(user["events"])]),
                torch.tensor([[kinds[name] for name, _ in user["events"]]]),
                torch.tensor([[gap_class(seconds) for _, seconds in user["events"]]]),
                torch.tensor([len(user["events"])]),
                torch.from_numpy(attribute_buckets([user["attributes"]])),
            ),
            torch.from_numpy(attribute_buckets([user["context"]])),
        )
    for found, name in (
        (towers.ad_vectors(ad_ids, texts), "ad_vectors"),
        (events, "event_vectors"),
        (interests, "interests"),
    ):
        np.testing.assert_allclose(found, OF_TOWERS[name], rtol=0, atol=1e-6)


def test_towers_read_their_own_features_of_popularity_in_their_own_order(tmp_path):
    towers = load_published_towers(unpacked("towers.tar.gz", tmp_path))
    texts = load_encoder("hashing:16").encode(list(OF_TOWERS["texts"].values()))
    turned = {name: getattr(towers.spec, name)[::-1] for name in ("features", "popularity_weights")}
    other = replace(towers, spec=towers.spec.model_copy(update=turned))
    found = other.ad_vectors(list(OF_TOWERS["texts"]), texts)
    np.testing.assert_allclose(found, OF_TOWERS["ad_vectors"], rtol=0, atol=1e-6)


def test_towers_with_features_of_a_later_release_are_refused_and_ask_for_an_upgrade(tmp_path):
    folder = open_tower_store(unpacked("towers.tar.gz", tmp_path)).current_path()
    spec = writable(folder / "towers.json")
    document = json.loads(spec.read_text())
    document["features"][0] = "clicks of friends"
    spec.write_text(json.dumps(document))
    with pytest.raises(CorruptVersion, match=r"does not know .clicks of friends.; upgrade adcascade"):
        load_towers(folder)


def test_towers_of_one_vector_a_user_say_so_no_more_and_stay_in_their_space(tmp_path):
    """What is hashed with the weights is as it was when the number of vectors was an option."""
    towers = load_published_towers(unpacked("towers.tar.gz", tmp_path))
    assert towers.spec.space_sha256 == "d8cbd25fd21d287f274d798f14c8239089ddda5d5634b0e8953538bb30e8f0bf"
    (tmp_path / "anew").mkdir()
    save_towers(tmp_path / "anew", towers)
    assert "interests" not in json.loads((tmp_path / "anew" / "towers.json").read_text())["shape"]
    again = load_towers(tmp_path / "anew")
    assert again.spec == towers.spec
    assert again.towers.sha256 == towers.spec.space_sha256


def test_towers_of_several_vectors_a_user_are_refused_and_ask_for_a_training(tmp_path):
    folder = open_tower_store(unpacked("towers.tar.gz", tmp_path)).current_path()
    spec = writable(folder / "towers.json")
    document = json.loads(spec.read_text())
    document["shape"]["interests"] = 2
    spec.write_text(json.dumps(document))
    with pytest.raises(CorruptVersion, match=r"2 vectors a user, which this release no longer reads; train them again"):
        load_towers(folder)
