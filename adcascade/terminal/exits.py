"""How a command ends when something is wrong: one message, no traceback, and an exit code.

2 is what the command was given, 74 that its output could not be written; an error that is something else has an
`exit_code` of its own (see `adcascade.serving.errors`).
"""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pydantic import ValidationError

from adcascade.records.printable import printable
from adcascade.terminal.extras import extra_module, missing_message

EXIT_BAD_INPUT = 2
EXIT_NO_OUTPUT = 74
# What a full disk under standard output or standard error says; files that we name have errors of their own.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LAYOUT = "\n\t"  # what our own messages are laid out with; what they quote is theirs


@contextmanager
def clean_exit(*expected: type[Exception]) -> Iterator[None]:
    """Turns `expected` errors, settings that do not validate, and missing extras into a message and an exit code."""
    try:
        yield
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}" for item in error.errors()]
        sys.exit(_say("these settings are wrong:\n" + "\n".join(lines)))
    except expected as error:
        sys.exit(_say(str(error), getattr(error, "exit_code", EXIT_BAD_INPUT)))
    except ModuleNotFoundError as error:
        module = extra_module(error)
        if module is None:
            raise
        sys.exit(_say(missing_message(module)))
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        sys.exit(_say(f"the output could not be written: {error.strerror}", EXIT_NO_OUTPUT))


def _say(message: str, code: int = EXIT_BAD_INPUT) -> int:
    with suppress(OSError):  # standard error may be what is full
        sys.stderr.write(f"error: {printable(message, keep=_LAYOUT)}\n")
    return code
