"""Text vectors kept on disk, so that no command embeds a text that another one has embedded. Knows no ads.

FOLDER/<encoder>/<sha256>.npy: shards, each some rows of (key of the text, its vector), never changed once written; the
name is the hash of the content. A writer writes beside and renames, so any number of processes may read and write, and
a kill loses at most what was not written yet. A shard that is not what its name says is removed, and its texts are
embedded again. Vectors stay float32: what a command reads is to the last bit what it would have computed. The folder
may be deleted at any time.
"""

import hashlib
import io
import logging
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adcascade.vectors.encoder import HashingEncoder, TextEncoder, Vectors

log = logging.getLogger(__name__)

DEFAULT_MAX_MIB = 4096
_FORMAT = 1
_KEY_BYTES = 16
# Rows of a shard: 3 MiB of 384 numbers each. Fewer are written when a command ends; many small ones become one.
_ROWS, _SMALL_ROWS, _MOST_SMALL = 2048, 1024, 32
_FILE_MODE, _FOLDER_MODE = 0o640, 0o750
_ABANDONED_SECONDS = 24 * 3600
_WRITING = ".writing-"

Shard = npt.NDArray[np.void]


def default_folder(root: Path) -> Path:
    """Where the vectors lie unless the owner says: beside the roots of the versions."""
    return root.absolute().parent / "vectors"


def text_key(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_KEY_BYTES]


def fingerprint(encoder: TextEncoder) -> str:
    """Of all that the numbers of a vector depend on beside its text, hexadecimal."""
    what = f"{_FORMAT} {encoder.sha256} {encoder.variant} {encoder.dimension}"
    return hashlib.sha256(what.encode()).hexdigest()[:32]


class VectorStore:
    """Vectors of one encoder in a folder.

    Args:
        folder: Of all encoders' vectors; made when something is first kept.
        max_bytes: Of all that lies there; the shards that were used least lately go first.
    """

    def __init__(self, folder: Path, encoder: TextEncoder, max_bytes: int = DEFAULT_MAX_MIB << 20) -> None:
        self.folder = folder
        self._own = folder / fingerprint(encoder)
        self._max_bytes = max_bytes
        self._row = np.dtype([("key", f"S{_KEY_BYTES}"), ("vector", "<f4", (encoder.dimension,))])
        self._waiting: dict[bytes, Vectors] = {}
        self._may_write = True
        self._shards: list[Path] = []
        self._keys, self._places = self._index()

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Vectors]:
        """The vectors that are there, by key."""
        found = {key: self._waiting[key] for key in keys if key in self._waiting}
        if not len(self._keys):
            return found
        wanted = np.array([key for key in keys if key not in found], f"S{_KEY_BYTES}")
        place = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        known = self._keys[place] == wanted
        of_shard: dict[int, list[int]] = {}
        for shard, row in self._places[place[known]].tolist():
            of_shard.setdefault(shard, []).append(row)
        for shard, rows in of_shard.items():
            found |= self._rows(self._shards[shard], rows)
        return found

    def _rows(self, path: Path, rows: Sequence[int]) -> dict[bytes, Vectors]:
        """Some vectors of a shard that was whole when the store was opened; none if it is gone or shorter by now."""
        found = {}
        with suppress(OSError), path.open("rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            start = file.tell()
            for row in rows:
                file.seek(start + row * self._row.itemsize)
                content = file.read(self._row.itemsize)
                if len(content) == self._row.itemsize:
                    found[content[:_KEY_BYTES]] = np.frombuffer(content, "<f4", offset=_KEY_BYTES)
        return found

    def add(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        """Keeps vectors; those that are no numbers are left out."""
        for key, vector in zip(keys, vectors, strict=True):
            if np.isfinite(vector).all():
                self._waiting[key] = vector
        while len(self._waiting) >= _ROWS:
            self._write()

    def close(self) -> None:
        """Writes what is left, and makes room if there is too much."""
        if self._waiting:
            self._write()
        with suppress(OSError):
            self._tidy()

    # ---- shards

    def _index(self) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.int64]]:
        """All keys in order, [rows], and shard and row of each, [rows, 2]."""
        keys, places = [], []
        for path in sorted(self._own.glob("*.npy")):
            shard = self._read(path)
            if shard is not None:
                keys.append(shard["key"].copy())
                places.append(np.stack([np.full(len(shard), len(self._shards)), np.arange(len(shard))], axis=1))
                self._shards.append(path)
        if not keys:
            return np.empty(0, f"S{_KEY_BYTES}"), np.empty((0, 2), np.int64)
        joined, place = np.concatenate(keys), np.concatenate(places)
        order = np.argsort(joined, kind="stable")
        return joined[order], place[order]

    def _read(self, path: Path) -> Shard | None:
        """A shard; None if it is gone, or damaged, which is said."""
        try:
            content = path.read_bytes()
        except OSError:
            return None  # another process made room
        if hashlib.sha256(content).hexdigest() == path.stem:
            with suppress(ValueError):
                shard: Shard = np.load(io.BytesIO(content), allow_pickle=False)
                if shard.dtype == self._row and shard.ndim == 1:
                    with suppress(OSError):
                        os.utime(path)
                    return shard
        log.warning("%s is damaged and removed; the texts of its vectors are embedded again", path)
        with suppress(OSError):
            path.unlink()
        return None

    def _write(self) -> None:
        """The oldest of what waits, as a shard; where nothing can be written, that is said once."""
        some = dict(list(self._waiting.items())[:_ROWS])
        if self._may_write:
            shard = np.empty(len(some), self._row)
            shard["key"], shard["vector"] = list(some), np.stack(list(some.values()))
            try:
                self._save(shard)
            except OSError as error:
                self._may_write = False
                log.warning(
                    "text vectors cannot be kept under %s (%s): the next command embeds these texts again; choose "
                    "another folder with --vectors",
                    self.folder,
                    error.strerror,
                )
        for key in some:
            del self._waiting[key]

    def _save(self, shard: Shard) -> None:
        self._own.mkdir(_FOLDER_MODE, parents=True, exist_ok=True)
        with io.BytesIO() as buffer:
            np.save(buffer, shard, allow_pickle=False)
            content = buffer.getvalue()
        beside = self._own / f"{_WRITING}{os.getpid()}-{secrets.token_hex(4)}"
        try:
            with os.fdopen(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _FILE_MODE), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, self._own / f"{hashlib.sha256(content).hexdigest()}.npy")
        except OSError:
            beside.unlink(missing_ok=True)
            raise

    # ---- room

    def _tidy(self) -> None:
        """Many small shards become few; abandoned files and what is too much go."""
        small = [
            path for path in sorted(self._own.glob("*.npy")) if path.stat().st_size < _SMALL_ROWS * self._row.itemsize
        ]
        if len(small) > _MOST_SMALL and self._may_write:
            shards = [shard for path in small if (shard := self._read(path)) is not None]
            together = np.concatenate(shards)
            for start in range(0, len(together), _ROWS):
                self._save(together[start : start + _ROWS])
            for path in small:
                path.unlink(missing_ok=True)
        for path in self.folder.glob(f"*/{_WRITING}*"):
            if path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
        shards_of_all = [(found.stat(), found) for found in self.folder.glob("*/*.npy")]
        total = sum(about.st_size for about, _ in shards_of_all)
        for about, path in sorted(shards_of_all, key=lambda one: one[0].st_mtime):
            if total <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= about.st_size


