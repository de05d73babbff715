"""How near what an ad says is to what the user liked: content-based filtering, computed alike in training and serving.

Words are those of the catalog's search, in any script. Texts lie in a latent semantic space (LSA, Deerwester et al.
1990) that the ads of a log span. Knows no tensors, no logs and no models.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save_file
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer

from adcascade.catalog.words import words_of

Vectors = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

# Characters of a text that are read.
MOST_CHARS = 640
# Into how many numbers words are hashed: of a hundred thousand words, two thirds share theirs with no other.
_HASHES = 1 << 18
# Of the texts that a user liked, the mean of so many that are nearest.
_NEAREST = 3
# Texts whose words are looked up at once.
_TEXTS = 1 << 14
_TENSORS = ("words", "idf", "topics")


@dataclass(frozen=True)
class Similarity:
    """What each of some ads has in common with what its user liked; NaN where the user is not known to like anything.

    Attributes:
        total: sum of the cosines over the square root of their number, float64 [rows]: more are better evidence.
        nearest: mean of the three highest cosines, float64 [rows].
    """

    total: Floats
    nearest: Floats

    @classmethod
    def of(cls, cosines: Floats) -> "Similarity":
        """Of the cosines with each liked text, float64 [rows, texts]; NaN where a row has fewer than others."""
        known = ~np.isnan(cosines)
        count = known.sum(axis=1)
        total = np.where(known, cosines, 0.0).sum(axis=1) / np.sqrt(np.maximum(count, 1))
        if cosines.shape[1] > _NEAREST:
            cosines = -np.partition(np.where(known, -cosines, np.inf), _NEAREST - 1, axis=1)[:, :_NEAREST]
            known = np.isfinite(cosines)
        nearest = np.where(known, cosines, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
        return cls(*(np.where(count > 0, values, np.nan) for values in (total, nearest)))


@dataclass(frozen=True, eq=False)
class ContentSpace:
    """Unit vectors of texts.

        vector(text) = (1 + ln count(word)) x idf(word), of unit length, times topics, of unit length

    Attributes:
        words: hashes of the words that are read, rising, int64 [words].
        idf: ln((1 + texts) / (1 + texts that have the word)) + 1 of each, float32 [words].
        topics: what each word says of each topic, float32 [words, topics].
        events: how many of a user's newest events are looked at.

    Example:
        >>> import numpy as np
        >>> from ranking.inputs.content import hashed_words, ContentSpace
        >>> words = np.unique(hashed_words(["red shoes", "blue coat"]).indices).astype(np.int64)
        >>> space = ContentSpace(words, np.ones(4, np.float32), np.eye(4, dtype=np.float32), events=100)
        >>> vectors = space.vectors(["red shoes", "shoes", "???"])
        >>> np.round(vectors @ vectors[0], 2).tolist()
        [1.0, 0.71, 0.0]
    """

    words: npt.NDArray[np.int64]
    idf: Vectors
    topics: Vectors
    events: int

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self.topics.shape[1])

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """Of each text, float32 [texts, topics]; zeros where it has no word that is read."""
        found = np.zeros((len(texts), self.width), np.float32)
        for start in range(0, len(texts), _TEXTS):
            some = slice(start, start + _TEXTS)
            vectors = tf_idf(hashed_words(texts[some]), self.words, self.idf) @ self.topics
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            np.divide(vectors, lengths, out=found[some], where=lengths > 1e-9)
        return found

    def save(self, path: Path) -> None:
        """Writes the space."""
        save_file({name: np.ascontiguousarray(getattr(self, name)) for name in _TENSORS}, path)

    @classmethod
    def load(cls, path: Path, events: int) -> "ContentSpace":
        """Reads what `save` wrote.

        Raises:
            ValueError: The file holds something else.
            OSError, SafetensorError: It cannot be read.
        """
        tensors = load(path.read_bytes())
        if tensors.keys() != set(_TENSORS):
            raise ValueError(f"{path.name} does not hold {', '.join(_TENSORS)}")
        words, idf, topics = (tensors[name] for name in _TENSORS)
        if words.dtype != np.int64 or words.ndim != 1 or (np.diff(words) <= 0).any():
            raise ValueError(f"{path.name} holds no rising hashes of words")
        if idf.shape != words.shape or topics.ndim != 2 or len(topics) != len(words) or not topics.shape[1]:
            raise ValueError(f"{path.name} holds tables of sizes that do not fit")
        if not all(one.dtype == np.float32 and np.isfinite(one).all() for one in (idf, topics)):
            raise ValueError(f"{path.name} holds what is no float32 number")
        return cls(words, idf, topics, events)


def _words(text: str) -> list[str]:
    """Words of the beginning of a text. One character may stand for eighteen (U+FDFA), so it is cut twice."""
    beginning = text[:MOST_CHARS]
    if not beginning.isascii():
        beginning = unicodedata.normalize("NFKC", beginning)[:MOST_CHARS]
    return words_of(beginning)


_HASHER = HashingVectorizer(analyzer=_words, n_features=_HASHES, norm=None, alternate_sign=False)


def hashed_words(texts: Sequence[str]) -> csr_matrix:
    """How often each word is in the first `MOST_CHARS` characters of each text, by the word's hash.

    Returns:
        float64 [texts, 2^18].
    """
    if not texts:
        return csr_matrix((0, _HASHES))
    counts: csr_matrix = _HASHER.transform(texts)
    return counts


def tf_idf(counts: csr_matrix, words: npt.NDArray[np.int64], idf: Vectors) -> csr_matrix:
    """Rows of `hashed_words` as unit vectors of the words that are read, float32 [texts, words]."""
    place = np.minimum(np.searchsorted(words, counts.indices), max(0, len(words) - 1))
    is_read = words[place] == counts.indices if len(words) else np.zeros(len(place), np.bool_)
    text = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))[is_read]
    place = place[is_read]
    values = (1 + np.log(counts.data[is_read])) * idf[place]
    lengths = np.sqrt(np.bincount(text, values**2, minlength=counts.shape[0]))
    values = (values / np.maximum(lengths[text], 1e-12)).astype(np.float32)
    return csr_matrix((values, (text, place)), (counts.shape[0], len(words)))
