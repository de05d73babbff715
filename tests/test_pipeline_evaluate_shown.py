"""In which order both stages put ads that were shown together."""

from dataclasses import replace

import numpy as np
import pytest

from adcascade.records.coded import CodedColumn
from adcascade.records.splits import Split
from adcascade.reports.interval import Interval
from pipeline.display import shown_notes
from pipeline.evaluate import load_stages
from pipeline.evaluate_shown import _lists, _scored, evaluate_shown, profile_before
from pipeline.results import AS_SERVED, P_CLICK, RETRIEVAL_SCORE, ShownEvaluation
from ranking.calibration.calibration import Calibration
from ranking.data.dataset import load_dataset

DAY = 24 * 3600 * 1_000_000


@pytest.fixture(scope="module")
def data(world):
    return load_dataset(world.ads, world.clicks, world.users, split="time")


@pytest.fixture(scope="module")
def stages(tower_index, world):
    retriever, model = load_stages(tower_index, world.model)
    yield retriever, model
    retriever.close()


def test_a_list_is_what_a_user_saw_on_a_day_each_ad_once_with_and_without_clicks(data):
    log = data.log
    lists = _lists(data, by_day=True)
    assert lists
    for one in lists:
        rows = one.rows
        assert set(rows.tolist()) <= set(data.split.test.tolist())
        assert len(set(log.user_id[rows].tolist())) == 1
        assert len({int(time) // DAY for time in log.time[rows]}) == 1
        assert len(set(log.ad_id[rows].tolist())) == len(rows)
        assert 0 < one.clicked.sum() < len(rows)
        assert (np.diff(rows) > 0).all()


def test_an_ad_counts_as_clicked_whichever_time_it_was(data):
    """a, b, a with a click, c on one day of one user: a was clicked."""
    part = data.split.test[:4]
    log = data.log.take(part)
    ads = CodedColumn.of(["a", "b", "a", "c"], "")
    changed = replace(
        log,
        ad_id=ads,
        user_id=CodedColumn.of(["u"] * 4, ""),
        time=DAY * 20_000 + np.arange(4),
        clicks=np.array([0, 0, 1, 0], log.clicks.dtype),
        utc_offset=np.zeros(4, np.int16),
    )
    rows = np.arange(4)
    (one,) = _lists(replace(data, log=changed, split=Split(rows[:0], rows[:0], rows)), by_day=True)
    assert one.rows.tolist() == [0, 1, 3]
    assert one.clicked.tolist() == [True, False, False]


@pytest.mark.parametrize(("offset", "lists"), [(0, 2), (-480, 1)])
def test_a_day_is_that_of_the_clock_on_the_wall(data, offset, lists):
    """23:59 and 0:01 UTC are one afternoon in California."""
    log = data.log.take(data.split.test[:4])
    changed = replace(
        log,
        ad_id=CodedColumn.of(["a", "b", "c", "d"], ""),
        user_id=CodedColumn.of(["u"] * 4, ""),
        time=DAY * 20_000 + 60_000_000 * np.array([-2, -1, 1, 2]),
        clicks=np.array([0, 1, 0, 1], log.clicks.dtype),
        utc_offset=np.full(4, offset, np.int16),
    )
    rows = np.arange(4)
    found = _lists(replace(data, log=changed, split=Split(rows[:0], rows[:0], rows)), by_day=True)
    assert len(found) == lists


def test_a_list_is_a_request_where_the_log_has_them(data):
    for one in _lists(data, by_day=False):
        assert len(set(data.groups[one.rows].tolist())) == 1


def test_rows_of_nobody_are_no_day_of_one(data):
    nobody = replace(data, log=replace(data.log, user_id=CodedColumn.of([""] * len(data.log), "")))
    assert not _lists(nobody, by_day=True)


def test_what_is_certain_of_clicks_orders_better_than_what_says_nothing(data, stages):
    retriever, model = stages
    found = evaluate_shown(data, retriever, model, 0.0, "days")
    assert found.together == "day"
    assert found.lists == len(_lists(data, by_day=True))
    assert found.ndcg[P_CLICK] == found.ndcg[AS_SERVED]  # weight 0
    for name, gain in found.gain.items():
        assert gain.value == pytest.approx(found.ndcg[name].value - found.ndcg[RETRIEVAL_SCORE].value)
        assert gain.low <= gain.value <= gain.high
    flat = Calibration(method="isotonic", points=((-1.0, 0.3), (1.0, 0.3)))
    nothing = replace(model, spec=model.spec.model_copy(update={"calibration": flat}))
    chance = evaluate_shown(data, retriever, nothing, 0.0, "days")
    assert found.ndcg[P_CLICK].value > chance.ndcg[P_CLICK].value + 0.03
    by_retrieval = evaluate_shown(data, retriever, nothing, 4.0, "days").ndcg
    assert by_retrieval[AS_SERVED].value == pytest.approx(by_retrieval[RETRIEVAL_SCORE].value)


def test_neither_stage_knows_what_is_judged(data, stages):
    """Other clicks in the test part change who is right, and no score."""
    retriever, model = stages
    clicks = data.log.clicks.copy()
    clicks[data.split.test] = 1 - np.minimum(clicks[data.split.test], 1)
    other = replace(data, log=replace(data.log, clicks=clicks))
    begin = data.log.time[data.split.test].min()
    lists = [one for one in _lists(data, by_day=True) if (data.log.time[one.rows] // DAY == begin // DAY).all()]
    assert lists  # of the first day: later ones look back on others
    for one, same in zip(
        _scored(data, retriever, model, lists, 1.0), _scored(other, retriever, model, lists, 1.0), strict=True
    ):
        assert one.scores.tolist() == same.scores.tolist()
    for one in lists:
        user = profile_before(data, int(one.rows[0]))
        times = [event.timestamp.timestamp() * 1e6 for event in user.history]
        assert all(time < data.log.time[one.rows[0]] for time in times)


def test_nothing_is_said_where_nothing_was_shown_together(data, stages, world):
    retriever, model = stages
    assert evaluate_shown(data, retriever, model, 1.0, "none") is None
    never = replace(data, log=replace(data.log, clicks=np.zeros_like(data.log.clicks)))
    assert evaluate_shown(never, retriever, model, 1.0, "days") is None
    without, _ = load_stages(world.index, world.model)
    assert evaluate_shown(data, without, model, 1.0, "days") is None
    without.close()


def test_it_is_told_in_sentences():
    even = Interval(0.5, 0.4, 0.6)
    found = ShownEvaluation(
        "day", 12, 20.4, 2.0, {RETRIEVAL_SCORE: even, P_CLICK: even, AS_SERVED: even}, {P_CLICK: even}
    )
    order, gain = shown_notes(found)
    assert order == (
        "Of ads that a user had before them on one day (12 with and without clicks, of 20 ads in the mean), the "
        "clicked ones on top: nDCG@10 0.500 by retrieval's score, 0.500 by p_click, 0.500 by both as served."
    )
    assert gain == (
        "Minus that by retrieval's score: p_click +0.500 [+0.400, +0.600]. As served: log-odds of the click + 2 x it."
    )
