"""``adcascade tokens`` and ``adcascade certs``: who may call, as files that servers read."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adcascade.serving.auth.identity import Quota
from adcascade.serving.auth.scopes import SCOPES
from adcascade.serving.auth.tokens import StoredToken, TokensFile
from adcascade.serving.errors import StartupError

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output instead of text for people.")]
File = Annotated[Path, typer.Argument(help="The tokens file, as servers are given it with --tokens.")]

tokens_app = typer.Typer(
    no_args_is_help=True,
    help="Make, list and revoke static bearer tokens. Running servers read the file again within a second.",
)
certs_app = typer.Typer(no_args_is_help=True, help="Certificates to try TLS and mTLS with.")


@tokens_app.command("create")
def create(
    file: File,
    name: Annotated[str, typer.Option(help="Whom it is for; seen in the access log.")],
    scope: Annotated[list[str], typer.Option(help=f"What it may do; give it again for more. {', '.join(SCOPES)}.")],
    out: Annotated[
        Path | None, typer.Option(help="Write the token into this new file (mode 0600) instead of printing it.")
    ] = None,
    expires_days: Annotated[float | None, typer.Option(min=0.001, help="Days until it ends; default: never.")] = None,
    tenant: Annotated[str, typer.Option(help="Whose data it acts on.")] = "",
    calls_per_second: Annotated[float | None, typer.Option(min=0.001, help="Its own quota.")] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Its own quota of calls at once.")] = None,
) -> None:
    """Make a token. It is shown once; the file keeps its hash."""
    quota = None if calls_per_second is None and concurrent is None else Quota(calls_per_second, concurrent)
    expires = None if expires_days is None else datetime.now(UTC) + timedelta(days=expires_days)
    descriptor = None if out is None else _new_file(out)
    try:
        stored, token = TokensFile(file).create(name, scope, tenant=tenant, expires=expires, quota=quota)
    except StartupError:
        if descriptor is not None and out is not None:
            os.close(descriptor)
            out.unlink()
        raise
    if descriptor is None:
        print(token)  # noqa: T201
    else:
        with os.fdopen(descriptor, "w") as written:
            written.write(f"{token}\n")
    _say(f"Made {stored.token_id} for {name}. {'It is not shown again.' if out is None else f'It is in {out}.'}")


@tokens_app.command("list")
def list_tokens(file: File, as_json: Json = False) -> None:
    """Show all tokens, oldest first: whose they are, what they may do, until when. Never the tokens themselves."""
    tokens, now = TokensFile(file).tokens(), datetime.now(UTC)
    if as_json:
        print(json.dumps([_as_dict(one, now) for one in tokens], indent=2))  # noqa: T201
        return
    table = Table("token", "name", "scopes", "tenant", "expires", "state", show_edge=False)
    for one in tokens:
        words = _as_dict(one, now)
        scopes = " ".join(one.grant.words["scopes"].split(","))
        cells = [one.token_id, one.name, scopes, one.grant.tenant, words["expires"] or "never", words["state"]]
        table.add_row(*(Text(str(cell)) for cell in cells))
    Console().print(table)


@tokens_app.command("revoke")
def revoke(
    file: File, which: Annotated[str, typer.Argument(help="Id of a token, or a name: then all that it has.")]
) -> None:
    """Revoke a token: running servers refuse it within a second."""
    for one in TokensFile(file).revoke(which):
        _say(f"Revoked {one.token_id} of {one.name}.")


@certs_app.command("dev")
def dev(
    folder: Annotated[Path, typer.Argument(help="Folder for the certificates and keys.")],
    host: Annotated[
        list[str] | None, typer.Option(help="Host name or address of the servers; give it again. Default: loopback.")
    ] = None,
    days: Annotated[float, typer.Option(min=0.01, max=365, help="How long they are good.")] = 30.0,
) -> None:
    """Make an authority, a certificate for servers, and some for callers: to try mTLS, not for production.

    What is in the folder is replaced, and running servers take it up.
    """
    from adcascade.serving.auth.authority import (  # loads what other commands do without
        LOCAL_HOSTS,
        write_dev_certificates,
    )

    written = write_dev_certificates(folder, tuple(host) if host else LOCAL_HOSTS, days)
    _say(f"Written: {', '.join(path.name for path in written)}, in {folder}; good for {days:g} days. With them:")
    _say(
        f"  adcascade serve ... --tls-certificate {folder}/server.pem --tls-key {folder}/server.key "
        f"--client-ca-certificate {folder}/ca.pem --client-certificates {folder}/certificates.txt "
        f"--ca-certificate {folder}/ca.pem --certificate {folder}/gateway.pem --key {folder}/gateway.key\n"
        f"  adcascade recommend ... --ca-certificate {folder}/ca.pem --certificate {folder}/client.pem "
        f"--key {folder}/client.key"
    )


def _new_file(path: Path) -> int:
    """A descriptor of a file that nobody else may read. Raises StartupError if it exists or cannot be made."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise StartupError(f"cannot make {path}: {error.strerror}") from error


def _as_dict(one: StoredToken, now: datetime) -> dict[str, object]:
    grant = one.grant
    over = grant.expires is not None and now >= grant.expires
    return {
        "token": one.token_id,
        "name": one.name,
        "scopes": sorted(grant.scopes),
        "tenant": grant.tenant,
        "created": grant.words.get("created"),
        "expires": grant.words.get("expires"),
        "state": "revoked" if grant.revoked else "expired" if over else "good",
    }


def _say(text: str) -> None:
    Console(stderr=True).print(Text(text), soft_wrap=True, highlight=False)
