"""Command-line flags from the fields of a dataclass, and of those nested in it. Knows nothing of what they mean."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import reduce, wraps
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

# In the metadata of a field: the name of its flag, where it is not its own.
FLAG = "flag"

Options = TypeVar("Options")


@dataclass(frozen=True)
class _Flag:
    """A flag, and the path of fields that leads to its value from the outermost dataclass."""

    name: str
    path: tuple[str, ...]
    default: Any
    hint: Any
    option: Mapping[str, Any]


def _flags_of(options_type: type[Any], path: tuple[str, ...] = ()) -> Iterator[_Flag]:
    """In the order of the fields, those of a nested dataclass where it stands."""
    hints = get_type_hints(options_type)
    for one in fields(options_type):
        own, hint = (*path, one.name), hints[one.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _flags_of(hint, own)
        else:
            option = dict(one.metadata)
            yield _Flag(option.pop(FLAG, one.name), own, one.default, hint, option)


def flat(options: Any) -> dict[str, Any]:
    """The value of each flag."""
    return {flag.name: reduce(getattr, flag.path, options) for flag in _flags_of(type(options))}


def with_values(options: Options, values: Mapping[str, Any]) -> Options:
    """The same options with other values for some flags.

    Raises:
        TypeError: There is no such flag.
    """
    paths = {flag.name: flag.path for flag in _flags_of(type(options))}
    if unknown := values.keys() - paths.keys():
        raise TypeError(f"{type(options).__name__} has no {', '.join(sorted(unknown))}")
    changed: Options = _replaced(options, {paths[name]: value for name, value in values.items()})
    return changed


def _replaced(options: Any, values: Mapping[tuple[str, ...], Any]) -> Any:
    own = {path[0]: value for path, value in values.items() if len(path) == 1}
    for name in {path[0] for path in values if len(path) > 1}:
        inside = {path[1:]: value for path, value in values.items() if path[0] == name and len(path) > 1}
        own[name] = _replaced(getattr(options, name), inside)
    return replace(options, **own)


def with_flags_of(options_type: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command a flag for each field of a dataclass, in place of its argument `options`.

    The metadata of each field are the arguments of its `typer.Option`; a field that is a dataclass stands for its own.
    All fields need a default.
    """
    options_flags = list(_flags_of(options_type))

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_flags(**arguments: Any) -> None:
            options = with_values(options_type(), {flag.name: arguments.pop(flag.name) for flag in options_flags})
            command(options=options, **arguments)

        own = [one for one in inspect.signature(command).parameters.values() if one.name != "options"]
        flags = [
            inspect.Parameter(
                flag.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=flag.default,
                annotation=Annotated[flag.hint, typer.Option(**flag.option)],
            )
            for flag in options_flags
        ]
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + flags
        with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_flags.__annotations__ = {one.name: one.annotation for one in parameters}
        return with_flags

    return decorated
