"""Model versions as a command line names them: ROOT for the published one, or ROOT@VERSION; and what they know."""

import logging
from pathlib import Path

from adcascade.artifacts.store import VersionStore
from ranking.artifact import ModelVersion, load_version
from ranking.data.dataset import Dataset
from ranking.store import open_store

log = logging.getLogger(__name__)


def exact_name(name: str) -> str:
    """ROOT@VERSION of `name`; "" stays "".

    Raises:
        ArtifactError: No version is published there.
    """
    if not name or "@" in name:
        return name
    return f"{name}@{open_store(Path(name)).current_path().name}"


def load_named(name: str) -> ModelVersion:
    """The version of that name, verified and on the CPU.

    Raises:
        ArtifactError: It is not there, or damaged.
        ModelError: It is of another shape than this program's.
    """
    root, _, version = name.partition("@")
    return load_from(open_store(Path(root)), version)


def load_from(store: VersionStore, version: str) -> ModelVersion:
    """A version of `store`, "" for the published one, verified and on the CPU; raises as `load_named` does."""
    name = version or store.current_path().name
    store.verify(name)
    return load_version(store, name)


def warn_of_rows_it_knows(version: ModelVersion, data: Dataset) -> None:
    """Logs a warning unless the version learned from exactly the rows that this data sets apart to learn from."""
    if not data.is_training_of(version.spec.training_sha256):
        log.warning(
            "version %s did not learn from exactly the rows that this log, split and seed set apart for it: "
            "rows that it knows may be tested",
            version.version,
        )
