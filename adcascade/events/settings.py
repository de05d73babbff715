"""Settings of the event store: flags of ``python -m adcascade.events``, or ADCASCADE_EVENTS_* in the environment."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from adcascade.events.recorder import Rules
from adcascade.serving.settings import ServerSettings

_DAY_US, _MILLISECOND_US = 86_400 * 1_000_000, 1000


class EventsSettings(ServerSettings):
    """Event store: records what users do, once and for good, and tells their histories and what was counted."""

    model_config = SettingsConfigDict(
        env_prefix="ADCASCADE_EVENTS_", cli_kebab_case=True, cli_prog_name="python -m adcascade.events"
    )

    data: Path = Field(description="Folder of the store; it is made if it is not there. One process owns it.")
    index: Path | None = Field(
        None,
        description="Root of the index versions: events of ads that the published one does not have are rejected, and "
        "advertisers and categories are counted, too.",
    )
    retention_days: float = Field(
        400.0,
        gt=0,
        le=36_500,
        allow_inf_nan=False,
        description="Older events are erased, and what was counted of users since; totals of ads stay.",
    )
    ahead_seconds: float = Field(
        300.0, ge=0, le=86_400, allow_inf_nan=False, description="How far a sender's clock may be ahead of the store's."
    )
    min_click_ms: int = Field(
        0,
        ge=0,
        le=86_400_000,
        description="A click sooner after its impression, or before it, is kept, and not counted; 0 counts all.",
    )
    assume_consent: bool = Field(
        False, description="Keep users, texts and contexts of events that do not say that their user agreed."
    )
    pseudonymise: Path | None = Field(
        None,
        description="File with a secret key of at least 16 bytes: ids of users are kept as keyed hashes alone.",
    )
    sweep_seconds: float = Field(60.0, gt=0, description="How often events beyond the retention are looked for.")

    def rules(self) -> Rules:
        """What is refused, and what is not counted."""
        return Rules(
            ahead_us=int(self.ahead_seconds * 1_000_000),
            retention_us=int(self.retention_days * _DAY_US),
            min_click_us=self.min_click_ms * _MILLISECOND_US,
        )
