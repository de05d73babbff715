"""Log lines with the request id of the call they belong to."""

import logging
import sys
from collections.abc import Sequence
from typing import Any

from adcascade.serving.interceptors import request_id
from adcascade.serving.printable import cut_to_bytes, escaped

# Longest message of a line; what callers send may stand in it.
_MAX_BYTES = 8192
# What gRPC reports with a traceback though it is the caller's doing: headers that are not UTF-8, which it takes as
# Latin-1, and callers who left while their reply was sent.
_GRPC_LOGGER, _CALLERS_DOING = "grpc._cython.cygrpc", ("Invalid encoding on", "ExecuteBatchError raised in core")


class _RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


class OneLineFormatter(logging.Formatter):
    """One line an event, whatever texts of callers and owners it quotes; what follows it, a traceback, is indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is the library's
        """The line without a traceback."""
        record.message = cut_to_bytes(escaped(record.message[:_MAX_BYTES]), _MAX_BYTES)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the name is the library's
        """The traceback, with the message of its error."""
        return "\n".join("  " + escaped(line) for line in super().formatException(ei).splitlines())


class _CallersDoingFilter(logging.Filter):
    """Keeps callers from filling the log with tracebacks of gRPC's."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(_CALLERS_DOING)


_callers_doing = _CallersDoingFilter()  # one, however often the log is set up


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
    logging.getLogger(_GRPC_LOGGER).addFilter(_callers_doing)
    for name in quiet:
        logging.getLogger(name).setLevel(logging.WARNING)
