"""What counts as a word of a text, for search by words. Plain functions; knows no index.

Texts are brought to one form first: compatibility forms (full-width letters, half-width kana, ligatures) to the plain
ones, upper and lower case to one, digits of any script to 0-9, and letters without accents, vowel points and what does
not show. Scripts that are written without spaces, and Hangul, whose words carry endings, are cut into pairs of
characters that overlap, as search engines do (character bigrams); there a text is indexed by its single characters as
well, so that a query of one finds it. Everything else is cut into runs of letters and digits; an emoji is a word.
"""

import unicodedata
from collections.abc import Iterator
from itertools import pairwise

import regex

# Kept in each index version: a query must be cut as its texts were. 1 was runs of lower-case letters in any script.
ANALYZER = 2

# A word that is longer is cut there, as are a text's words and a query's characters.
_MAX_WORD, _MAX_WORDS, _MAX_QUERY = 64, 8192, 4096
# Sorting the marks of a letter takes their number squared, so a letter keeps only so many.
_MAX_MARKS = 8

_PIECES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Hangul}\p{Bopomofo}\u30fc\u3005"
_TOKEN = regex.compile(
    rf"(?P<pieces>[{_PIECES}][{_PIECES}\p{{M}}]*)|\p{{Extended_Pictographic}}|\p{{RI}}{{2}}|[\w--[{_PIECES}]]+",
    regex.VERSION1,
)
_ASCII_WORD = regex.compile(r"[a-z0-9_]+")
_CHARACTER = regex.compile(r"\X")
_MANY_MARKS = regex.compile(rf"(\p{{M}}{{{_MAX_MARKS}}})\p{{M}}+")
_DIGIT = regex.compile(r"[\p{Nd}--[0-9]]", regex.VERSION1)
# Accents of Latin, Greek and Cyrillic letters; points of Hebrew; vowel and Koranic marks, and the stroke that only
# stretches a word, of Arabic.
_DROPPED = regex.compile(
    r"[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670\u06d6-\u06ed]"
)
# What does not show: soft hyphens, joiners, marks of direction, variation selectors. A space of no width parts words.
_INVISIBLE = regex.compile(
    r"[\u00ad\u034f\u061c\u200c-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\ufeff]"
)


def words_of(text: str) -> list[str]:
    """What a text is indexed by, in order; at most 8,192."""
    return _cut(text, with_single=True)[:_MAX_WORDS]


def words_of_query(text: str) -> list[str]:
    """What texts are searched by, in order; of a long query, what stands in its first 4,096 characters."""
    return _cut(text[:_MAX_QUERY], with_single=False)


def _cut(text: str, *, with_single: bool) -> list[str]:
    if text.isascii():
        return [word[:_MAX_WORD] for word in _ASCII_WORD.findall(text.lower())]
    found: list[str] = []
    for match in _TOKEN.finditer(plain_form(text)):
        if match["pieces"] is None:
            found.append(match[0][:_MAX_WORD])
        else:
            found += _pairs(match[0], with_single=with_single)
        if len(found) > _MAX_WORDS:
            break
    return found


def _pairs(run: str, *, with_single: bool) -> Iterator[str]:
    """Overlapping pairs of the characters of a run; a lone character is itself."""
    characters = _CHARACTER.findall(run[:_MAX_WORDS])
    if with_single or len(characters) == 1:
        yield from characters
    for first, second in pairwise(characters):
        yield first + second


def plain_form(text: str) -> str:
    """The form in which equal words are equal: NFKC with cases folded, without what the module leaves out."""
    text = _INVISIBLE.sub("", _MANY_MARKS.sub(r"\1", text)).replace("\u200b", " ")
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u0131", "i")
    text = _DROPPED.sub("", unicodedata.normalize("NFKD", text))
    text = _DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0], "")), text)
    return unicodedata.normalize("NFC", text)
