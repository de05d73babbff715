"""What runs the text layers of a shared-user model: torch, or OpenVINO from an export. Knows no requests.

All backends run the same three passes (see `ranking.model.passes`) and speak in torch tensors, so one set of tests
holds for each. Belongs to the thread that owns the engine.
"""

import contextlib
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from adcascade.serving.telemetry import switch_off_telemetry
from ranking.artifact import ModelVersion
from ranking.errors import ModelError
from ranking.model.batch import TokenRows
from ranking.model.passes import AdPass, JoinPass, UserPass, split_kept
from ranking.model.shared_user import SharedUserCrossEncoder

log = logging.getLogger(__name__)

AUTO, TORCH, OPENVINO, OPENVINO_INT8 = "auto", "torch", "openvino", "openvino-int8"
BACKENDS = (AUTO, TORCH, OPENVINO, OPENVINO_INT8)
# Where the top layer alone is joined, an export has TOP_FILE beside JOIN_FILE; one of an earlier release has not.
USER_FILE, AD_FILE, JOIN_FILE, TOP_FILE = "user.xml", "ad.xml", "join.xml", "top.xml"
USER_INT8_FILE, AD_INT8_FILE = "user-int8.xml", "ad-int8.xml"
_TIMED_ADS, _TIMED_AD_TOKENS, _TIMED_USER_TOKENS, _TIMED_ROUNDS = 100, 16, 64, 3


@dataclass(frozen=True)
class UserKept:
    """What a request keeps of its user, see `passes.UserPass`; float32 [joined layers, heads, ...]."""

    keys: Tensor
    values: Tensor


class TextBackend(Protocol):
    """Runs the three passes.

    Attributes:
        parts_at_once: how many parts of `ads` run beside each other.
    """

    name: str
    parts_at_once: int

    def users(self, users: TokenRows) -> list[UserKept]:
        """The user pass, padding cut off."""

    def ads(self, parts: Sequence[TokenRows]) -> list[Tensor]:
        """The ad pass of each part; see `passes.AdPass`."""

    def join(self, user: UserKept, kept: Tensor, mask: Tensor, dense: Tensor) -> Tensor:
        """The joined layers; see `passes.JoinPass`."""


