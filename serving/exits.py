"""How a command ends when what it was given is wrong: one message, no traceback, exit code 2 or that of the error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from records.printable import printable

EXIT_BAD_INPUT = 2
_LAYOUT = "\n\t"  # what our own messages are laid out with; what they quote is theirs


@contextmanager
def clean_exit(*expected: type[Exception]) -> Iterator[None]:
    """Turns `expected` errors, and settings that do not validate, into a message and exit code 2.

    An error whose class has an `exit_code` ends with that one.
    """
    try:
        yield
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}" for item in error.errors()]
        sys.exit(_say("these settings are wrong:\n" + "\n".join(lines)))
    except expected as error:
        said = _say(str(error))
        sys.exit(getattr(error, "exit_code", said))


def _say(message: str) -> int:
    sys.stderr.write(f"error: {printable(message, keep=_LAYOUT)}\n")
    return EXIT_BAD_INPUT
