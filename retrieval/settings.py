"""Settings of the retrieval server: flags of ``python -m retrieval``, or ADCASCADE_RETRIEVAL_* in the environment."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from adcascade.serving.settings import ServerSettings
from retrieval.interests import InterestSettings
from retrieval.sources import FRESH, LEXICAL, POPULARITY, SourceSettings, check_shares


class RetrievalSettings(ServerSettings):
    """Retrieval server: finds candidates in the published index version and swaps to a new one as it is published."""

    model_config = SettingsConfigDict(
        env_prefix="ADCASCADE_RETRIEVAL_", cli_kebab_case=True, cli_prog_name="python -m retrieval"
    )

    index: Path = Field(description="Root of the index versions, as `adcascade build --out` writes it.")
    encoder: str = Field("", description="Text encoder; by default the one that the index version names.")
    device: str = Field("auto", description="Where to search: auto, cpu or cuda.")
    batch_vectors: int = Field(
        256,
        ge=1,
        description="What waiting calls that are answered together may cost, in vectors searched; eight tokens of new "
        "text count as one.",
    )
    half_life_days: float = Field(14.0, gt=0, description="Age at which an event counts half.")
    max_interests: int = Field(4, ge=1, le=16, description="Interest vectors of a user with a long history, at most.")
    events_per_interest: int = Field(8, ge=1, description="Liked events that justify one more interest vector.")
    neighbours: bool = Field(True, description="Add what the ads that a user met say of others, where towers know it.")
    share_lexical: float = Field(0.1, ge=0, le=1, description="Candidates that words of interests and searches bring.")
    share_popularity: float = Field(0.0, ge=0, le=1, description="Candidates that recent popularity brings.")
    share_fresh: float = Field(0.02, ge=0, le=1, description="Candidates among ads that were hardly shown yet.")
    cold_users_popularity: float = Field(
        0.5, ge=0, le=1, description="Candidates that recent popularity brings to users of whom nothing is known."
    )
    fresh_below: int = Field(10, ge=1, description="Impressions below which an ad is fresh.")
    source_timeout_ms: float = Field(50.0, gt=0, description="How long to wait for sources beside the interests.")
    text_cache_mib: int = Field(
        32, ge=0, description="Memory for the vectors of texts that were encoded lately, in MiB; 0 keeps none."
    )
    answer_cache_mib: int = Field(
        16,
        ge=0,
        description="Memory for answers without texts that were given lately, in MiB, for users who ask again with the "
        "same history; 0 keeps none.",
    )
    poll_seconds: float = Field(1.0, gt=0, description="How often to look for a new version.")

    def sources(self) -> SourceSettings:
        """The part that shares candidates among sources."""
        shares = {LEXICAL: self.share_lexical, POPULARITY: self.share_popularity, FRESH: self.share_fresh}
        check_shares(shares)
        return SourceSettings(
            shares, self.cold_users_popularity, self.neighbours, self.fresh_below, self.source_timeout_ms / 1000
        )

    def interests(self) -> InterestSettings:
        """The part that turns users into interest vectors."""
        return InterestSettings(self.half_life_days, self.max_interests, self.events_per_interest)
