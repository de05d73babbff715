"""The state of a training on disk, so that a killed run goes on where it was. Knows no models; no pickle."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors and named numbers of one stage of a training."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, float]

    def save(self, path: Path) -> None:
        """Writes beside `path` and renames, so that a kill leaves the old checkpoint or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".writing")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, beside, {name: repr(float(number)) for name, number in self.numbers.items()})
        os.replace(beside, path)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint | None":
        """What `save` wrote; None if there is nothing."""
        if not path.exists():
            return None
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return cls(tensors, {name: float(number) for name, number in (file.metadata() or {}).items()})
