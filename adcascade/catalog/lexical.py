"""Words of the catalog, searched by BM25 (Robertson and Zaragoza 2009, by the package bm25s). Knows no vectors."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

import bm25s
import numpy as np

from adcascade.artifacts.errors import CorruptVersion
from adcascade.catalog.schedule import Eligibility
from adcascade.catalog.words import ANALYZER, words_of, words_of_query
from adcascade.vectors.faiss_index import Rows

logging.getLogger("bm25s").setLevel(logging.WARNING)  # the package turns its own debugging on

_ANALYZER_FILE = "analyzer.json"  # which analyzer cut the texts; versions from before there was a second have none
# What the first analyzer took for a word; queries to versions of that time are cut by it.
_FIRST_WORDS = r"(?u)\b\w+\b"
# What is searched with; more would make a long page's text slow to look up.
_MAX_WORDS = 64


class LexicalIndex:
    """An inverted index of texts by row.

    Attributes:
        analyzer: which `adcascade.catalog.words.ANALYZER` cut them.
    """

    def __init__(self, index: bm25s.BM25, analyzer: int = ANALYZER) -> None:
        self._index = index
        self.analyzer = analyzer

    @classmethod
    def of(cls, texts: Iterable[str]) -> "LexicalIndex":
        """Indexes texts; row i is the i-th."""
        words = [words_of(text) for text in texts]
        if not any(words):
            words = [[""] for _ in words]  # without a vocabulary, bm25s fails
        index = bm25s.BM25()
        index.index(words, show_progress=False)
        return cls(index)

    def save(self, folder: Path) -> None:
        """Writes the index into a folder, which is made."""
        self._index.save(str(folder), show_progress=False, raise_on_serialization_error=True)
        (folder / _ANALYZER_FILE).write_text(json.dumps({"analyzer": self.analyzer}))

    @classmethod
    def load(cls, folder: Path) -> "LexicalIndex":
        """Reads what `save` wrote into memory. Raises CorruptVersion."""
        try:
            index = bm25s.BM25.load(str(folder), mmap=False, show_progress=False)
            analyzer = analyzer_of(folder)
        except (OSError, ValueError, KeyError, TypeError, EOFError, MemoryError) as error:
            raise CorruptVersion(f"{folder} holds no lexical index that can be read: {error}") from error
        if not 1 <= analyzer <= ANALYZER:
            raise CorruptVersion(
                f"{folder} was cut into words by analyzer {analyzer}; this release knows 1 to {ANALYZER}. "
                "Build the index again, or use the release that built it"
            )
        return cls(index, analyzer)

    def search(self, text: str, k: int, eligible: Eligibility | None = None) -> Rows:
        """Rows of the at most `k` texts that share words with `text`, best first; of `eligible` ones, if given."""
        cut = words_of_query(text) if self.analyzer > 1 else _first_words_of(text)
        words = [word for word in cut if word in self._index.vocab_dict][:_MAX_WORDS]
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


def analyzer_of(folder: Path) -> int:
    """Which analyzer cut the texts of the index in a folder. Raises ValueError or KeyError if that cannot be read."""
    file = folder / _ANALYZER_FILE
    return int(json.loads(file.read_bytes())["analyzer"]) if file.exists() else 1


def _first_words_of(text: str) -> list[str]:
    found: list[list[str]] = bm25s.tokenize(
        [text], token_pattern=_FIRST_WORDS, stopwords=None, return_ids=False, show_progress=False
    )
    return found[0]
