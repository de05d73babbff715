"""How long the texts of a record may be; the same for files and for the wire."""

from collections.abc import Mapping

from adcascade.records.errors import InputError

MAX_ID_CHARS = 256
MAX_FIELD_CHARS = 256
MAX_URL_CHARS = 2048
MAX_TEXT_CHARS = 32_768
MAX_KEYWORDS = 64
MAX_ATTRIBUTES = 64
MAX_HISTORY = 1000
MAX_UTC_OFFSET_MINUTES = 24 * 60


def check_text(name: str, text: str, limit: int = MAX_TEXT_CHARS) -> None:
    """Raises InputError if `text` has more than `limit` characters."""
    if len(text) > limit:
        raise InputError(f"{name} has {len(text)} characters; the limit is {limit}")


def check_attributes(name: str, attributes: Mapping[str, str]) -> None:
    """Raises InputError for too many attributes, or too many characters in all of them together."""
    if len(attributes) > MAX_ATTRIBUTES:
        raise InputError(f"{name} has {len(attributes)} entries; the limit is {MAX_ATTRIBUTES}")
    check_text(name, "".join([*attributes.keys(), *attributes.values()]))
