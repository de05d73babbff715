"""A terminal that shows texts as they are: no markup, no emoji codes, no control characters. Knows no commands.

Titles of ads, context values and names of files reach tables and messages. ``[/50%]`` is a price there and no markup,
and the escape sequence of a hostile title must not reach the owner's terminal.
"""

import sys
from typing import Any

import rich.console
from rich.text import Text

from adcascade.records.printable import printable

_OURS = "\n\t"  # what our own messages are laid out with


class Console(rich.console.Console):
    """`rich.console.Console` for texts that others wrote; see the module."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Every text that is printed, and every cell and title of a table, comes through here."""
        return super().render_str(printable(text, _OURS), **options)


def show_whatever_the_encoding() -> None:
    """Lets this process print characters that its terminal's encoding lacks, written out, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
