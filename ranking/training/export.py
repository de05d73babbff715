"""A trained shared-user model for engines other than torch: its three passes as OpenVINO files. Knows no serving."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from artifacts.manifest import MANIFEST_FILE
from artifacts.store import VersionStore
from ranking.artifact import CTR_FILE, EXPORT_FOLDER, ExportParity
from ranking.backends import AD_FILE, JOIN_FILE, USER_FILE, OpenVinoBackend, TextBackend, TorchBackend
from ranking.batch import TokenRows
from ranking.errors import ModelError
from ranking.model import SharedUserCrossEncoder
from ranking.passes import AdPass, JoinPass, UserPass
from ranking.training.versions import load_from

_EXAMPLE_ADS, _EXAMPLE_AD_TOKENS, _EXAMPLE_USER_TOKENS = 3, 7, 11
_PARITY_USERS, _PARITY_ADS = 4, 64
# Of a logit, in float32: a thousandth moves a probability by at most 0.00025.
TOLERANCE = 1e-3


def export_version(
    store: VersionStore, version: str, *, publish: bool = True, tolerance: float = TOLERANCE
) -> tuple[str, ExportParity]:
    """Makes a new version of `version` ("" for the published one) with an export; everything else stays as it is.

    Args:
        tolerance: how far a logit may be from the model's.

    Returns:
        The new version, and how near the export's logits are.

    Raises:
        ModelError: The model has no text layers to export, OpenVINO is not installed, or the logits differ.
        ArtifactError: The version is not there or damaged, or the root cannot be written.
    """
    loaded = load_from(store, version)
    if not isinstance(loaded.model, SharedUserCrossEncoder) or loaded.model.adds_nothing:
        raise ModelError(f"model version {loaded.version} serves without text layers: there is nothing to export")
    with store.begin() as draft:
        shutil.copytree(
            store.path(loaded.version),
            draft.path,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns(MANIFEST_FILE, EXPORT_FOLDER),
        )
        parity = export_checked(loaded.model, len(loaded.spec.features), draft.path / EXPORT_FOLDER, tolerance)
        spec = loaded.spec.model_copy(update={"export": parity})
        (draft.path / CTR_FILE).write_text(json.dumps(spec.model_dump(mode="json"), indent=2))
        store.commit(draft, store.manifest(loaded.version).content)
    if publish:
        store.publish(draft.version)
    return draft.version, parity


def export_checked(
    model: SharedUserCrossEncoder, features: int, folder: Path, tolerance: float = TOLERANCE
) -> ExportParity:
    """Writes the passes of a model, and compares their logits with those of torch.

    Raises:
        ModelError: OpenVINO is not installed, or a logit differs by more than `tolerance`.
    """
    export_passes(model, features, folder)
    parity = _parity(model, features, OpenVinoBackend(folder, bfloat16=False))
    if parity.largest_difference > tolerance:
        raise ModelError(f"the export is not the model: a logit differs by {parity.largest_difference:.4f}")
    return parity


def _parity(model: SharedUserCrossEncoder, features: int, exported: TextBackend) -> ExportParity:
    generator = torch.Generator().manual_seed(0)
    torch_backend = TorchBackend(model, torch.device("cpu"), bfloat16=False)
    longest = int(model.encoder.config.max_position_embeddings) // 4

    def rows(count: int) -> TokenRows:
        ids = torch.randint(int(model.encoder.config.vocab_size), (count, longest), generator=generator)
        return TokenRows(ids, torch.randint(1, longest + 1, (count,), generator=generator))

    users, ads, dense = rows(_PARITY_USERS), rows(_PARITY_ADS), torch.randn(_PARITY_ADS, features, generator=generator)
    found = [_logits(backend, users, ads, dense, AdPass(model).rows(0)) for backend in (torch_backend, exported)]
    return ExportParity(
        pairs=_PARITY_USERS * _PARITY_ADS,
        largest_difference=float(np.abs(found[0] - found[1]).max()),
        correlation=float(np.corrcoef(found)[0, 1]),
    )


def _logits(backend: TextBackend, users: TokenRows, ads: TokenRows, dense: Tensor, extra_rows: int) -> np.ndarray:
    kept = backend.ads(ads)
    mask = torch.arange(kept.shape[1]) < ads.lengths[:, None] + extra_rows
    return torch.cat([backend.join(user, kept, mask, dense) for user in backend.users(users)]).numpy()


def export_passes(model: SharedUserCrossEncoder, features: int, folder: Path) -> None:
    """Writes the passes of a model into `folder`, float32, with any number of users, ads and tokens.

    Raises:
        ModelError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ModuleNotFoundError as missing:
        raise ModelError("exporting needs OpenVINO: pip install 'adcascade[fast]'") from missing
    folder.mkdir(parents=True, exist_ok=True)
    model = model.cpu().eval()
    users, ads, join = UserPass(model), AdPass(model), JoinPass(model)
    with torch.no_grad():
        user_example = _tokens(1, _EXAMPLE_USER_TOKENS)
        ad_example = _tokens(_EXAMPLE_ADS, _EXAMPLE_AD_TOKENS)
        keys, values = users(*user_example)
        kept = ads(*ad_example)
        mask = torch.ones(kept.shape[:2], dtype=torch.bool)
        join_example = (kept, mask, keys[0], values[0], torch.zeros(_EXAMPLE_ADS, features))
        for one, example, free, name in (
            (users, user_example, [(0, 1), (0,)], USER_FILE),
            (ads, ad_example, [(0, 1), (0,)], AD_FILE),
            (join, join_example, [(0, 1), (0, 1), (3,), (2,), (0,)], JOIN_FILE),
        ):
            _save(openvino, one, example, free, folder / name)


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
