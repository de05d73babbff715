"""The ``adcascade`` command. Knows which function does the work, not how."""

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Literal

import typer

from adcascade.artifacts.commands import add_version_commands
from adcascade.artifacts.errors import ArtifactError
from adcascade.records.ads import Ad, read_ads
from adcascade.records.clicks import read_clicks
from adcascade.records.errors import InputError
from adcascade.records.history import Histories, with_history
from adcascade.records.printable import printable_json
from adcascade.records.users import Context, UserProfile, load_users
from adcascade.records.values import as_id
from adcascade.serving.auth.client import ClientSecurity
from adcascade.serving.auth.commands import certs_app, tokens_app
from adcascade.serving.errors import ServiceError
from adcascade.serving.logs import set_up_command_logging
from adcascade.serving.settings import ServerSettings
from adcascade.serving.telemetry import switch_off_telemetry
from adcascade.terminal.console import Console, show_whatever_the_encoding
from adcascade.terminal.exits import clean_exit
from adcascade.terminal.flags import with_flags_of
from adcascade.terminal.log_display import show_log_read
from adcascade.terminal.options import Json, MaxRejected, Newest, Rejected, VectorsFolder
from adcascade.terminal.progress import working
from adcascade.towers.store import open_store as open_tower_store
from adcascade.towers.training.commands import train_retrieval_command
from adcascade.training.errors import TrainingError
from adcascade.vectors.errors import BuildError
from adcascade.vectors.vector_store import default_folder
from index_builder.artifact import open_store as open_index_store
from index_builder.commands import build_command, refresh_command
from pipeline.client import DEFAULT_CANDIDATES, MAX_K, AdPipeline
from pipeline.display import as_dict, pipeline_notes, pipeline_table, recommendations_table, user_panel
from pipeline.order import DEFAULT_RETRIEVAL_WEIGHT
from pipeline.processes import own_folder
from pipeline.security import ServeSecurity
from pipeline.server_flags import ServerFlags, with_server_flags
from pipeline.settings import GatewaySettings
from pipeline.supervisor import RestartLimits, ServerSpec, Supervisor, supervised
from ranking.errors import ModelError
from ranking.settings import RankingSettings
from ranking.store import open_store as open_model_store
from ranking.training.commands import (
    calibrate_command,
    evaluate_command,
    export_command,
    show_log,
    train_command,
)
from retrieval.evaluation.commands import evaluate_retrieval_command
from retrieval.settings import RetrievalSettings

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="A two-stage ad recommender: FAISS retrieval and a calibrated click model that reads the user once. "
    "Start with `adcascade quickstart`.",
)
app.command("build")(build_command)
app.command("refresh")(refresh_command)
app.command("train-retrieval")(train_retrieval_command)
app.command("train")(train_command)
app.command("evaluate")(evaluate_command)
app.command("evaluate-retrieval")(evaluate_retrieval_command)
app.command("calibrate")(calibrate_command)
app.command("export")(export_command)
index_app = typer.Typer(no_args_is_help=True, help="List, verify, publish, roll back and prune index versions.")
towers_app = typer.Typer(no_args_is_help=True, help="List, verify, publish, roll back and prune tower versions.")
model_app = typer.Typer(no_args_is_help=True, help="List, verify, publish, roll back and prune model versions.")
add_version_commands(index_app, open_index_store)
add_version_commands(towers_app, open_tower_store)
add_version_commands(model_app, open_model_store)
app.add_typer(index_app, name="index")
app.add_typer(towers_app, name="towers")
app.add_typer(model_app, name="model")
app.add_typer(tokens_app, name="tokens")
app.add_typer(certs_app, name="certs")

_SETTINGS: dict[str, type[ServerSettings]] = {
    "retrieval": RetrievalSettings,
    "ranking": RankingSettings,
    "gateway": GatewaySettings,
}
# What `serve` has flags of its own for, or sets itself.
_OWN_FLAGS = frozenset(
    ["index", "model", "host", "port", "metrics_port", "address_file", "exit_with_parent", "retrieval", "ranking"]
) | {one.name for one in fields(ServeSecurity)}

PipelineSplit = Literal["time", "user"]
RetrievalWeight = Annotated[
    float,
    typer.Option(
        min=0,
        help="What retrieval's score counts in the order beside the log-odds of the click; 0 for these alone.",
    ),
]


