"""A trained shared-user model for engines other than torch: its three passes as OpenVINO files. Knows no serving.

In float32 always, and with a log at hand the user pass and the ad pass in int8 as well (post-training quantisation with
SmoothQuant, arXiv 2211.10438, by NNCF). The joined layers and the head stay as they are: there int8 costs quality.
"""

import contextlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adcascade.artifacts.manifest import MANIFEST_FILE
from adcascade.artifacts.store import VersionStore
from adcascade.serving.telemetry import switch_off_telemetry
from ranking.artifact import EXPORT_FOLDER, ModelVersion
from ranking.data.dataset import Dataset
from ranking.errors import ModelError
from ranking.export.export_check import (
    TOLERANCE,
    Parity,
    batches_of_log,
    check_exact,
    check_near,
    made_up_pairs,
    pairs_of_log,
)
from ranking.model.batch import PairBatch
from ranking.model.passes import AdPass, JoinPass, TopPass, UserPass, split_kept
from ranking.model.shared_user import SharedUserCrossEncoder
from ranking.runtime.backends import (
    AD_FILE,
    AD_INT8_FILE,
    JOIN_FILE,
    TOP_FILE,
    USER_FILE,
    USER_INT8_FILE,
    OpenVinoBackend,
    TextBackend,
    TorchBackend,
)
from ranking.runtime.hardware import has_bfloat16
from ranking.spec import CTR_FILE, ExportParity
from ranking.training.versions import load_from

log = logging.getLogger(__name__)

Exports = dict[str, ExportParity]

_EXAMPLE_ADS, _EXAMPLE_AD_TOKENS, _EXAMPLE_USER_TOKENS = 3, 7, 11
# Rows of the log that show how large each activation becomes.
_CALIBRATION_ROWS = 512


def export_version(
    store: VersionStore,
    version: str,
    data: Dataset | None = None,
    *,
    int8: bool = True,
    publish: bool = True,
    tolerance: float = TOLERANCE,
) -> tuple[str, Exports]:
    """Makes a new version of `version` ("" for the published one) with an export; everything else stays as it is.

    Args:
        data: a log to calibrate int8 on (its training part) and to compare on (its test part); without one there is no
            int8, and made-up pairs are compared.
        int8: also quantise the user pass and the ad pass.
        tolerance: how far a logit in float32 may be from the model's.

    Returns:
        The new version, and how near each way to run it is to the model in float32.

    Raises:
        ModelError: The model has no text layers to export, OpenVINO or NNCF is not installed, or the logits differ.
        ArtifactError: The version is not there or damaged, or the root cannot be written.
    """
    loaded = load_from(store, version)
    if not isinstance(loaded.model, SharedUserCrossEncoder) or loaded.model.text_is_untrained:
        raise ModelError(f"model version {loaded.version} serves without text layers: there is nothing to export")
    with store.begin() as draft:
        shutil.copytree(
            store.path(loaded.version),
            draft.path,
            dirs_exist_ok=True,
            copy_function=shutil.copyfile,  # not that a version's files are read-only
            ignore=shutil.ignore_patterns(MANIFEST_FILE, EXPORT_FOLDER),
        )
        exports = export_checked(loaded, draft.path / EXPORT_FOLDER, data, int8=int8, tolerance=tolerance)
        spec = loaded.spec.model_copy(update={"exports": exports})
        (draft.path / CTR_FILE).write_text(json.dumps(spec.document(), indent=2))
        store.commit(draft, store.manifest(loaded.version).content)
    if publish:
        store.publish(draft.version)
    return draft.version, exports


def export_after_training(trained: ModelVersion, folder: Path, data: Dataset) -> Exports:
    """The same for a model that was just trained, whose training must not be lost: what fails is left out, and said.

    Nothing is exported without OpenVINO, or if no text is read.
    """
    if not isinstance(trained.model, SharedUserCrossEncoder) or trained.model.text_is_untrained or not _has_openvino():
        return {}
    for int8 in (True, False):
        try:
            return export_checked(trained, folder, data, int8=int8)
        except ModelError as error:
            log.warning("not exported%s: %s", " in int8" if int8 else "", error)
            shutil.rmtree(folder, ignore_errors=True)
    return {}


def _has_openvino() -> bool:
    switch_off_telemetry()
    try:
        import openvino  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def export_checked(
    loaded: ModelVersion, folder: Path, data: Dataset | None = None, *, int8: bool = True, tolerance: float = TOLERANCE
) -> Exports:
    """Writes the passes of a model, and compares their logits with those of torch in float32.

    Raises:
        ModelError: OpenVINO or NNCF is not installed, a logit in float32 differs by more than `tolerance`, or fewer
            bits cost quality.
    """
    model, features = loaded.model, len(loaded.spec.features)
    assert isinstance(model, SharedUserCrossEncoder)
    export_passes(model, features, folder)
    if data is None:
        parity = Parity(model, made_up_pairs(model, features))
    else:
        parity = Parity(model, pairs_of_log(data, loaded))
        if int8:
            drawn = batches_of_log(data, data.split.train, _CALIBRATION_ROWS, loaded)
            quantise_passes(folder, drawn.batches)
    exact = OpenVinoBackend(folder, bfloat16=False)
    exports = {exact.name: parity.of(exact)}
    check_exact(exact.name, exports[exact.name], tolerance)
    for backend in _with_fewer_bits(model, folder, int8=int8 and data is not None):
        exports[backend.name] = parity.of(backend)
        check_near(backend.name, exports[backend.name])
    return exports


