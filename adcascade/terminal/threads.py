"""How threads of the numeric libraries wait for each other. Needs the standard library alone."""

import os


def share_cores() -> None:
    """Lets OpenMP's threads sleep while they wait, unless the environment says how they wait.

    They spin else, which saves microseconds on idle cores. Where other processes want the cores, as several servers on
    one machine or a training beside them do, a thread then burns the time that the one it waits for would need. Takes
    effect before torch, FAISS or LightGBM is imported, here and in processes that are started.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
