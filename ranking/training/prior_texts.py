"""What the ridge regression of a prior of texts reads of ads: layers, and topics of words and of keywords."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD

from adcascade.catalog.words import ANALYZER
from adcascade.reports.interval import Interval
from ranking.calibration.ridge import Floats, RidgeFit, Vectors
from ranking.inputs.keywords import keyword_counts
from ranking.model.batch import TokenIds
from ranking.model.text_prior import TextPrior, keyword_vectors, word_counts, word_vectors
from ranking.spec import KeywordsFit, TextPriorFit

# What a word may count beside a layer, and what a term of keywords.
WORD_SCALES, KEYWORD_SCALES = (0.0, 0.5, 1.0), (0.0, 0.7, 1.4)
# Dimensions of what words say together (latent semantic analysis, Deerwester et al. 1990); few ads read none.
_TOPICS, _LEAST_ADS = 256, 20
# Texts whose products with each other are few; and squared singular values that are none (texts that are equal).
_MOST_EXACT, _NO_TOPIC = 4096, 1e-6


def reads_keywords(keywords: Sequence[str]) -> bool:
    """Whether enough of some ads have any for these to stand beside the text; see `keyword_lines`."""
    return sum(map(bool, keywords)) >= _LEAST_ADS


@dataclass(frozen=True)
class Terms:
    """Words of texts, or terms of keywords.

    Attributes:
        idf: of each bucket, float32 [buckets].
        topics: what each topic makes of a bucket, float32 [topics, buckets].
    """

    idf: Vectors
    topics: Vectors

    @classmethod
    def without_topics(cls, counts: csr_matrix) -> "Terms":
        """Of counts [texts, buckets]: idf = ln((1 + texts) / (1 + texts that have the term)) + 1."""
        texts, buckets = counts.shape
        having = np.bincount(counts.indices, minlength=buckets)
        idf = (np.log((1 + texts) / (1 + having)) + 1).astype(np.float32)
        return cls(idf, np.zeros((0, buckets), np.float32))

    def spanned_by(self, vectors: csr_matrix) -> "Terms":
        """The same with the topics of tf-idf [texts, buckets]."""
        texts = vectors.shape[0]
        return Terms(self.idf, topics_of(vectors, min(_TOPICS, texts // 2))) if texts >= _LEAST_ADS else self


@dataclass(frozen=True)
class PriorTexts:
    """What is read of ads.

    Attributes:
        vectors: unit means of layers, then topics of words, then topics of keywords, float32 [ads, width].
        layers, hidden: how many layers, and numbers in each.
        words: of their texts.
        keywords: None where these are a part of the text.
    """

    vectors: Vectors
    layers: int
    hidden: int
    words: Terms
    keywords: Terms | None

    @classmethod
    def of(cls, layers: Vectors, tokens: Sequence[TokenIds], keywords: Sequence[str] | None) -> "PriorTexts":
        """Of layers [ads, layers, hidden], the tokens of the same texts, and the `keyword_lines` beside these."""
        ads, depth, hidden = layers.shape
        words = Terms.without_topics(word_counts(tokens))
        of_words = word_vectors(tokens, words.idf)
        words = words.spanned_by(of_words)
        columns, of_keywords = [layers.reshape(ads, depth * hidden), of_words @ words.topics.T], None
        if keywords is not None:
            of_keywords = Terms.without_topics(keyword_counts(keywords))
            terms = keyword_vectors(keywords, of_keywords.idf)
            of_keywords = of_keywords.spanned_by(terms)
            columns.append(terms @ of_keywords.topics.T)
        return cls(np.hstack(columns), depth, hidden, words, of_keywords)

    @property
    def _widths(self) -> list[int]:
        """Columns of layers, of words and of keywords."""
        return [
            self.layers * self.hidden,
            len(self.words.topics),
            0 if self.keywords is None else len(self.keywords.topics),
        ]

    def scales(self) -> list[list[Floats]]:
        """What each column counts, a row for each of `WORD_SCALES`, a column for each of `KEYWORD_SCALES`."""
        of_keywords = (1.0,) if self.keywords is None else KEYWORD_SCALES
        return [[np.repeat([1.0, word, keyword], self._widths) for keyword in of_keywords] for word in WORD_SCALES]

    def fit(self, ridge: RidgeFit, gain: Interval, *, with_training: bool) -> TextPriorFit:
        """How the weights of a ridge regression were chosen; see `TextPriorFit`."""
        row, column = ridge.scale
        keywords = None
        if self.keywords is not None:
            keywords = KeywordsFit(scale=KEYWORD_SCALES[column], analyzer=ANALYZER)
        ads, words = len(self.vectors), WORD_SCALES[row]
        return TextPriorFit(
            ads=ads, penalty=ridge.penalty, words=words, gain=gain, keywords=keywords, with_training=with_training
        )

    def prior(self, weights: Floats, center: float, fit: TextPriorFit) -> TextPrior:
        """With weights of `vectors`; an ad whose logit would be `center` adds nothing."""
        of_layers, of_words, of_keywords = np.split(weights.astype(np.float32), np.cumsum(self._widths)[:-1])
        keywords = keyword_idf = None
        if self.keywords is not None:
            keywords = torch.from_numpy(of_keywords @ self.keywords.topics)
            keyword_idf = torch.from_numpy(self.keywords.idf)
        return TextPrior(
            layers=torch.from_numpy(of_layers).view(self.layers, self.hidden),
            words=torch.from_numpy(of_words @ self.words.topics),
            idf=torch.from_numpy(self.words.idf),
            intercept=torch.tensor([-center], dtype=torch.float32),
            fit=fit,
            keywords=keywords,
            keyword_idf=keyword_idf,
        )


def topics_of(words: csr_matrix, count: int) -> Vectors:
    """The leading right singular vectors of [texts, buckets], [count, buckets].

    Of few texts exact, from the eigenvectors u of the products of texts: words' u / s; of many by random projections.
    """
    texts = words.shape[0]
    if texts > _MOST_EXACT:
        return np.asarray(TruncatedSVD(count, random_state=0).fit(words).components_, np.float32)
    squares, vectors = eigh((words @ words.T).toarray().astype(np.float64), subset_by_index=[texts - count, texts - 1])
    found = np.asarray(words.T @ vectors[:, ::-1]).T / np.sqrt(np.maximum(squares[::-1, None], _NO_TOPIC))
    return np.asarray(found * (squares[::-1, None] > _NO_TOPIC), np.float32)
