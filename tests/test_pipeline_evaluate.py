"""Both stages together against what users clicked next."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from adcascade.artifacts.errors import CorruptVersion
from adcascade.records.clicks import ClickLog
from adcascade.records.coded import CodedColumn
from adcascade.records.errors import InputError
from adcascade.records.splits import Split
from adcascade.vectors.encoder import load_encoder
from index_builder.artifact import load_version
from index_builder.artifact import open_store as open_index_store
from pipeline.evaluate import evaluate_pipeline, load_stages
from pipeline.results import ranking_of
from ranking.data.dataset import load_dataset
from ranking.training.versions import load_named
from retrieval.evaluation.results import RETRIEVAL, ZERO_SHOT
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
    return Retriever(AdIndex(loaded, "cpu"), load_encoder("hashing:64"), InterestSettings(), text_cache_bytes=2**20)


@pytest.fixture(scope="module")
def tower_retriever(tower_index):
    store = open_index_store(tower_index)
    found = Retriever(
        AdIndex(load_version(store, store.current()), "cpu"), load_encoder("hashing:64"), InterestSettings(), 100
    )
    yield found
    found.close()


@pytest.fixture(scope="module")
def model(world):
    return load_named(str(world.model))


def with_rows(data, rows):
    """The same dataset with these rows of its log once more at the end, as part of the test."""
    log = data.log
    every = np.r_[np.arange(len(log)), rows]
    split = data.split._replace(test=np.r_[data.split.test, np.arange(len(log), len(every))])
    return replace(data, log=log.take(every), keys=data.keys.take(every), split=split)


def changed(data, **columns):
    """The same dataset with other values in its last rows."""
    log = data.log
    values = {}
    for name, new in columns.items():
        old = getattr(log, name)
        plain = [*old.tolist()[: -len(new)], *new]
        values[name] = CodedColumn.of(plain, "") if isinstance(old, CodedColumn) else np.array(plain, old.dtype)
    return replace(data, log=replace(log, **values))


def evaluate(data, retriever, model, *candidates, weight=0.0):
    return evaluate_pipeline(data, retriever, model, candidates, weight, with_baselines=False)


def recall(found, order, k=10):
    return found.comparison.metrics[order][f"recall@{k}"].value


def test_ranking_puts_more_of_the_clicks_on_top(data, retriever, model):
    found = evaluate_pipeline(data, retriever, model, [50, 100], 0.0)
    earlier, test = (data.log.take(np.concatenate(rows)) for rows in (data.split[:2], data.split[2:]))
    seen = set(zip(earlier.user_id, earlier.ad_id, strict=True))
    clicked = set(zip(test.user_id[test.clicks > 0], test.ad_id[test.clicks > 0], strict=True))
    compared = found.comparison
    assert compared.clicks == len(clicked - seen)
    assert compared.users == len({user for user, _ in clicked - seen})
    few, all_of_them = ranking_of(50), ranking_of(100)
    assert list(compared.lead) == [RETRIEVAL, few, all_of_them]
    assert {"popularity", "EASE", "item-kNN", ZERO_SHOT} <= compared.metrics.keys()
    assert recall(found, all_of_them, 100) == recall(found, RETRIEVAL, 100) == 1
    assert recall(found, few, 50) == recall(found, RETRIEVAL, 50)
    assert "recall@100" not in compared.metrics[few]
    assert recall(found, all_of_them) > recall(found, "popularity")
    assert compared.lead[all_of_them][RETRIEVAL]["recall@10"].value == pytest.approx(
        recall(found, all_of_them) - recall(found, RETRIEVAL)
    )


def test_retrieval_weighs_in_as_much_as_it_is_told_to(data, tower_retriever, model):
    alone, both, all_retrieval = (evaluate(data, tower_retriever, model, 60, weight=w) for w in (0.0, 1.0, 1e6))
    assert recall(all_retrieval, ranking_of(60)) == recall(all_retrieval, RETRIEVAL) == recall(alone, RETRIEVAL)
    assert recall(both, ranking_of(60)) != recall(alone, ranking_of(60))
    assert both.retrieval_weight == 1.0


def test_towers_that_know_other_rows_are_warned_of(world, data, tower_retriever, model, caplog):
    evaluate(data, tower_retriever, model, 20)
    assert "may know what they are tested on" not in caplog.text
    evaluate(load_dataset(world.ads, world.clicks, world.users, split="user"), tower_retriever, model, 20)
    assert "may know what they are tested on" in caplog.text


def test_what_happens_later_is_not_read(data, retriever, model):
    want = evaluate(data, retriever, model, 20)
    strangers = with_rows(data, np.repeat(data.split.test[:5], 200))
    later = changed(
        strangers,
        user_id=[""] * 1000,
        clicks=np.full(1000, 1),
        time=np.full(1000, data.log.time.max() + 1),
    )
    assert isinstance(later.log, ClickLog)
    assert evaluate(later, retriever, model, 20) == want


def test_a_user_of_whom_nothing_is_known_has_no_candidates_and_counts_as_missed(data, retriever, model):
    want = evaluate(data, retriever, model, 60)
    clicked = data.split.test[data.log.clicks[data.split.test] > 0][:1]
    stranger = changed(with_rows(data, clicked), user_id=["stranger"])
    found = evaluate(stranger, retriever, model, 60)
    users, clicks = want.comparison.users, want.comparison.clicks
    assert (found.comparison.users, found.comparison.clicks, found.without_candidates) == (users + 1, clicks + 1, 1)
    assert recall(found, RETRIEVAL, 100) == pytest.approx(users / (users + 1))


def test_a_test_part_without_clicks_is_an_error(data, retriever, model):
    count = len(data.split.test)
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate(changed(data, clicks=np.zeros(count, np.int64)), retriever, model, 10)


def test_an_ad_met_long_before_is_not_asked_for_again(world, data, retriever, model, tmp_path):
    """A history is read to its newest 200 events; what a user met before those is still no news to them."""
    log, test = data.log, set(data.split.test.tolist())
    pairs = list(zip(log.user_id.tolist(), log.ad_id.tolist(), strict=True))
    met = {pair for row, pair in enumerate(pairs) if row not in test}
    user, ad = next(pairs[row] for row in sorted(test) if log.clicks[row] > 0 and pairs[row] not in met)
    other = next(mine for who, mine in met if who == user)
    header, *rows = world.clicks.read_text().splitlines()
    early = [f"e{event},{ad if event == 0 else other},{user},{1_600_000_000 + event},0,1,phone" for event in range(301)]
    (tmp_path / "clicks.csv").write_text("\n".join([header, *early, *rows]) + "\n")
    longer = load_dataset(world.ads, tmp_path / "clicks.csv", world.users, split="time")
    training, *others = (part + len(early) for part in data.split)
    longer = longer.with_split(Split(np.r_[np.arange(len(early)), training], *others))
    want = evaluate(data, retriever, model, 60)
    assert evaluate(longer, retriever, model, 60).comparison.clicks == want.comparison.clicks - 1


def test_a_damaged_index_is_not_evaluated(world, tmp_path):
    shutil.copytree(world.index, tmp_path / "index")
    with (open_index_store(tmp_path / "index").current_path() / "index.faiss").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(CorruptVersion):
        load_stages(tmp_path / "index", world.model)
