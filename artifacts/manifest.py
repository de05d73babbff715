"""The manifest of a version: what it is, when it was made, the checksum of every file. Knows nothing of the files."""

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from artifacts.errors import CorruptVersion

MANIFEST_FILE = "manifest.json"


class FileEntry(BaseModel):
    """One file of a version."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    bytes: int


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
            document = json.loads(path.read_bytes())
            checksum = document.pop("checksum")
            manifest = cls.model_validate(document)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise CorruptVersion(f"{path} is missing or damaged ({type(error).__name__})") from error
        if checksum != _checksum(document):
            raise CorruptVersion(f"{path} was altered: its checksum differs")
        return manifest

    def verify(self, directory: Path) -> None:
        """Reads every file and compares its checksum; raises CorruptVersion naming the first that differs."""
        paths = [directory / name for name in self.files]
        for path in paths:
            if not path.is_file():
                raise CorruptVersion(f"{path} is missing from version {self.version}")
        for path, entry, found in zip(paths, self.files.values(), _entries(paths), strict=True):
            if found != entry:
                raise CorruptVersion(
                    f"{path} differs from its checksum; the version is damaged. "
                    "Roll back to an earlier version or build again"
                )


def list_files(directory: Path) -> dict[str, FileEntry]:
    """Every file below `directory` but the manifest, by relative POSIX path."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST_FILE)
    names = [path.relative_to(directory).as_posix() for path in paths]
    return dict(zip(names, _entries(paths), strict=True))


def _entries(paths: Sequence[Path]) -> list[FileEntry]:
    """What a manifest says of each file; as many are read at once as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(_entry, paths))


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(sha256=hashlib.file_digest(file, "sha256").hexdigest(), bytes=path.stat().st_size)


def _checksum(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
