"""What is no longer trusted before its time: a file with a line for each, read anew when it changes.

A line is `jti VALUE` (the id of one JWT), `sub VALUE` (all JWTs of a subject) or `serial VALUE` (a certificate, its
serial number in hexadecimal). Static tokens are revoked in their own file.
"""

from pathlib import Path

from adcascade.serving.auth.watched import WatchedFiles, text_of
from adcascade.serving.errors import StartupError

_KINDS = ("jti", "sub", "serial")


def parse_revocations(content: bytes) -> frozenset[tuple[str, str]]:
    """Pairs of kind and value. Raises StartupError naming a line that is wrong: what it meant to revoke is not."""
    found = set()
    for number, line in enumerate(text_of(content, "revocations file").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in _KINDS:
            raise StartupError(f"line {number} of the revocations file is not one of {', '.join(_KINDS)} and a value")
        kind, value = words
        found.add((kind, _serial(value) if kind == "serial" else value))
    return frozenset(found)


class Revocations:
    """Whether something was revoked."""

    def __init__(self, path: Path, *, poll_seconds: float = 1.0) -> None:
        self._file = WatchedFiles((path,), parse_revocations, "revocations file", poll_seconds=poll_seconds)

    def revoked(self, kind: str, value: str) -> bool:
        """Of a `kind` in "jti", "sub" and "serial"."""
        return (kind, value) in self._file.get()


def _serial(value: str) -> str:
    """As tools print them: 0A:1B, 0x0a1b and a1b are one number."""
    return value.lower().replace(":", "").removeprefix("0x").lstrip("0")
