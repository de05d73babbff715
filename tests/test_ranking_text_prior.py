"""What texts alone say: learned in closed form beside the network, kept where it helps, served as it was trained."""

import json
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_options, writable
from scipy.special import expit
from torch.nn import functional as F

from adcascade.artifacts.errors import CorruptVersion
from adcascade.records.ads import read_catalog
from adcascade.records.coded import CodedColumn
from adcascade.records.users import Context, UserProfile
from adcascade.training.stage import StageContext
from adcascade.training.workers import Workers
from ranking.artifact import TEXT_PRIOR_FILE, load_version, save_derived
from ranking.calibration.evidence import click_likelihood, common_offset, order_likelihood, working_response
from ranking.calibration.ridge import fit_ridge
from ranking.data.behaviour_rows import behaviour_logits, known_logits
from ranking.data.dataset import load_dataset
from ranking.evaluation.predict import predict
from ranking.evaluation.request_metrics import pair_accuracies
from ranking.inputs.prepare import prepare
from ranking.model.batch import pad, tokenize
from ranking.model.text_prior import WORD_BUCKETS, load_text_prior, word_counts, word_vectors
from ranking.runtime.engine import RankingEngine
from ranking.runtime.engine_settings import EngineSettings
from ranking.store import open_store
from ranking.training import beside, text_prior
from ranking.training.begin import begin
from ranking.training.beside import fit_beside
from ranking.training.run import train_and_save
from ranking.training.text_prior import (
    TrainedPrior,
    prior_as_text,
    prior_of_text,
    train_text_prior,
)
from ranking.training.train import train

REQUESTS, SHOWN = 160, 4
# The tiny BERT's tokens are characters.
LIKED, SHUNNED, OTHER = "zq", "xv", "abcdefgh"


def write_log(folder, *, strength, alone=False, seed=0):
    """Ads of random letters, shown four a request; what is liked in them is clicked more."""
    random = np.random.default_rng(seed)
    with (folder / "ads.jsonl").open("w") as ads, (folder / "clicks.jsonl").open("w") as clicks:
        for request in range(REQUESTS):
            base = random.normal(-3, 0.7)
            for place in range(SHOWN):
                title = "".join(random.choice(list(LIKED + SHUNNED + OTHER), 12))
                taste = sum(map(title.count, LIKED)) - sum(map(title.count, SHUNNED))
                shown = int(random.integers(500, 1500))
                ad_id = f"ad{request}-{place}"
                row = {"ad_id": ad_id, "clicks": int(random.binomial(shown, expit(base + strength * taste)))}
                row |= {"request_id": ad_id if alone else f"r{request}", "impressions": shown}
                ads.write(json.dumps({"ad_id": ad_id, "title": title}) + "\n")
                clicks.write(json.dumps(row) + "\n")
    return load_dataset(folder / "ads.jsonl", folder / "clicks.jsonl", None, split="request")


def only_texts(base, **changes):
    return tiny_options(base, **{"behaviour_epochs": 0, "epochs": 0, "text_prior": "auto", **changes})


@pytest.fixture(scope="module")
def version(tmp_path_factory, tiny_bert):
    """Store, name of a version with a prior, and what it was trained on."""
    folder = tmp_path_factory.mktemp("texts")
    data = write_log(folder, strength=0.3)
    report = train_and_save(data, folder / "model", only_texts(tiny_bert), which_baselines="none")
    return open_store(folder / "model"), report.version, data, folder


def order_of(data, ranker):
    found = predict(data, ranker, data.split.test, torch.device("cpu"), "float32")
    log = data.log.take(found.rows)
    return pair_accuracies(found.logits, log.clicks, log.impressions, data.groups[found.rows])[0]


def test_texts_of_requests_that_nobody_saw_are_ordered_by_what_is_liked_in_them(version):
    store, name, data, _ = version
    loaded = load_version(store, name)
    assert loaded.text_prior.fit == loaded.spec.text_prior
    assert loaded.spec.text_prior.gain.low > 0
    assert loaded.spec.text_prior.ads == len(data.split.train)
    assert order_of(data, loaded) > 0.75
    assert order_of(data, replace(loaded, text_prior=None)) == pytest.approx(0.5)


