"""Settings of the gateway: flags of ``python -m pipeline``, or ADCASCADE_PIPELINE_* in the environment."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from adcascade.serving.auth.client import ClientSecurity
from adcascade.serving.settings import ServerSettings
from pipeline.order import DEFAULT_RETRIEVAL_WEIGHT


class GatewaySettings(ServerSettings):
    """Gateway: both stages as one call, `adcascade.v1.RecommendService`, for callers in any language."""

    model_config = SettingsConfigDict(
        env_prefix="ADCASCADE_PIPELINE_", cli_kebab_case=True, cli_prog_name="python -m pipeline"
    )

    retrieval: str = Field("127.0.0.1:50051", description="host:port of the retrieval server.")
    ranking: str = Field("127.0.0.1:50052", description="host:port of the ranking server.")
    ca_certificate: Path | None = Field(
        None, description="PEM of the authorities whose servers are believed; with it, both connections are TLS."
    )
    certificate: Path | None = Field(None, description="PEM of the gateway's own certificate, for both servers (mTLS).")
    key: Path | None = Field(None, description="PEM private key of it.")
    token_file: Path | None = Field(None, description="File with a bearer token for both servers.")
    server_name: str = Field("", description="Name that the certificates of both servers have, if not the address's.")
    events: str = Field(
        "", description="host:port of the event store, whose histories of users join those of requests; empty for none."
    )
    candidates: int = Field(100, ge=1, le=1000, description="Candidates to retrieve and rank if a call does not say.")
    retrieval_weight: float | None = Field(
        None,
        ge=0,
        description="What retrieval's score counts in the order beside the log-odds of the click; 0 for these alone. "
        f"Unset: what the model version says (adcascade fit-order), or {DEFAULT_RETRIEVAL_WEIGHT:g}.",
    )
    timeout_seconds: float = Field(5.0, gt=0, description="For both stages together if a call has no deadline.")
    retrieval_timeout_ms: float = Field(1000.0, gt=0, description="Longest that retrieval may take of a call's time.")
    ranking_timeout_ms: float = Field(
        1000.0, gt=0, description="Longest that ranking may take of a call's time; then the retrieval order goes out."
    )
    events_timeout_ms: float = Field(
        100.0, gt=0, description="Longest that the event store may take; then the answer is made without its history."
    )

    def security(self) -> ClientSecurity:
        """What the gateway shows to both servers."""
        return ClientSecurity(self.ca_certificate, self.certificate, self.key, self.token_file, self.server_name)
