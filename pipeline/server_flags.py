"""Every setting of the servers as a flag of one command, made from the settings' own fields.

A setting that several servers have is one flag for all of them. Knows the settings' names and types, not their meaning.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from operator import getitem
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from adcascade.serving.settings import ServerSettings

# Of server to what it is told beside the flags that the command itself has.
ServerFlags = Mapping[str, list[str]]


def with_server_flags(
    settings: Mapping[str, type[ServerSettings]], own: frozenset[str]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command a flag for each setting, in place of its argument `server_flags` (`ServerFlags`).

    Args:
        settings: of each server, by its name.
        own: names of settings that the command has flags of its own for, or sets itself.
    """
    servers = _servers_of(settings, own)

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_flags(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in servers}
            command(server_flags=_as_flags(given, servers, list(settings)), **arguments)

        kept = [one for one in inspect.signature(command).parameters.values() if one.name != "server_flags"]
        flags = [_flag(name, some, settings[some[0]].model_fields[name]) for name, some in servers.items()]
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in kept] + flags
        with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_flags.__annotations__ = {one.name: one.annotation for one in parameters}
        return with_flags

    return decorated


def _servers_of(settings: Mapping[str, type[ServerSettings]], own: frozenset[str]) -> dict[str, list[str]]:
    """Which servers have each setting, in the order of the settings."""
    servers: dict[str, list[str]] = {}
    for server, one in settings.items():
        for name in one.model_fields:
            if name not in own:
                servers.setdefault(name, []).append(server)
    return servers


def _flag(name: str, servers: Sequence[str], field: FieldInfo) -> inspect.Parameter:
    shared = name in ServerSettings.model_fields
    default = "" if field.default in (None, "") else f" Default: {field.default}."
    option = typer.Option(
        help=f"{field.description or ''}{default}",
        show_default=False,
        rich_help_panel="All servers" if shared else " and ".join(server.capitalize() for server in servers),
    )
    kind: Any = next((one for one in (bool, int, float) if one in _types_of(field.annotation)), str)
    annotation = getitem(Annotated, (kind | None, option))  # as a value: a checker would take it for a type
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _types_of(annotation: Any) -> tuple[Any, ...]:
    """A type, or the members of an optional one; an annotated one counts as what it annotates."""
    members = getattr(annotation, "__args__", (annotation,))
    return tuple(getattr(one, "__origin__", one) for one in members)


def _as_flags(given: Mapping[str, Any], servers: Mapping[str, Sequence[str]], names: Sequence[str]) -> ServerFlags:
    flags: dict[str, list[str]] = {name: [] for name in names}
    for name, value in given.items():
        if value is not None:
            for server in servers[name]:
                flags[server] += [f"--{name.replace('_', '-')}", str(value)]
    return flags