class MadeUpLog:
    """Clicks of ads of whom each is shown once."""

    def __init__(self, clicks, impressions, ads):
        self.clicks, self.impressions, self.ad_id = clicks, impressions, SimpleNamespace(codes=ads)

    def take(self, rows):
        return MadeUpLog(self.clicks[rows], self.impressions[rows], self.ad_id.codes[rows])


@pytest.mark.parametrize("units", [2, 3, 20, 40])
@pytest.mark.parametrize("shown", [1, 4])
def test_of_few_requests_whose_texts_say_nothing_hardly_any_keep_a_prior(units, shown):
    kept, certain = 0, 0
    for seed in range(200):
        random, rows = np.random.default_rng(seed), np.arange(units * shown)
        base, of_texts = np.repeat(random.normal(-3, 0.7, units), shown), random.normal(0, 0.3, len(rows))
        impressions, groups = random.integers(500, 1500, len(rows)), np.repeat(np.arange(units), shown)
        for strength in (0, 1):
            clicks = random.binomial(impressions, expit(base + strength * of_texts))
            data = SimpleNamespace(log=MadeUpLog(clicks, impressions, rows), groups=groups)
            verdict = text_prior._validated(
                data, np.full(len(rows), -3.0), of_texts, rows, text_prior._units(data, rows)
            )
            kept, certain = kept + (verdict.is_certain and not strength), certain + (verdict.is_certain and strength)
    assert kept <= 4
    if shown > 1 and units > 3:  # what texts do say is found
        assert certain > 180


@pytest.mark.parametrize("alone", [False, True])
def test_where_texts_say_nothing_there_is_no_prior(tmp_path, tiny_bert, alone):
    # One log in a hundred or two gets one by chance, so that two in five are no such chance.
    kept = 0
    for seed in range(5):
        data = write_log(tmp_path, strength=0.0, alone=alone, seed=seed)
        kept += train(data, only_texts(tiny_bert)).text_prior is not None
    assert kept < 2


def test_requests_of_one_ad_teach_it_too(tmp_path, tiny_bert):
    data = write_log(tmp_path, strength=0.4, alone=True)
    trained = train(data, only_texts(tiny_bert))
    assert trained.text_prior is not None
    found = predict(data, trained, data.split.test, torch.device("cpu"), "float32")
    log = data.log.take(found.rows)
    assert np.corrcoef(found.logits, log.clicks / log.impressions)[0, 1] > 0.4


@pytest.mark.parametrize("options", [{"text_prior": "none"}, {"train_layers": "all", "epochs": 0.1}])
def test_no_prior_where_it_is_not_wanted_or_its_layers_are_trained(version, tiny_bert, options):
    assert train(version[2], only_texts(tiny_bert, **options)).text_prior is None


def test_the_engine_answers_with_what_training_said(version):
    store, name, data, folder = version
    loaded = load_version(store, name)
    found = predict(data, loaded, data.split.test, torch.device("cpu"), "float32")
    ads = {ad.ad_id: ad for ad in read_catalog(folder / "ads.jsonl").ads}
    rows = found.rows[data.groups[found.rows] == data.groups[found.rows[0]]]
    shown = [ads[ad_id] for ad_id in data.log.ad_id[rows].tolist()]
    engine = RankingEngine(load_version(store, name), EngineSettings("cpu"))
    query = prepare(UserProfile(), Context(), shown, None, skip_unknown=False, shown=len(shown)).query
    cold = engine.cost_of(query)
    logits = dict(zip(found.rows.tolist(), found.logits, strict=True))
    want = loaded.spec.calibration.probability(np.array([logits[row] for row in rows.tolist()]))
    assert len(set(want)) > 1
    for _ in range(2):  # read, and kept
        np.testing.assert_allclose(engine.rank([query])[0].p_click, want, rtol=1e-5)
    assert engine.cost_of(query) < cold


def test_ads_of_the_catalog_are_read_before_anybody_asks(version):
    store, name, data, _ = version
    engine = RankingEngine(load_version(store, name), EngineSettings("cpu"))
    texts = [data.ad_text(ad_id) for ad_id in data.log.ad_id[:20].tolist()]
    assert engine.prefetch(texts)
    assert not engine._priors.missing(texts, ())


