"""The networks of the two towers, and their folder: causality, dislikes, cutting, damage, pairs that do not match."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from adcascade.artifacts.errors import CorruptVersion
from adcascade.records.hashing import crc32_bucket
from adcascade.records.users import EventType
from adcascade.towers.artifact import load_published_towers, load_towers, save_towers
from adcascade.towers.model import (
    EVENT_TYPES,
    UNKNOWN_GAP,
    Towers,
    TowerShape,
    UserEvents,
    attribute_bucket,
    attribute_buckets,
    gap_class,
)
from adcascade.vectors.encoder import load_encoder
from adcascade.vectors.errors import BuildError
from index_builder.artifact import load_version, open_store
from index_builder.build import BuildOptions, build

SHAPE = TowerShape(text_width=16, width=8, layers=1, heads=2, history=20, id_buckets=64)


@pytest.fixture
def towers():
    torch.manual_seed(0)
    return Towers(SHAPE).eval()


def events_of(lengths, longest, seed=0):
    random = torch.Generator().manual_seed(seed)
    users = len(lengths)
    return UserEvents(
        torch.randn(users, longest, SHAPE.event_width, generator=random),
        torch.randint(0, len(EVENT_TYPES), (users, longest), generator=random),
        torch.randint(0, UNKNOWN_GAP, (users, longest), generator=random),
        torch.tensor(lengths),
        torch.zeros(users, 1, dtype=torch.int64),
    )


def nowhere(users=1):
    return torch.zeros(users, 0, dtype=torch.int64)


def changed(events, **columns):
    fields = {name: getattr(events, name) for name in ("vectors", "types", "gaps", "lengths", "attributes")}
    return UserEvents(**{**fields, **columns})


@torch.no_grad()
def test_interests_do_not_know_later_events(towers):
    events = events_of([6], 6)
    other = events.vectors.clone()
    other[:, 4:] += 5
    before, after = towers.users(events), towers.users(changed(events, vectors=other))
    assert before.shape == (1, 7, 9)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


@torch.no_grad()
def test_a_user_is_read_the_same_beside_users_with_more_events(towers):
    together = events_of([3, 9], 9)
    alone = changed(
        together,
        vectors=together.vectors[:1, :3],
        types=together.types[:1, :3],
        gaps=together.gaps[:1, :3],
        lengths=together.lengths[:1],
        attributes=together.attributes[:1],
    )
    torch.testing.assert_close(
        towers.users.interests(together, nowhere(2))[:1], towers.users.interests(alone, nowhere())
    )


@torch.no_grad()
def test_the_first_number_of_a_user_is_one_and_of_an_ad_its_bias(towers):
    assert (towers.users(events_of([4], 4))[..., 0] == 1).all()
    texts, buckets = torch.randn(3, 16), torch.tensor([0, 5, 5])
    before = towers.ads.vectors(texts, buckets)
    towers.ads.residual.weight[5, 0] += 2
    after = towers.ads.vectors(texts, buckets)
    assert (after - before)[:, 0].tolist() == pytest.approx([0, 2, 2])
    torch.testing.assert_close(after[:, 1:], before[:, 1:])


@torch.no_grad()
def test_a_disliked_event_pulls_the_other_way_in_the_sums():
    towers = Towers(SHAPE.model_copy(update={"layers": 0})).eval()
    events = events_of([1], 1)
    liked, hidden = (
        towers.users.interests(changed(events, types=torch.tensor([[EVENT_TYPES.index(kind)]])), nowhere())[0, 1:]
        for kind in (EventType.CLICK, EventType.HIDE)
    )
    torch.testing.assert_close(hidden, -0.5 * liked)


@torch.no_grad()
def test_attributes_say_something_of_a_user_without_events(towers):
    nobody = events_of([0], 1)
    old = changed(nobody, attributes=torch.tensor([[attribute_bucket("age", "60")]]))
    assert not torch.allclose(towers.users.interests(nobody, nowhere()), towers.users.interests(old, nowhere()))


@torch.no_grad()
def test_a_context_adds_what_was_learned_of_its_values(towers):
    towers.users.contexts.normal_()
    nobody, users = events_of([0], 1), towers.users
    one, both = (
        torch.from_numpy(attribute_buckets([values]))
        for values in ({"device": "tv"}, {"device": "tv", "country": "DE"})
    )
    plain, on_tv, in_germany = (users.interests(nobody, context)[0, 1:] for context in (nowhere(), one, both))
    torch.testing.assert_close(on_tv - plain, users.contexts[one[0, 0]])
    torch.testing.assert_close(in_germany - plain, users.contexts[both[0]].sum(0))
    padded = torch.cat([one, torch.zeros_like(one)], dim=1)
    torch.testing.assert_close(users.interests(nobody, padded)[0, 1:], on_tv)


def test_hashes_stay_what_they_were():
    """Versions on disk depend on them."""
    assert (crc32_bucket("ad-1", 4096), attribute_bucket("age", "60")) == (1592, 1595)
    assert [gap_class(seconds) for seconds in (None, 0, 1, 3, 1e12)] == [UNKNOWN_GAP, 0, 1, 2, UNKNOWN_GAP - 1]
    assert min(crc32_bucket(str(number), 8) for number in range(100)) == 1


def test_towers_are_saved_and_loaded(towers_root, tmp_path):
    found = load_published_towers(towers_root)
    save_towers(tmp_path, found)
    again = load_towers(tmp_path)
    assert again.spec == found.spec
    assert again.known_ads == found.known_ads
    texts = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)
    np.testing.assert_array_equal(
        again.ad_vectors(["coffee-1", "never"], texts), found.ad_vectors(["coffee-1", "never"], texts)
    )


def test_an_ad_that_was_never_shown_stands_by_its_text_alone(towers_root):
    found = load_published_towers(towers_root)
    texts = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    one, other = found.ad_vectors(["never-1"], texts), found.ad_vectors(["never-2"], texts)
    np.testing.assert_array_equal(one, other)
    assert not np.allclose(one, found.ad_vectors(["coffee-1"], texts))


@pytest.mark.parametrize("name", ["towers.safetensors", "popularity.parquet", "queries.npy", "known_ads.parquet"])
@pytest.mark.parametrize("kept", [None, 0, 40])
def test_a_file_that_is_missing_or_cut_short_is_refused(towers_root, tmp_path, name, kept):
    save_towers(tmp_path, load_published_towers(towers_root))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if kept is not None:
        (tmp_path / name).write_bytes(whole[:kept])
    with pytest.raises(CorruptVersion, match="no towers that can be read"):
        load_towers(tmp_path)


@pytest.mark.parametrize("damage", ["spec", "features"])
def test_damaged_towers_are_refused(towers_root, tmp_path, damage):
    found = load_published_towers(towers_root)
    save_towers(tmp_path, found)
    spec = tmp_path / "towers.json"
    if damage == "spec":
        spec.write_text(spec.read_text().replace(found.spec.space_sha256, "0" * 64))
    else:
        spec.write_text(spec.read_text().replace('"never shown"', '"something else"'))
    with pytest.raises(CorruptVersion):
        load_towers(tmp_path)


def test_a_user_tower_of_another_space_is_refused(world, tower_index, towers_root, tmp_path):
    store = open_store(tower_index)
    source = store.current_path()
    other_root = tmp_path / "index"
    shutil.copytree(tower_index, other_root)
    other = open_store(other_root)
    trained = load_published_towers(towers_root)
    with torch.no_grad():
        trained.towers.users.start += 1
    spec = trained.spec.model_copy(update={"space_sha256": trained.towers.sha256})
    folder = other.path(source.name) / "towers"
    save_towers(folder, replace(trained, spec=spec))
    with pytest.raises(CorruptVersion, match=r"lie in the space .* its user tower spans"):
        load_version(other, source.name)


def test_a_build_with_another_encoder_is_refused(world, towers_root, tmp_path):
    towers = load_published_towers(towers_root)
    with pytest.raises(BuildError, match="were trained on texts of the encoder 'hashing:64'"):
        build(world.ads, tmp_path / "index", load_encoder("hashing:128"), BuildOptions(), towers=towers)
    assert open_store(tmp_path / "index").versions() == []


def test_vectors_are_cut_to_a_width(world, towers_root, tower_index, tmp_path):
    towers = load_published_towers(towers_root)
    encoder = load_encoder("hashing:64")
    build(world.ads, tmp_path / "index", encoder, BuildOptions(width=8), towers=towers)
    store, whole_store = open_store(tmp_path / "index"), open_store(tower_index)
    cut = load_version(store, store.current())
    whole = load_version(whole_store, whole_store.current())
    assert (cut.manifest.dimension, whole.manifest.dimension) == (9, 33)
    np.testing.assert_array_equal(cut.searched_vectors, whole.searched_vectors[:, :9])
    with pytest.raises(BuildError, match="cannot be cut"):
        build(world.ads, tmp_path / "index", encoder, BuildOptions(width=64), towers=towers)
