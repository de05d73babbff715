"""Both stages together against what users clicked next."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from artifacts.errors import CorruptVersion
from index_builder.artifact import load_version
from index_builder.artifact import open_store as open_index_store
from index_builder.encoder import load_encoder
from pipeline.evaluate import evaluate_pipeline, load_stages
from pipeline.results import BOTH_STAGES, ORDERS, POPULARITY, RETRIEVAL
from ranking.training.dataset import load_dataset
from ranking.training.versions import load_named
from records.clicks import ClickLog
from records.errors import InputError
from retrieval.index import AdIndex
from retrieval.interests import InterestSettings
from retrieval.retriever import Retriever


@pytest.fixture(scope="module")
def data(world):
    return load_dataset(world.ads, world.clicks, world.users, split="time")


@pytest.fixture(scope="module")
def retriever(world):
    store = open_index_store(world.index)
    loaded = load_version(store, store.current())
    return Retriever(AdIndex(loaded, "cpu"), load_encoder("hashing:64"), InterestSettings(), text_cache=100)


@pytest.fixture(scope="module")
def model(world):
    return load_named(str(world.model))


def with_rows(data, rows):
    """The same dataset with these rows of its log once more at the end, as part of the test."""
    log = data.log
    every = np.r_[np.arange(len(log)), rows]
    parts = (*data.parts[:2], np.r_[data.parts[2], np.arange(len(log), len(every))])
    return replace(data, log=log.take(every), keys={name: ids[every] for name, ids in data.keys.items()}, parts=parts)


def changed(data, **columns):
    """The same dataset with other values in its last rows."""
    log = data.log
    values = {name: getattr(log, name).copy() for name in columns}
    for name, new in columns.items():
        values[name][-len(new) :] = new
    return replace(data, log=replace(log, **values))


def test_ranking_puts_more_of_the_clicks_on_top(data, retriever, model):
    found = evaluate_pipeline(data, retriever, model, candidates=60)
    earlier, test = (data.log.take(np.concatenate(rows)) for rows in (data.parts[:2], data.parts[2:]))
    seen = set(zip(earlier.user_id, earlier.ad_id, strict=True))
    clicked = set(zip(test.user_id[test.clicks > 0], test.ad_id[test.clicks > 0], strict=True))
    assert found.clicks == len(clicked - seen)
    assert found.users == len({user for user, _ in clicked - seen})
    for order in ORDERS:
        shares = [metric.value for metric in found.click_share[order].values()]
        assert shares == sorted(shares)
        assert all(0 <= metric.low <= metric.value <= metric.high <= 1 for metric in found.click_share[order].values())
    assert found.click_share[BOTH_STAGES][60].value == found.click_share[RETRIEVAL][60].value == 1
    assert found.click_share[POPULARITY][60].value == 1
    assert found.click_share[BOTH_STAGES][10].value > found.click_share[POPULARITY][10].value
    assert found.ranking_gain[10].value == pytest.approx(
        found.click_share[BOTH_STAGES][10].value - found.click_share[RETRIEVAL][10].value
    )


def test_what_happens_later_is_not_read(data, retriever, model):
    want = evaluate_pipeline(data, retriever, model, candidates=20)
    strangers = with_rows(data, np.repeat(data.parts[2][:5], 200))
    later = changed(
        strangers,
        user_id=np.full(1000, "", object),
        clicks=np.full(1000, 1),
        time=np.full(1000, data.log.time.max() + 1),
    )
    assert isinstance(later.log, ClickLog)
    assert evaluate_pipeline(later, retriever, model, candidates=20) == want


def test_a_user_of_whom_nothing_is_known_has_no_candidates_and_counts_as_missed(data, retriever, model):
    want = evaluate_pipeline(data, retriever, model, candidates=60)
    clicked = data.parts[2][data.log.clicks[data.parts[2]] > 0][:1]
    stranger = changed(with_rows(data, clicked), user_id=np.array(["stranger"], object))
    found = evaluate_pipeline(stranger, retriever, model, candidates=60)
    assert (found.users, found.clicks, found.without_candidates) == (want.users + 1, want.clicks + 1, 1)
    assert found.click_share[RETRIEVAL][60].value == pytest.approx(want.clicks / found.clicks)
    assert found.click_share[POPULARITY][60].value == 1


def test_a_test_part_without_clicks_is_an_error(data, retriever, model):
    count = len(data.parts[2])
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate_pipeline(changed(data, clicks=np.zeros(count, np.int64)), retriever, model, candidates=10)


def test_an_ad_met_long_before_is_not_asked_for_again(world, data, retriever, model, tmp_path):
    """A history is read to its newest 200 events; what a user met before those is still no news to them."""
    log, test = data.log, set(data.parts[2].tolist())
    pairs = list(zip(log.user_id.tolist(), log.ad_id.tolist(), strict=True))
    met = {pair for row, pair in enumerate(pairs) if row not in test}
    user, ad = next(pairs[row] for row in sorted(test) if log.clicks[row] > 0 and pairs[row] not in met)
    other = next(mine for who, mine in met if who == user)
    header, *rows = world.clicks.read_text().splitlines()
    early = [f"e{event},{ad if event == 0 else other},{user},{1_600_000_000 + event},0,1,phone" for event in range(301)]
    (tmp_path / "clicks.csv").write_text("\n".join([header, *early, *rows]) + "\n")
    longer = load_dataset(world.ads, tmp_path / "clicks.csv", world.users, split="time")
    longer = longer.with_parts(tuple(part + len(early) for part in data.parts))
    want = evaluate_pipeline(data, retriever, model, candidates=60)
    assert evaluate_pipeline(longer, retriever, model, candidates=60).clicks == want.clicks - 1


def test_a_damaged_index_is_not_evaluated(world, tmp_path):
    shutil.copytree(world.index, tmp_path / "index")
    with (open_index_store(tmp_path / "index").current_path() / "index.faiss").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(CorruptVersion):
        load_stages(tmp_path / "index", world.model)
