"""The state of a training on disk, so that a killed run goes on where it was. Knows no models; no pickle."""

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adcascade.artifacts.files import FILE_MODE, flush, make_folder, remove
from adcascade.records.coded import CodedColumn

log = logging.getLogger(__name__)

_IDENTITY = "identity"
# Names that are texts of Python, and rows that are copied, at once while they are hashed.
_NAMES, _ROWS = 1 << 18, 1 << 20


def unfinished_folder(root: Path, *parts: object) -> Path:
    """Where a training that writes versions under `root` keeps its checkpoints until it has ended.

    Args:
        parts: All that the weights depend on: arrays, columns, mappings of them, and values that print what they are.
    """
    digest = hashlib.sha256()
    for part in parts:
        _add(digest, part)
    return root / "unfinished" / digest.hexdigest()[:16]


def _add(digest: "hashlib._Hash", part: object) -> None:
    if isinstance(part, Mapping):
        for name, value in sorted(part.items()):
            _add(digest, name)
            _add(digest, value)
    elif isinstance(part, CodedColumn):
        for start in range(0, len(part.names), _NAMES):
            _add(digest, part.names[start : start + _NAMES].to_pylist())
        _add(digest, part.codes)
    elif isinstance(part, np.ndarray) and part.dtype != object:
        digest.update(f"{part.dtype} {part.shape} ".encode())
        rows = np.atleast_1d(part)
        for start in range(0, len(rows), _ROWS):
            digest.update(rows[start : start + _ROWS].tobytes())
    else:
        plain = part.tolist() if isinstance(part, np.ndarray) else part
        digest.update(f"{plain!r} ".encode("utf-8", "surrogatepass"))


def checkpoint_file(folder: Path | None, stage: str) -> Path | None:
    """Of one stage of a training; None without a folder."""
    return None if folder is None else folder / f"{stage}.safetensors"


class DamagedCheckpointError(Exception):
    """A checkpoint that no training of these data and options wrote; the message says what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors and named numbers of one stage of a training.

    Attributes:
        identity: of the training: equal only for the same data, options and weights to begin with.
    """

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, float]
    identity: str = ""

    def save(self, path: Path) -> None:
        """Writes beside `path` and renames, so that a kill leaves the old checkpoint or the new one.

        One that cannot be written, for want of room, costs what it would have saved and not the training.
        """
        beside = path.with_suffix(".writing")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        numbers = {name: repr(float(number)) for name, number in self.numbers.items()}
        try:
            make_folder(path.parent)
            save_file(tensors, beside, {**numbers, _IDENTITY: self.identity})
            beside.chmod(FILE_MODE & path.parent.stat().st_mode)
            flush(beside)
            os.replace(beside, path)
        except (OSError, SafetensorError) as error:
            remove(beside)
            log.warning("the training goes on without a new checkpoint: %s cannot be written: %s", path, error)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint | None":
        """What `save` wrote; None if there is nothing. Raises DamagedCheckpointError."""
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                # Copies: what the library returns is mapped from the file.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
                numbers = dict(file.metadata() or {})
            identity = numbers.pop(_IDENTITY, "")
            return cls(tensors, {name: float(number) for name, number in numbers.items()}, identity)
        except (OSError, SafetensorError, ValueError, RuntimeError, MemoryError) as error:
            raise DamagedCheckpointError(f"it cannot be read ({error})") from error
