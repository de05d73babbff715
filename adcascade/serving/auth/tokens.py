"""Static bearer tokens: random, shown once, kept as hashes in a file of one line each.

A line is `ID sha256=HEX name=NAME scopes=... [tenant= rate= concurrent= created= expires= revoked=]`. SHA-256 without
salt or stretching is enough, because a token has 256 random bits: nobody guesses one, with or without the hash.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from adcascade.serving.auth.grants import Grant, check_name, read_grants
from adcascade.serving.auth.identity import Identity, Quota
from adcascade.serving.auth.scopes import check_scopes
from adcascade.serving.auth.watched import WatchedFiles, text_of
from adcascade.serving.errors import NotFound, StartupError

PREFIX = "adct_"  # so that scanners for secrets find a token that was left in code
_RANDOM_BYTES = 32
_HASH = re.compile(r"[0-9a-f]{64}")
_KNOWN = frozenset({"sha256", "name"})
_LOCK_SECONDS = 10


@dataclass(frozen=True)
class StoredToken:
    """One line of the file. The token itself is nowhere."""

    token_id: str
    sha256: str
    grant: Grant

    @property
    def name(self) -> str:
        """Whom it was made for; several tokens may name the same, so that one can follow another."""
        return self.grant.words["name"]


def hash_of(token: str) -> str:
    """SHA-256 of a token, hexadecimal."""
    return hashlib.sha256(token.encode()).hexdigest()


def parse_tokens(content: bytes) -> dict[str, StoredToken]:
    """The tokens of a file by hash. Raises StartupError naming a line that is wrong."""
    found: dict[str, StoredToken] = {}
    ids: set[str] = set()
    for grant in read_grants(text_of(content, "tokens file"), "the tokens file", _KNOWN):
        sha256, name = grant.words.get("sha256", ""), grant.words.get("name", "")
        if not _HASH.fullmatch(sha256) or not name:
            raise StartupError(f"token {grant.name!r} of the tokens file needs name= and sha256= (64 hexadecimal)")
        check_name(name, f"token {grant.name!r} of the tokens file")
        if sha256 in found or grant.name in ids:
            raise StartupError(f"token {grant.name!r} stands twice in the tokens file")
        ids.add(grant.name)
        found[sha256] = StoredToken(grant.name, sha256, grant)
    return found


class StaticTokens:
    """Tokens of a file, which is read anew when it changes."""

    def __init__(self, path: Path, *, poll_seconds: float = 1.0) -> None:
        self._file = WatchedFiles((path,), parse_tokens, "tokens file", poll_seconds=poll_seconds)

    def identify(self, token: str, now: datetime) -> tuple[Identity | None, str]:
        """Whose token it is; None with why not, which is for the log alone."""
        sha256 = hash_of(token)
        stored = self._file.get().get(sha256)
        # The comparison that decides takes the same time for each hash; a dictionary's does not promise that.
        if stored is None or not hmac.compare_digest(stored.sha256, sha256):
            return None, "unknown token"
        grant = stored.grant
        if grant.revoked is not None:
            return None, f"token {stored.token_id} is revoked"
        if grant.expires is not None and now >= grant.expires:
            return None, f"token {stored.token_id} has expired"
        return Identity(stored.name, grant.scopes, grant.tenant, "token", grant.quota), ""


class TokensFile:
    """The file as the owner changes it: create, list, revoke. Several may do so at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(
        self,
        name: str,
        scopes: Iterator[str] | list[str],
        *,
        tenant: str = "",
        expires: datetime | None = None,
        quota: Quota | None = None,
    ) -> tuple[StoredToken, str]:
        """A new token, and its text, which is kept nowhere.

        Raises:
            StartupError: A name, a scope or the file is wrong.
        """
        check_name(name, "the name")
        if tenant:
            check_name(tenant, "the tenant")
        rights = check_scopes(scopes, "the scopes")
        if not rights:
            raise StartupError("a token needs a scope; without one it could do nothing")
        token, token_id = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES), "t-" + secrets.token_hex(4)
        words = {
            "name": name,
            "sha256": hash_of(token),
            "scopes": ",".join(sorted(rights)),
            "tenant": tenant,
            "rate": f"{quota.calls_per_second:g}" if quota and quota.calls_per_second else "",
            "concurrent": str(quota.concurrent) if quota and quota.concurrent else "",
            "created": _utc(datetime.now(UTC)),
            "expires": _utc(expires) if expires else "",
        }
        line = _line(token_id, words)
        stored = next(iter(parse_tokens(line.encode()).values()))
        with self._changing() as lines:
            lines.append(line)
        return stored, token

    def tokens(self) -> list[StoredToken]:
        """All tokens, oldest first. Raises StartupError if the file cannot be read."""
        try:
            return list(parse_tokens(self._path.read_bytes()).values())
        except OSError as error:
            raise StartupError(f"cannot read the tokens file {self._path}: {error.strerror}") from error

    def revoke(self, which: str) -> list[StoredToken]:
        """Revokes a token by id, or all of a name. Raises NotFound if there is none that is still good."""
        chosen = [one for one in self.tokens() if which in (one.token_id, one.name) and one.grant.revoked is None]
        if not chosen:
            raise NotFound(f"{self._path} has no good token {which!r}; `adcascade tokens list` shows all")
        ids = {one.token_id for one in chosen}
        with self._changing() as lines:
            for number, line in enumerate(lines):
                if line.split()[:1] and line.split()[0] in ids:
                    lines[number] = f"{line} revoked={_utc(datetime.now(UTC))}"
        return chosen

    @contextmanager
    def _changing(self) -> Iterator[list[str]]:
        """The lines, written back when the block ends: a reader sees the old file or the new one."""
        lock = FileLock(self._path.with_name(self._path.name + ".lock"), timeout=_LOCK_SECONDS)
        beside = self._path.with_name(self._path.name + ".tmp")
        try:
            with lock:
                before = self._path.read_bytes() if self._path.exists() else b""
                parse_tokens(before)
                mode = self._path.stat().st_mode & 0o777 if self._path.exists() else 0o600
                lines = text_of(before, "tokens file").splitlines()
                yield lines
                content = "".join(f"{line}\n" for line in lines).encode()
                parse_tokens(content)
                with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(beside, self._path)
        except Timeout as error:
            raise StartupError(f"another command is changing {self._path}; try again") from error
        except OSError as error:
            raise StartupError(f"cannot write the tokens file {self._path}: {error.strerror}") from error


def _line(token_id: str, words: Mapping[str, str]) -> str:
    return " ".join([token_id, *(f"{key}={value}" for key, value in words.items() if value)])


def _utc(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
