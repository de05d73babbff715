"""A logistic regression in the place of a network that does no better for certain."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from conftest import tiny_options

from adcascade.records.splits import Split
from adcascade.training.stage import StageResult
from adcascade.training.workers import Workers
from ranking.calibration.calibrate import fit_slopes, fit_slopes_near
from ranking.data.behaviour_rows import behaviour_logits
from ranking.data.dataset import load_dataset
from ranking.training.behaviour import _line_unless_beaten
from ranking.training.line import as_text, fit_line, is_certain, of_text, row_losses
from ranking.training.train import begin, train

ROWS = 4000


@dataclass
class Columns:
    """What the line reads of a log of single impressions."""

    clicks: np.ndarray
    impressions: np.ndarray

    def take(self, rows):
        return Columns(self.clicks[rows], self.impressions[rows])


@dataclass
class Rows:
    """What the line reads of a data set, requests of four."""

    log: Columns
    split: Split
    groups: np.ndarray


def rows_of(logits, seed):
    clicks = (np.random.default_rng(seed).random(ROWS) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    every = np.arange(ROWS)
    return Rows(Columns(clicks, np.ones(ROWS, np.int64)), Split(every[:3000], every[3000:], every[:0]), every // 4)


def features_of(width):
    return np.random.default_rng(0).normal(size=(ROWS, width)).astype(np.float32)


def test_a_line_finds_the_weights_of_the_logit():
    features = features_of(3)
    line = fit_line(rows_of(features @ np.array([1.5, -1.0, 0.0]) - 1, 1), features, ["a", "b", "c"])
    assert line.weights == pytest.approx([1.5, -1.0, 0.0], abs=0.25)
    assert line.intercept == pytest.approx(-1, abs=0.2)
    np.testing.assert_allclose(line.logits(features), features @ line.weights + line.intercept)


def test_the_less_there_is_to_learn_the_stronger_the_pull():
    features = features_of(40)
    weak, strong = (fit_line(rows_of(scale * features[:, 0] - 3, 1), features, ["a"] * 40) for scale in (0.0, 2.0))
    assert weak.strength < strong.strength
    assert np.abs(weak.weights).max() < 0.1


def test_the_size_of_a_request_is_pulled_less():
    features = features_of(2)
    features[:, 1] = features[:, 0]
    line = fit_line(rows_of(features[:, 0] - 1, 1), features, ["a", "request_size_log"])
    assert line.weights[1] == pytest.approx(9 * line.weights[0], rel=0.05)


def test_rows_of_one_class_make_no_line():
    features = features_of(2)
    data = rows_of(features[:, 0], 1)
    for part in (data.split.train, data.split.valid):
        clicks = data.log.clicks.copy()
        clicks[part] = 0
        assert fit_line(replace(data, log=Columns(clicks, data.log.impressions)), features, ["a", "b"]) is None


def test_losses_are_those_of_all_impressions():
    data = Rows(Columns(np.array([1, 3]), np.array([1, 10])), None, None)
    found = row_losses(np.array([0.0, 1.0]), data, np.array([0, 1]))
    p_click = 1 / (1 + math.exp(-1))
    assert found == pytest.approx([math.log(2), -3 * math.log(p_click) - 7 * math.log(1 - p_click)])


def test_rows_of_one_request_are_no_more_certain_than_one():
    more = np.repeat(np.tile([1.0, -0.8], 10), 100)
    assert is_certain(more, np.arange(len(more)))
    assert not is_certain(more, np.arange(len(more)) // 100)
    assert not is_certain(-more, np.arange(len(more)))
    assert is_certain(np.ones(5), np.arange(5), 2.0)
    assert not is_certain(np.zeros(5), np.arange(5), 2.0)


def test_a_line_goes_from_process_to_process_as_a_text():
    features = features_of(2)
    line = fit_line(rows_of(features[:, 0], 1), features, ["a", "b"])
    other = of_text(as_text(line))
    np.testing.assert_array_equal(other.weights, line.weights)
    assert (other.intercept, other.strength) == (line.intercept, line.strength)
    assert of_text(as_text(None)) is None


def test_slopes_stay_near_what_is_expected_until_many_rows_say_otherwise():
    columns = features_of(2).astype(np.float64)
    data = rows_of(columns @ np.array([2.0, 0.0]) - 1, 1)
    few, many = (
        fit_slopes_near((0.5, 0.5), 0.1, columns[:n], data.log.clicks[:n], data.log.impressions[:n]) for n in (20, ROWS)
    )
    assert few[0] == pytest.approx([0.5, 0.5], abs=0.1)
    assert many[0][0] > 1.4
    free = fit_slopes_near((0.5, 0.5), 100.0, columns, data.log.clicks, data.log.impressions)
    plain = fit_slopes(columns, data.log.clicks, data.log.impressions)
    assert [*free[0], free[1]] == pytest.approx([*plain[0], plain[1]], abs=2e-3)
    assert fit_slopes_near((0.5, 0.5), 0.1, columns, 0 * data.log.clicks, data.log.impressions) is None


@pytest.fixture(scope="module")
def start(world, tiny_bert):
    """A made-up log, and a network that knows nothing of it yet."""
    data = load_dataset(world.ads, world.clicks, world.users)
    return data, begin(data, tiny_options(tiny_bert), torch.device("cpu"))


def fit():
    return StageResult(10, 10, 0.9, 0.8, 1.0, 10, by_clock=False)


def test_a_network_that_is_no_better_gives_way_to_the_line(start):
    data, begun = start
    model = begun.ranker.model.behaviour
    found = _line_unless_beaten(model, begun.rows, data, fit(), Workers())
    line = fit_line(data, begun.rows.dense, begun.ranker.spec.features)
    said = behaviour_logits(model, begun.rows, data.split.valid).click.numpy()
    np.testing.assert_allclose(said, line.logits(begun.rows.dense[data.split.valid]), atol=1e-4)
    lost = row_losses(line.logits(begun.rows.dense[data.split.valid]), data, data.split.valid)
    assert (found.kept_step, found.loss_kept) == (0, pytest.approx(lost.mean()))
    assert str(found) == "all 10 steps; a logistic regression on the counters took its place"


def test_a_training_puts_the_line_in_the_place_of_a_network_and_says_so(world, tiny_bert):
    data = load_dataset(world.ads, world.clicks, world.users)
    few = {"epochs": 0, "behaviour_min_steps": 2, "behaviour_epochs": 0.01, "trees": "none"}
    for line, group_loss, is_line in (("auto", "none", True), ("none", "none", False), ("auto", "listwise", False)):
        options = tiny_options(tiny_bert, **few, behaviour_line=line, group_loss=group_loss)
        trained = train(data, options)
        deep = trained.model.behaviour.deep[-1].weight[0]
        assert (not deep.any()) == is_line
        assert trained.spec.stages["behaviour"].endswith("took its place") == is_line


def test_a_network_that_is_better_for_certain_stays(start, monkeypatch):
    data, begun = start
    before = {name: one.clone() for name, one in begun.ranker.model.behaviour.state_dict().items()}
    clicks = torch.from_numpy(data.log.clicks[data.split.valid]).float()

    def knows_all(*_):
        return type("Known", (), {"click": 8 * clicks - 4})

    monkeypatch.setattr("ranking.training.behaviour.behaviour_logits", knows_all)
    assert _line_unless_beaten(begun.ranker.model.behaviour, begun.rows, data, fit(), Workers()) == fit()
    assert all(torch.equal(one, before[name]) for name, one in begun.ranker.model.behaviour.state_dict().items())


def test_a_log_with_places_keeps_the_network_which_alone_knows_them(start):
    data, begun = start
    placed = replace(data, log=replace(data.log, position=np.ones(len(data.log), data.log.position.dtype)))
    assert _line_unless_beaten(begun.ranker.model.behaviour, begun.rows, placed, fit(), Workers()) == fit()
