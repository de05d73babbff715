"""An ad's keywords as terms of their own, beside the text that tells the rest; the same in training and serving.

In one text with title and body, keywords come last, are cut at the token limit, and hardly count beside the words
before them. A keyword is a term as a whole, and so is each of its words, which are those of the catalog's search, in
any script. Knows no tensors, no logs and no models.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer

from adcascade.catalog.words import plain_form, words_of
from adcascade.records.ads import Ad
from adcascade.records.limits import MAX_FIELD_CHARS
from ranking.inputs.text import render_ad

# Characters that are read of all keywords of an ad together.
MOST_KEYWORD_CHARS = 2048
# Into how many numbers terms are hashed.
KEYWORD_BUCKETS = 2**15
# Begins the term of a whole keyword: no word has it, and so no keyword is taken for one of the same letters.
_WHOLE = "\n"


class AdParts(NamedTuple):
    """An ad as a prior of texts reads it where it reads keywords.

    Attributes:
        text: what `render_ad` makes of the ad without its keywords.
        keywords: see `keyword_lines`.
    """

    text: str
    keywords: str

    @property
    def key(self) -> str:
        """A text that no ad has whose text or keywords are others."""
        return f"{len(self.text)} {self.text}{self.keywords}"


def parts_of(ad: Ad, text: str) -> AdParts:
    """The parts of an ad whose text with its keywords is `text`."""
    if not ad.keywords:
        return AdParts(text, "")
    return AdParts(render_ad(replace(ad, keywords=())), keyword_lines(ad.keywords))


def keyword_lines(keywords: Sequence[str]) -> str:
    """The keywords, one a line, blanks squeezed to one space; 256 characters of each, `MOST_KEYWORD_CHARS` of all.

    Example:
        >>> from ranking.inputs.keywords import keyword_lines, keyword_terms
        >>> lines = keyword_lines(["Trail  Running", " ", "CAFÉ"])
        >>> lines
        'Trail Running\\nCAFÉ'
        >>> keyword_terms(lines)
        ['\\ntrail running', '\\ncafe', 'trail', 'running', 'cafe']
    """
    return "\n".join(_cut(" ".join(keyword[:MAX_FIELD_CHARS].split()) for keyword in keywords))


def keyword_terms(lines: str) -> list[str]:
    """Terms of `keyword_lines`: each line in the form in which equal words are equal, and the words of each.

    One character may stand for eighteen (U+FDFA), so lines are cut once more.
    """
    plain = list(_cut(" ".join(_plain(line).split()) for line in lines.splitlines()))
    return [*(_WHOLE + line for line in plain), *(word for line in plain for word in words_of(line))]


def _cut(lines: Iterable[str]) -> Iterator[str]:
    """Lines that are not empty, as far as they are read."""
    left = MOST_KEYWORD_CHARS
    for line in lines:
        if part := line[: min(left, MAX_FIELD_CHARS)]:
            yield part
        left -= len(part)
        if not left:
            return


def _plain(line: str) -> str:
    """Without halves of surrogate pairs, which JSON may hold and which cannot be hashed."""
    return line.lower() if line.isascii() else plain_form(line.encode("utf-8", "replace").decode())


_HASHER = HashingVectorizer(
    analyzer=keyword_terms, n_features=KEYWORD_BUCKETS, norm=None, alternate_sign=False, dtype=np.float32
)


def keyword_counts(keywords: Sequence[str]) -> csr_matrix:
    """1 + ln of how often each term is among the `keyword_lines` of each ad, by the term's hash.

    Returns:
        float32 [ads, `KEYWORD_BUCKETS`].
    """
    if not keywords:
        return csr_matrix((0, KEYWORD_BUCKETS), dtype=np.float32)
    counts: csr_matrix = _HASHER.transform(keywords)
    counts.data = 1 + np.log(counts.data)
    return counts
