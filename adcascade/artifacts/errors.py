"""What can be wrong with a version or its store::

ArtifactError
├── VersionNotFound   nothing published, or no version of that name
├── CorruptVersion    its files are not exactly those of its manifest, or one is half-written, altered or a link
├── StoreBusy         another writer holds the store
└── StorageFull       the disk, a quota or a file size limit is exhausted
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ArtifactError(Exception):
    """Base class; the message says what to do."""


class VersionNotFound(ArtifactError):
    """Nothing published, or no version of that name."""


class CorruptVersion(ArtifactError):
    """A version is not what its manifest says."""


class StoreBusy(ArtifactError):
    """Another process writes to the store."""


class StorageFull(ArtifactError):
    """No room to write."""


@contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """Turns a full disk, an exhausted quota and an unwritable folder into errors that name `root`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageFull(
                f"no room left to write under {root} ({error.strerror}); free some space or choose another folder. "
                "The published version is untouched"
            ) from error
        no_root = isinstance(error, FileNotFoundError) and _is_above(error.filename, root)
        refused = isinstance(error, PermissionError | NotADirectoryError | FileExistsError)
        if no_root or refused or error.errno in (errno.EROFS, errno.ENAMETOOLONG):
            raise ArtifactError(f"cannot write under {root}: {error}") from error
        raise


def _is_above(name: object, root: Path) -> bool:
    """Whether a file name is `root` or a folder that it is to be in."""
    return isinstance(name, str | Path) and root.absolute().is_relative_to(Path(name).absolute())
