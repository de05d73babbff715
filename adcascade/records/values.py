"""Single values as they come from JSON, CSV or Parquet, turned into the types of the records.

What stands for no value (`adcascade.records.missing`) is missing everywhere: it is "", 0 or None, and never a text.
"""

import ast
import json
import re
import unicodedata
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, TypeGuard

from adcascade.records.errors import InputError
from adcascade.records.missing import is_missing
from adcascade.records.rounded import RoundedFloat
from adcascade.records.times import read_moment

# Whole numbers below this are exact in a float of 64 bits.
_EXACT = 2**53
NULL_IDS = frozenset(("", "null", "nan", "-nan", "none", "<na>", "nat", "<null>", "\\n"))
_INVISIBLE_ENDS = "\ufeff\u200b"
_WHOLE = re.compile(r"(-?(?:0|[1-9]\d*))\.0+", re.ASCII)
_ROUNDED = re.compile(r"-?\d(?:\.\d+)?[eE]\+\d+", re.ASCII)
# As spreadsheets write a thousand in much of Europe; other programs write 1 so.
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(?:\.000)+", re.ASCII)
_DIGITS = re.compile(r"[+-]?\d+", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
# A list as Python or NumPy print it: ['a', 'b'] or ['a' 'b'].
_BARE_LIST = re.compile(r"[\[{]((?:[^\[\]{}\"']*,[^\[\]{}\"']*)?)[\]}]")
_PRINTED_LIST = re.compile(rf"\[\s*(?:(?:{_QUOTED})\s*(?:,\s*|(?=['\"\]])))*\]", re.DOTALL)


def as_id(row: Mapping[str, Any], name: str) -> str:
    """An id: without blanks around it, in Unicode's form NFC; "" if missing.

    Whole floats are integers, as text, too: ``10.0``, which pandas makes of 10 where other rows have none, is ``10``.
    Leading zeros stay.

    Raises:
        InputError: A truth value or another type, a float too large to be exact, a number cut to a few digits
            (``1.23E+12``), control characters, or no UTF-8.
    """
    value = row.get(name)
    if isinstance(value, bytes):
        value = _decoded(name, value)
    if is_missing(value):
        return ""
    if isinstance(value, str):
        return _id_of_text(name, value)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise InputError(f"{name} must be text, not {type(value).__name__}")
    if isinstance(value, float) and (abs(value) >= _EXACT or isinstance(value, RoundedFloat)):
        raise InputError(f"{name} {value:g} is a float whose last digits may be lost: write ids as text or integers")
    return _written(value)


def _id_of_text(name: str, value: str) -> str:
    text = value.strip().strip(_INVISIBLE_ENDS).strip()
    if text.casefold() in NULL_IDS:
        return ""
    if not text.isascii():
        text = unicodedata.normalize("NFC", _utf8(name, text))
    if not text.isprintable() and any(unicodedata.category(char) == "Cc" for char in text):
        raise InputError(f"{name} has control characters: {text[:80]!r}")
    if whole := _WHOLE.fullmatch(text):
        if abs(int(whole[1])) >= _EXACT:
            raise InputError(f"{name} {text[:80]} is a float whose last digits may be lost: write ids as integers")
        return whole[1]
    if _ROUNDED.fullmatch(text):
        raise InputError(f"{name} {text[:80]} is a number whose last digits are lost: write ids as text or integers")
    return text


def as_text(row: Mapping[str, Any], name: str) -> str:
    """A string; numbers are written out; "" if missing."""
    value = row.get(name)
    if isinstance(value, bytes):
        value = _decoded(name, value)
    if is_missing(value):
        return value if _is_blank(value) else ""
    if isinstance(value, str):
        return _utf8(name, value)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise InputError(f"{name} must be text, not {type(value).__name__}")
    return _written(value)


def as_word(value: Any) -> str | None:
    """A value of any plain type as a short text, such as context has it; "" if missing, None if it is no plain value.

    Truth values are ``true`` and ``false``, as in JSON; dates and times are ISO 8601, durations are seconds. Lists,
    objects and bytes that are no UTF-8 are no plain values. Raises InputError for text that is no UTF-8.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
    if is_missing(value):
        return ""
    if isinstance(value, str):
        return _utf8("text", value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Decimal):
        return _written(value)
    if isinstance(value, timedelta):
        return _written(value.total_seconds())
    return value.isoformat() if isinstance(value, date | datetime | time) else None


def as_texts(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Several strings: a list, a list as text (of JSON, Python or NumPy), or one string with commas.

    A string without commas may have semicolons or bars in their place.
    """
    value = row.get(name)
    if is_missing(value):
        return ()
    if isinstance(value, str):
        value = _listed(_utf8(name, value))
    if not isinstance(value, list | tuple):
        raise InputError(f"{name} must be a list of texts, not {type(value).__name__}")
    return tuple(as_text({name: part}, name) for part in value if not is_missing(part) or _is_blank(part))


def _listed(text: str) -> list[Any]:
    if text.strip().startswith("[") and text.strip().endswith("]"):
        try:
            return list(json.loads(text))
        except (ValueError, RecursionError):
            pass
        try:
            if _PRINTED_LIST.fullmatch(text.strip()):
                return [ast.literal_eval(part) for part in re.findall(_QUOTED, text, re.DOTALL)]
        except (ValueError, SyntaxError):
            pass
    if bare := _BARE_LIST.fullmatch(text.strip()):  # as Spark and PostgreSQL write lists of words
        text = bare[1]
    mark = next((mark for mark in ",;|" if mark in text), ",")
    return [part.strip() for part in text.split(mark) if part.strip()]


def as_objects(row: Mapping[str, Any], name: str) -> list[Any]:
    """A list of objects, or such a list as JSON text (as CSV has it); empty if missing. Raises InputError."""
    value = row.get(name)
    if is_missing(value):
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InputError(f"{name} must be a JSON list, not {value[:80]!r}") from None
    if not isinstance(value, list):
        raise InputError(f"{name} must be a list, not {type(value).__name__}")
    return value


def as_int(row: Mapping[str, Any], name: str) -> int:
    """A whole number; 0 if missing."""
    value: Any = row.get(name)
    if is_missing(value):
        return 0
    try:
        if isinstance(value, str):
            text = value.strip()
            if not (len(text) < 64 and _DECIMAL.fullmatch(text)):
                raise ValueError
            if _GROUPED.fullmatch(text):
                plain = text.replace(".", "")
                raise InputError(
                    f"{name} {text!r} may be {text.partition('.')[0]} or {plain}: write it by its digits alone"
                )
            number: Any = int(text) if _DIGITS.fullmatch(text) else Decimal(text)
        else:
            number = value
        whole = int(number)
        if isinstance(number, bool) or whole != number or not -(2**63) <= whole < 2**63:
            raise ValueError
        return whole
    except InputError:
        raise
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} must be a whole number, not {repr(value)[:80]}") from None


