"""Text of callers, made fit for a status message or a line of the log. Knows nothing of where it came from."""

# gRPC sends a status message as metadata, of which a client takes 8 KiB in all, and encodes what is not ASCII in three
# times as many bytes: a longer message would hide the status itself.
STATUS_BYTES = 1000
_CUT = "…"


def escaped(text: str) -> str:
    r"""`text` in one line without control characters: a newline becomes ``\n``, an escape character ``\x1b``.

    So do invisible characters, such as those that turn the writing direction, and lone surrogates.

    >>> escaped("one\nforged line")
    'one\\nforged line'
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def cut_to_bytes(text: str, limit: int) -> str:
    """The beginning of `text` within `limit` bytes of UTF-8, never half a character; where it was cut it ends in …."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit:
        return text
    return encoded[: limit - len(_CUT.encode())].decode(errors="ignore") + _CUT


def status_message(text: str) -> str:
    """`text` as it goes out with a status: escaped, at most `STATUS_BYTES` bytes."""
    return cut_to_bytes(escaped(text[:STATUS_BYTES]) + _CUT * (len(text) > STATUS_BYTES), STATUS_BYTES)
