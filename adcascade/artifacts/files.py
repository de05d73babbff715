"""Files and folders of a store: made for their owner and group alone, and read only if they are what they seem.

Knows no manifests and no versions. A file of a version is a regular file with one name: what a link leads to, or what
has a second name elsewhere, can be changed from outside; a device or a pipe can hold its reader forever.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adcascade.artifacts.errors import CorruptVersion

# At most; the umask may take more away.
FOLDER_MODE, FILE_MODE = 0o750, 0o640
# Beyond this depth a folder is no version.
_DEEPEST = 16
_MOST_FILES = 10_000
# O_NONBLOCK: opening a pipe would wait for its writer. Windows knows neither.
_CAREFULLY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it that are missing, enterable by owner and group at most; it may exist."""
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent)
    with suppress(FileExistsError):
        path.mkdir(FOLDER_MODE)
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is no folder")


def private_opener(path: str, flags: int) -> int:
    """For `open`: a file that it makes is readable by owner and group at most."""
    return os.open(path, flags, FILE_MODE)


def write_private(path: Path, text: str) -> None:
    """Writes a file anew, readable by owner and group at most, and forces it to disk."""
    path.unlink(missing_ok=True)
    with open(path, "x", encoding="utf-8", opener=private_opener) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def seal(folder: Path) -> None:
    """Makes all files below `folder` read-only and forces them to disk.

    Who may enter `folder` itself may read them: where the umask left its group nothing, so it does here.
    """
    shared = bool(folder.stat().st_mode & stat.S_IRGRP)
    for path, _, names in os.walk(folder, topdown=False):
        here = Path(path)
        for name in names:
            (here / name).chmod(0o440 if shared else 0o400)
            flush(here / name)
        here.chmod(0o750 if shared else 0o700)
        flush(here)


def remove_empty_folders(folder: Path) -> None:
    """Below `folder`: a manifest names files alone."""
    for path, _, _ in os.walk(folder, topdown=False):
        here = Path(path)
        if here != folder and not any(here.iterdir()):
            here.rmdir()


def flush(path: Path) -> None:
    """Forces a file's or a folder's content to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """A descriptor of a regular file that has no other name. Raises CorruptVersion if it is something else, OSError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _CAREFULLY)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CorruptVersion(f"{path} is a link") from None
        raise
    try:
        problem = _problem(os.fstat(descriptor))
        if problem:
            raise CorruptVersion(f"{path} is {problem}")
        yield descriptor
    finally:
        os.close(descriptor)


def read_small(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file of at most so many bytes. Raises CorruptVersion, OSError."""
    with open_regular(path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise CorruptVersion(f"{path} has more than {most_bytes} bytes")
    return data


def scan(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder, by relative POSIX path; an empty folder stands there with a slash at its end.

    Raises CorruptVersion, naming it, for anything that is neither a folder nor a regular file with one name.
    """
    found: dict[str, int] = {}
    _scan(folder, "", 0, found)
    return found


def _scan(folder: Path, prefix: str, depth: int, found: dict[str, int]) -> None:
    if depth > _DEEPEST:
        raise CorruptVersion(f"{folder} lies too deep for a version")
    count = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            count += 1
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                _scan(folder / entry.name, f"{prefix}{entry.name}/", depth + 1, found)
                continue
            problem = _problem(status)
            if problem:
                raise CorruptVersion(f"{str(folder / entry.name)!r} is {problem}; a version holds its own files alone")
            found[prefix + entry.name] = status.st_size
            if len(found) > _MOST_FILES:
                raise CorruptVersion(f"{folder} holds more than {_MOST_FILES:,} files, too many for a version")
    if depth and not count:
        found[prefix] = 0


def _problem(status: os.stat_result) -> str:
    """What speaks against a file of a version; "" if nothing does."""
    mode = status.st_mode
    if stat.S_ISLNK(mode):
        return "a link"
    if stat.S_ISDIR(mode):
        return "a folder"
    if not stat.S_ISREG(mode):
        return "a device, a pipe or a socket"
    # 0 is a file that was removed after it was opened.
    return "a file with a second name (a hard link)" if status.st_nlink > 1 else ""


def remove(path: Path) -> None:
    """Removes a file, a link or a whole folder; what somebody else removes meanwhile is gone as well."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, onerror=_raise_unless_gone)


def _raise_unless_gone(_: object, __: str, failure: tuple[type[BaseException], BaseException, object]) -> None:
    if not isinstance(failure[1], FileNotFoundError):
        raise failure[1]
