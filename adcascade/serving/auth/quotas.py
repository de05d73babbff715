"""How much each identity may ask: calls a second (a token bucket) and calls at once. Knows nothing of what is asked."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from adcascade.serving.auth.identity import Identity, Quota
from adcascade.serving.errors import ResourceExhausted

# Identities that are remembered; of a JWT issuer there may be any number. About 200 bytes each.
_MAX_REMEMBERED = 10_000


@dataclass
class _Account:
    tokens: float
    filled_at: float
    running: int = 0


class Quotas:
    """Counts calls by identity. Thread-safe, in bounded memory.

    Args:
        default: Of identities that have no quota of their own.
        clock: Seconds that only go up.
    """

    def __init__(self, default: Quota, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._default = default
        self._clock = clock
        self._accounts: OrderedDict[tuple[str, str, str], _Account] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, identity: Identity) -> Callable[[], None]:
        """Counts a call; the caller calls what is returned, once, when it ends.

        Raises:
            ResourceExhausted: The identity has used what it may.
        """
        quota = identity.quota or self._default
        if quota.calls_per_second is None and quota.concurrent is None:
            return _nothing
        with self._lock:
            account = self._account(identity, quota)
            if quota.concurrent is not None and account.running >= quota.concurrent:
                raise ResourceExhausted(f"this identity may have {quota.concurrent} calls at once; wait for one to end")
            if quota.calls_per_second is not None and account.tokens < 1:
                raise ResourceExhausted(
                    f"this identity may make {quota.calls_per_second:g} calls a second; try again later, with back-off"
                )
            if quota.calls_per_second is not None:
                account.tokens -= 1
            account.running += 1
        return lambda: self._end(account)

    def _account(self, identity: Identity, quota: Quota) -> _Account:
        key, now = (identity.proof, identity.tenant, identity.name), self._clock()
        rate = quota.calls_per_second or 0.0
        burst = max(1.0, rate)
        account = self._accounts.get(key)
        if account is None:
            self._forget()
            account = self._accounts[key] = _Account(burst, now)
        self._accounts.move_to_end(key)
        account.tokens = min(burst, account.tokens + rate * (now - account.filled_at))
        account.filled_at = now
        return account

    def _forget(self) -> None:
        """Makes room: those who called longest ago go first, but none that has a call running."""
        if len(self._accounts) < _MAX_REMEMBERED:
            return
        idle = next((key for key, account in self._accounts.items() if account.running == 0), None)
        if idle is None:
            raise ResourceExhausted("too many identities have calls running; try again later")
        del self._accounts[idle]

    def _end(self, account: _Account) -> None:
        with self._lock:
            account.running -= 1


def _nothing() -> None:
    """A call that no quota counts has nothing to give back."""
