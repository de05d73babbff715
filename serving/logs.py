"""Log lines with the request id of the call they belong to."""

import logging
import sys
from collections.abc import Sequence

from serving.interceptors import request_id


class _RequestIdFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id.get()
        return True


def set_up_logging(level: str, quiet: Sequence[str] = ()) -> None:
    """Sends this process's log to standard error, a line an event; of the loggers in `quiet`, only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_RequestIdFilter())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in quiet:
        logging.getLogger(name).setLevel(logging.WARNING)
