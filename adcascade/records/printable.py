"""Texts of owners and callers as they may be shown: what would steer the medium that shows them is written out.

Each medium adds its own: HTML is escaped by the templates (`adcascade.reports.page`), formulas by
`adcascade.reports.figures.plain`, markup by `adcascade.terminal.console`.
"""

import re

# Control characters, of which ESC begins a terminal's commands; line and paragraph separators; characters that turn the
# direction of what follows; halves of surrogate pairs, which no encoding has.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "") -> str:
    r"""The text with every character that steers a terminal, a log or a page written out, such as ``\x1b``.

    Args:
        keep: characters that stay as they are, such as a line's end in a text of our own.
    """
    return _STEERING.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def printable_json(document: str) -> str:
    """A JSON document whose texts steer no terminal, and mean the same; JSON itself escapes what is below a space."""
    return _STEERING.sub(lambda found: found[0] if found[0] in "\n\t" else f"\\u{ord(found[0]):04x}", document)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
