"""A log replayed through serving gives what training saw: one meaning of every feature, offline and online."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from test_ranking_history import write_history

from adcascade.catalog.ads_file import AdCatalog
from adcascade.records.counters import CounterSnapshot
from adcascade.records.history import with_history
from index_builder.artifact import ADS_FILE
from index_builder.artifact import open_store as open_index_store
from ranking.artifact import load_version
from ranking.data.behaviour_rows import BehaviourRows, known_logits
from ranking.data.dataset import load_dataset
from ranking.data.scorer import Scorer, predict_logits
from ranking.data.text_batches import AdTexts, BatchMaker, make_blocks
from ranking.inputs.prepare import prepare
from ranking.runtime.engine import RankingEngine
from ranking.runtime.engine_settings import EngineSettings
from ranking.store import open_store


@pytest.fixture(scope="module")
def loaded(world):
    store = open_store(world.model)
    return load_version(store, store.current())


@pytest.fixture(scope="module", params=["without interests", "with interests", "with a history"])
def data(world, request, tmp_path_factory):
    history = None
    if request.param == "with a history":
        history = write_history(tmp_path_factory.mktemp("history"))
    data = load_dataset(world.ads, world.clicks, world.users, history=history)
    if request.param == "with interests":
        users = {name: replace(user, interests="espresso beans") for name, user in data.users.items()}
        data = replace(data, users=users)
    return data


@pytest.fixture(scope="module")
def p_click_offline(data, loaded):
    """Calibrated p_click of every row, as evaluation computes it."""
    device = torch.device("cpu")
    ads = AdTexts(data, loaded.tokenizer, loaded.spec.max_ad_tokens)
    rows = BehaviourRows(data, ads, loaded, device)
    known = known_logits(loaded, rows, np.arange(len(data.log))).click.numpy()
    maker = BatchMaker(data, ads, rows.dense, known, np.zeros_like(known), loaded, device)
    scorer = Scorer(loaded, device, bfloat16=False, keep=False)
    blocks = make_blocks(data, np.arange(len(data.log)), max_ads=1000, merge_requests=False)
    order, logits = predict_logits(scorer, maker, blocks)
    p_click = np.empty(len(data.log))
    p_click[order] = loaded.spec.calibration.probability(logits)
    return p_click


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_request_of_the_log_gets_the_same_p_click_online(data, loaded, p_click_offline, world, share):
    log = data.log
    row = int(share * len(log))
    request = np.flatnonzero(log.request_id == log.request_id[row])
    time, user_id = int(log.time[row]), str(log.user_id[row])
    earlier = log.time < time
    counters = CounterSnapshot.of(log.take(earlier), {key: ids[earlier] for key, ids in data.keys.items()})
    engine = RankingEngine(replace(loaded, counters=counters), EngineSettings(device="cpu", precision="float32"))
    store = open_index_store(world.index)
    catalog = AdCatalog(store.current_path() / ADS_FILE)
    user = with_history(data.users[user_id], data.histories, time, limit=1000)
    assert data.log.context_at(row).timestamp == datetime.fromtimestamp(time / 1e6, UTC)
    ads, context = log.ad_id[request].tolist(), data.log.context_at(row)
    prepared = prepare(user, context, ads, catalog, skip_unknown=False, shown=len(request))
    np.testing.assert_allclose(engine.rank([prepared.query])[0].p_click, p_click_offline[request], atol=1e-5)
