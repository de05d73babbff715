"""The command ``adcascade recommend``: who asks, from files or flags, and what running servers answer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from adcascade.records.ads import Ad, read_ads
from adcascade.records.clicks import read_clicks
from adcascade.records.errors import InputError
from adcascade.records.history import Histories, with_history
from adcascade.records.printable import printable_json
from adcascade.records.users import Context, UserProfile
from adcascade.records.users_by_id import load_users
from adcascade.records.values import as_id
from adcascade.serving.auth.client import ClientSecurity
from adcascade.terminal.console import Console
from adcascade.terminal.flags import with_flags_of
from adcascade.terminal.log_display import show_log_read
from adcascade.terminal.options import Json, MaxRejected, RetrievalWeight
from pipeline.client import DEFAULT_CANDIDATES, AdPipeline
from pipeline.display import as_dict, recommendations_table, user_panel


@with_flags_of(ClientSecurity)
def recommend_command(
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
    retrieval_weight: RetrievalWeight = None,
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
