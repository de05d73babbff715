"""How a model version is run, as a plain value. Loads nothing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineSettings:
    """How a model version is run.

    Attributes:
        device: torch device, or "auto" for the GPU where there is one.
        precision: "float32", "bfloat16", or "auto" for bfloat16 where the hardware computes in it.
        cache_mib: Memory for ad states, at most; at least one request's worth is always kept.
        user_cache_mib: Memory for the states of users who asked lately, at most; 0 keeps none.
        token_budget: Ad tokens in one pass of the joined layers on the CPU, at most; a GPU takes eight times as many,
            since there starting a pass costs more than computing it.
        backend: one of `ranking.runtime.backends.BACKENDS`; "auto" is the fastest here of those that the version has.
    """

    device: str = "auto"
    precision: str = "auto"
    cache_mib: int = 256
    user_cache_mib: int = 64
    token_budget: int = 8192
    backend: str = "auto"
