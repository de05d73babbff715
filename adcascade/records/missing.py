"""What stands for no value at all in files. Knows no fields."""

from decimal import Decimal
from typing import Any

# As pandas, databases and JSON write it. "NA" and "none" are not among them: Namibia, and a word of many attributes.
NULL_WORDS = frozenset(
    ("", "NULL", "null", "Null", "NaN", "nan", "NAN", "-nan", "None", "<NA>", "NaT", "<null>", "\\N")
)


def is_missing(value: Any) -> bool:
    """Whether a value is None, not a number, or one of `NULL_WORDS` with blanks around it or without."""
    if value is None:
        return True
    if isinstance(value, str):
        return len(value) < 16 and value.strip() in NULL_WORDS
    if isinstance(value, float):
        return value != value
    return isinstance(value, Decimal) and value.is_nan()
