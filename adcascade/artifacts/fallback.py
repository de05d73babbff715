"""The published version, or if that is damaged the newest one published before it. Knows nothing of what is loaded."""

import logging
from collections.abc import Callable
from typing import TypeVar

from adcascade.artifacts.errors import VersionNotFound
from adcascade.artifacts.store import VersionStore

log = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")


def load_newest(
    store: VersionStore, load: Callable[[str], Loaded], on_refused: Callable[[str], None] = lambda _: None
) -> tuple[str, Loaded]:
    """Verifies and loads the published version, or the newest published before it that is whole; what is not is logged.

    Only versions that were published are tried: what was rolled back, or never released, is not.

    Args:
        on_refused: Told the name of the published version, if that cannot be used.

    Returns:
        The version's name, and what `load` made of it.

    Raises:
        VersionNotFound: Nothing is published.
        CorruptVersion: CURRENT is damaged.
        Exception: What is wrong with the published version, if no earlier one can be loaded either.
    """
    while True:
        published = store.published()
        if not published:
            raise VersionNotFound(f"nothing is published under {store.root}: no CURRENT file there")
        found = _first_whole(store, published, load, on_refused)
        if isinstance(found, tuple):
            return found
        # A version that was pruned while it was being read is no damage: another one is published by now.
        if store.published()[:1] == published[:1]:
            raise found


def _first_whole(
    store: VersionStore, published: list[str], load: Callable[[str], Loaded], on_refused: Callable[[str], None]
) -> tuple[str, Loaded] | Exception:
    first: Exception | None = None
    for version in published:
        try:
            store.verify(version)
            loaded = load(version)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a version, an earlier one may answer
            if first is None:
                first = error
                on_refused(version)
                log.error("the published %s version %s cannot be used: %s", store.kind, version, error)
            elif not isinstance(error, VersionNotFound):
                log.error("the earlier %s version %s cannot be used either: %s", store.kind, version, error)
            if store.published()[:1] != published[:1]:
                break
            continue
        if first is not None:
            log.error(
                "%s version %s, which was published earlier, is used instead: publish a version that is whole",
                store.kind,
                version,
            )
        return version, loaded
    assert first is not None
    return first