def test_a_version_made_of_another_keeps_its_prior(version):
    store, name, data, _ = version
    loaded = load_version(store, name)
    derived = load_version(store, save_derived(store, loaded, loaded.spec, publish=False))
    rows = pad(tokenize(loaded.tokenizer, [data.ad_text(ad_id) for ad_id in data.log.ad_id[:9].tolist()], 24), 0)
    assert torch.equal(derived.of_texts(rows), loaded.of_texts(rows))
    assert loaded.of_texts(rows).std() > 0.01


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_prior_is_named(version, damage):
    store, name, _, _ = version
    loaded = load_version(store, name)
    copy = save_derived(store, loaded, loaded.spec, publish=False)
    path = writable(store.path(copy) / TEXT_PRIOR_FILE)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        path.parent.chmod(0o750)
        path.unlink()
    with pytest.raises(CorruptVersion, match=r"text-prior\.safetensors holds no prior of texts"):
        load_version(store, copy)


@pytest.mark.parametrize(
    "change",
    [{"layers": torch.zeros(2, 7)}, {"layers": torch.zeros(9, 32)}, {"idf": torch.full((WORD_BUCKETS,), np.nan)}],
)
def test_weights_that_do_not_fit_the_model_are_refused(version, tmp_path, change):
    loaded = load_version(*version[:2])
    replace(loaded.text_prior, **change).save(tmp_path / "prior")
    with pytest.raises(ValueError, match="prior"):
        load_text_prior(tmp_path / "prior", loaded.text_prior.fit, loaded.model)


def test_other_processes_of_a_training_get_the_first_ones_prior(version, tiny_bert):
    trained = train(version[2], only_texts(tiny_bert))
    rows = np.arange(3, dtype=np.float32)
    places = np.array([4, 7, 9])
    shared = prior_of_text(prior_as_text(TrainedPrior(trained.text_prior, rows, places, rows[::-1].copy())))
    assert shared.prior.fit == trained.text_prior.fit
    for name, tensor in trained.text_prior.tensors.items():
        assert torch.equal(shared.prior.tensors[name], tensor)
    np.testing.assert_array_equal(shared.of_ads, rows)
    np.testing.assert_array_equal(shared.rows, places)
    np.testing.assert_array_equal(shared.cross_fitted, rows[::-1])
    assert prior_of_text(prior_as_text(None)) is None


def test_layer_means_are_those_of_the_encoder(version):
    model = load_version(*version[:2]).model.eval()
    rows = pad([[2, 10, 11, 3], [2, 12, 3]], 0)
    with torch.no_grad():
        states = model.encoder(
            input_ids=rows.ids,
            token_type_ids=torch.ones_like(rows.ids),
            attention_mask=rows.mask.long(),
            output_hidden_states=True,
        ).hidden_states
        found = model.layer_means(rows, 2)
    for place, state in enumerate(states[model.join_layer - 1 : model.join_layer + 1]):
        want = F.normalize(torch.stack([state[0].mean(dim=0), state[1, :3].mean(dim=0)]), dim=1)
        torch.testing.assert_close(found[:, place], want, rtol=1e-4, atol=1e-5)


def test_words_are_tokens_and_pairs_of_them_and_marks_alone_are_none():
    texts = [[2, 7, 8, 7, 8, 3], [2, 3], [2]]
    counts = word_counts(texts)
    assert counts.shape == (3, WORD_BUCKETS)
    inside, pairs = texts[0][1:-1], list(pairwise(texts[0]))
    assert counts[0].nnz == len({*inside}) + len({*pairs})
    assert sorted(set(np.round(np.expm1(counts[0].data - 1) + 1).astype(int))) == [1, 2]
    assert counts[1].nnz == 1  # an empty text: its marks follow each other
    assert counts[2].nnz == 0
    unit = word_vectors(texts, np.ones(WORD_BUCKETS, np.float32))
    np.testing.assert_allclose(np.sqrt(unit.multiply(unit).sum(axis=1))[:2, 0], 1, rtol=1e-6)


