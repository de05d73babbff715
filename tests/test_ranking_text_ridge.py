"""A ridge regression on frozen layers: solved as a library solves it, and of use for headlines."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.linear_model import Ridge
from torch.nn import functional as F
from transformers import AutoModel

from benchmarks.headlines import upworthy_ridge
from benchmarks.runs import Run
from ranking.evaluation.request_metrics import pair_accuracies
from ranking.evaluation.text_ridge import FIRST_LAYER, PENALTIES, fit_text_ridge, frozen_layers, layer_means
from ranking.model.batch import pad

_WIDTH = 12


def drawn(count, *, strength):
    """Requests of four texts each: vectors; ad, clicks, impressions and request of each row, and what its text adds."""
    random, rows = np.random.default_rng(0), 4 * count
    vectors = F.normalize(torch.from_numpy(random.normal(size=(rows, _WIDTH))), dim=1).numpy()
    added = strength * vectors @ random.normal(size=_WIDTH)
    requests, impressions = np.repeat(np.arange(count), 4), random.integers(500, 3000, rows)
    odds = np.exp(added + random.normal(-4, 1, count)[requests])
    clicks = random.binomial(impressions, odds / (1 + odds))
    order = random.permutation(rows)
    return vectors[order].astype(np.float32), np.argsort(order), clicks, impressions, requests, added


def library_weights(found, x, clicks, impressions, groups):
    """What scikit-learn finds for centred vectors and log-odds of the rows, with the same penalty."""
    y = np.log((clicks + 0.5) / (impressions - clicks + 0.5))
    total = np.bincount(groups, impressions)

    def centred(values):
        return values - (np.bincount(groups, impressions * values) / total)[groups]

    x = np.apply_along_axis(centred, 0, x.astype(np.float64))
    ridge = Ridge(alpha=found.penalty * impressions.sum(), fit_intercept=False)
    return ridge.fit(x, centred(y), sample_weight=impressions).coef_


def test_the_weights_are_those_of_a_weighted_ridge_regression():
    vectors, ads, clicks, impressions, requests, _ = drawn(60, strength=1.0)
    ads = ads % 100  # several rows of one ad
    found = fit_text_ridge(vectors, ads, clicks, impressions, requests)
    want = library_weights(found, vectors[ads], clicks, impressions, requests)
    np.testing.assert_allclose(found.weights, want, rtol=1e-6, atol=1e-9)


def test_texts_of_other_requests_are_ordered_by_what_was_learned():
    vectors, ads, clicks, impressions, requests, added = drawn(300, strength=1.0)
    learned, other = requests < 200, requests >= 200
    found = fit_text_ridge(vectors, ads[learned], clicks[learned], impressions[learned], requests[learned])
    logits = found.logits(vectors)[ads]
    assert np.corrcoef(logits[other], added[other])[0, 1] > 0.95
    pairs, certain = pair_accuracies(logits[other], clicks[other], impressions[other], requests[other])
    assert pairs > 0.7
    assert certain > 0.9


def test_how_often_a_request_is_clicked_says_nothing_of_its_texts():
    """The requests of the second half have one more number in their vectors, and ten times as many clicks."""
    vectors, ads, clicks, impressions, requests, _ = drawn(200, strength=0.0)
    random, much = np.random.default_rng(1), requests >= 100
    clicks = random.binomial(impressions, np.where(much, 0.1, 0.01))
    marked = np.zeros((len(vectors), 1), np.float32)
    marked[ads[much]] = 1
    found = fit_text_ridge(np.hstack([vectors, marked]), ads, clicks, impressions, requests)
    assert abs(found.weights[-1]) < 0.02  # log 10 = 2.3 if it did


def test_noise_is_shrunk_and_a_signal_is_not():
    *noise, _ = drawn(100, strength=0.0)
    *signal, _ = drawn(100, strength=1.0)
    assert fit_text_ridge(*noise).penalty == max(PENALTIES)
    assert fit_text_ridge(*signal).penalty < 0.03


def test_rows_alone_in_their_request_are_compared_with_each_other():
    vectors, ads, clicks, impressions, *_ = drawn(50, strength=1.0)
    alone = fit_text_ridge(vectors, ads, clicks, impressions, np.arange(len(ads)))
    want = library_weights(alone, vectors[ads], clicks, impressions, np.zeros(len(ads), np.int64))
    np.testing.assert_allclose(alone.weights, want, atol=0.15)  # of weights near 1: each fold has a mean of its own
    assert np.corrcoef(alone.weights, want)[0, 1] > 0.99


@pytest.mark.parametrize("clicks", [[0, 0, 0, 0], [1, 1, 0, 0]])
def test_requests_without_a_difference_teach_nothing(clicks):
    vectors = np.eye(4, dtype=np.float32)
    found = fit_text_ridge(vectors, np.arange(4), np.array(clicks), np.ones(4, np.int64), np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(found.logits(vectors), np.zeros(4))


def test_layers_are_read_as_the_library_reads_each_text_alone(tiny_bert):
    encoder = AutoModel.from_pretrained(tiny_bert).eval()
    rows = [[2, 10, 11, 12, 3], [2, 20, 3], [2, 30, 31, 32, 33, 34, 35, 3]]
    found = layer_means(encoder, pad(rows, 0))
    layers = encoder.config.num_hidden_layers + 1 - FIRST_LAYER
    assert found.shape == (3, layers * encoder.config.hidden_size)
    for place, row in enumerate(rows):
        with torch.inference_mode():
            states = encoder(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[FIRST_LAYER:]
        want = torch.cat([F.normalize(hidden[0].mean(dim=0), dim=0) for hidden in states])
        torch.testing.assert_close(found[place], want, rtol=1e-4, atol=1e-5)


def test_texts_keep_their_order():
    texts = ["a much longer headline about espresso and trail running", "coffee", "shoes for running", "coffee"]
    found = frozen_layers(texts)
    np.testing.assert_allclose(found[1], found[3], atol=1e-5)
    for place, text in enumerate(texts):
        np.testing.assert_allclose(found[place], frozen_layers([text])[0], atol=1e-4)


def test_headlines_of_other_tests_are_ordered_by_their_words(tmp_path):
    """Of each made-up test one headline has a word of joy, which makes it clicked more."""
    random, lines = np.random.default_rng(0), ["clickability_test_id,headline,impressions,clicks"]
    subjects = ["dogs", "senators", "teachers", "rivers", "oceans", "doctors", "cities", "farmers"]
    for test in range(80):
        one, two = random.choice(subjects, 2, replace=False)
        for verb, rate in ((random.choice(["delight", "enchant", "amaze"]), 0.035), ("bore", 0.02)):
            lines.append(f"t{test},How {one} {verb} {two} in {test} days,1000,{random.binomial(1000, rate)}")
    (tmp_path / "archive.csv").write_text("\n".join(lines) + "\n")
    told = io.StringIO()
    pairs, certain = upworthy_ridge(Run(1, tmp_path, tmp_path / "archive.csv", None, Console(file=told)))
    assert 0.85 < pairs.reached < 1  # counts of so few clicks are not always in the order of their rates
    assert certain.reached > 0.95
    assert pairs.seeds == 5
    assert told.getvalue().count("of all pairs") == 5
