"""Single values as they come from JSON, CSV or Parquet, turned into the types of the records."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from records.errors import InputError


def as_text(row: Mapping[str, Any], name: str) -> str:
    """A string; numbers are written out, None becomes ""."""
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return _utf8(name, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} must be text, not {type(value).__name__}")
    return str(int(value)) if isinstance(value, int) or value.is_integer() else str(value)


def as_texts(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Several strings: a list, or one string with commas (as CSV has it)."""
    value = row.get(name)
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if not isinstance(value, list | tuple):
        raise InputError(f"{name} must be a list of texts, not {type(value).__name__}")
    return tuple(as_text({name: part}, name) for part in value)


def as_int(row: Mapping[str, Any], name: str) -> int:
    """A whole number; 0 if missing."""
    value = row.get(name)
    if value is None or value == "":
        return 0
    try:
        number = float(value)
        if isinstance(value, bool) or not number.is_integer():
            raise ValueError
        whole = int(value) if isinstance(value, int) else int(number)
        if not -(2**63) <= whole < 2**63:
            raise ValueError
        return whole
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} must be a whole number, not {value!r}") from None


def as_attributes(value: Any) -> dict[str, str]:
    """A mapping of strings: a dict, Arrow's list of pairs, or a JSON object as text (as CSV has it)."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise InputError(f"attributes must be a JSON object, not {value[:80]!r}") from None
    if isinstance(value, list):
        try:
            value = dict(value)
        except (TypeError, ValueError):
            raise InputError("attributes must be an object, not a list") from None
    if not isinstance(value, dict):
        raise InputError(f"attributes must be an object, not {type(value).__name__}")
    given = [(name, part) for name, part in value.items() if part is not None]
    return {_utf8("attributes", str(name)): _utf8("attributes", _plain(part)) for name, part in given}


def _utf8(name: str, value: str) -> str:
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise InputError(f"{name} has half of a surrogate pair, which is no UTF-8")
    return value


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def as_time(row: Mapping[str, Any], name: str) -> datetime | None:
    """A moment in UTC from a datetime, seconds since 1970, or ISO 8601 text; times without a zone are taken as UTC."""
    value = row.get(name)
    if value is None or value == "":
        return None
    try:
        if isinstance(value, str):
            number = _number(value)
            value = datetime.fromisoformat(value) if number is None else number
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise InputError(f"{name} must be a time (ISO 8601, or seconds since 1970), not {value!r}")


def zone_minutes(row: Mapping[str, Any], name: str) -> int | None:
    """Minutes that the time under `name` is ahead of UTC; None if it has no zone, 0 if it is a number or missing.

    Takes what `as_time` takes, and has no opinion on what that refuses.
    """
    value = row.get(name)
    if isinstance(value, str) and value and _number(value) is None:
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return 0
    if not isinstance(value, datetime):
        return 0
    offset = value.utcoffset()
    return None if offset is None else round(offset.total_seconds() / 60)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