def test_the_working_response_is_a_step_of_a_logistic_regression():
    random = np.random.default_rng(0)
    known, impressions, groups = random.normal(-4, 0.5, 400), random.integers(50, 90, 400), np.repeat(np.arange(40), 10)
    clicks = random.binomial(impressions, expit(known))
    clicks[:10], groups[-5:], clicks[-5:] = 0, 40, impressions[-5:]
    target, weight = working_response(known, clicks, impressions, groups)
    for nothing in (slice(0, 10), slice(-5, None)):
        assert not weight[nothing].any()
        assert not target[nothing].any()
    rows = slice(10, -5)
    np.testing.assert_allclose(np.bincount(groups, weight * target), 0, atol=1e-6)  # what a group has in common is gone
    p = expit(known) * (np.bincount(groups, clicks) / np.bincount(groups, impressions * expit(known)))[groups]
    np.testing.assert_allclose(weight[rows], (impressions * p * (1 - p))[rows])
    np.testing.assert_allclose((weight * target)[rows], (clicks - impressions * p)[rows])


def test_likelihoods_of_units_are_those_of_their_rows():
    class Clicks:
        clicks, impressions = np.array([1, 0, 2]), np.array([3, 2, 4])

    logits, unit = np.array([0.2, -1.0, 0.5]), np.array([0, 0, 1])
    p = expit(logits)
    want = [np.log(p[0]) + 2 * np.log1p(-p[0]) + 2 * np.log1p(-p[1]), 2 * np.log(p[2]) + 2 * np.log1p(-p[2])]
    np.testing.assert_allclose(click_likelihood(logits, Clicks, unit), want)
    odds = Clicks.impressions * np.exp(logits)
    np.testing.assert_allclose(
        order_likelihood(logits, Clicks, unit), [np.log(odds[0] / odds[:2].sum()), 0], atol=1e-12
    )


def test_an_offset_makes_as_many_clicks_likely_as_there_are_and_rows_count_as_often_as_is_said():
    class Clicks:
        clicks, impressions = np.array([1, 0, 40]), np.array([30, 20, 90])

    logits, counted = np.array([-9.0, 0.5, 4.0]), np.array([1.0, 2.0, 0.25])
    p = expit(logits + common_offset(logits, Clicks, counted))
    assert counted @ (Clicks.impressions * p) == pytest.approx(counted @ Clicks.clicks)
    unit = np.array([0, 1, 1])
    once, told = (click_likelihood(logits, Clicks, np.arange(3), *more) for more in ((), (counted,)))
    np.testing.assert_allclose(told, counted * once)
    np.testing.assert_allclose(click_likelihood(logits, Clicks, unit, counted), np.bincount(unit, told))


def test_where_few_validate_the_training_part_is_asked_without_its_folds(tmp_path, tiny_bert, monkeypatch):
    data = write_log(tmp_path, strength=0.2, alone=True)
    trained = train(data, only_texts(tiny_bert))
    assert trained.text_prior is not None
    assert trained.text_prior.fit.gain.low > 0
    assert trained.spec.document()["text_prior"]["with_training"] is True
    assert prior_of_text(prior_as_text(TrainedPrior(trained.text_prior, *[np.zeros(0)] * 3))).prior.fit.with_training
    assert trained.text_fit.prior_with_training
    monkeypatch.setattr(text_prior, "_FEW_UNITS", 0)
    assert train(data, only_texts(tiny_bert)).text_prior is None


def test_training_rows_of_which_less_is_known_than_serving_knows_do_not_decide(tmp_path, tiny_bert):
    data = write_log(tmp_path, strength=0.8)
    start = begin(data, only_texts(tiny_bert), torch.device("cpu"))
    asked = []

    def known(rows):
        asked.append(rows)
        return np.full(len(rows), -3.0)

    model, context = start.ranker.model.eval(), StageContext(lambda _: None)
    for decides in (True, False):
        asked.clear()
        found = train_text_prior(data, model, start.ads, 0, known, context, training_decides=decides)
        assert found.prior.fit.with_training is decides
        assert ("with_training" in found.prior.fit.model_dump()) is decides
        assert np.isin(asked[-1], data.split.valid).all() is not decides


@pytest.mark.parametrize("has_trees", [False, True])
def test_where_trees_were_kept_training_rows_do_not_decide(version, tiny_bert, monkeypatch, has_trees):
    said = []
    monkeypatch.setattr(beside, "wants_trees", lambda *_: True)
    monkeypatch.setattr(beside, "_trees", lambda *_: object() if has_trees else None)
    monkeypatch.setattr(beside, "train_text_prior", lambda *_, training_decides: said.append(training_decides))
    start = begin(version[2], only_texts(tiny_bert), torch.device("cpu"))
    fit_beside(version[2], start, only_texts(tiny_bert), StageContext(lambda _: None))
    assert said == [not has_trees]


