"""Values of a column converted one by one, each distinct value once. Knows no column."""

from collections.abc import Callable, Sequence
from typing import Any

from adcascade.records.errors import InputError

_MEMO_VALUES = 1024
_MEMO_CHARS = 1024


class Converted:
    """Converts the values of a column, each of the last distinct ones once; an InputError stands where one cannot be.

    Args:
        convert: From a value; raises InputError.
    """

    def __init__(self, convert: Callable[[Any], Any]) -> None:
        self._convert = convert
        self._known: dict[tuple[type, Any], Any] = {}

    def __call__(self, values: Sequence[Any]) -> list[Any]:
        """One result a value; equal results are one object."""
        if len(self._known) > _MEMO_VALUES:
            self._known.clear()
        return [self._one(value) for value in values]

    def _one(self, value: Any) -> Any:
        key = (value.__class__, value)
        try:
            return self._known[key]
        except KeyError:
            found = self._tried(value)
            if not isinstance(value, str) or len(value) <= _MEMO_CHARS:
                self._known[key] = found
            return found
        except TypeError:  # a list or an object
            return self._tried(value)

    def _tried(self, value: Any) -> Any:
        try:
            return self._convert(value)
        except InputError as error:
            return error
