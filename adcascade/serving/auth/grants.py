"""Lines that give names their rights: the format of the tokens file and of the certificates file.

One line each; empty lines and those that begin with # are skipped::

    NAME  key=value key=value ...

`scopes` (comma-separated) is required; `tenant`, `rate` (calls a second), `concurrent` (calls at once), and `created`,
`expires`, `revoked` (UTC, ISO 8601) are optional.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from adcascade.serving.auth.identity import Quota
from adcascade.serving.auth.scopes import check_scopes
from adcascade.serving.errors import StartupError

MAX_NAME_CHARS = 256
# Printable ASCII without spaces, and nothing that could end a line of a log or begin a comment.
_SAFE_NAME = re.compile(r"[A-Za-z0-9][\w.:/@+%~-]{0,255}", re.ASCII)


@dataclass(frozen=True)
class Grant:
    """One line: a name and what it may do."""

    name: str
    scopes: frozenset[str]
    tenant: str
    quota: Quota | None
    words: Mapping[str, str]
    expires: datetime | None
    revoked: datetime | None


def check_name(name: str, where: str) -> str:
    """The name. Raises StartupError if it could not stand in a line of a file or a log."""
    if not _SAFE_NAME.fullmatch(name):
        raise StartupError(
            f"{where}: a name is 1 to {MAX_NAME_CHARS} letters, digits and . : / @ + % ~ _ -, not {name[:64]!r}"
        )
    return name


def read_grants(text: str, where: str, known: frozenset[str] = frozenset()) -> Iterator[Grant]:
    """The lines of a file.

    Args:
        text: Of the whole file.
        where: Names the file in errors.
        known: Words beside those of every grant, such as "sha256".

    Raises:
        StartupError: A line is wrong; the message names it by number and never quotes it.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield _grant(line.split(), f"line {number} of {where}", known)


_WORDS = frozenset({"scopes", "tenant", "rate", "concurrent", "created", "expires", "revoked"})


def _grant(parts: list[str], where: str, known: frozenset[str]) -> Grant:
    name, words = check_name(parts[0], where), dict[str, str]()
    for part in parts[1:]:
        key, equals, value = part.partition("=")
        if not equals or not value or key not in _WORDS | known or key in words:
            allowed = ", ".join(sorted(_WORDS | known))
            raise StartupError(f"{where}: after the name stand key=value words, each once, of {allowed}")
        words[key] = value
    if "scopes" not in words:
        raise StartupError(f"{where}: the scopes are missing; write scopes=recommend,models:read or others")
    tenant = check_name(words["tenant"], where) if "tenant" in words else ""
    return Grant(
        name=name,
        scopes=check_scopes(filter(None, words["scopes"].split(",")), where),
        tenant=tenant,
        quota=_quota(words, where),
        words=words,
        expires=_time(words, "expires", where),
        revoked=_time(words, "revoked", where),
    )


def _quota(words: Mapping[str, str], where: str) -> Quota | None:
    if "rate" not in words and "concurrent" not in words:
        return None
    try:
        rate = float(words["rate"]) if "rate" in words else None
        concurrent = int(words["concurrent"]) if "concurrent" in words else None
    except ValueError as error:
        raise StartupError(f"{where}: rate is a number, and concurrent a whole number") from error
    if (rate is not None and not 0 < rate < 1e9) or (concurrent is not None and concurrent < 1):
        raise StartupError(f"{where}: rate must be above 0, and concurrent 1 or more")
    return Quota(rate, concurrent)


def _time(words: Mapping[str, str], key: str, where: str) -> datetime | None:
    if key not in words:
        return None
    try:
        at = datetime.fromisoformat(words[key])
    except ValueError as error:
        raise StartupError(f"{where}: {key} is a UTC time such as 2027-01-31T00:00:00Z") from error
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
