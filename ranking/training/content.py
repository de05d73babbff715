"""The space in which texts of ads are compared, made of those of a log. Knows no clicks but whose past has any."""

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import TruncatedSVD

from adcascade.catalog.words import ANALYZER
from adcascade.records.packed import sum_of
from ranking.data.content_rows import liked_texts
from ranking.data.dataset import Dataset
from ranking.inputs.content import ContentSpace, hashed_words, tf_idf
from ranking.inputs.features import LEAST_KNOWN
from ranking.spec import ContentFit

# Topics; and which singular value is added to each, so that topics of a few texts alone count less.
_TOPICS, _SHRINKAGE = 128, 60
# Topics whose singular value is less than this share of the greatest are none: texts that are repeated span no more
# than there are different ones, and what is left is rounding.
_NO_TOPIC = 1e-3
# Ads that span the space, those of the newest rows and events; fewer than the least span none.
_MOST_ADS, _LEAST_ADS = 20_000, 20
# A word in one text alone is like no other text; of the others, those in the most texts.
_LEAST_TEXTS, _MOST_WORDS = 2, 1 << 15
_ITERATIONS = 3
# A guess between two logs: of some 1,100 clicks these features help, and of some 44,000 (MovieLens by time), where
# attention over past ads may learn the same by itself, AUC was 0.7813 with them and 0.7853 without.
_MOST_CLICKS = 20_000
# Rows that tell whether users are known to like anything.
_ASKED = 20_000


@dataclass(frozen=True)
class FittedContent:
    """A space, and what ``ctr.json`` says of it."""

    space: ContentSpace
    fit: ContentFit


def fit_content(data: Dataset, events: int, *, most_clicks: float = _MOST_CLICKS) -> FittedContent | None:
    """The space of the ads that the training part shows or looks back on.

    Latent semantic analysis (Deerwester et al. 1990) of tf-idf weights T = U S V'. A text's coordinates T V are divided
    by their size over all texts, softly, so that a few topics that every text has do not make all of them alike
    (whitening with shrinkage):

        topics = V / (S + S[60])        where S > 0.001 S[0]

    Args:
        events: how many of a user's newest events are looked at.
        most_clicks: of the training part; more of them need no space.

    Returns:
        None where there are more clicks, where hardly any row is of a user who is known to have liked anything, or
        where there are few ads.
    """
    train = data.split.train
    if sum_of(data.log.clicks, train) > most_clicks:
        return None
    asked = train[np.linspace(0, len(train) - 1, min(_ASKED, len(train))).astype(np.int64)]
    if len(np.unique(liked_texts(data, data.past, asked, events)[0])) < LEAST_KNOWN * len(asked):
        return None
    texts = _texts(data)
    counts = hashed_words(texts)
    having = np.bincount(counts.indices, minlength=counts.shape[1])
    words = np.flatnonzero(having >= _LEAST_TEXTS)
    words = np.sort(words[np.argsort(-having[words], kind="stable")][:_MOST_WORDS])
    topics = min(_TOPICS, len(texts) // 2, len(words) // 2)
    if len(texts) < _LEAST_ADS or not topics:
        return None
    idf = (np.log((1 + len(texts)) / (1 + having[words])) + 1).astype(np.float32)
    svd = TruncatedSVD(topics, n_iter=_ITERATIONS, random_state=0).fit(tf_idf(counts, words, idf))
    spread = svd.singular_values_[svd.singular_values_ > _NO_TOPIC * svd.singular_values_.max()]
    of_words = (svd.components_[: len(spread)] / (spread + spread[min(_SHRINKAGE, len(spread) - 1)])[:, None]).T
    space = ContentSpace(words, idf, np.ascontiguousarray(of_words, np.float32), events)
    return FittedContent(space, ContentFit(ads=len(texts), analyzer=ANALYZER, events=events))


def _texts(data: Dataset) -> list[str]:
    """Of the ads that train and of those in histories before the log, each once, the newest first."""
    log = len(data.log)
    rows = np.concatenate([np.arange(log, len(data.events)), data.split.train])
    codes = data.events.ad_id.sorted.codes[rows[::-1]]
    first = np.sort(np.unique(codes, return_index=True)[1])[:_MOST_ADS]
    names = data.events.ad_id.sorted.names.take(codes[first]).to_pylist()
    return [data.ad_text(ad_id) for ad_id in names]
