"""A version brought up to date with newer clicks: biases move, nothing else does."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from adcascade.records.clicks import REJECTED_FILE
from adcascade.records.errors import InputError
from adcascade.towers.artifact import save_towers
from adcascade.vectors.errors import BuildError
from index_builder.artifact import LEXICAL_FOLDER, TOWERS_FOLDER, load_version, open_store
from index_builder.build import BuildOptions
from index_builder.refresh import refresh


@pytest.fixture
def root(tower_index, tmp_path):
    shutil.copytree(tower_index, tmp_path / "index")
    return tmp_path / "index"


def clicks_on(tmp_path, ad_id, time, count=200):
    path = tmp_path / "fresh.csv"
    lines = ["request_id,ad_id,timestamp,clicks,impressions"]
    lines += [f"f{number},{ad_id},{time + number},1,1" for number in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def loaded(root):
    store = open_store(root)
    return load_version(store, store.current())


def test_an_ad_that_is_clicked_a_lot_now_rises(root, tmp_path):
    before = loaded(root)
    later = int(before.towers.popularity.as_of_us / 1e6) + 3600
    report = refresh(root, clicks_on(tmp_path, "coffee-3", later), BuildOptions().assembly)
    after = loaded(root)
    assert after.version == report.version != before.version
    assert (report.manifest.embedded, report.manifest.reused) == (0, before.manifest.ad_count)
    np.testing.assert_array_equal(after.searched_vectors[:, 1:], before.searched_vectors[:, 1:])
    assert after.manifest.popularity_at > before.manifest.popularity_at
    popularity = [version.towers.popularity.clicks(["coffee-3"], 3.0)[0] for version in (before, after)]
    assert popularity[1] > popularity[0] + 150
    row = after.catalog.row_of["coffee-3"]
    moved = np.asarray(after.searched_vectors[:, 0] - before.searched_vectors[:, 0])

    def added(version):
        popularity, spec = version.towers.popularity, version.towers.spec
        counted = float((popularity.features(["coffee-3"]) @ np.array(spec.popularity_weights))[0])
        return counted + spec.exploration / np.sqrt(1 + popularity.impressions(["coffee-3"])[0])

    assert moved[row] == pytest.approx(added(after) - added(before), abs=1e-4)
    assert after.lexical.search("coffee", 5).tolist() == before.lexical.search("coffee", 5).tolist() != []


def test_a_version_from_before_there_were_words_gets_them(root, tmp_path):
    store, before = open_store(root), loaded(root)
    with store.begin() as draft:
        without = shutil.ignore_patterns(LEXICAL_FOLDER, "manifest.json")
        shutil.copytree(store.current_path(), draft.path, ignore=without, dirs_exist_ok=True)
        store.commit(draft, before.manifest.model_dump(mode="json"))
    store.publish(draft.version)
    assert loaded(root).lexical is None
    later = int(before.towers.popularity.as_of_us / 1e6) + 3600
    refresh(root, clicks_on(tmp_path, "coffee-3", later), BuildOptions().assembly)
    assert loaded(root).lexical.search("coffee", 5).tolist() == before.lexical.search("coffee", 5).tolist()


def test_rows_that_are_known_already_change_nothing(root, world):
    before = loaded(root)
    tail = world.clicks  # its newest tenth was kept back for the test and is new to the version
    assert refresh(root, tail, BuildOptions().assembly) is not None
    once = loaded(root)
    assert refresh(root, tail, BuildOptions().assembly) is None
    assert loaded(root).version == once.version
    assert not np.array_equal(before.searched_vectors[:, 0], once.searched_vectors[:, 0])


def test_a_log_of_other_ads_or_without_times_is_refused_and_counts_nothing(root, tmp_path):
    before = loaded(root)
    later = int(before.towers.popularity.as_of_us / 1e6) + 3600
    with pytest.raises(InputError, match="200 unknown_ad"):
        refresh(root, clicks_on(tmp_path, "of-somebody-else", later), BuildOptions().assembly)
    timeless = tmp_path / "timeless.csv"
    timeless.write_text("request_id,ad_id,clicks,impressions\nr1,coffee-1,1,2\n")
    with pytest.raises(InputError, match="1 of 1 rows are without a timestamp"):
        refresh(root, timeless, BuildOptions().assembly)
    assert loaded(root).version == before.version


def test_a_version_without_towers_is_not_refreshed(world, tmp_path):
    shutil.copytree(world.index, tmp_path / "index")
    with pytest.raises(BuildError, match="built without towers"):
        refresh(tmp_path / "index", world.clicks, BuildOptions().assembly)


def test_a_row_of_the_future_is_listed_and_moves_nothing(root, tmp_path):
    before = loaded(root)
    later = int(before.towers.popularity.as_of_us / 1e6) + 3600
    path = clicks_on(tmp_path, "coffee-3", later)
    with path.open("a") as file:
        file.write("zz,coffee-3,4070908800,1,1\n")  # 2099
    told = []
    refresh(root, path, BuildOptions().assembly, on_read=lambda log, report: told.append((log, report)))
    ((log, report),) = told
    assert (len(log), report.rejected) == (200, {"bad_time": 1})
    assert loaded(root).towers.popularity.as_of_us == (later + 199) * 1_000_000 + 1
    (line,) = (root / REJECTED_FILE).read_text().splitlines()
    assert (json.loads(line)["row"], json.loads(line)["reason"]) == (201, "bad_time")
    assert refresh(root, clicks_on(tmp_path, "coffee-3", later + 1000), BuildOptions().assembly) is not None


def test_a_version_that_has_counted_the_future_says_so(root, tmp_path):
    store, before = open_store(root), loaded(root)
    moment = int(datetime(2099, 1, 1, tzinfo=UTC).timestamp() * 1e6)
    with store.begin() as draft:
        shutil.copytree(
            store.current_path(), draft.path, ignore=shutil.ignore_patterns("manifest.json"), dirs_exist_ok=True
        )
        save_towers(
            draft.path / TOWERS_FOLDER,
            before.towers.with_popularity(replace(before.towers.popularity, as_of_us=moment)),
        )
        store.commit(draft, before.manifest.model_dump(mode="json"))
    store.publish(draft.version)
    with pytest.raises(BuildError, match="has counted clicks of 2099: publish an earlier version"):
        refresh(root, clicks_on(tmp_path, "coffee-3", 1_767_225_600), BuildOptions().assembly)


def test_an_ad_that_the_build_rejected_is_named_with_its_reason(root, tmp_path):
    rejected = {
        "source": "ads.jsonl",
        "row": 7,
        "ad_id": "of-nobody",
        "reason": "empty_text",
        "detail": "title is empty",
    }
    (root / "rejected.jsonl").write_text(json.dumps(rejected) + "\n")
    with pytest.raises(
        InputError, match=r"'of-nobody' is not in the catalog: it was rejected \(empty_text: title is empty"
    ):
        refresh(root, clicks_on(tmp_path, "of-nobody", 1_767_225_600), BuildOptions().assembly)
