"""The commands that every store of versions has: list, verify, publish, rollback, prune."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from adcascade.artifacts.errors import VersionNotFound
from adcascade.artifacts.store import VersionInfo, VersionStore
from adcascade.records.printable import printable

Root = Annotated[Path, typer.Argument(help="Folder that holds versions/ and CURRENT.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output instead of text for people.")]


def add_version_commands(app: typer.Typer, open_store: Callable[[Path], VersionStore]) -> None:
    """Adds the commands to `app`; `open_store` makes the store from the folder the user names."""

    @app.command("list")
    def list_versions(root: Root, as_json: Json = False) -> None:
        """Show all versions, oldest first, and which one is published."""
        if not root.is_dir():
            raise VersionNotFound(f"there is no folder {root}")
        infos = open_store(root).versions()
        if as_json:
            print(json.dumps([_as_dict(info) for info in infos], indent=2))  # noqa: T201
        else:
            Console(markup=False).print(_table(infos))

    @app.command()
    def verify(
        root: Root,
        version: Annotated[str, typer.Argument(help="Default: the published one.")] = "",
        as_json: Json = False,
    ) -> None:
        """Read every file of a version and compare its checksum."""
        store = open_store(root)
        name = version or store.current_path().name
        manifest = store.verify(name)
        files = len(manifest.files)
        _say(f"{name}: {files} files are intact", {"version": name, "intact_files": files}, as_json)

    @app.command()
    def publish(root: Root, version: str, as_json: Json = False) -> None:
        """Make a version the published one, after verifying it. Running servers swap to it within seconds."""
        open_store(root).publish(version)
        _say(f"{version} is published", {"published": version}, as_json)

    @app.command()
    def rollback(root: Root, as_json: Json = False) -> None:
        """Publish the version that was published before the current one."""
        version = open_store(root).rollback()
        _say(f"{version} is published again", {"published": version}, as_json)

    @app.command()
    def prune(
        root: Root,
        keep: Annotated[int, typer.Option(min=0, help="Newest versions to keep beside the published.")] = 3,
        as_json: Json = False,
    ) -> None:
        """Remove old versions; the published one always stays."""
        removed = open_store(root).prune(keep)
        said = f"removed {len(removed)}: {', '.join(removed)}" if removed else "nothing to remove"
        _say(said, {"removed": removed}, as_json)


def _say(text: str, document: dict[str, object], as_json: bool) -> None:
    if as_json:
        print(json.dumps(document, indent=2))  # noqa: T201
    else:
        Console(markup=False).print(printable(text), soft_wrap=True)


def _as_dict(info: VersionInfo) -> dict[str, object]:
    return {
        "version": info.version,
        "created_at": info.created_at.isoformat() if info.created_at else None,
        "bytes": info.bytes,
        "published": info.published,
        "problem": info.problem,
    }


def _table(infos: list[VersionInfo]) -> Table:
    table = Table(Column("version", no_wrap=True), "made", "MiB", "published", Column("problem", overflow="fold"))
    for info in infos:
        made = f"{info.created_at:%Y-%m-%d %H:%M}" if info.created_at else "?"
        mark = "yes" if info.published else ""
        table.add_row(printable(info.version), made, f"{info.bytes / 2**20:.1f}", mark, printable(info.problem))
    return table
