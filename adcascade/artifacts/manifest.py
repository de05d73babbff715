"""The manifest of a version: what it is, when it was made, the checksum of every file. Knows nothing of the files.

It names exactly the files there are: one more, one less, or one of another kind is damage.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from adcascade.artifacts.errors import CorruptVersion
from adcascade.artifacts.files import open_regular, read_small, scan

MANIFEST_FILE = "manifest.json"
_MOST_BYTES = 16 * 2**20


class FileEntry(BaseModel):
    """One file of a version."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    bytes: NonNegativeInt


class Manifest(BaseModel):
    """A version's manifest; `content` is what the room that wrote the version says about it."""

    model_config = ConfigDict(frozen=True)

    kind: str
    format_version: int
    version: str
    created_at: datetime
    files: dict[str, FileEntry]
    content: dict[str, Any]

    def write(self, directory: Path) -> Path:
        """Writes ``manifest.json`` with a checksum of its own and returns its path."""
        document = self.model_dump(mode="json")
        path = directory / MANIFEST_FILE
        path.write_text(
            json.dumps({"checksum": _checksum(document), **document}, indent=2, ensure_ascii=False), "utf-8"
        )
        return path

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Reads a manifest; raises CorruptVersion if it is missing, half-written or altered."""
        path = directory / MANIFEST_FILE
        try:
            document = json.loads(read_small(path, _MOST_BYTES), object_pairs_hook=_without_twins)
            checksum = document.pop("checksum")
            manifest = cls.model_validate(document)
            is_whole = checksum == _checksum(document)
        except CorruptVersion:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError) as error:
            raise CorruptVersion(f"{path} is missing or damaged ({type(error).__name__})") from error
        if not is_whole:
            raise CorruptVersion(f"{path} was altered: its checksum differs")
        _check_names(path, manifest.files)
        return manifest

    def verify(self, directory: Path) -> None:
        """Reads every file and compares its checksum.

        Raises:
            CorruptVersion: A file differs, is missing, is one that the manifest does not name, or is a link, a device
                or the like; it is named.
        """
        try:
            self._compare(directory, _found(directory))
        except OSError as error:
            raise CorruptVersion(f"a file of version {self.version} cannot be read: {error}") from error

    def _compare(self, directory: Path, found: dict[str, int]) -> None:
        for name in self.files.keys() - found.keys():
            raise CorruptVersion(f"{directory / name} is missing from version {self.version}")
        for name in found.keys() - self.files.keys():
            raise CorruptVersion(
                f"{str(directory / name)!r} is not in the manifest of version {self.version}; a version holds what was "
                "committed and nothing else: take the file away, or build again"
            )
        for name, entry in self.files.items():
            if found[name] != entry.bytes:
                raise _differs(directory / name)
        for name, entry in _entries(directory, self.files).items():
            if entry != self.files[name]:
                raise _differs(directory / name)


def list_files(directory: Path) -> dict[str, FileEntry]:
    """Every file below `directory` but the manifest, by relative POSIX path.

    Raises CorruptVersion for what a manifest may not name.
    """
    names = sorted(_found(directory))
    _check_names(directory / MANIFEST_FILE, names)
    return _entries(directory, names)


def _found(directory: Path) -> dict[str, int]:
    return {name: size for name, size in scan(directory).items() if name != MANIFEST_FILE}


def _entries(directory: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """What a manifest says of each file; as many are read at once as there are cores."""
    every = list(names)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return dict(zip(every, threads.map(_entry, [directory / name for name in every]), strict=True))


def _entry(path: Path) -> FileEntry:
    with open_regular(path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        return FileEntry(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=os.fstat(descriptor).st_size)


def _differs(path: Path) -> CorruptVersion:
    return CorruptVersion(
        f"{path} differs from its checksum; the version is damaged. Roll back to an earlier version or build again"
    )


def _check_names(manifest: Path, names: Iterable[str]) -> None:
    """Raises CorruptVersion unless each name leads to a file of its own inside the version, on every file system."""
    folded = Counter(name.casefold() for name in names)
    for name in names:
        parts = name.split("/")
        outside = any(part in ("", ".", "..") for part in parts) or "\\" in name or ":" in name
        if outside or not name.isprintable() or name == MANIFEST_FILE:
            raise CorruptVersion(f"{manifest} names {name!r}, which is no file of a version")
        if folded[name.casefold()] > 1:
            raise CorruptVersion(f"{manifest} names {name!r} twice, but for upper and lower case")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _checksum(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
