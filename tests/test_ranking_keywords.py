"""Keywords beside the text in the prior of texts: what they are cut into, learned, served, kept and refused."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit
from test_ranking_text_prior import only_texts

from adcascade.artifacts.errors import CorruptVersion
from adcascade.catalog.ads_file import AdCatalog, write_ads
from adcascade.records.ads import Ad, read_catalog
from adcascade.records.limits import MAX_FIELD_CHARS, MAX_KEYWORDS
from adcascade.records.users import Context, UserProfile
from adcascade.serving.slices import run_through
from adcascade.training.stage import StageContext
from ranking.artifact import TEXT_PRIOR_FILE, load_version, save_derived
from ranking.data import text_batches
from ranking.data.behaviour_rows import known_logits
from ranking.data.dataset import load_dataset
from ranking.errors import ModelError
from ranking.evaluation.predict import predict
from ranking.evaluation.request_metrics import pair_accuracies
from ranking.inputs.keywords import (
    KEYWORD_BUCKETS,
    MOST_KEYWORD_CHARS,
    AdParts,
    keyword_counts,
    keyword_lines,
    keyword_terms,
    parts_of,
)
from ranking.inputs.known_ads import KnownAd
from ranking.inputs.prepare import CatalogVersion, prepare
from ranking.inputs.text import render_ad
from ranking.model.batch import tokenize
from ranking.model.text_prior import load_text_prior
from ranking.runtime.engine import RankingEngine
from ranking.runtime.engine_settings import EngineSettings
from ranking.runtime.prewarm import AdCachePrewarmer
from ranking.spec import CTR_FILE, read_spec
from ranking.store import open_store
from ranking.training import text_prior
from ranking.training.begin import begin
from ranking.training.beside import fit_beside
from ranking.training.run import train_and_save
from ranking.training.text_prior import TrainedPrior, prior_as_text, prior_of_text, train_text_prior
from ranking.training.train import train

REQUESTS, SHOWN = 160, 4
# What is clicked is told by these alone: for the tiny BERT, whose tokens are letters, they are beyond the token limit.
WANTED, UNWANTED = "age:18 - 24", "age:65+"


def write_log(folder, *, has_keywords=True):
    """Ads of one text length, a filling of it, and two keywords, of which one tells whether they are clicked."""
    random = np.random.default_rng(0)
    with (folder / "ads.jsonl").open("w") as ads, (folder / "clicks.jsonl").open("w") as clicks:
        for request in range(REQUESTS):
            base = random.normal(-3, 0.7)
            for place in range(SHOWN):
                is_wanted, shown = bool(random.integers(2)), int(random.integers(500, 1500))
                ad_id, title = f"ad{request}-{place}", "".join(random.choice(list("abcdefgh"), 30))
                words = [f"place:town {random.integers(9)}", WANTED if is_wanted else UNWANTED]
                ad = {"ad_id": ad_id, "title": title} | ({"keywords": words} if has_keywords else {})
                click = {"request_id": f"r{request}", "ad_id": ad_id, "impressions": shown}
                click["clicks"] = int(random.binomial(shown, expit(base + 0.5 * is_wanted)))
                ads.write(json.dumps(ad) + "\n")
                clicks.write(json.dumps(click) + "\n")
    return load_dataset(folder / "ads.jsonl", folder / "clicks.jsonl", None, split="request")


@pytest.fixture(scope="module")
def version(tmp_path_factory, tiny_bert):
    """Store, name of a version whose prior reads keywords, what it was trained on, and the folder of its files."""
    folder = tmp_path_factory.mktemp("keywords")
    data = write_log(folder)
    report = train_and_save(data, folder / "model", only_texts(tiny_bert), which_baselines="none")
    return open_store(folder / "model"), report.version, data, folder


def engine_of(version):
    return RankingEngine(load_version(*version[:2]), EngineSettings("cpu"))


def query_of(ads):
    return prepare(UserProfile(), Context(), ads, None, skip_unknown=False, shown=len(ads)).query


def order_of(data, ranker):
    found = predict(data, ranker, data.split.test, torch.device("cpu"), "float32")
    log = data.log.take(found.rows)
    return pair_accuracies(found.logits, log.clicks, log.impressions, data.groups[found.rows])[0]


def test_clicks_that_keywords_alone_tell_are_learned(version, tmp_path, tiny_bert):
    store, name, data, _ = version
    loaded = load_version(store, name)
    assert loaded.text_prior.reads_keywords
    assert loaded.spec.text_prior.keywords.scale > 0
    # Half of the pairs have the same keyword, and chance orders these.
    assert order_of(data, loaded) > 0.7
    assert train(write_log(tmp_path, has_keywords=False), only_texts(tiny_bert)).text_prior is None
    added = loaded.text_prior.of_keywords(
        [keyword_lines([f"place:town {place}", word]) for word in (WANTED, UNWANTED) for place in range(9)]
    )
    assert added[:9].min() > added[9:].max()


def test_where_no_ad_has_keywords_the_prior_reads_none_and_says_so_nowhere(tmp_path, tiny_bert):
    start = begin(write_log(tmp_path, has_keywords=False), only_texts(tiny_bert), torch.device("cpu"))
    places = np.arange(len(start.ads.texts))
    assert start.ads.prior_tokens(places, reads_keywords=True) == start.ads.prior_tokens(places, reads_keywords=False)
    from test_ranking_text_prior import write_log as of_letters  # a log whose texts tell something

    trained = train(of_letters(tmp_path, strength=0.3), only_texts(tiny_bert))
    assert trained.text_prior is not None
    assert not trained.text_prior.reads_keywords
    assert trained.text_prior.tensors.keys() == {"layers", "words", "idf", "intercept"}
    assert trained.spec.document()["text_prior"].keys() == {"ads", "penalty", "words", "gain", "with_training"}


def test_a_training_sets_apart_the_keywords_of_the_ads_alone_that_its_prior_reads(version, tiny_bert, monkeypatch):
    data, made, split = version[2], [], []
    monkeypatch.setattr(text_batches, "parts_of", lambda ad, text: made.append(ad.ad_id) or parts_of(ad, text))
    start = begin(data, only_texts(tiny_bert), torch.device("cpu"))
    monkeypatch.setattr(
        text_batches, "tokenize", lambda tokenizer, texts, most: split.extend(texts) or tokenize(tokenizer, texts, most)
    )
    monkeypatch.setattr(text_prior, "_MOST_ADS", 100)
    nothing = np.full(len(data.log), -3.0)
    train_text_prior(data, start.ranker.model.eval(), start.ads, 0, nothing.__getitem__, StageContext(lambda _: None))
    train_ids, valid = (set(data.log.ad_id[rows].tolist()) for rows in (data.split.train, data.split.valid))
    assert len(set(made) & train_ids) == 100
    assert set(made) <= train_ids | valid
    assert len(made) == len(set(made)) == len(split) < len(data.log)
    # What is kept is what would be made.
    ads, places = text_batches.AdTexts(data, start.ranker.tokenizer, 80), np.array([5, 2, 5])
    texts = [parts_of(data.ads[ad_id], data.ad_text(ad_id)).text for ad_id in np.array(list(ads.texts))[places]]
    for _ in range(2):
        assert ads.prior_tokens(places, reads_keywords=True) == tokenize(start.ranker.tokenizer, texts, 80)
    assert ads.prior_tokens(places, reads_keywords=True) != ads.prior_tokens(places, reads_keywords=False)


def test_the_engine_answers_with_what_training_said(version):
    store, name, data, folder = version
    loaded = load_version(store, name)
    found = predict(data, loaded, data.split.test, torch.device("cpu"), "float32")
    ads = {ad.ad_id: ad for ad in read_catalog(folder / "ads.jsonl").ads}
    rows = found.rows[data.groups[found.rows] == data.groups[found.rows[0]]]
    query = query_of([ads[ad_id] for ad_id in data.log.ad_id[rows].tolist()])
    logits = dict(zip(found.rows.tolist(), found.logits, strict=True))
    want = loaded.spec.calibration.probability(np.array([logits[row] for row in rows.tolist()]))
    assert len(set(want)) > 1
    engine = engine_of(version)
    cold = engine.cost_of(query)
    for asked in (query, query, engine.readable(query)):  # read, and kept
        np.testing.assert_allclose(engine.rank([asked])[0].p_click, want, rtol=1e-5)
    assert engine.cost_of(query) < cold
    np.testing.assert_allclose(engine_of(version).rank([engine.readable(query)])[0].p_click, want, rtol=1e-5)


def test_fine_tuning_and_teachers_read_what_serving_adds(version, tiny_bert):
    data = version[2]
    start = begin(data, only_texts(tiny_bert), torch.device("cpu"))
    found = fit_beside(data, start, only_texts(tiny_bert), StageContext(lambda _: None))
    prior, ads = found.ranker.text_prior, [data.ads[ad_id] for ad_id in data.log.ad_id[np.arange(12)].tolist()]
    assert prior.reads_keywords
    with_prior = known_logits(found.ranker, start.rows, np.arange(12)).click
    without = known_logits(replace(found.ranker, text_prior=None), start.rows, np.arange(12)).click
    ranker = replace(load_version(*version[:2]), text_prior=prior)
    engine = RankingEngine(replace(ranker, model=start.ranker.model), EngineSettings("cpu"))
    query = query_of(ads)
    slices = engine._priors.of(query.ad_texts, query.parts)
    np.testing.assert_allclose((with_prior - without).numpy(), run_through(slices).numpy(), atol=1e-5)


def test_ads_of_one_text_and_other_keywords_share_no_number(version):
    ads = [Ad("a", "lamp", keywords=(WANTED,)), Ad("b", "lamp", keywords=(UNWANTED,)), Ad("c", "lamp")]
    engine, query = engine_of(version), query_of(ads)
    first = engine.rank([query])[0].p_click
    assert first[0] > first[1]
    assert len(set(first)) == 3
    for asked, want in (([ads[0]], first[:1]), ([ads[2], ads[1]], first[[2, 1]])):
        alone = [engine_of(version), engine]
        for one in alone:
            added = one._priors.missing(query_of(asked).ad_texts, query_of(asked).parts)
            assert len(added) == (0 if one is engine else len(asked))
        np.testing.assert_allclose(engine.rank([replace(query_of(asked), shown=3)])[0].p_click, want, rtol=1e-5)
    # Nor do ads whose text and keywords are the same letters side by side.
    assert AdParts("lamp 4", "lamp").key != AdParts("lamp", " 4lamp").key
    assert AdParts("4 lamp", "").key != AdParts("lamp", "").key


def test_ads_of_the_catalog_are_read_with_their_keywords_before_anybody_asks(version, tmp_path):
    class Held:
        """What is loaded."""

        is_loaded = True

        def __init__(self, value):
            self.value = value

        def lease(self):
            return self

        def __enter__(self):
            return self.value

        def __exit__(self, *_):
            pass

    ads = [Ad(f"a{number}", f"lamp {number}", keywords=(WANTED, f"town {number}")) for number in range(20)]
    write_ads(((ad, b"0" * 16) for ad in ads), tmp_path / "ads.parquet")
    engine = engine_of(version)
    prewarmer = AdCachePrewarmer(Held(engine), Held(CatalogVersion("1", AdCatalog(tmp_path / "ads.parquet"))))
    while prewarmer.step():
        pass
    query = query_of(ads)
    assert not engine._priors.missing(query.ad_texts, query.parts)
    assert engine._priors.missing(query.ad_texts, ())  # of the texts alone nothing is kept


def test_a_version_made_of_another_keeps_its_keywords(version):
    store, name, _, _ = version
    loaded = load_version(store, name)
    derived = load_version(store, save_derived(store, loaded, loaded.spec, publish=False))
    lines = [keyword_lines([WANTED]), keyword_lines([UNWANTED]), ""]
    found = derived.text_prior.of_keywords(lines)
    np.testing.assert_array_equal(found, loaded.text_prior.of_keywords(lines))
    assert found[0] > found[1]
    assert found[2] == 0


def test_a_version_that_reads_no_keywords_says_of_an_ad_with_some_what_it_said_before(version):
    loaded = load_version(*version[:2])
    old = loaded.text_prior.fit.model_copy(update={"keywords": None})
    prior = replace(loaded.text_prior, keywords=None, keyword_idf=None, fit=old)
    engine = RankingEngine(replace(loaded, text_prior=prior), EngineSettings("cpu"))
    query = query_of([Ad("a", "lamp", keywords=(WANTED,)), Ad("b", "cup", keywords=(UNWANTED,))])
    want = engine.rank([replace(query, parts=())])[0].p_click
    again = RankingEngine(replace(loaded, text_prior=prior), EngineSettings("cpu"))
    np.testing.assert_array_equal(again.rank([query])[0].p_click, want)
    assert not engine._priors.missing(query.ad_texts, query.parts)


@pytest.mark.parametrize("before", ["reads no keywords", "has no prior"])
def test_a_version_that_takes_over_while_a_call_waits_reads_its_keywords(version, before):
    loaded = load_version(*version[:2])
    old = loaded.text_prior.fit.model_copy(update={"keywords": None})
    prior = replace(loaded.text_prior, keywords=None, keyword_idf=None, fit=old) if before != "has no prior" else None
    engine = RankingEngine(replace(loaded, text_prior=prior), EngineSettings("cpu"))
    query = query_of(
        [Ad("a", "lamp", keywords=(WANTED,)), Ad("b", "lamp", keywords=(UNWANTED,)), Ad("c", "cup " * 999)]
    )
    want = engine_of(version).rank([query])[0].p_click
    np.testing.assert_array_equal(engine_of(version).rank([engine.readable(query)])[0].p_click, want)
    assert want[0] > want[1]


def test_keywords_of_other_scripts_cost_what_finding_their_words_takes(version):
    def cost(letter):
        words = (letter * 255,) * 8
        query = query_of([Ad("a", "lamp", keywords=words)])
        return engine_of(version)._priors.cost_of(query.ad_texts, query.parts)

    text = engine_of(version)._priors.cost_of(["lamp"], ())
    for letter in ("\ufdfa", "字"):
        assert cost(letter) - text == pytest.approx(16 * (cost("x") - text), rel=0.05)


@pytest.mark.parametrize(
    "change",
    [
        {"keywords": torch.zeros(7)},
        {"keyword_idf": torch.zeros(KEYWORD_BUCKETS + 1)},
        {"keywords": torch.full((KEYWORD_BUCKETS,), np.nan)},
        {"keyword_idf": torch.full((KEYWORD_BUCKETS,), np.inf)},
        {"keywords": torch.zeros(KEYWORD_BUCKETS, dtype=torch.float64)},
        {"keywords": None},
    ],
)
def test_weights_of_keywords_that_do_not_fit_are_refused(version, tmp_path, change):
    loaded = load_version(*version[:2])
    replace(loaded.text_prior, **change).save(tmp_path / "prior")
    with pytest.raises(ValueError, match="prior"):
        load_text_prior(tmp_path / "prior", loaded.text_prior.fit, loaded.model)


def test_a_spec_and_a_file_that_differ_are_named(version):
    store, name, _, _ = version
    loaded = load_version(store, name)
    fit = loaded.spec.text_prior.model_copy(update={"keywords": None})
    other = save_derived(store, loaded, loaded.spec.model_copy(update={"text_prior": fit}), publish=False)
    with pytest.raises(CorruptVersion, match=rf"{TEXT_PRIOR_FILE} holds no prior of texts.*does not hold"):
        load_version(store, other)


def test_keywords_that_were_cut_by_a_later_release_ask_for_an_upgrade(version):
    store, name, _, _ = version
    loaded = load_version(store, name)
    keywords = loaded.spec.text_prior.keywords.model_copy(update={"analyzer": 99})
    fit = loaded.spec.text_prior.model_copy(update={"keywords": keywords})
    other = save_derived(store, loaded, loaded.spec.model_copy(update={"text_prior": fit}), publish=False)
    assert json.loads((store.path(other) / CTR_FILE).read_text())["text_prior"]["keywords"]["analyzer"] == 99
    assert read_spec(store.path(other)).text_prior.keywords.analyzer == 99
    with pytest.raises(ModelError, match=r"the keywords of model version .* \(analyzer 99\).*upgrade adcascade"):
        load_version(store, other)


def test_other_processes_of_a_training_get_the_weights_of_keywords(version):
    prior = load_version(*version[:2]).text_prior
    none = np.zeros(0, np.float32)
    shared = prior_of_text(prior_as_text(TrainedPrior(prior, none, none.astype(np.int64), none))).prior
    assert shared.fit == prior.fit
    assert shared.tensors.keys() == prior.tensors.keys()
    assert all(torch.equal(shared.tensors[name], tensor) for name, tensor in prior.tensors.items())


def test_a_keyword_is_a_term_as_a_whole_and_so_are_its_words():
    lines = keyword_lines(["Trail  RUNNING", "ﬁtness", "  ", "\u200b", "跑步", "CAFÉ\n bar"])
    assert lines.splitlines() == ["Trail RUNNING", "ﬁtness", "\u200b", "跑步", "CAFÉ bar"]
    terms = keyword_terms(lines)
    assert terms[:4] == ["\ntrail running", "\nfitness", "\n跑步", "\ncafe bar"]
    assert terms[4:] == ["trail", "running", "fitness", "跑", "步", "跑步", "cafe", "bar"]
    counts = keyword_counts([lines, "", keyword_lines(["shoes", "shoes"])])
    assert counts.shape == (3, KEYWORD_BUCKETS)
    assert counts.dtype == np.float32
    assert np.diff(counts.indptr).tolist() == [len(set(terms)), 0, 2]
    np.testing.assert_allclose(counts[2].data, 1 + np.log(2))
    assert keyword_counts([]).shape == (0, KEYWORD_BUCKETS)


def test_the_text_beside_keywords_is_that_of_the_ad_without_them():
    ad = Ad("a", "Lamp", "of brass", keywords=("brass", "age:18"))
    assert parts_of(ad, render_ad(ad)) == AdParts("Lamp. of brass", "brass\nage:18")
    assert KnownAd.of(ad).parts == parts_of(ad, render_ad(ad))
    bare = KnownAd.of(replace(ad, keywords=()))
    assert bare.parts.text is bare.text
    assert query_of([replace(ad, keywords=())]).parts == ()


@pytest.mark.parametrize("letter", ["x", "\ufdfa", "a\u0301\u0323" * 9, "字", "🙂", "x "])
def test_hostile_keywords_are_bounded(version, letter):
    keyword = (letter * MAX_FIELD_CHARS)[:MAX_FIELD_CHARS]
    lines = keyword_lines([keyword[: MAX_FIELD_CHARS - 1 - number % 9] for number in range(MAX_KEYWORDS)])
    assert len(lines) <= MOST_KEYWORD_CHARS + MAX_KEYWORDS
    assert len(keyword_lines([letter * 100_000] * 3)) <= 3 * MAX_FIELD_CHARS + 3
    assert len(keyword_terms(lines)) <= 2 * MOST_KEYWORD_CHARS + MAX_KEYWORDS
    ads = [Ad(f"a{number}", f"lamp {number}", keywords=(keyword,) * MAX_KEYWORDS) for number in range(20)]
    started = time.monotonic()
    query = query_of(ads)
    engine = engine_of(version)
    assert np.isfinite(engine.rank([engine.readable(query)])[0].p_click).all()
    assert time.monotonic() - started < 5
    bare = engine.readable(query_of([replace(ad, keywords=()) for ad in ads]))
    assert engine_of(version).cost_of(engine.readable(query)) > engine_of(version).cost_of(bare)


def test_halves_of_letters_are_read_as_something_that_can_be_hashed():
    assert keyword_counts([keyword_lines(["\ud800 lamp"])]).nnz >= 2


def test_keywords_that_nobody_knew_add_nothing_that_is_not_a_number(version):
    prior = load_version(*version[:2]).text_prior
    assert np.isfinite(prior.of_keywords(["", "never met", "\n".join(["x"] * 60)])).all()
    assert prior.of_keywords([]).shape == (0,)
