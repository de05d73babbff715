"""Arrow columns turned into ids, words, whole numbers and moments at once, where their values are plainly good.

What is not plainly good is converted value by value, each distinct value once, by the functions that rows go through;
what these refuse is no value here, and its rows are for whoever can say why. Knows no logs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from adcascade.records.batches import plain_values
from adcascade.records.coded import NO_VALUE, CodedColumn, Mask, codes_of
from adcascade.records.errors import InputError
from adcascade.records.missing import NULL_WORDS
from adcascade.records.values import NULL_IDS

# Makes values of the records of plain Python values; an InputError stands for what cannot be.
Convert = Callable[[Sequence[Any]], list[Any]]

_TEXT = pa.large_string()
_WHOLE_FLOATS = 2**53
_NULL_IDS, _NULL_WORDS = (pa.array(sorted(words), _TEXT) for words in (NULL_IDS, NULL_WORDS))
# ASCII that no rule of ids changes or refuses: without blanks, and without what numbers are written with, but digits.
_ID = r"^[!-*,\-/-~]+$"
# ASCII without blanks around it.
_WORD = r"^[!-~]([ -~]*[!-~])?$"
_BYTES = np.arange(256)
_ID_BYTES = (_BYTES > 0x20) & (_BYTES < 0x7F) & ~np.isin(_BYTES, (ord("+"), ord(".")))
_WORD_BYTES = (_BYTES > 0x20) & (_BYTES < 0x7F)


@dataclass(frozen=True)
class PlainTexts:
    """Texts of a column, and which rows are good; what others read says nothing."""

    column: CodedColumn
    good: Mask


@dataclass(frozen=True)
class PlainNumbers:
    """Whole numbers of a column, int64 [rows], which rows have none (theirs is 0), and which rows are good."""

    values: npt.NDArray[np.int64]
    missing: Mask
    good: Mask


def is_text(kind: pa.DataType) -> bool:
    """Whether this is a type of strings."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def distinct(column: pa.Array) -> pa.DictionaryArray:
    """The distinct values of a column in place of its own dictionary, of which some may be alike or of no row.

    Raises ArrowNotImplementedError for lists and objects.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_null(column.type) or is_text(column.type):
        column = column.cast(_TEXT)
    return column.dictionary_encode()


def plain_ids(column: pa.Array, convert: Convert, max_chars: int) -> PlainTexts:
    """Ids as `adcascade.records.values.as_id` reads them, at most so long; "" where there is none."""

    def is_plain(texts: pa.Array) -> Mask:
        return _matches(texts, _ID_BYTES, _ID) & ~_as_mask(pc.is_in(pc.ascii_lower(texts), _NULL_IDS))

    return _texts(distinct(column), is_plain, convert, max_chars, "")


def plain_words(column: pa.Array, convert: Convert, max_chars: int) -> PlainTexts:
    """Words as `adcascade.records.values.as_word` reads them, at most so long; None where there is none."""

    def is_plain(texts: pa.Array) -> Mask:
        return _matches(texts, _WORD_BYTES, _WORD) & ~_as_mask(pc.is_in(texts, _NULL_WORDS))

    return _texts(distinct(column), is_plain, convert, max_chars, None)


def _matches(texts: pa.Array, byte_is_good: Mask, pattern: str) -> Mask:
    """Which texts match a pattern, as all do that have bytes and none but good ones."""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    used = np.frombuffer(data if data is not None else b"", np.uint8)[ends[0] : ends[-1]]
    if byte_is_good[used].all():
        matched: Mask = ends[1:] > ends[:-1]
        return matched
    is_ascii = pc.string_is_ascii(texts)
    return _as_mask(pc.match_substring_regex(pc.if_else(is_ascii, texts, pa.scalar("", _TEXT)), pattern))


def _as_mask(flags: pa.Array) -> Mask:
    return flags.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _texts(
    coded: pa.DictionaryArray,
    is_plain: Callable[[pa.Array], Mask],
    convert: Convert,
    max_chars: int,
    nothing: str | None,
) -> PlainTexts:
    values, codes = coded.dictionary, codes_of(coded.indices)
    if pa.types.is_integer(values.type):
        return PlainTexts(CodedColumn(codes, values.cast(_TEXT), nothing), np.ones(len(codes), bool))
    if pa.types.is_large_string(values.type):
        plain = is_plain(values) & (pc.binary_length(values).to_numpy() <= max_chars)
        if plain.all():
            return PlainTexts(CodedColumn(codes, values, nothing), np.ones(len(codes), bool))
        texts = pc.if_else(pa.array(plain), values, pa.scalar(None, _TEXT))
    else:
        plain, texts = np.zeros(len(values), bool), pa.nulls(len(values), _TEXT)
    odd = np.flatnonzero(~plain)
    found = _converted(values.take(pa.array(odd)), convert)
    refused = [not (text is None or isinstance(text, str)) or len(text or "") > max_chars for text in found]
    kept = [None if bad else text or None for text, bad in zip(found, refused, strict=True)]
    texts = pc.replace_with_mask(texts, pa.array(~plain), pa.array(kept, _TEXT))
    good = np.ones(len(values) + 1, bool)  # the last one is that of `NO_VALUE`
    good[odd[refused]] = False
    of_values = CodedColumn.of_arrow(texts, nothing)
    place = np.append(of_values.codes, np.int32(NO_VALUE))
    return PlainTexts(CodedColumn(place[codes], of_values.names, nothing), good[codes])


def _converted(values: pa.Array, convert: Convert) -> list[Any]:
    """What rows with these values would hold; an error in place of what cannot be read or converted."""
    try:
        return convert(plain_values(values))
    except (ValueError, OverflowError):
        return [_one_converted(values.slice(place, 1), convert) for place in range(len(values))]


def _one_converted(value: pa.Array, convert: Convert) -> Any:
    try:
        return convert(plain_values(value))[0]
    except (ValueError, OverflowError) as error:
        return InputError(str(error))


def plain_numbers(column: pa.Array, convert: Convert) -> PlainNumbers:
    """Whole numbers as `adcascade.records.values.as_int` reads them; a missing one is None to `convert`."""
    kind = column.type
    if pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
        values = pc.fill_null(column, 0).to_numpy(zero_copy_only=False).astype(np.int64)
        return PlainNumbers(values, _as_mask(column.is_null()), np.ones(len(values), bool))
    if pa.types.is_float32(kind) or pa.types.is_float64(kind):
        floats = pc.fill_null(column, np.nan).to_numpy(zero_copy_only=False).astype(np.float64)
        missing = np.isnan(floats)
        whole = (np.abs(floats) < _WHOLE_FLOATS) & (np.floor(floats) == floats)
        return PlainNumbers(np.where(whole, floats, 0).astype(np.int64), missing, whole | missing)
    coded = distinct(column)
    found = _converted(coded.dictionary, convert)
    codes = codes_of(coded.indices)
    good = np.array([*(value is None or (type(value) is int and abs(value) < 2**63) for value in found), True])
    numbers = [value if good[place] and value is not None else 0 for place, value in enumerate(found)]
    missing = np.array([*(value is None for value in found), True])
    return PlainNumbers(np.array([*numbers, 0], np.int64)[codes], missing[codes], good[codes])


def converted_values(column: pa.Array, convert: Convert) -> tuple[list[Any], npt.NDArray[np.int32]]:
    """What `convert` makes of each distinct value of a column, and then of no value; and which of them each row has."""
    coded = distinct(column)
    return [*_converted(coded.dictionary, convert), None], codes_of(coded.indices)