class RememberingEncoder:
    """An encoder that embeds no text whose vector is kept.

    Attributes:
        embedded, reused: texts of which the vectors were computed, and were there already.
    """

    def __init__(self, source: TextEncoder, store: VectorStore | None) -> None:
        self.name, self.sha256, self.variant, self.dimension = (
            source.name,
            source.sha256,
            source.variant,
            source.dimension,
        )
        self.max_chars = source.max_chars
        self._source, self._store = source, store
        self.embedded = self.reused = 0

    def encode(self, texts: Sequence[str]) -> Vectors:
        """See `TextEncoder`."""
        if self._store is None:
            self.embedded += len(texts)
            return self._source.encode(texts)
        keys = [text_key(text) for text in texts]
        known = self._store.find(keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            made = self._source.encode(list(missing.values()))
            self._store.add(list(missing), made)
            known |= dict(zip(missing, made, strict=True))
        self.embedded += len(missing)
        self.reused += len(texts) - len(missing)
        vectors = np.empty((len(texts), self.dimension), np.float32)
        for row, key in enumerate(keys):
            vectors[row] = known[key]
        return vectors

    @property
    def said(self) -> str:
        """What was computed and what was not, for people."""
        where = f" from {self._store.folder}" if self._store is not None and self.reused else ""
        return f"Text vectors: {self.embedded:,} embedded, {self.reused:,} reused{where}."


@contextmanager
def remembering(encoder: TextEncoder, folder: Path) -> Iterator[RememberingEncoder]:
    """`encoder`, with its vectors kept in a folder; those of hashing encoders take less to compute than to read."""
    store = None if isinstance(encoder, HashingEncoder) else VectorStore(folder, encoder)
    try:
        yield RememberingEncoder(encoder, store)
    finally:
        if store is not None:
            store.close()
