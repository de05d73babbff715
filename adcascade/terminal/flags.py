"""Command-line flags from the fields of a dataclass. Knows nothing of what they mean."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer


def with_flags_of(options_type: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command a flag for each field of a dataclass, in place of its argument `options`.

    The metadata of each field are the arguments of its `typer.Option`.
    """
    hints = get_type_hints(options_type)
    names = [option.name for option in fields(options_type)]

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_flags(**arguments: Any) -> None:
            options = options_type(**{name: arguments.pop(name) for name in names})
            command(options=options, **arguments)

        own = [one for one in inspect.signature(command).parameters.values() if one.name != "options"]
        flags = [
            inspect.Parameter(
                option.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=option.default,
                annotation=Annotated[hints[option.name], typer.Option(**option.metadata)],
            )
            for option in fields(options_type)
        ]
        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + flags
        with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_flags.__annotations__ = {one.name: one.annotation for one in parameters}
        return with_flags

    return decorated
