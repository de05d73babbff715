"""The command ``adcascade serve``. Knows the servers' flags, not what they do."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from adcascade.events.settings import EventsSettings
from adcascade.serving.errors import StartupError
from adcascade.serving.settings import ServerSettings
from adcascade.terminal.console import Console
from adcascade.terminal.flags import with_flags_of
from adcascade.terminal.options import IndexRoot, Json, ModelRoot
from adcascade.terminal.progress import working
from pipeline.processes import own_folder
from pipeline.security import ServeSecurity
from pipeline.server_flags import ServerFlags, with_server_flags
from pipeline.settings import GatewaySettings
from pipeline.supervisor import RestartLimits, ServerSpec, Supervisor, supervised
from ranking.settings import RankingSettings
from retrieval.settings import RetrievalSettings

SETTINGS: dict[str, type[ServerSettings]] = {
    "retrieval": RetrievalSettings,
    "ranking": RankingSettings,
    "gateway": GatewaySettings,
    "events": EventsSettings,
}
# What `serve` has flags of its own for, or sets itself.
OWN_FLAGS = (
    frozenset(["index", "model", "host", "port", "metrics_port", "address_file", "exit_with_parent"])
    | frozenset(["retrieval", "ranking", "events", "data"])
    | frozenset(one.name for one in fields(ServeSecurity))
)


@with_server_flags(SETTINGS, OWN_FLAGS)
@with_flags_of(ServeSecurity)
def serve_command(
    options: ServeSecurity,
    server_flags: ServerFlags,
    index: IndexRoot,
    model: ModelRoot,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the gateway (RecommendService); 0 is a free one.")
    ] = 50050,
    retrieval_port: Annotated[int, typer.Option(min=0, max=65535, help="Of the retrieval server.")] = 50051,
    ranking_port: Annotated[int, typer.Option(min=0, max=65535, help="Of the ranking server.")] = 50052,
    events: Annotated[
        Path | None,
        typer.Option(help="Folder of the event store, which is started, too: what users do is known to the next call."),
    ] = None,
    events_port: Annotated[int, typer.Option(min=0, max=65535, help="Of the event store.")] = 50053,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all interfaces.")] = "127.0.0.1",
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65532, help="Gateway's /metrics; retrieval, ranking and events take the next three."),
    ] = None,
    logs: Annotated[Path, typer.Option(help="Folder for the servers' logs, which are appended to and rotated.")] = Path(
        "adcascade-logs"
    ),
    log_mib: Annotated[int, typer.Option(min=1, help="Size of a log at which the next part begins; 4 are kept.")] = 16,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="How often a server is started again within ten minutes before all end.")
    ] = 5,
    hang_seconds: Annotated[
        float, typer.Option(min=1, help="A server that answers no health check for so long is started again.")
    ] = 15.0,
    as_json: Json = False,
) -> None:
    """Run the retrieval server, the ranking server, the gateway, and with --events the event store, until Ctrl-C or
    SIGTERM.

    Each is a process of its own and swaps to newly published versions by itself. One that ends, or answers no more, is
    started again on the same port; exit code 69 says that this did not help. To run them on different machines, start
    `python -m retrieval`, `python -m ranking`, `python -m adcascade.events` and `python -m pipeline`, which have the
    same settings.
    """
    options.check_servers(host)
    flags = {
        server: ["--host", host, *_metrics_flags(metrics_port, offset), *options.server_flags(), *server_flags[server]]
        for offset, server in enumerate(("gateway", "retrieval", "ranking", "events"))
    }
    stages = [
        ServerSpec("retrieval", ["--index", str(index), *flags["retrieval"]], retrieval_port),
        ServerSpec("ranking", ["--model", str(model), "--index", str(index), *flags["ranking"]], ranking_port),
        *_events_spec(events, index, flags, events_port),
    ]
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    limits = RestartLimits(max_restarts=max_restarts, hang_seconds=hang_seconds)
    with own_folder(logs), supervised(Supervisor(logs, console.print, limits, log_mib, options.client())) as servers:
        with working("Loading", console):
            addresses = _start(servers, stages, [*flags["gateway"], *options.gateway_flags()], port)
        if as_json:
            print(json.dumps(addresses), flush=True)  # noqa: T201
        console.print(", ".join(f"{name} on {address}" for name, address in addresses.items()))
        console.print(f"Serving; logs are in {logs}. Ctrl-C stops.")
        servers.keep_running()


def _events_spec(
    folder: Path | None, index: Path, flags: Mapping[str, Sequence[str]], port: int
) -> Sequence[ServerSpec]:
    """The event store, if there is a folder for it. Raises StartupError for a setting of it without one."""
    if folder is not None:
        return [ServerSpec("adcascade.events", ["--data", str(folder), "--index", str(index), *flags["events"]], port)]
    shared = {flag for server, given in flags.items() if server != "events" for flag in given}
    alone = [flag for flag in flags["events"] if flag.startswith("--") and flag not in shared]
    if alone:
        raise StartupError(f"{alone[0]} is of the event store: give --events FOLDER, too")
    return []


def _metrics_flags(port: int | None, offset: int) -> list[str]:
    return [] if port is None else ["--metrics-port", str(port + offset)]


def _start(
    servers: Supervisor, stages: Sequence[ServerSpec], gateway_flags: Sequence[str], port: int
) -> dict[str, str]:
    """Starts the servers behind the gateway, and then the gateway to them; address of each."""
    found = dict(zip((spec.module.rpartition(".")[2] for spec in stages), servers.start(stages), strict=True))
    flags = [part for name, address in found.items() for part in (f"--{name}", address)]
    (gateway,) = servers.start([ServerSpec("pipeline", [*flags, *gateway_flags], port, may_wait=True)])
    return {"gateway": gateway, **found}
