"""Which files of a folder are read, and which are left out, by their names alone. Knows no formats.

Hidden names (those that begin with "." or "_") are what other programs leave behind, such as ``_SUCCESS``: nobody asks
for them.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from adcascade.records.errors import InputError

PLAIN_SUFFIXES = (".jsonl", ".ndjson", ".csv")
SUFFIXES = (".parquet", *PLAIN_SUFFIXES, *(f"{suffix}.gz" for suffix in PLAIN_SUFFIXES))
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to read.

    Attributes:
        name: how messages call it: its path below the folder that was asked for.
        suffix: one of `SUFFIXES`.
        partition: values of the columns that its folders name, as in ``country=DE/part-0.parquet``.
    """

    path: Path
    name: str
    suffix: str
    partition: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """The files of a folder in the order of their names, and what was left out: name and why."""

    files: tuple[SourceFile, ...]
    left_out: Mapping[str, str]


def suffix_of(name: str) -> str | None:
    """The one of `SUFFIXES` that a file's name ends in, whatever its case; None if none."""
    lower = name.lower()
    return next((suffix for suffix in reversed(SUFFIXES) if lower.endswith(suffix)), None)


def list_files(path: Path) -> Listing:
    """`path` itself, or the readable files in it and its subfolders.

    Raises:
        InputError: It does not exist, is or holds no readable file, or holds one file twice: plain and compressed.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist")
    endings = ", ".join(SUFFIXES)
    if not path.is_dir():
        suffix = suffix_of(path.name)
        if suffix is None or not path.is_file():
            raise InputError(f"{path}: expected a file, or a folder with files, ending in {endings}")
        return Listing((SourceFile(path, path.name, suffix),), {})
    files: list[SourceFile] = []
    left_out: dict[str, str] = {}
    read: dict[tuple[int, int], str] = {}  # by what file it is, since a folder may hold it under several names
    for file in sorted(_visible(path), key=lambda file: (file.is_symlink(), file)):
        name, suffix = file.relative_to(path).as_posix(), suffix_of(file.name)
        if file.is_dir():
            left_out[name] = "a link to a folder"
        elif suffix is None or not file.is_file():
            left_out[name] = "of no known format" if file.exists() else "a link to nothing"
        elif file.stat().st_size == 0:
            left_out[name] = "empty"
        elif (twin := read.setdefault(_inode(file), name)) != name:
            left_out[name] = f"another name of {twin}"
        else:
            files.append(SourceFile(file, name, suffix, _partition(name)))
    if not files:
        found = f"; it holds {', '.join(list(left_out)[:10])}" if left_out else ""
        raise InputError(f"{path}: expected a file, or a folder with files, ending in {endings}{found}")
    files.sort(key=lambda file: file.path)
    _check_no_twins(path, files)
    return Listing(tuple(files), left_out)


def _visible(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder, onerror=_cannot_list):
        folders[:] = [name for name in folders if name[0] not in "._"]
        links = [name for name in folders if (Path(place) / name).is_symlink()]  # os.walk does not follow them
        yield from (Path(place) / name for name in (*names, *links) if name[0] not in "._")


def _inode(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_dev, status.st_ino


def _cannot_list(error: OSError) -> None:
    raise InputError(f"cannot read the folder {error.filename}: {error.strerror}")


def _partition(name: str) -> dict[str, str | None]:
    pairs = (part.split("=", 1) for part in name.split("/")[:-1] if "=" in part[1:])
    return {unquote(key): None if value == _NULL_PARTITION else unquote(value) for key, value in pairs}


def _check_no_twins(folder: Path, files: list[SourceFile]) -> None:
    names = {file.name for file in files}
    for file in files:
        if file.suffix.endswith(".gz") and file.name[: -len(".gz")] in names:
            raise InputError(
                f"{folder} holds both {file.name[: -len('.gz')]} and {file.name}: their rows would count twice; "
                "remove one of them"
            )