def as_attributes(value: Any) -> dict[str, str]:
    """A mapping of strings: a dict, Arrow's list of pairs, or a JSON object as text (as CSV has it).

    Missing values are left out; lists and objects in it become JSON.
    """
    if is_missing(value):
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise InputError(f"attributes must be a JSON object, not {value[:80]!r}") from None
    if isinstance(value, list):
        try:
            value = dict(value)
        except (TypeError, ValueError):
            raise InputError("attributes must be an object, not a list") from None
    if not isinstance(value, dict):
        raise InputError(f"attributes must be an object, not {type(value).__name__}")
    given = [(name, part) for name, part in value.items() if not is_missing(part) or _is_blank(part)]
    return {_utf8("attributes", str(name)): _utf8("attributes", _plain(part)) for name, part in given}


def as_time(row: Mapping[str, Any], name: str) -> datetime | None:
    """A moment in UTC (see `adcascade.records.times`); None if missing. Raises InputError."""
    at = read_moment(row.get(name), name)
    return None if at is None else at.time


def _is_blank(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and not value.strip()


def _written(value: int | float | Decimal) -> str:
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, Decimal):
        return format(value.to_integral_value() if value == value.to_integral_value() else value.normalize(), "f")
    return str(int(value)) if value.is_integer() else str(float(value))


def _decoded(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InputError(f"{name} has bytes that are no UTF-8") from None


def _utf8(name: str, value: str) -> str:
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise InputError(f"{name} has half of a surrogate pair, which is no UTF-8")
    return value


def _plain(value: Any) -> str:
    word = value if _is_blank(value) else as_word(value)
    return json.dumps(value, ensure_ascii=False, default=str) if word is None else word