class TorchBackend:
    """The passes as they are, on the model's device; in bfloat16 if wanted."""

    parts_at_once = 1

    def __init__(self, model: SharedUserCrossEncoder, device: torch.device, *, bfloat16: bool) -> None:
        self.name = f"{TORCH} on {device} in {'bfloat16' if bfloat16 else 'float32'}"
        self._device, self._bfloat16 = device, bfloat16
        self._computed_in = torch.bfloat16 if bfloat16 else torch.float32
        self._users, self._ads, self._join = UserPass(model), AdPass(model), JoinPass(model)

    def users(self, users: TokenRows) -> list[UserKept]:
        """See `TextBackend`."""
        with self._precision():
            keys, values = self._users(users.ids, users.lengths)
            return _cut(keys, values, users.lengths)

    def ads(self, parts: Sequence[TokenRows]) -> list[Tensor]:
        """See `TextBackend`."""
        with self._precision():
            return [self._ads(ads.ids, ads.lengths).float() for ads in parts]

    def join(self, user: UserKept, kept: Tensor, mask: Tensor, dense: Tensor) -> Tensor:
        """See `TextBackend`."""
        with self._precision():
            added: Tensor = self._join(kept.to(self._computed_in), mask, user.keys, user.values, dense)
            return added.float()

    @contextlib.contextmanager
    def _precision(self) -> Any:
        with torch.inference_mode(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            yield


class OpenVinoBackend:
    """The passes as they were exported, on the CPU.

    Args:
        folder: Holds the exported passes.
        int8: Run the user pass and the ad pass as they were quantised; the joined layers and the head never are, since
            there it costs quality.
        kept_in: what `join` gets ad states in: float32 or float16.

    Raises:
        ModelError: OpenVINO is not installed, or cannot read them.
    """

    def __init__(
        self, folder: Path, *, bfloat16: bool, int8: bool = False, kept_in: torch.dtype = torch.float32
    ) -> None:
        switch_off_telemetry()
        try:
            import openvino
        except ModuleNotFoundError as missing:
            raise ModelError(
                f"this model was exported for OpenVINO: pip install 'adcascade[fast]', or run it with --backend {TORCH}"
            ) from missing
        precision = "bfloat16" if bfloat16 else "float32"
        self.name = f"{OPENVINO} on cpu in {'int8, joined layers in ' if int8 else ''}{precision}"
        settings = {"INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32", "PERFORMANCE_HINT": "LATENCY"}
        core = openvino.Core()
        core.set_property({"ENABLE_MMAP": False})  # a mapped file that is cut short would end the process
        self._kept_in = kept_in
        users, ads = (USER_INT8_FILE, AD_INT8_FILE) if int8 else (USER_FILE, AD_FILE)
        try:
            self._users = core.compile_model(folder / users, "CPU", settings)
            # Parts beside each other, a core each: all cores on one part wait for the slowest at every layer.
            streams = settings | {"PERFORMANCE_HINT": "THROUGHPUT"}
            self._ads = openvino.AsyncInferQueue(core.compile_model(folder / ads, "CPU", streams))
            self._takes_apart = (folder / TOP_FILE).exists()
            joined = openvino.preprocess.PrePostProcessor(
                core.read_model(folder / (TOP_FILE if self._takes_apart else JOIN_FILE))
            )
            if not self._takes_apart and kept_in == torch.float16:
                joined.input(0).tensor().set_element_type(openvino.Type.f16)
            self._join = core.compile_model(joined.build(), "CPU", settings)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot read the passes in {folder}: {error}") from error
        self.parts_at_once = len(self._ads)

    def users(self, users: TokenRows) -> list[UserKept]:
        """See `TextBackend`."""
        keys, values = self._run(self._users, users.ids, users.lengths)
        return _cut(keys, values, users.lengths)

    def ads(self, parts: Sequence[TokenRows]) -> list[Tensor]:
        """See `TextBackend`."""
        found: list[Tensor] = [torch.empty(0)] * len(parts)

        def keep(request: Any, place: int) -> None:
            # A copy: the queue uses the request again for another part.
            found[place] = torch.from_numpy(request.get_output_tensor(0).data.copy())

        self._ads.set_callback(keep)
        for place, ads in enumerate(parts):
            self._ads.start_async(_arrays(ads.ids, ads.lengths), userdata=place)
        self._ads.wait_all()
        return found

    def join(self, user: UserKept, kept: Tensor, mask: Tensor, dense: Tensor) -> Tensor:
        """See `TextBackend`."""
        if not self._takes_apart:
            return self._run(self._join, kept.to(self._kept_in), mask, user.keys, user.values, dense)[0]
        # Torch makes it float32 and takes it apart in one pass; within the graph each would copy all of it.
        parts = split_kept(kept, torch.float32)
        return self._run(self._join, *parts, mask[:, 1:], user.keys, user.values, dense)[0]

    @staticmethod
    def _run(compiled: Any, *inputs: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in compiled(_arrays(*inputs), share_inputs=True).values()]


def _arrays(*tensors: Tensor) -> list[Any]:
    return [one.contiguous().numpy() for one in tensors]


def _cut(keys: Tensor, values: Tensor, lengths: Tensor) -> list[UserKept]:
    """What was made for several users at once, for each without its padding."""
    return [
        UserKept(keys[row, ..., :length], values[row, ..., :length, :]) for row, length in enumerate(lengths.tolist())
    ]


def choose_backend(
    loaded: ModelVersion,
    model: SharedUserCrossEncoder,
    wanted: str,
    device: torch.device,
    *,
    bfloat16: bool,
    kept_in: torch.dtype = torch.float32,
) -> TextBackend:
    """What runs the text layers of a version: the backend that is wanted, or the fastest of those that it has.

    Args:
        model: the version's, on `device`.
        wanted: one of `BACKENDS`.
        kept_in: what ad states are kept in.

    Raises:
        ModelError: There is no such backend, or it cannot run this version here.
    """
    if wanted not in BACKENDS:
        raise ModelError(f"backend must be {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}, not {wanted!r}")
    exported = loaded.export is not None and device.type == "cpu"
    if wanted in (OPENVINO, OPENVINO_INT8) and device.type != "cpu":
        raise ModelError(f"{wanted} runs on the CPU; set the device to cpu, or the backend to {TORCH}")
    if wanted == OPENVINO and loaded.export is None:
        raise ModelError(f"model version {loaded.version} was not exported: see adcascade export")
    if wanted == OPENVINO_INT8 and not has_int8(loaded.export):
        raise ModelError(f"model version {loaded.version} was not exported in int8: see adcascade export --clicks")
    found: list[TextBackend] = []
    if wanted in (AUTO, TORCH):
        found.append(TorchBackend(model, device, bfloat16=bfloat16))
    if wanted in (AUTO, OPENVINO) and exported:
        found.append(OpenVinoBackend(_folder(loaded), bfloat16=bfloat16, kept_in=kept_in))
    if wanted in (AUTO, OPENVINO_INT8) and exported and has_int8(loaded.export):
        found.append(OpenVinoBackend(_folder(loaded), bfloat16=bfloat16, int8=True, kept_in=kept_in))
    if len(found) == 1:
        log.info("model %s runs in %s", loaded.version, found[0].name)
        return found[0]
    chosen, milliseconds = fastest(found, int(model.encoder.config.vocab_size), len(loaded.spec.features), kept_in)
    timed = ", ".join(f"{name} {value:.1f} ms" for name, value in milliseconds.items())
    log.info("model %s runs in %s (a request of %d ads: %s)", loaded.version, chosen.name, _TIMED_ADS, timed)
    return chosen


def has_int8(folder: Path | None) -> bool:
    """Whether an export has quantised passes."""
    return folder is not None and (folder / USER_INT8_FILE).exists()


def _folder(loaded: ModelVersion) -> Path:
    assert loaded.export is not None
    return loaded.export


def fastest(
    backends: Sequence[TextBackend], vocabulary: int, features: int, kept_in: torch.dtype = torch.float32
) -> tuple[TextBackend, dict[str, float]]:
    """The backend that takes the least time for a made-up request, and the milliseconds of each; they take turns.

    The request has a hundred ads, of which a tenth is new.

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
    fresh = ads.take(range(_TIMED_ADS // 10))
    dense = torch.zeros(_TIMED_ADS, features)
    seconds: dict[str, list[float]] = {backend.name: [] for backend in backends}
    kept = {backend.name: backend.ads([ads])[0].to(kept_in) for backend in backends}
    for number in range(_TIMED_ROUNDS + 1):
        for backend in backends:
            own = kept[backend.name]
            mask = torch.ones(own.shape[:2], dtype=torch.bool)
            started = time.perf_counter()
            at_once = backend.parts_at_once
            backend.ads([fresh.take(range(first, len(fresh.ids), at_once)) for first in range(at_once)])
            backend.join(backend.users(user)[0], own, mask, dense)
            if number:  # the first round warms up
                seconds[backend.name].append(time.perf_counter() - started)
    medians = {name: 1000 * statistics.median(found) for name, found in seconds.items()}
    return min(backends, key=lambda backend: medians[backend.name]), medians
