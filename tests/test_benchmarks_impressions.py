"""The check on real impressions: days, and the ranker beside the best of its peers."""

import io

import numpy as np
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from adcascade.records.errors import InputError
from benchmarks import impressions
from benchmarks.runs import Run
from ranking.data.dataset import load_dataset

DAY = 86_400_000_000


def test_the_last_day_tests_and_requests_stay_whole(world):
    data = impressions._last_day(load_dataset(world.ads, world.clicks, world.users))
    log, split = data.log, data.split
    assert np.array_equal(np.sort(np.concatenate([split.train, split.valid, split.test])), np.arange(len(log)))
    for earlier, later in ((split.train, split.valid), (split.valid, split.test)):
        assert not set(data.groups[earlier]) & set(data.groups[later])
        assert log.time[earlier].max() <= log.time[later].min()
    assert set(log.time[split.test] // DAY) == {log.time.max() // DAY}
    assert log.time[split.valid].max() // DAY < log.time.max() // DAY
    assert 0.05 < len(split.valid) / (len(split.valid) + len(split.train)) < 0.2


def test_each_figure_stands_beside_that_of_the_best_peer(world, tmp_path):
    pq.write_table(pyarrow.json.read_json(world.ads), tmp_path / "ads.parquet")
    pq.write_table(pyarrow.csv.read_csv(world.clicks), tmp_path / "impressions.parquet")
    found = impressions.impressions_last_day(Run(1, tmp_path, None, tmp_path, Console(file=io.StringIO())))
    assert [one.figure for one in found[::3]] == ["AUC", "GAUC", "nDCG@5 in a request"]
    for figure, lead, on_counters in zip(found[::3], found[1::3], found[2::3], strict=True):
        assert 0.5 < figure.reached <= 1
        assert figure.low <= figure.reached <= figure.high
        assert on_counters.reached >= lead.reached
        for one in (lead, on_counters):
            assert one.met == (one.low > 0 if figure.figure == "AUC" else one.reached > 0)
            assert "best peer: " in one.note
        assert not any(name in on_counters.note for name in ("all features", "bi-encoder", "frozen layers", "text"))


def test_without_a_log_it_says_what_to_give(tmp_path):
    with pytest.raises(InputError, match="--impressions"):
        impressions.impressions_last_day(Run(1, tmp_path, None, None, Console(file=io.StringIO())))
