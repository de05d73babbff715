"""Settings of the ranking server: flags of ``python -m ranking``, or ADCASCADE_RANKING_* in the environment."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from adcascade.serving.settings import ServerSettings
from ranking.runtime.engine_settings import EngineSettings


class RankingSettings(ServerSettings):
    """Ranking server: scores candidates with the published model version and swaps to a new one as it is published."""

    model_config = SettingsConfigDict(
        env_prefix="ADCASCADE_RANKING_", cli_kebab_case=True, cli_prog_name="python -m ranking"
    )

    model: Path = Field(description="Root of the model versions, as `adcascade train --out` writes it.")
    index: Path | None = Field(
        None, description="Root of the index versions; candidates and history may then name ads by id."
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    precision: str = Field("auto", description="auto, float32 or bfloat16.")
    backend: str = Field(
        "auto", description="torch, openvino or openvino-int8 (of an exported model), or auto for the fastest."
    )
    cache_mib: int = Field(256, ge=1, description="Memory for ad states, in MiB.")
    user_cache_mib: int = Field(
        64, ge=0, description="Memory for the states of users who asked lately, in MiB; 0 keeps none."
    )
    prewarm_ads: bool = Field(
        True,
        description="Read the ads of the index between calls, until cache_mib is full and, of a version with a prior "
        "of texts, 200,000 of its numbers are kept.",
    )
    token_budget: int = Field(
        8192, ge=64, description="Ad tokens in one pass, eight times as many on a GPU; bounds memory, not the request."
    )
    batch_candidates: int = Field(
        2000,
        ge=1,
        description="What waiting calls that make up one batch may cost, in candidates; two tokens of an ad that "
        "nobody has met count as one.",
    )
    nice: int = Field(
        5, ge=0, le=19, description="How much it gives way to the other processes of this machine, as `nice` counts."
    )
    poll_seconds: float = Field(1.0, gt=0, description="How often to look for a new version.")

    def engine(self) -> EngineSettings:
        """The part that the engine reads."""
        return EngineSettings(
            device=self.device,
            precision=self.precision,
            cache_mib=self.cache_mib,
            user_cache_mib=self.user_cache_mib,
            token_budget=self.token_budget,
            backend=self.backend,
        )
