"""Words of the catalog, searched by BM25 (Robertson and Zaragoza 2009, by the package bm25s). Knows no vectors."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import bm25s
import numpy as np

from artifacts.errors import CorruptVersion
from index_builder.faiss_index import Rows
from index_builder.schedule import Eligibility

logging.getLogger("bm25s").setLevel(logging.WARNING)  # the package turns its own debugging on

# One letter is a word, too: a rare name or a size may be all that a search says.
_WORDS = r"(?u)\b\w+\b"
# What is searched with; more would make a long page's text slow to look up.
_MAX_WORDS = 64


class LexicalIndex:
    """An inverted index of texts by row."""

    def __init__(self, index: bm25s.BM25) -> None:
        self._index = index

    @classmethod
    def of(cls, texts: Iterable[str]) -> "LexicalIndex":
        """Indexes texts; row i is the i-th."""
        words = _words(list(texts))
        if not any(words):
            words = [[""] for _ in words]  # without a vocabulary, bm25s fails
        index = bm25s.BM25()
        index.index(words, show_progress=False)
        return cls(index)

    def save(self, folder: Path) -> None:
        """Writes the index into a folder, which is made."""
        self._index.save(str(folder), show_progress=False, raise_on_serialization_error=True)

    @classmethod
    def load(cls, folder: Path) -> "LexicalIndex":
        """Reads what `save` wrote, memory-mapped. Raises CorruptVersion."""
        try:
            return cls(bm25s.BM25.load(str(folder), mmap=True, show_progress=False))
        except (OSError, ValueError, KeyError) as error:
            raise CorruptVersion(f"{folder} holds no lexical index that can be read: {error}") from error

    def search(self, text: str, k: int, eligible: Eligibility | None = None) -> Rows:
        """Rows of the at most `k` texts that share words with `text`, best first; of `eligible` ones, if given."""
        words = [word for word in _words([text])[0] if word in self._index.vocab_dict][:_MAX_WORDS]
        if not words or k < 1:
            return np.empty(0, np.int64)
        every = self._index.get_scores(words)
        sharing = np.flatnonzero(every > 0)  # mostly few: what follows must not sort a whole catalog
        if eligible is not None:
            sharing = eligible.of(sharing)
        scores = every[sharing]
        if len(scores) > k:
            best = np.argpartition(-scores, k - 1)[:k]
            sharing, scores = sharing[best], scores[best]
        rows: Rows = sharing[np.argsort(-scores, kind="stable")].astype(np.int64)
        return rows


def _words(texts: Sequence[str]) -> list[list[str]]:
    found: list[list[str]] = bm25s.tokenize(
        texts, token_pattern=_WORDS, stopwords=None, return_ids=False, show_progress=False
    )
    return found