def test_an_ad_that_was_shown_far_more_than_others_does_not_decide_alone_whether_texts_help(tmp_path, tiny_bert):
    data = write_log(tmp_path, strength=0.4, alone=True)
    row, log = int(data.split.valid[0]), data.log
    clicks, impressions = log.clicks.copy(), log.impressions.copy()
    impressions[row] *= 10_000
    clicks[row] = impressions[row] // 2 if "x" in data.ad_text(log.ad_id[row]) else impressions[row] // 1000
    assert train(
        replace(data, log=replace(log, clicks=clicks, impressions=impressions)), only_texts(tiny_bert)
    ).text_prior


def test_folds_that_tell_nothing_are_passed_over():
    vectors = np.eye(3, dtype=np.float32)
    ads, fold = np.array([0, 1, 2]), np.array([0, 0, 2])  # fold 1 has no row, fold 2 none that weighs anything
    fit = fit_ridge(vectors, ads, np.zeros(3, np.int64), np.array([1.0, -1, 0]), np.array([2.0, 2, 0]), fold, (0.1,))
    assert fit.of_folds.shape == (3, 3)
    assert not fit.of_folds[0].any()  # the others weigh nothing
    np.testing.assert_allclose(fit.of_folds[1], fit.weights)
    np.testing.assert_allclose(fit.weights, [1 / 1.2, -1 / 1.2, 0])


def test_no_more_ads_are_read_than_the_time_allows(version, tiny_bert, caplog):
    data, told = version[2], []
    short = only_texts(tiny_bert, max_minutes=1e-6)
    assert train(data, short, told.append).text_prior is None
    assert sum(step.stage == "prior" for step in told) == 1
    assert "there is no time to read the ads" in caplog.text


def test_fine_tuning_learns_beside_what_rows_are_said_without_their_fold(version, tiny_bert):
    data, device = version[2], torch.device("cpu")
    options = only_texts(tiny_bert)
    start = begin(data, options, device)
    found = fit_beside(data, start, options, StageContext(lambda _: None))
    alone = behaviour_logits(start.ranker.model.behaviour, start.rows, np.arange(len(data.log))).click.numpy()
    serving = known_logits(found.ranker, start.rows, np.arange(len(data.log))).click.numpy()
    for part, as_served in ((data.split.train, False), (data.split.valid, True), (data.split.test, True)):
        said = found.known[part]
        assert np.allclose(said, serving[part], atol=1e-5) == as_served
        assert np.corrcoef(said - alone[part], serving[part] - alone[part])[0, 1] > 0.5


def test_folds_that_cut_through_requests_take_no_comparison_from_the_weights():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(40, 6)).astype(np.float32)
    groups, ads = np.repeat(np.arange(300), 2), random.integers(0, 40, 600)
    truth = random.normal(size=6)
    target = vectors[ads] @ truth + random.normal(0, 0.5, 600)
    by_ad = np.arange(40) % 5
    cut = fit_ridge(vectors, ads, groups, target, np.ones(600), by_ad[ads], (0.01,))
    whole = fit_ridge(vectors, ads, groups, target, np.ones(600), groups % 5, (0.01,))
    np.testing.assert_allclose(cut.weights, whole.weights)
    assert np.corrcoef(cut.weights, truth)[0, 1] > 0.98
    for number, weights in enumerate(cut.of_folds):
        others = by_ad[ads] != number
        alone = fit_ridge(
            vectors, ads[others], groups[others], target[others], np.ones(600)[others], groups[others] % 2, (0.01,)
        )
        np.testing.assert_allclose(weights, alone.weights)


