"""The check on ads of pages: pages stay together, targeting is keywords, and pairs of a fold are counted."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from adcascade.records.errors import InputError
from benchmarks import posts
from benchmarks.runs import Run


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Ads of twelve pages; what is free is clicked more."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(120):
        free = bool(random.integers(2))
        impressions = int(random.integers(900, 9000))
        rows.append(
            {
                "text": f"{'Free' if free else 'Dear'} lamps and chairs, number {number}",
                "impressions": impressions,
                "clicks": int(random.binomial(impressions, 0.12 if free else 0.04)),
                "page": f"p{number % 12}",
                "targets": [f"age:{18 + number % 3} - 65", "placements:feed"],
            }
        )
    path = tmp_path_factory.mktemp("posts") / "ads.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_pages_stay_together_and_targeting_is_read_as_keywords(source, tmp_path):
    loaded = posts._load(source, tmp_path / "both", has_targeting=True)
    for number in range(posts._FOLDS):
        split = loaded.of_fold(number).split
        pages = [set(loaded.page[part]) for part in split]
        assert all(pages)
        assert sum(map(len, pages)) == 12
        assert sorted(np.concatenate(split)) == list(range(len(loaded.page)))
    ad_id = loaded.data.log.ad_id[0]
    assert loaded.data.ad_text(ad_id).endswith("placements:feed")
    assert loaded.data.ads[ad_id].keywords[1] == "placements:feed"
    assert loaded.data.log.impressions.min() >= 1000
    without = posts._load(source, tmp_path / "text", has_targeting=False)
    assert without.data.ad_text(ad_id) == loaded.data.ads[ad_id].body


def test_words_order_ads_of_pages_that_they_were_not_learned_from(source, tmp_path):
    loaded = posts._load(source, tmp_path, has_targeting=False)
    score = np.empty(len(loaded.page))
    for number in range(posts._FOLDS):
        split = loaded.of_fold(number).split
        score[split.test] = posts._words(loaded, np.concatenate(split[:2]))[split.test]
    share, low, high = posts._in_order(score, loaded.ctr, loaded.page, loaded.fold)
    assert 0.65 < low < share < high < 0.9  # half of the pairs differ by chance alone


def test_pairs_are_of_one_fold_and_equal_scores_count_half():
    score, ctr = np.array([1.0, 2, 2, 9, 0]), np.array([0.1, 0.2, 0.3, 0.1, 0.1])
    share, low, high = posts._in_order(score, ctr, np.arange(5), np.array([0, 0, 0, 1, 1]))
    assert share == pytest.approx((1 + 1 + 0.5) / 3)
    assert low <= share <= high


def test_a_file_that_is_none_of_ads_of_pages_is_refused(tmp_path):
    quiet = Console(file=io.StringIO())
    with pytest.raises(InputError, match="--posts"):
        posts.posts_by_page(Run(1, tmp_path, None, None, quiet))
    pq.write_table(pa.table({"text": ["a"], "clicks": [1]}), tmp_path / "ads.parquet")
    with pytest.raises(InputError, match="lacks impressions, page, targets"):
        posts.posts_by_page(Run(1, tmp_path, None, None, quiet, tmp_path / "ads.parquet"))
    few = {"text": "a", "clicks": 1, "impressions": 2000, "page": "p", "targets": []}
    pq.write_table(pa.Table.from_pylist([few]), tmp_path / "ads.parquet")
    with pytest.raises(InputError, match="fewer than 5 pages"):
        posts.posts_by_page(Run(1, tmp_path, None, None, quiet, tmp_path / "ads.parquet"))
