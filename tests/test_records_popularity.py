"""Popularity and freshness: against sums by hand, brought up to date, and of ads that were never shown."""

import csv
import io

import numpy as np
import pytest

from adcascade.records.clicks import read_clicks
from adcascade.records.popularity import FEATURES, HALF_LIVES_DAYS, PopularitySnapshot

DAY = 86_400


def log_of(tmp_path, rows):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["request_id", "ad_id", "timestamp", "clicks", "impressions"])
    for number, (ad_id, time, clicks, impressions) in enumerate(rows):
        writer.writerow([f"r{number}", ad_id, time, clicks, impressions])
    path = tmp_path / "clicks.csv"
    path.write_text(text.getvalue())
    return read_clicks(path, None)[0]


@pytest.fixture
def rows():
    random = np.random.default_rng(0)
    times = np.sort(random.integers(1_700_000_000, 1_700_000_000 + 100 * DAY, 300))
    return [
        (f"ad{random.integers(12)}", int(time), int(random.integers(0, 3)), int(random.integers(3, 6)))
        for time in times
    ]


def test_sums_halve_with_every_half_life(tmp_path, rows):
    found = PopularitySnapshot.of(log_of(tmp_path, rows))
    for half_life in HALF_LIVES_DAYS:
        for ad_id in ("ad0", "ad7"):
            by_hand = sum(
                clicks * 0.5 ** ((found.as_of_us / 1e6 - time) / DAY / half_life)
                for name, time, clicks, _ in rows
                if name == ad_id
            )
            assert found.clicks([ad_id], half_life)[0] == pytest.approx(by_hand)
    assert found.impressions(["ad3"])[0] == sum(shown for name, _, _, shown in rows if name == "ad3")


def test_later_rows_are_added_without_the_earlier_ones(tmp_path, rows):
    log = log_of(tmp_path, rows)
    whole, ids = PopularitySnapshot.of(log), [f"ad{number}" for number in range(12)]
    part = PopularitySnapshot.of(log.take(slice(0, 200)))
    both = part.updated(log.take(slice(200, None)))
    np.testing.assert_allclose(both.features(ids), whole.features(ids), rtol=1e-5)
    again = part.updated(log)
    np.testing.assert_allclose(again.features(ids), whole.features(ids), rtol=1e-5)
    assert whole.updated(log) is whole


def test_an_ad_that_was_never_shown_has_features(tmp_path):
    log = log_of(tmp_path, [("old", 1_700_000_000, 5, 9), ("new", 1_700_000_000 + 40 * DAY, 0, 1)])
    found = dict(zip(FEATURES, PopularitySnapshot.of(log).features(["old", "new", "never"]).T.tolist(), strict=True))
    assert found["never shown"] == [0, 0, 1]
    assert found["first shown within 14 days"] == [0, 1, 0]
    assert found["clicks, half-life inf days"][0] > found["clicks, half-life inf days"][1]
    assert found["clicks, half-life inf days"][1] == found["clicks, half-life inf days"][2]
    assert np.isfinite(list(found.values())).all()


def test_it_is_saved_and_loaded(tmp_path, rows):
    found = PopularitySnapshot.of(log_of(tmp_path, rows))
    found.save(tmp_path / "popularity.parquet")
    loaded = PopularitySnapshot.load(tmp_path / "popularity.parquet")
    assert (loaded.as_of_us, loaded.ad_ids) == (found.as_of_us, found.ad_ids)
    np.testing.assert_array_equal(loaded.sums, found.sums)
    np.testing.assert_array_equal(loaded.first, found.first)


def test_a_log_without_times_counts_nothing(tmp_path):
    found = PopularitySnapshot.of(log_of(tmp_path, [("a", "", 1, 1), ("b", "", 0, 1)]))
    assert found.ad_ids == ()
    assert np.isfinite(found.features(["a"])).all()
