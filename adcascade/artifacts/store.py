"""Versioned directories that appear whole or not at all; knows nothing of what is inside.

Layout under a root::

    CURRENT              JSON: the published version and those published before it, newest first; replaced atomically
    versions/<version>/  complete versions, each with manifest.json; .pruned-<version>: about to be removed
    drafts/<version>/    versions being written; what a killed writer left here is removed by the next one
    .drafts.lock         held by the one process that writes a version
    .current.lock        held for the moment in which CURRENT changes

A version is written under ``drafts``, checksummed, made read-only, flushed to disk and renamed; publishing replaces
``CURRENT``. A process killed at any point leaves the published version as it was. Files are readable by their owner and
its group at most, folders enterable by the same.
"""

import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adcascade.artifacts.errors import FULL, ArtifactError, CorruptVersion, StoreBusy, VersionNotFound, storage_errors
from adcascade.artifacts.files import (
    FILE_MODE,
    flush,
    make_folder,
    read_small,
    remove,
    remove_empty_folders,
    seal,
    write_private,
)
from adcascade.artifacts.manifest import Manifest, list_files

_REMEMBERED = 20  # how many earlier publications CURRENT remembers for rollback
_LARGEST_CURRENT = 64 * 1024  # bytes
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")
_PRUNED = ".pruned-"
# A version is verified while CURRENT is held: reading some GiB takes a while.
_CURRENT_WAIT_SECONDS = 120.0


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
    """The versions of one kind of artifact ("index", "model") under a root folder.

    Example:
        >>> from pathlib import Path
        >>> from adcascade.artifacts.store import VersionStore
        >>> store = VersionStore(Path("data/greetings"), "greeting")
        >>> for text in ("good morning", "good evening"):
        ...     with store.begin() as draft:
        ...         _ = (draft.path / "text").write_text(text)
        ...         _ = store.commit(draft, content={"language": "en"})
        ...     store.publish(draft.version)
        >>> (store.current_path() / "text").read_text(), len(store.versions())
        ('good evening', 2)
        >>> earlier = store.rollback()
        >>> (store.current_path() / "text").read_text(), store.verify(earlier).content
        ('good morning', {'language': 'en'})
    """

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
            remove(self._drafts)  # the lock is ours, so whoever wrote these is gone
            self._empty_trash()
            # On a full disk there would be no room to make it.
            (self.root / ".current.lock").touch(FILE_MODE)
            version = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{uuid.uuid4().hex[:6]}"
            draft = Draft(version, self._drafts / version)
            make_folder(draft.path)
            try:
                yield draft
            finally:
                remove(draft.path)

    def commit(self, draft: Draft, content: dict[str, Any]) -> Manifest:
        """Makes a draft a complete version (not yet published): checksums, manifest, flush to disk, rename.

        Raises CorruptVersion if a file of the draft is a link, a device or the like.
        """
        remove_empty_folders(draft.path)
        manifest = Manifest(
            kind=self.kind,
            format_version=self.format_version,
            version=draft.version,
            created_at=datetime.now(UTC),
            files=list_files(draft.path),
            content=content,
        )
        manifest.write(draft.path)
        seal(draft.path)
        make_folder(self._versions)
        os.replace(draft.path, self._versions / draft.version)
        flush(self._versions)
        return manifest

    def publish(self, version: str, *, verify: bool = True) -> None:
        """Makes a complete version the current one. Raises VersionNotFound or CorruptVersion.

        Args:
            verify: Compare its files with their checksums; in vain right after `commit`, which has just read them.
        """
        self.manifest(version)  # what is wrong at a glance needs no lock
        with storage_errors(self.root), self._lock(".current.lock", _CURRENT_WAIT_SECONDS):
            if verify:
                self.verify(version)
            else:
                self.manifest(version)  # it may have been pruned meanwhile
            try:
                history = [name for name in self.published() if name != version]
            except CorruptVersion:
                history = []  # publishing is how a damaged CURRENT is repaired
            self._write_current([version, *history][:_REMEMBERED])

    def rollback(self) -> str:
        """Publishes the version that was current before; returns its name. Raises VersionNotFound if there is none."""
        with storage_errors(self.root), self._lock(".current.lock", _CURRENT_WAIT_SECONDS):
            current, *earlier = self.published() or [""]
            for position, version in enumerate(earlier):
                if (self._versions / version).is_dir():
                    self.verify(version)
                    self._write_current(earlier[position:])
                    return version
            raise VersionNotFound(f"no version was published before {current or 'now'} under {self.root}")

    def prune(self, keep: int = 3) -> list[str]:
        """Removes all but the newest `keep` versions and the published one; returns the names removed.

        Needs no room: nothing is written, and CURRENT may go on naming what is gone. A version is renamed first, so
        that nobody finds half of it; what a killed prune left is removed by the next one, or by the next writer.
        """
        with storage_errors(self.root), self._lock(".current.lock", _CURRENT_WAIT_SECONDS):
            names = sorted(self._names())
            spared = {*(names[-keep:] if keep > 0 else ()), *self.published()[:1]}
            doomed = [name for name in names if name not in spared]
            for name in doomed:
                self._put_away(name)
        with storage_errors(self.root):
            self._empty_trash()
        return doomed

    def _put_away(self, name: str) -> None:
        try:
            os.replace(self._versions / name, self._versions / f"{_PRUNED}{name}")
        except OSError as error:
            if error.errno not in FULL:
                raise
            remove(self._versions / name)  # the folder has no room for another name

    def _empty_trash(self) -> None:
        if self._versions.is_dir():
            for path in self._versions.glob(f"{_PRUNED}*"):
                remove(path)

    # ---- reading

    def published(self) -> list[str]:
        """The published version's name, and those published before it, newest first.

        Some may be gone. Raises CorruptVersion if CURRENT is damaged.
        """
        try:
            names = json.loads(read_small(self._current, _LARGEST_CURRENT))["published"]
            if not isinstance(names, list) or not all(map(_is_name, names)):
                raise TypeError
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, RecursionError, CorruptVersion) as error:
            raise CorruptVersion(f"{self._current} is damaged; publish a version again to repair it") from error
        return list(names)

    def current(self) -> str | None:
        """The published version's name, or None. Raises CorruptVersion if CURRENT is damaged."""
        published = self.published()
        return published[0] if published else None

    def path(self, version: str) -> Path:
        """Where a version lies. Raises VersionNotFound, or CorruptVersion if it is a link to somewhere else."""
        path = self._versions / version
        if not _is_name(version) or not path.is_dir():
            raise VersionNotFound(f"there is no version {version!r} under {self.root}")
        if path.is_symlink():
            raise CorruptVersion(f"{path} is a link; a version lies under its root: copy it there, or build again")
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
        if manifest.version != version:
            raise CorruptVersion(f"{self.path(version)} holds the manifest of version {manifest.version!r}")
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
        if not self._versions.is_dir():
            return []
        return [path.name for path in self._versions.iterdir() if _is_name(path.name) and path.is_dir()]

    def _write_current(self, published: list[str]) -> None:
        beside = self.root / "CURRENT.tmp"
        write_private(beside, json.dumps({"published": published}) + "\n")
        os.replace(beside, self._current)
        flush(self.root)

    @contextmanager
    def _lock(self, name: str, wait_seconds: float) -> Iterator[None]:
        make_folder(self.root)
        lock = FileLock(self.root / name, timeout=wait_seconds, mode=FILE_MODE)
        try:
            lock.acquire()
        except Timeout:
            raise StoreBusy(f"another process is writing to {self.root}; wait until it ends") from None
        try:
            yield
        finally:
            lock.release()


def _is_name(name: object) -> bool:
    """Whether a folder of this name could be a version; no name leads out of the folder of versions."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None
