"""Where model versions lie. Light, so that managing versions loads no model library."""

from pathlib import Path

from adcascade.artifacts.store import VersionStore

KIND = "model"
FORMAT_VERSION = 3


def open_store(root: Path) -> VersionStore:
    """The store of model versions under `root`."""
    return VersionStore(root, KIND, FORMAT_VERSION)
