"""A bounded cache of what the user pass made of users who asked lately. Knows no ads and no wire.

Between two clicks a user sees several pages; until the history changes, nothing needs to be read again.
"""

from collections.abc import Callable

from adcascade.serving.byte_cache import ByteBudgetCache
from ranking.model.batch import TokenRows
from ranking.runtime.backends import UserKept


class UserStateCache:
    """Least recently used user states, by the tokens that were read. Belongs to the thread that owns the model.

    Args:
        max_bytes: of all states together, with what finds them again; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self._kept: ByteBudgetCache[UserKept] = ByteBudgetCache(max_bytes, _bytes_of)

    def __len__(self) -> int:
        return len(self._kept)

    def read(self, users: TokenRows, compute: Callable[[TokenRows], list[UserKept]]) -> list[UserKept]:
        """States of each user; those that are not kept are computed together, each once."""
        ids = users.ids.cpu().numpy()
        keys = [ids[row, :length].tobytes() for row, length in enumerate(users.lengths.tolist())]
        kept = {key: self._kept.get(key) for key in keys}
        found = {key: states for key, states in kept.items() if states is not None}
        missing = {key: row for row, key in enumerate(keys) if key not in found}
        if missing:
            for key, states in zip(missing, compute(users.take(list(missing.values()))), strict=True):
                found[key] = self._keep(key, states)
        return [found[key] for key in keys]

    def _keep(self, key: bytes, states: UserKept) -> UserKept:
        # A copy: what was made for several users at once would otherwise stay as a whole.
        own = UserKept(states.keys.clone(), states.values.clone())
        self._kept.put(key, own)
        return own


def _bytes_of(states: UserKept) -> int:
    return states.keys.nbytes + states.values.nbytes