def test_ads_of_many_requests_teach_it_and_older_rows_are_said_without_their_ad(tmp_path, tiny_bert, monkeypatch):
    random = np.random.default_rng(0)
    titles = ["".join(random.choice(list(LIKED + SHUNNED + OTHER), 12)) for _ in range(400)]
    taste = np.array([sum(map(title.count, LIKED)) - sum(map(title.count, SHUNNED)) for title in titles])
    with (tmp_path / "ads.jsonl").open("w") as ads, (tmp_path / "clicks.jsonl").open("w") as clicks:
        for number, title in enumerate(titles):
            ads.write(json.dumps({"ad_id": f"ad{number}", "title": title}) + "\n")
        for request in range(1200):
            for number in random.choice(400, 3, replace=False).tolist():
                row = {"request_id": f"r{request}", "ad_id": f"ad{number}", "impressions": 200}
                row["clicks"] = int(random.binomial(200, expit(-3 + 0.3 * taste[number])))
                clicks.write(json.dumps(row) + "\n")
    data = load_dataset(tmp_path / "ads.jsonl", tmp_path / "clicks.jsonl", None, split="ad")
    monkeypatch.setattr(text_prior, "_MOST_ROWS", len(data.split.train) // 2)
    start = begin(data, only_texts(tiny_bert), torch.device("cpu"))
    nothing = np.full(len(data.log), -3.0)
    found = train_text_prior(
        data, start.ranker.model.eval(), start.ads, 0, nothing.__getitem__, StageContext(lambda _: None)
    )
    assert order_of(data, replace(start.ranker, text_prior=found.prior)) > 0.75
    train_rows, newest = data.split.train, data.split.train[-(len(data.split.train) // 2) :]
    learned = set(data.log.ad_id[newest])
    assert found.rows.tolist() == [row for row in train_rows.tolist() if data.log.ad_id[row] in learned]
    assert len(found.rows) > 1.5 * len(newest)
    own = found.of_ads[start.ads.places(data.log.ad_id)[found.rows]]
    assert not np.allclose(found.cross_fitted, own, atol=1e-3)
    assert np.corrcoef(found.cross_fitted, own)[0, 1] > 0.5


def test_what_the_first_process_learned_is_what_another_gets(version, tiny_bert):
    data = version[2]
    start = begin(data, only_texts(tiny_bert), torch.device("cpu"))
    learned = fit_beside(data, start, only_texts(tiny_bert), StageContext(lambda _: None))

    class Second(Workers):
        """One that waits for the text of the first."""

        def share(self, make, device):
            return first

    of_ads, rows = np.full(len(start.ads.texts), 0.25, np.float32), np.arange(2)
    first = prior_as_text(TrainedPrior(learned.ranker.text_prior, of_ads, rows, np.ones(2, np.float32)))
    got = fit_beside(data, start, only_texts(tiny_bert), StageContext(lambda _: None, Second(1, 2)))
    assert got.ranker.text_prior.fit == learned.ranker.text_prior.fit
    alone = behaviour_logits(start.ranker.model.behaviour, start.rows, np.arange(3)).click.numpy()
    np.testing.assert_allclose(got.known[np.arange(3)] - alone, [1, 1, 0.25], atol=1e-5)


def test_a_killed_training_goes_on_to_the_same_prior(version, tiny_bert, tmp_path):
    data, options = version[2], only_texts(tiny_bert, epochs=0.5)
    want = train(data, options)

    def kill(step):
        if (step.stage, step.step) == ("text", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, options, kill, checkpoints=tmp_path)
    found = train(data, options, checkpoints=tmp_path)
    assert found.spec == want.spec
    assert found.text_prior.fit == want.text_prior.fit
    for name, tensor in want.text_prior.tensors.items():
        assert torch.equal(found.text_prior.tensors[name], tensor)


def test_a_warm_start_without_a_prior_says_that_that_of_the_version_is_left_out(version, tiny_bert, caplog):
    store, name, data, _ = version
    options = only_texts(tiny_bert, warm_start=f"{store.root}@{name}", text_prior="none")
    assert train(data, options).text_prior is None
    assert f"version {name} has a prior of texts" in caplog.text


def test_requests_of_which_one_ad_is_known_are_requests_where_it_is_said():
    """Rows whose ads were not read in time are missing: what is left of a request may be one row."""
    rows = np.arange(4)
    data = SimpleNamespace(log=SimpleNamespace(ad_id=CodedColumn.of(["a", "b", "a", "b"], "")), groups=np.arange(4))
    assert not text_prior._units(data, rows).are_requests
    assert text_prior._units(data, rows, are_requests=True).of_rows.tolist() == [0, 1, 2, 3]
