"""Log lines with the request id of the call they belong to."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

from records.printable import printable
from serving.interceptors import request_id


class _RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class OneLineFormatter(logging.Formatter):
    """Keeps an event on its line, whatever texts of callers and owners it quotes; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """The line without a traceback."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 (logging's name)
        """The traceback, with the message of its error."""
        return printable(super().formatException(ei), keep="\n\t")


def set_up_command_logging() -> None:
    """Sends a command's warnings to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLineFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def set_up_logging(level: str, quiet: Sequence[str] = ()) -> None:
    """Sends this process's log to standard error, a line an event; of the loggers in `quiet`, only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_RequestIdFilter())
    handler.setFormatter(OneLineFormatter("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in quiet:
        logging.getLogger(name).setLevel(logging.WARNING)
