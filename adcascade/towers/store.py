"""Where tower versions are kept. Light: loads no model library."""

from pathlib import Path

from adcascade.artifacts.store import VersionStore

KIND, FORMAT_VERSION = "towers", 1


def open_store(root: Path) -> VersionStore:
    """The store of tower versions under `root`."""
    return VersionStore(root, KIND, FORMAT_VERSION)
