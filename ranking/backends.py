"""What runs the text layers of a shared-user model: torch, or OpenVINO from an export. Knows no requests.

All backends run the same three passes (see `ranking.passes`) and speak in torch tensors, so one set of tests holds for
each. Belongs to the thread that owns the engine.
"""

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ranking.batch import TokenRows
from ranking.errors import ModelError
from ranking.model import SharedUserCrossEncoder
from ranking.passes import AdPass, JoinPass, UserPass

TORCH, OPENVINO = "torch", "openvino"
USER_FILE, AD_FILE, JOIN_FILE = "user.xml", "ad.xml", "join.xml"
_TIMED_ADS, _TIMED_AD_TOKENS, _TIMED_USER_TOKENS, _TIMED_ROUNDS = 100, 16, 64, 3


@dataclass(frozen=True)
class UserKept:
    """What a request keeps of its user, see `passes.UserPass`; float32 [joined layers, heads, ...]."""

    keys: Tensor
    values: Tensor


class TextBackend(Protocol):
    """Runs the three passes."""

    name: str

    def users(self, users: TokenRows) -> list[UserKept]:
        """The user pass, padding cut off."""

    def ads(self, ads: TokenRows) -> Tensor:
        """The ad pass; see `passes.AdPass`."""

    def join(self, user: UserKept, kept: Tensor, mask: Tensor, dense: Tensor) -> Tensor:
        """The joined layers; see `passes.JoinPass`."""


class TorchBackend:
    """The passes as they are, on the model's device; in bfloat16 if wanted."""

    def __init__(self, model: SharedUserCrossEncoder, device: torch.device, *, bfloat16: bool) -> None:
        self.name = f"{TORCH} on {device} in {'bfloat16' if bfloat16 else 'float32'}"
        self._device, self._bfloat16 = device, bfloat16
        self._users, self._ads, self._join = UserPass(model), AdPass(model), JoinPass(model)

    def users(self, users: TokenRows) -> list[UserKept]:
        """See `TextBackend`."""
        with self._precision():
            keys, values = self._users(users.ids, users.lengths)
            return _cut(keys, values, users.lengths)

    def ads(self, ads: TokenRows) -> Tensor:
        """See `TextBackend`."""
        with self._precision():
            kept: Tensor = self._ads(ads.ids, ads.lengths)
            return kept.float()

    def join(self, user: UserKept, kept: Tensor, mask: Tensor, dense: Tensor) -> Tensor:
        """See `TextBackend`."""
        with self._precision():
            added: Tensor = self._join(kept, mask, user.keys, user.values, dense)
            return added.float()

    @contextlib.contextmanager
    def _precision(self) -> Any:
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            yield


class OpenVinoBackend:
    """The passes as they were exported, on the CPU.

    Args:
        folder: Holds the three exported passes.

    Raises:
        ModelError: OpenVINO is not installed, or cannot read them.
    """

    def __init__(self, folder: Path, *, bfloat16: bool) -> None:
        try:
            import openvino
        except ModuleNotFoundError as missing:
            raise ModelError("this model was exported for OpenVINO: pip install 'adcascade[fast]'") from missing
        precision = "bf16" if bfloat16 else "f32"
        self.name = f"{OPENVINO} on cpu in {'bfloat16' if bfloat16 else 'float32'}"
        settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        core = openvino.Core()
        try:
            self._users, self._ads, self._join = (
                core.compile_model(folder / name, "CPU", settings) for name in (USER_FILE, AD_FILE, JOIN_FILE)
            )
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot read the passes in {folder}: {error}") from error

    def users(self, users: TokenRows) -> list[UserKept]:
        """See `TextBackend`."""
        keys, values = self._run(self._users, users.ids, users.lengths)
        return _cut(keys, values, users.lengths)

    def ads(self, ads: TokenRows) -> Tensor:
        """See `TextBackend`."""
        return self._run(self._ads, ads.ids, ads.lengths)[0]

    def join(self, user: UserKept, kept: Tensor, mask: Tensor, dense: Tensor) -> Tensor:
        """See `TextBackend`."""
        return self._run(self._join, kept, mask, user.keys, user.values, dense)[0]

    @staticmethod
    def _run(compiled: Any, *inputs: Tensor) -> list[Tensor]:
        arrays = [one.contiguous().numpy() for one in inputs]
        return [torch.from_numpy(output) for output in compiled(arrays, share_inputs=True).values()]


def _cut(keys: Tensor, values: Tensor, lengths: Tensor) -> list[UserKept]:
    """What was made for several users at once, for each without its padding."""
    return [
        UserKept(keys[row, ..., :length], values[row, ..., :length, :]) for row, length in enumerate(lengths.tolist())
    ]


def fastest(backends: Sequence[TextBackend], vocabulary: int, features: int) -> tuple[TextBackend, dict[str, float]]:
    """The backend that takes the least time for a made-up request, and the milliseconds of each; they take turns.

    Args:
        backends: on the CPU.
        vocabulary: tokens that there are.
        features: dense ones of an ad.
    """
    generator = torch.Generator().manual_seed(0)

    def tokens(rows: int, length: int) -> TokenRows:
        ids = torch.randint(vocabulary, (rows, length), generator=generator)
        return TokenRows(ids, torch.full((rows,), length))

    user, ads = tokens(1, _TIMED_USER_TOKENS), tokens(_TIMED_ADS, _TIMED_AD_TOKENS)
    dense = torch.zeros(_TIMED_ADS, features)
    seconds: dict[str, list[float]] = {backend.name: [] for backend in backends}
    kept = {backend.name: backend.ads(ads) for backend in backends}
    for number in range(_TIMED_ROUNDS + 1):
        for backend in backends:
            own = kept[backend.name]
            mask = torch.ones(own.shape[:2], dtype=torch.bool)
            started = time.perf_counter()
            backend.join(backend.users(user)[0], own, mask, dense)
            if number:  # the first round warms up
                seconds[backend.name].append(time.perf_counter() - started)
    medians = {name: 1000 * statistics.median(found) for name, found in seconds.items()}
    return min(backends, key=lambda backend: medians[backend.name]), medians