def _with_fewer_bits(model: SharedUserCrossEncoder, folder: Path, *, int8: bool) -> list[TextBackend]:
    """What this machine may run instead of float32."""
    found: list[TextBackend] = []
    bfloat16 = has_bfloat16(torch.device("cpu"))
    if bfloat16:
        found += [TorchBackend(model, torch.device("cpu"), bfloat16=True), OpenVinoBackend(folder, bfloat16=True)]
    if int8:
        found.append(OpenVinoBackend(folder, bfloat16=bfloat16, int8=True))
    return found


def quantise_passes(folder: Path, batches: Sequence[PairBatch]) -> None:
    """Writes the user pass and the ad pass of an export in int8 beside it.

    Args:
        batches: pairs that show how large activations become.

    Raises:
        ModelError: NNCF is not installed.
    """
    switch_off_telemetry()
    try:
        import nncf
        import openvino
    except ModuleNotFoundError as missing:
        raise ModelError(f"int8 needs {missing.name}: pip install 'adcascade[fast]', or --no-int8") from missing
    logging.getLogger("nncf").setLevel(logging.ERROR)
    for source, target, rows in (
        (USER_FILE, USER_INT8_FILE, [batch.users for batch in batches]),
        (AD_FILE, AD_INT8_FILE, [batch.ads for batch in batches]),
    ):
        shown = nncf.Dataset(rows, lambda row: [row.ids.numpy(), row.lengths.numpy()])
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
            quantised = nncf.quantize(
                openvino.Core().read_model(folder / source),
                shown,
                model_type=nncf.ModelType.TRANSFORMER,
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(rows),
            )
        openvino.save_model(quantised, folder / target, compress_to_fp16=False)


def export_passes(model: SharedUserCrossEncoder, features: int, folder: Path) -> None:
    """Writes the passes of a model into `folder`, float32, with any number of users, ads and tokens.

    Raises:
        ModelError: OpenVINO is not installed.
    """
    switch_off_telemetry()
    try:
        import openvino
    except ModuleNotFoundError as missing:
        raise ModelError("exporting needs OpenVINO: pip install 'adcascade[fast]'") from missing
    folder.mkdir(parents=True, exist_ok=True)
    model = model.cpu().eval()
    users, ads = UserPass(model), AdPass(model)
    with torch.no_grad():
        user_example = _tokens(1, _EXAMPLE_USER_TOKENS)
        ad_example = _tokens(_EXAMPLE_ADS, _EXAMPLE_AD_TOKENS)
        keys, values = users(*user_example)
        kept = ads(*ad_example)
        mask = torch.ones(kept.shape[:2], dtype=torch.bool)
        of_user = (keys[0], values[0], torch.zeros(_EXAMPLE_ADS, features))
        free_of_user = [(3,), (2,), (0,)]
        _save(openvino, users, user_example, [(0, 1), (0,)], folder / USER_FILE)
        _save(openvino, ads, ad_example, [(0, 1), (0,)], folder / AD_FILE)
        # What an earlier release reads, too, and what this one takes where it can.
        _save(openvino, JoinPass(model), (kept, mask, *of_user), [(0, 1), (0, 1), *free_of_user], folder / JOIN_FILE)
        if ads.keeps_keys:
            parts, free_of_ads = (*split_kept(kept), mask[:, 1:]), [(0,), (0, 1), (0, 1), (0, 1)]
            _save(openvino, TopPass(model), (*parts, *of_user), [*free_of_ads, *free_of_user], folder / TOP_FILE)


def _tokens(rows: int, length: int) -> tuple[Tensor, Tensor]:
    return torch.ones(rows, length, dtype=torch.int64), torch.full((rows,), length)


def _save(
    openvino: Any, one: torch.nn.Module, example: tuple[Tensor, ...], free: list[tuple[int, ...]], path: Path
) -> None:
    """Writes a pass; `free` says which dimensions of each input may be of any size."""
    shapes = [
        openvino.PartialShape([-1 if place in own else size for place, size in enumerate(tensor.shape)])
        for tensor, own in zip(example, free, strict=True)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of what stays the same in all inputs
        graph = openvino.convert_model(one, example_input=example, input=shapes)
    openvino.save_model(graph, path, compress_to_fp16=False)
