"""Versioned directories that appear whole or not at all; knows nothing of what is inside.

Layout under a root::

    CURRENT              JSON: the published version and those published before it, newest first; replaced atomically
    versions/<version>/  complete versions, each with manifest.json
    drafts/<version>/    versions being written; what a killed writer left here is removed by the next one
    .drafts.lock         held by the one process that writes a version
    .current.lock        held for the moment in which CURRENT changes

A version is written under ``drafts``, checksummed, flushed to disk and renamed; publishing replaces ``CURRENT``. A
process killed at any point leaves the published version as it was.
"""

import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from artifacts.errors import ArtifactError, CorruptVersion, StoreBusy, VersionNotFound, storage_errors
from artifacts.manifest import Manifest, list_files

_REMEMBERED = 20  # how many earlier publications CURRENT remembers for rollback


@dataclass(frozen=True)
class Draft:
    """A version being written: put files into `path`, then `VersionStore.commit` it."""

    version: str
    path: Path


@dataclass(frozen=True)
class VersionInfo:
    """One of `VersionStore.versions`."""

    version: str
    created_at: datetime | None
    bytes: int
    published: bool
    problem: str


class VersionStore:
    """The versions of one kind of artifact ("index", "model") under a root folder."""

    def __init__(self, root: Path, kind: str, format_version: int = 1) -> None:
        self.root = root
        self.kind = kind
        self.format_version = format_version
        self._versions = root / "versions"
        self._drafts = root / "drafts"
        self._current = root / "CURRENT"

    # ---- writing

    @contextmanager
    def begin(self) -> Iterator[Draft]:
        """Opens a draft that only this process may write; removed at the end of the block unless committed.

        Raises:
            StoreBusy: Another process is writing.
            StorageFull: The disk is full; also when it fills up inside the block.
            ArtifactError: The root cannot be written.
        """
        with storage_errors(self.root), self._lock(".drafts.lock", wait_seconds=0):
            shutil.rmtree(self._drafts, ignore_errors=True)  # the lock is ours, so whoever wrote these is gone
            version = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{uuid.uuid4().hex[:6]}"
            draft = Draft(version, self._drafts / version)
            draft.path.mkdir(parents=True)
            try:
                yield draft
            finally:
                shutil.rmtree(draft.path, ignore_errors=True)

    def commit(self, draft: Draft, content: dict[str, Any]) -> Manifest:
        """Makes a draft a complete version (not yet published): checksums, manifest, flush to disk, rename."""
        manifest = Manifest(
            kind=self.kind,
            format_version=self.format_version,
            version=draft.version,
            created_at=datetime.now(UTC),
            files=list_files(draft.path),
            content=content,
        )
        manifest.write(draft.path)
        for path in draft.path.rglob("*"):
            _let_others_read(path)
            _flush(path)
        _flush(draft.path)
        self._versions.mkdir(exist_ok=True)
        os.replace(draft.path, self._versions / draft.version)
        _flush(self._versions)
        return manifest

    def publish(self, version: str, *, verify: bool = True) -> None:
        """Makes a complete version the current one. Raises VersionNotFound or CorruptVersion.

        Args:
            verify: Compare its files with their checksums; in vain right after `commit`, which has just read them.
        """
        if verify:
            self.verify(version)
        with storage_errors(self.root), self._lock(".current.lock", wait_seconds=10):
            try:
                history = [name for name in self._published() if name != version]
            except CorruptVersion:
                history = []  # publishing is how a damaged CURRENT is repaired
            self._write_current([version, *history][:_REMEMBERED])

    def rollback(self) -> str:
        """Publishes the version that was current before; returns its name. Raises VersionNotFound if there is none."""
        with storage_errors(self.root), self._lock(".current.lock", wait_seconds=10):
            current, *earlier = self._published() or [""]
            for position, version in enumerate(earlier):
                if (self._versions / version).is_dir():
                    self.verify(version)
                    self._write_current(earlier[position:])
                    return version
            raise VersionNotFound(f"no version was published before {current or 'now'} under {self.root}")

    def prune(self, keep: int = 3) -> list[str]:
        """Removes all but the newest `keep` versions and the published one; returns the names removed."""
        with storage_errors(self.root), self._lock(".current.lock", wait_seconds=10):
            spared = {*sorted(self._names())[-keep:], *self._published()[:1]} if keep > 0 else {*self._published()[:1]}
            doomed = [name for name in self._names() if name not in spared]
            self._write_current([name for name in self._published() if name not in doomed])
            for name in doomed:
                shutil.rmtree(self._versions / name)
            return doomed

    # ---- reading

    def current(self) -> str | None:
        """The published version's name, or None. Raises CorruptVersion if CURRENT is damaged."""
        published = self._published()
        return published[0] if published else None

    def path(self, version: str) -> Path:
        """Where a version lies. Raises VersionNotFound."""
        path = self._versions / version
        if version in ("", "..") or Path(version).name != version or not path.is_dir():
            raise VersionNotFound(f"there is no version {version!r} under {self.root}")
        return path

    def current_path(self) -> Path:
        """Where the published version lies. Raises VersionNotFound if nothing is published."""
        version = self.current()
        if version is None:
            raise VersionNotFound(f"nothing is published under {self.root}: no {self._current.name} file there")
        return self.path(version)

    def manifest(self, version: str) -> Manifest:
        """A version's manifest, checked for kind and format. Raises VersionNotFound or CorruptVersion."""
        manifest = Manifest.read(self.path(version))
        if manifest.kind != self.kind:
            raise CorruptVersion(f"{self.path(version)} holds a version of kind {manifest.kind!r}, not {self.kind!r}")
        if manifest.format_version != self.format_version:
            raise CorruptVersion(
                f"{self.path(version)} has format {manifest.format_version}; this program reads {self.format_version}"
            )
        return manifest

    def verify(self, version: str) -> Manifest:
        """Checks every file against its checksum. Raises VersionNotFound or CorruptVersion."""
        manifest = self.manifest(version)
        manifest.verify(self.path(version))
        return manifest

    def versions(self) -> list[VersionInfo]:
        """All complete versions, oldest first; damaged ones carry the problem."""
        current = self.current()
        return [self._info(name, published=name == current) for name in sorted(self._names())]

    def _info(self, name: str, *, published: bool) -> VersionInfo:
        try:
            manifest = self.manifest(name)
        except ArtifactError as error:
            return VersionInfo(name, None, 0, published, str(error))
        size = sum(entry.bytes for entry in manifest.files.values())
        return VersionInfo(name, manifest.created_at, size, published, "")

    def _names(self) -> list[str]:
        return [path.name for path in self._versions.iterdir() if path.is_dir()] if self._versions.is_dir() else []

    def _published(self) -> list[str]:
        try:
            names = json.loads(self._current.read_bytes())["published"]
            if not isinstance(names, list):
                raise TypeError
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptVersion(f"{self._current} is damaged; publish a version again to repair it") from error
        return [str(name) for name in names]

    def _write_current(self, published: list[str]) -> None:
        beside = self.root / "CURRENT.tmp"
        beside.write_text(json.dumps({"published": published}) + "\n")
        _flush(beside)
        os.replace(beside, self._current)
        _flush(self.root)

    @contextmanager
    def _lock(self, name: str, wait_seconds: float) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / name, timeout=wait_seconds)
        try:
            lock.acquire()
        except Timeout:
            raise StoreBusy(f"another process is writing to {self.root}; wait until it ends") from None
        try:
            yield
        finally:
            lock.release()


def _let_others_read(path: Path) -> None:
    """Some libraries write files that only their owner may read; a server often runs as another user."""
    mode = path.stat().st_mode
    path.chmod(mode | (mode & stat.S_IRUSR) >> 3 | (mode & stat.S_IRUSR) >> 6)


def _flush(path: Path) -> None:
    """Forces a file's or a folder's content to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
