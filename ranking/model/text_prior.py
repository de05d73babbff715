"""What an ad's text alone adds to the logit of a click: linear in layers, words and keywords, solved in closed form.

A log of few clicks for many texts teaches a ridge regression about as much as fine-tuning, sooner. The layers below the
join layer do not depend on the user and are not trained beside it, so that an ad's number is computed once. Knows no
logs and no users.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load, save_file
from scipy.sparse import csr_matrix
from torch import Tensor

from adcascade.reports.interval import Interval
from ranking.inputs.keywords import KEYWORD_BUCKETS, keyword_counts
from ranking.model.batch import TokenIds, TokenRows
from ranking.model.shared_user import SharedUserCrossEncoder
from ranking.spec import TextPriorFit

Vectors = npt.NDArray[np.float32]

# Of hashed tokens and pairs of tokens: few share one in a catalog of ten thousand short texts.
_BITS = 15
WORD_BUCKETS = 2**_BITS
# Odd multipliers that spread a token, and the one before it, over 64 bits (Fibonacci hashing, Knuth, TAOCP 3, 6.4).
_SPREAD, _SPREAD_BEFORE, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(64 - _BITS)


NOT_FITTED = TextPriorFit(ads=0, penalty=0.0, words=1.0, gain=Interval(0.0, 0.0, 0.0))


@dataclass(frozen=True)
class TextPrior:
    """Weights of a text's layers and words, and of an ad's keywords.

        logit(ad) = intercept + sum over layers of layers[l] . unit mean state above l
                              + sum over words of words[w] x tf-idf(w)
                              + sum over terms of keywords of keywords[k] x tf-idf(k)

    Words and terms of keywords are of unit length each. Where keywords are read, the text is that without them.

    Attributes:
        layers: float32 [layers, hidden]; the last is that below the join layer.
        words: float32 [`WORD_BUCKETS`]; zeros where words are not read.
        idf: inverse document frequency of each bucket, float32 [`WORD_BUCKETS`].
        intercept: float32 [1].
        fit: how they were found.
        keywords: float32 [`KEYWORD_BUCKETS`]; None where keywords are a part of the text.
        keyword_idf: of each of these, float32 [`KEYWORD_BUCKETS`]; None as well.
    """

    layers: Tensor
    words: Tensor
    idf: Tensor
    intercept: Tensor
    fit: TextPriorFit
    keywords: Tensor | None = None
    keyword_idf: Tensor | None = None

    @property
    def reads_keywords(self) -> bool:
        """Whether it reads an ad in two parts, see `ranking.inputs.keywords.AdParts`."""
        return self.keywords is not None

    @torch.inference_mode()
    def logits(self, model: SharedUserCrossEncoder, ads: TokenRows, keywords: Sequence[str] = ()) -> Tensor:
        """What each ad adds, float32 [ads], on the device of `ads`.

        Args:
            ads: their texts, without keywords where these are read.
            keywords: see `of_keywords`; () if no ad has any.
        """
        means = model.layer_means(ads, len(self.layers))
        found = self.intercept.to(means.device) + (means * self.layers.to(means.device)).sum(dim=(1, 2))
        if self.fit.words:
            of_words = word_vectors(unpadded(ads), self.idf.numpy()) @ self.words.numpy()
            found = found + torch.from_numpy(of_words).to(found)
        if keywords:
            found = found + torch.from_numpy(self.of_keywords(keywords)).to(found)
        return found

    def of_keywords(self, keywords: Sequence[str]) -> Vectors:
        """What the keywords of each ad add, float32 [ads]; see `ranking.inputs.keywords.keyword_lines`."""
        if self.keywords is None or self.keyword_idf is None:
            return np.zeros(len(keywords), np.float32)
        added: Vectors = keyword_vectors(keywords, self.keyword_idf.numpy()) @ self.keywords.numpy()
        return added

    def save(self, path: Path) -> None:
        """Writes the weights; `fit` is for ``ctr.json``."""
        save_file(self.tensors, path)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All weights by name."""
        found = {"layers": self.layers, "words": self.words, "idf": self.idf, "intercept": self.intercept}
        if self.keywords is not None and self.keyword_idf is not None:
            found |= {"keywords": self.keywords, "keyword_idf": self.keyword_idf}
        return {name: tensor.contiguous() for name, tensor in found.items()}


