"""Model versions as a command line names them: ROOT for the published one, or ROOT@VERSION."""

from pathlib import Path

from ranking.artifact import ModelVersion, load_version
from ranking.store import open_store


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
    root, _, version = exact_name(name).partition("@")
    store = open_store(Path(root))
    store.verify(version)
    return load_version(store, version)
