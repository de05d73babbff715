"""Made-up logs have the probabilities that they say, and the archive's rows become requests and ads."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from adcascade.records.ads import read_ads
from adcascade.records.clicks import read_clicks
from adcascade.records.datasets.synthetic import TRUTH_FILE, SyntheticOptions, make_synthetic
from adcascade.records.datasets.upworthy import export_upworthy, plain_text
from adcascade.records.errors import InputError

SMALL = SyntheticOptions(ads=80, users=50, requests=4000)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    files = make_synthetic(folder, SMALL)
    truth = pq.read_table(folder / TRUTH_FILE)
    log, report = read_clicks(files.clicks, {ad.ad_id for ad in read_ads(files.ads)})
    assert report.rejected == {}
    return log, {name: truth[name].to_numpy() for name in truth.column_names}


def test_clicks_and_conversions_follow_the_true_probabilities(made):
    log, truth = made
    for p, happened, shown in (
        (truth["p_click"], log.clicks, log.impressions),
        (truth["p_click"] * truth["p_conversion"], log.conversions, log.impressions),
    ):
        deviation = np.sqrt((p * (1 - p) * shown).sum())
        assert abs(happened.sum() - p.sum()) < 4 * deviation
        top = p > np.quantile(p, 0.9)
        assert happened[top].mean() == pytest.approx(p[top].mean(), abs=0.04)


def test_the_truth_stands_in_the_order_of_the_log(made):
    log, truth = made
    assert (np.diff(log.time) >= 0).all()
    assert np.corrcoef(truth["p_click"], log.clicks)[0, 1] > 0.3


def test_places_lose_clicks_as_the_options_say(made):
    log, truth = made
    effects = SMALL.position_effects
    assert effects[0] == 0
    assert (np.diff(effects) < 0).all()
    odds = {place: truth["p_click"][log.position == place] for place in (1, 6)}
    logit = {place: np.log(p / (1 - p)).mean() for place, p in odds.items()}
    assert logit[6] - logit[1] == pytest.approx(effects[5], abs=0.1)


def test_those_who_click_convert_more_than_those_who_do_not(made):
    log, truth = made
    assert truth["p_conversion"][log.clicks > 0].mean() > truth["p_conversion"].mean() + 0.03


def test_cold_ads_begin_late(made):
    log, _ = made
    first = {}
    for ad_id, time in zip(log.ad_id, log.time, strict=True):
        first.setdefault(ad_id, time)
    span = log.time[-1] - log.time[0]
    cold = sum(time - log.time[0] > 0.79 * span for time in first.values())
    assert 1 <= cold <= 20


def test_one_seed_makes_one_log(tmp_path):
    logs = [make_synthetic(tmp_path / name, SMALL).clicks.read_bytes() for name in ("one", "other")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("wrong", [{"ads": 0}, {"ads": 7}, {"requests": 0}])
def test_a_platform_with_nothing_to_show_is_an_error(tmp_path, wrong):
    with pytest.raises(InputError):
        make_synthetic(tmp_path, SyntheticOptions(**wrong))


ARCHIVE = """clickability_test_id,headline,lede,excerpt,impressions,clicks
t1,<p>One &amp; two</p>,x,y,100,5
t1,One & two,x,z,50,1
t1,Three,x,y,100,9
t2,Four,x,y,10,20
t2,,x,y,10,1
t2,Five,x,y,10,1
"""


def test_the_archive_becomes_requests_and_ads(tmp_path, caplog):
    (tmp_path / "archive.csv").write_text(ARCHIVE)
    files = export_upworthy(tmp_path / "archive.csv", tmp_path / "out")
    ads = {ad.ad_id: ad.title for ad in read_ads(files.ads)}
    assert "2 arms left out: 1 x clicks above impressions" in caplog.text
    log, report = read_clicks(files.clicks, ads)
    assert report.rejected == {}
    rows = zip(log.request_id, log.ad_id, log.clicks, log.impressions, strict=True)
    assert [(request, ads[ad], int(c), int(n)) for request, ad, c, n in rows] == [
        ("t1", "One & two", 6, 150),
        ("t1", "Three", 9, 100),
        ("t2", "Five", 1, 10),
    ]


def test_another_file_is_not_the_archive(tmp_path):
    (tmp_path / "other.csv").write_text("headline,clicks\na,1\n")
    with pytest.raises(InputError, match="lacks clickability_test_id, impressions"):
        export_upworthy(tmp_path / "other.csv", tmp_path / "out")


def test_html_becomes_plain_text():
    assert plain_text("<p>It&#39;s <b>bold</b>,\n really</p>") == "It's bold , really"
