"""Real ads of many pages with their targeting: which of any two was clicked more, on pages that were never seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, GroupShuffleSplit
from sklearn.pipeline import make_pipeline

from adcascade.records.batches import DamagedRow
from adcascade.records.clicks import Integers
from adcascade.records.errors import InputError
from adcascade.records.files import read_rows
from adcascade.records.splits import Split
from adcascade.records.values import as_int, as_text, as_texts
from benchmarks.findings import Finding, finding
from benchmarks.runs import Run, predicted
from ranking.calibration.ridge import Floats
from ranking.data.dataset import Dataset, load_dataset
from ranking.evaluation.text_ridge import ad_layers, text_ridge_logits
from ranking.training.options import TrainOptions
from ranking.training.train import train

_NEEDED = ("text", "impressions", "clicks", "page", "targets")
# CTRs of fewer impressions are chance.
_LEAST_IMPRESSIONS = 1000
_FOLDS, _VALID, _DRAWS = 5, 0.15, 1000
# Posts are longer than ads; the same for whatever reads them.
_TOKENS = 128
_PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)
# What an ad is made of, and the least share of pairs in the right order.
_TARGETS = {"text": 0.70, "text and targeting": 0.745}


@dataclass(frozen=True)
class _Posts:
    """Ads of several pages.

    Attributes:
        data: one row an ad; the split is none that is used.
        page: of each row, int64 [rows], from 0.
        fold: of each row, int64 [rows]; pages stay together.
    """

    data: Dataset
    page: Integers
    fold: Integers

    @property
    def ctr(self) -> Floats:
        """Of each row, float64 [rows]."""
        return np.asarray(self.data.log.clicks / self.data.log.impressions)

    def of_fold(self, number: int) -> Dataset:
        """Tested on a fold; some of the other pages validate."""
        others = np.flatnonzero(self.fold != number)
        drawn = GroupShuffleSplit(1, test_size=_VALID, random_state=number).split(others, groups=self.page[others])
        train_part, valid = next(drawn)
        return self.data.with_split(Split(others[train_part], others[valid], np.flatnonzero(self.fold == number)))


def posts_by_page(run: Run) -> list[Finding]:
    """Texts of ads, without and with their targeting as keywords; the prior of texts beside plain ridges."""
    if run.posts is None:
        raise InputError(f"give a file of ads with the columns {', '.join(_NEEDED)} with --posts")
    return [found for reads in _TARGETS for found in _findings(run, reads)]


def _findings(run: Run, reads: str) -> list[Finding]:
    assert run.posts is not None
    posts = _load(run.posts, run.folder / reads.replace(" ", "-"), has_targeting=reads != "text")
    check = f"ads of other pages, 5 folds, {reads}"
    vectors = ad_layers(posts.data, max_tokens=_TOKENS)

    def measure(number: int) -> list[Floats]:
        data = posts.of_fold(number)
        test, learned_from = data.split.test, np.concatenate([data.split.train, data.split.valid])
        return [
            _prior(data),
            _words(posts, learned_from)[test],
            text_ridge_logits(data, *vectors, learned_from)[test],
        ]

    folds, minutes = run.for_each(_FOLDS, f"{check}, fold", measure)
    scores = np.empty((3, len(posts.page)))
    for number, of_fold in enumerate(folds):
        scores[:, posts.fold == number] = of_fold
    bound = _TARGETS[reads]
    found: list[Finding] = []
    for name, score in zip(("prior of texts", "TF-IDF ridge", "ridge on frozen layers"), scores, strict=True):
        ends = _in_order(score, posts.ctr, posts.page, posts.fold)
        met, target = (bool(ends[0] >= bound), f"at least {bound}") if name == "prior of texts" else (None, "")
        figure = f"pairs of a fold in the right order, {name}"
        found.append(finding(check, figure, target, ends, met, folds, minutes, "interval: bootstrap over pages"))
    return found


def _load(source: Path, folder: Path, *, has_targeting: bool) -> _Posts:
    """The ads of a file, written in AdCascade's formats under `folder`.

    A post is an ad's body, a line of its targeting a keyword. The page is none of what is read, since it is a new one.
    """
    rows = [_checked(source, number, row) for _, number, row in read_rows(source)]
    rows = [row for row in rows if as_int(row, "impressions") >= _LEAST_IMPRESSIONS]
    if len({row["page"] for row in rows}) < _FOLDS:
        raise InputError(f"{source} has ads with {_LEAST_IMPRESSIONS} impressions of fewer than {_FOLDS} pages")
    folder.mkdir(parents=True, exist_ok=True)
    ids = [f"ad-{number}" for number in range(len(rows))]
    keywords = pa.array([as_texts(row, "targets") if has_targeting else () for row in rows], pa.list_(pa.string()))
    bodies = [as_text(row, "text") for row in rows]
    pq.write_table(pa.table({"ad_id": ids, "body": bodies, "keywords": keywords}), folder / "ads.parquet")
    counts = {name: [as_int(row, name) for row in rows] for name in ("clicks", "impressions")}
    pq.write_table(pa.table({"request_id": ids, "ad_id": ids} | counts), folder / "clicks.parquet")
    data = load_dataset(folder / "ads.parquet", folder / "clicks.parquet", None, split="request")
    _, number = np.unique([as_text(row, "page") for row in rows], return_inverse=True)
    page = data.log.ad_id.of_names(
        {ad_id: int(at) for ad_id, at in zip(ids, number, strict=True)}.__getitem__, -1, np.int64
    )
    fold = np.empty(len(page), np.int64)
    for place, (_, test) in enumerate(GroupKFold(_FOLDS).split(page, groups=page)):
        fold[test] = place
    return _Posts(data, page, fold)


def _checked(source: Path, number: int, row: Mapping[str, Any] | DamagedRow) -> Mapping[str, Any]:
    if isinstance(row, DamagedRow):
        raise InputError(f"{source}, row {number}: {row.detail}")
    if missing := [name for name in _NEEDED if name not in row]:
        raise InputError(f"{source} is no file of ads of pages: it lacks {', '.join(missing)}")
    return row


def _prior(data: Dataset) -> Floats:
    """Logits of the test part by what ``adcascade train`` makes of texts alone."""
    options = TrainOptions.of(behaviour_epochs=0, epochs=0, max_user_tokens=8, max_ad_tokens=_TOKENS)
    found = predicted(data, train(data, options))
    order = np.argsort(found.rows)
    assert np.array_equal(found.rows[order], data.split.test)
    return found.logits[order].astype(np.float64)


def _words(posts: _Posts, rows: Integers) -> Floats:
    """Log CTR of every ad by a ridge regression on words and pairs of them, its penalty chosen by folds of pages."""
    texts = np.array([posts.data.ad_text(ad_id) for ad_id in posts.data.log.ad_id[np.arange(len(posts.page))]], object)
    log_ctr = np.log(posts.ctr + 0.5 / posts.data.log.impressions)
    ridge = GridSearchCV(
        make_pipeline(TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)), Ridge()),
        {"ridge__alpha": _PENALTIES},
        cv=GroupKFold(_FOLDS),
    )
    found: Floats = ridge.fit(texts[rows], log_ctr[rows], groups=posts.page[rows]).predict(texts)
    return found


def _in_order(score: Floats, ctr: Floats, page: Integers, fold: Integers) -> Sequence[float]:
    """Share of the pairs of a fold in the right order, and the ends of its interval; equal scores count half."""
    compared = (fold[:, None] == fold) & (ctr[:, None] != ctr)
    said = np.sign(score[:, None] - score)
    right = ((said == np.sign(ctr[:, None] - ctr)) + 0.5 * (said == 0)) * compared

    def share(times: npt.NDArray[np.int64]) -> float:
        pairs = float(times @ compared @ times)
        return float(times @ right @ times) / pairs if pairs else np.nan

    pages, random = int(page.max()) + 1, np.random.default_rng(0)
    draws = (random.multinomial(pages, np.full(pages, 1 / pages))[page] for _ in range(_DRAWS))
    low, high = np.nanpercentile([share(times) for times in draws], [2.5, 97.5])
    return share(np.ones_like(page)), float(low), float(high)
