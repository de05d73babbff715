"""How much memory a process takes. Knows not what it does."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Sequence

import psutil

_EVERY_SECONDS = 0.05


def peak_mib(arguments: Sequence[str]) -> float:
    """Runs Python with these arguments, and returns the most memory that it had at any time (resident, MiB).

    Raises:
        RuntimeError: It ended with an error.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    peak = [0.0]
    watcher = threading.Thread(target=watch_peak, args=(psutil.Process(process.pid), peak))
    watcher.start()
    try:
        _, complaints = process.communicate()
    finally:  # also where nobody waits any more
        process.kill()
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"python {' '.join(arguments)} failed: {complaints.strip()[-2000:]}")
    return peak[0]


def own_mib(process: psutil.Process) -> float:
    """What a process has now, MiB, without pages of mapped files, which the system takes back at need."""
    found = process.memory_info()
    return float(found.rss - getattr(found, "shared", 0)) / 2**20  # only Linux tells them apart


def watch_peak(process: psutil.Process, peak: list[float]) -> None:
    """Raises ``peak[0]`` to the most memory that a process has (resident, MiB), until it ends.

    What the system tells of the peak of a process that has ended counts that of the one which started it.
    """
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):  # it has ended
        while now := float(process.memory_info().rss) / 2**20:
            peak[0] = max(peak[0], now)
            threading.Event().wait(_EVERY_SECONDS)