@app.command("quickstart")
def quickstart_command(
    data: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("adcascade-data"),
    max_minutes: Annotated[float, typer.Option(min=0, help="Limit of each training: towers, and ranker.")] = 2.5,
    smoke: Annotated[
        bool, typer.Option(help="A small part of the log: shows in a minute or two that all works.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the main job on MovieLens-100k: towers, index, ranker, two servers, recommendations for three users."""
    from pipeline.quickstart import quickstart  # loads the model libraries, which other commands do without

    quickstart(data, minutes=max_minutes, smoke=smoke, as_json=as_json)


@app.command()
@with_server_flags(_SETTINGS, _OWN_FLAGS)
@with_flags_of(ServeSecurity)
def serve(
    options: ServeSecurity,
    server_flags: ServerFlags,
    index: Annotated[Path, typer.Option(help="Root of the index versions.")],
    model: Annotated[Path, typer.Option(help="Root of the model versions.")],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of the gateway (RecommendService); 0 is a free one.")
    ] = 50050,
    retrieval_port: Annotated[int, typer.Option(min=0, max=65535, help="Of the retrieval server.")] = 50051,
    ranking_port: Annotated[int, typer.Option(min=0, max=65535, help="Of the ranking server.")] = 50052,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all interfaces.")] = "127.0.0.1",
    metrics_port: Annotated[
        int | None, typer.Option(min=1, max=65533, help="Gateway's /metrics; retrieval and ranking take the next two.")
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
    """Run the retrieval server, the ranking server and the gateway until Ctrl-C or SIGTERM.

    Each is a process of its own and swaps to newly published versions by itself. One that ends, or answers no more, is
    started again on the same port; exit code 69 says that this did not help. To run them on different machines, start
    `python -m retrieval`, `python -m ranking` and `python -m pipeline`, which have the same settings.
    """

    def flags(server: str, offset: int) -> list[str]:
        metrics = [] if metrics_port is None else ["--metrics-port", str(metrics_port + offset)]
        return ["--host", host, *metrics, *options.server_flags(), *server_flags[server]]

    options.check_servers(host)

    stages = [
        ServerSpec("retrieval", ["--index", str(index), *flags("retrieval", 1)], retrieval_port),
        ServerSpec("ranking", ["--model", str(model), "--index", str(index), *flags("ranking", 2)], ranking_port),
    ]
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    limits = RestartLimits(max_restarts=max_restarts, hang_seconds=hang_seconds)
    with own_folder(logs), supervised(Supervisor(logs, console.print, limits, log_mib, options.client())) as servers:
        with working("Loading", console):
            retrieval, ranking = servers.start(stages)
            gateway_flags = [
                "--retrieval",
                retrieval,
                "--ranking",
                ranking,
                *flags("gateway", 0),
                *options.gateway_flags(),
            ]
            (gateway,) = servers.start([ServerSpec("pipeline", gateway_flags, port, may_wait=True)])
        addresses = {"gateway": gateway, "retrieval": retrieval, "ranking": ranking}
        if as_json:
            print(json.dumps(addresses), flush=True)  # noqa: T201
        console.print(", ".join(f"{name} on {address}" for name, address in addresses.items()))
        console.print(f"Serving; logs are in {logs}. Ctrl-C stops.")
        servers.keep_running()


@app.command()
@with_flags_of(ClientSecurity)
def recommend(
    options: ClientSecurity,
    k: Annotated[int, typer.Option(help="How many ads, 1 to 1,000.")] = 10,
    interests: Annotated[str, typer.Option(help='Free text, such as "trail running, home espresso".')] = "",
    user_id: Annotated[str, typer.Option(help="A user of --users; the history comes from --clicks.")] = "",
    users: Annotated[Path | None, typer.Option(help="Users: Parquet, JSONL or CSV.")] = None,
    clicks: Annotated[Path | None, typer.Option(help="Click log: Parquet, JSONL or CSV.")] = None,
    ads: Annotated[Path | None, typer.Option(help="Catalog; only to show the titles of the history.")] = None,
    max_rejected: MaxRejected = 0.01,
    candidates: Annotated[
        int | None,
        typer.Option(help=f"How many ads to retrieve and rank, at least k; default: {DEFAULT_CANDIDATES}, or k."),
    ] = None,
    country: Annotated[str, typer.Option(help="Where the user is, such as DE.")] = "",
    language: Annotated[str, typer.Option(help="Of the page, such as en.")] = "",
    device: Annotated[str, typer.Option(help="What the user looks at: phone, desktop, ...")] = "",
    placement: Annotated[str, typer.Option(help="Name of the slot that the ads are for.")] = "",
    retrieval: Annotated[str, typer.Option(help="host:port of the retrieval server.")] = "127.0.0.1:50051",
    ranking: Annotated[str, typer.Option(help="host:port of the ranking server.")] = "127.0.0.1:50052",
    retrieval_weight: RetrievalWeight = DEFAULT_RETRIEVAL_WEIGHT,
    include_history: Annotated[bool, typer.Option(help="Also recommend ads that the user has met.")] = False,
    share: Annotated[
        list[str] | None,
        typer.Option(help="lexical=0.3: share of the candidates that a source brings; give it again for another."),
    ] = None,
    timeout_seconds: Annotated[float, typer.Option(min=0.001, help="For both stages together.")] = 5.0,
    max_message_mib: Annotated[int, typer.Option(min=1, max=512, help="Largest message to and from the servers.")] = 8,
    as_json: Json = False,
) -> None:
    """Ask running servers (see `adcascade serve`) for the ads that a user is most likely to click."""
    user = _user(user_id, interests, users, clicks, max_rejected)
    titles = {ad.ad_id: ad.title for ad in read_ads(ads) if isinstance(ad, Ad)} if ads else {}
    context = Context(country=country, language=language, device=device, placement=placement)
    shares = _shares(share or [])
    with AdPipeline(retrieval, ranking, security=options, max_message_mib=max_message_mib) as pipeline:
        answer = pipeline.recommend(
            user,
            context,
            k,
            candidates=max(DEFAULT_CANDIDATES, k) if candidates is None else candidates,
            include_history=include_history,
            retrieval_weight=retrieval_weight,
            shares=shares,
            timeout_seconds=timeout_seconds,
        )
    if as_json:
        print(printable_json(json.dumps(as_dict(answer), indent=2, ensure_ascii=False)))  # noqa: T201
    else:
        console = Console()
        console.print(user_panel(user, titles), recommendations_table(answer, console.width), sep="\n", highlight=False)


@app.command("evaluate-pipeline")
def evaluate_pipeline_command(
    index: Annotated[Path, typer.Option(help="Root of the index versions.")],
    model: Annotated[Path, typer.Option(help="Root of the model versions.")],
    ads: Annotated[Path, typer.Option(help="Catalog: Parquet, JSONL or CSV.")],
    clicks: Annotated[Path, typer.Option(help="Click log with timestamps; its newest rows test.")],
    users: Annotated[Path | None, typer.Option(help="Users: user_id and any attributes.")] = None,
    split: Annotated[
        PipelineSplit, typer.Option(help="time: the newest tenth tests; user: the newest fifth of each user's.")
    ] = "time",
    candidates: Annotated[
        list[int],
        typer.Option(min=1, max=MAX_K, help="How many ads to retrieve and rank; give it again for another number."),
    ] = [100, 500],  # noqa: B006 (typer copies it)
    retrieval_weight: RetrievalWeight = DEFAULT_RETRIEVAL_WEIGHT,
    baselines: Annotated[
        bool, typer.Option(help="Also judge popularity, zero-shot text, item-kNN, EASE and ALS.")
    ] = True,
    max_rejected: MaxRejected = 0.01,
    newest: Newest = None,
    rejected: Rejected = None,
    report: Annotated[Path | None, typer.Option(help="Also write this HTML page, with plots.")] = None,
    vectors: VectorsFolder = None,
    as_json: Json = False,
) -> None:
    """Measure both stages together: how many of the clicks that followed they put on top.

    Each user of the test part who clicked an ad that was new to them is asked for once, as of its beginning. `adcascade
    evaluate` measures the ranker alone, on what was really shown, and `adcascade evaluate-retrieval` retrieval alone.
    """
    from pipeline.evaluate import evaluate_pipeline, load_stages
    from ranking.data.dataset import load_dataset
    from ranking.training.versions import warn_of_rows_it_knows

    if report is not None:
        from adcascade.reports.page import make_room
        from retrieval.evaluation.page import write_comparison_page  # before the work: it says what is missing to draw

        make_room(report)
    with working("Loading"):
        retriever, ranker = load_stages(index, model)
    data = load_dataset(
        ads, clicks, users, split=split, max_rejected=max_rejected, newest=newest, rejected_file=rejected
    )
    show_log(data, users, rejected)
    warn_of_rows_it_knows(ranker, data)
    found = evaluate_pipeline(
        data,
        retriever,
        ranker,
        candidates,
        retrieval_weight,
        with_baselines=baselines,
        vectors=vectors or default_folder(index),
    )
    if report is not None:
        title = f"Both stages, index version {retriever.index.loaded.version}, model version {ranker.version}"
        write_comparison_page(
            report, found.comparison, title, "Both stages, retrieval alone, and its peers", pipeline_notes(found)
        )
        Console(stderr=True).print(f"Report with plots: {report}", highlight=False, soft_wrap=True, markup=False)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))  # noqa: T201
    else:
        Console().print(pipeline_table(found), highlight=False)


def _shares(given: Sequence[str]) -> dict[str, float]:
    shares = {}
    for one in given:
        source, _, share = one.partition("=")
        if source in shares:
            raise InputError(f"--share names {source!r} twice")
        try:
            shares[source] = float(share)
        except ValueError:
            raise InputError(f"--share {one!r} is not of the form source=number, such as lexical=0.3") from None
    return shares


def _user(user_id: str, interests: str, users: Path | None, clicks: Path | None, max_rejected: float) -> UserProfile:
    given, user_id = user_id, as_id({"--user-id": user_id}, "--user-id")
    if given.strip() and not user_id:
        _tell(f"--user-id {given!r} stands for nobody, in files, too: this is for somebody of whom nothing is known.")
        return UserProfile(interests=interests)
    user = UserProfile(user_id, interests)
    if user_id and not interests and users is None and clicks is None:
        raise InputError("--user-id alone says nothing of the user: add --clicks (the history), --users or --interests")
    absent = []
    if users is not None:
        if not user_id:
            raise InputError(f"which of the users of {users}? Choose one with --user-id")
        profiles, users_report = load_users(users, max_rejected=1)  # what is wrong with others is no matter here
        for note in users_report.notes:
            _tell(note)
        found = profiles.get(user_id)
        if found is None:
            absent.append(f"{users} has no user {user_id!r}")
        else:
            user = UserProfile(user_id, interests or found.interests, found.attributes, found.history)
    if clicks is not None:
        log, report = read_clicks(clicks, None, max_rejected=max_rejected, timed=True)
        show_log_read(log, report)
        if user_id and not (log.user_id == user_id).any():
            absent.append(f"{clicks} has no user {user_id!r}")
        else:
            user = with_history(user, Histories(log), int(log.time.max()) + 1, limit=200)
    if absent and not interests and len(absent) == sum(path is not None for path in (users, clicks)):
        raise InputError(f"{' and '.join(absent)}; choose one with --user-id, or give --interests")
    for line in absent:
        _tell(f"{line}.")
    return user


def _tell(line: str) -> None:
    Console(stderr=True).print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)


def add_commands_of_others() -> None:
    """Groups of commands that other packages bring, named as entry points."""
    for point in entry_points(group="adcascade.commands"):
        try:
            app.add_typer(point.load(), name=point.name)
        except ModuleNotFoundError as missing:
            if (missing.name or "").partition(".")[0] != point.module.partition(".")[0]:
                raise
            _add_absent(point.name)


def _add_absent(name: str) -> None:
    """A command in the place of a group whose package is not in the wheel."""

    def absent() -> None:
        raise InputError(f"adcascade {name} runs from a checkout of the repository (make install), not from the wheel")

    takes_anything = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(name, help="Runs from a checkout of the repository alone.", context_settings=takes_anything)(absent)


def main() -> None:
    """Entry point of the console script."""
    switch_off_telemetry()
    add_commands_of_others()
    show_whatever_the_encoding()
    set_up_command_logging()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that children are stopped too
    with clean_exit(InputError, ArtifactError, BuildError, ModelError, ServiceError, TrainingError):
        app(prog_name="adcascade")


if __name__ == "__main__":
    main()
