"""How a command ends when something is wrong: one message, no traceback, and an exit code.

2 is what the command was given; an error that is something else has an `exit_code` of its own (see `serving.errors`).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from records.printable import printable

EXIT_BAD_INPUT = 2
_LAYOUT = "\n\t"  # what our own messages are laid out with; what they quote is theirs


@contextmanager
def clean_exit(*expected: type[Exception]) -> Iterator[None]:
    """Turns `expected` errors, and settings that do not validate, into a message and an exit code."""
    try:
        yield
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}" for item in error.errors()]
        sys.exit(_say("these settings are wrong:\n" + "\n".join(lines)))
    except expected as error:
        sys.exit(_say(str(error), getattr(error, "exit_code", EXIT_BAD_INPUT)))


def _say(message: str, code: int = EXIT_BAD_INPUT) -> int:
    sys.stderr.write(f"error: {printable(message, keep=_LAYOUT)}\n")
    return code