def load_text_prior(path: Path, fit: TextPriorFit, model: SharedUserCrossEncoder) -> TextPrior:
    """Reads what `TextPrior.save` wrote.

    Raises:
        ValueError: The file holds other tensors than `model` can use, or numbers that are none.
        OSError, SafetensorError: It cannot be read.
    """
    tensors = load(path.read_bytes())
    layers = tensors.get("layers", torch.empty(0))
    if layers.ndim != 2:
        raise ValueError(f"{path.name} holds no table of layers")
    hidden = int(model.encoder.config.hidden_size)
    shapes = {"layers": (len(layers), hidden), "words": (WORD_BUCKETS,), "idf": (WORD_BUCKETS,), "intercept": (1,)}
    if fit.keywords is not None:
        shapes |= {"keywords": (KEYWORD_BUCKETS,), "keyword_idf": (KEYWORD_BUCKETS,)}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
        raise ValueError(f"{path.name} does not hold {', '.join(shapes)} of this model's size")
    if not 1 <= len(layers) <= model.join_layer + 1:
        raise ValueError(f"{path.name} reads {len(layers)} layers below the join layer {model.join_layer}")
    if not all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ValueError(f"{path.name} holds what is no float32 number")
    return TextPrior(**tensors, fit=fit)


def unpadded(rows: TokenRows) -> list[TokenIds]:
    """The tokens of each row without padding."""
    return [ids[:length] for ids, length in zip(rows.ids.tolist(), rows.lengths.tolist(), strict=True)]


def word_counts(texts: Sequence[TokenIds]) -> csr_matrix:
    """1 + ln of how often each token, and each two in a row, is in a text; float32 [texts, `WORD_BUCKETS`].

    Tokens and pairs are hashed; the first and the last token of a text, its marks, count in pairs alone.
    """
    lengths = np.array([len(ids) for ids in texts], np.int64)
    tokens = np.array([token for ids in texts for token in ids], np.uint64)
    text = np.repeat(np.arange(len(texts)), lengths)
    starts = np.r_[0, np.cumsum(lengths)][:-1]
    has_before = np.ones(len(tokens), np.bool_)
    has_before[starts] = False
    inside = has_before.copy()
    inside[starts + lengths - 1] = False
    pair = np.flatnonzero(has_before)
    hashes = np.r_[
        tokens[inside] * _SPREAD, tokens[pair] * _SPREAD ^ (tokens[pair - 1] + np.uint64(1)) * _SPREAD_BEFORE
    ]
    buckets = (hashes >> _SHIFT).astype(np.int64)
    rows = np.r_[text[inside], text[pair]]
    counts = csr_matrix((np.ones(len(rows), np.float32), (rows, buckets)), (len(texts), WORD_BUCKETS))
    counts.data = 1 + np.log(counts.data)  # counts of equal places were added up
    return counts


def word_vectors(texts: Sequence[TokenIds], idf: Vectors) -> csr_matrix:
    """tf-idf of the words of each text, of unit length, float32 [texts, `WORD_BUCKETS`]."""
    return _tf_idf(word_counts(texts), idf)


def keyword_vectors(keywords: Sequence[str], idf: Vectors) -> csr_matrix:
    """tf-idf of the terms of each ad's keywords, of unit length, float32 [ads, `KEYWORD_BUCKETS`]."""
    return _tf_idf(keyword_counts(keywords), idf)


def _tf_idf(counts: csr_matrix, idf: Vectors) -> csr_matrix:
    """Counts, which are changed, times idf, each row of unit length."""
    counts.data *= idf[counts.indices]
    lengths = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1))[:, 0])
    counts.data /= np.repeat(np.maximum(lengths, 1e-12), np.diff(counts.indptr)).astype(np.float32)
    return counts
