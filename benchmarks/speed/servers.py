"""Our servers as processes of their own, for as long as a benchmark asks them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from adcascade.serving.auth.client import ClientSecurity
from adcascade.serving.channel import open_channel
from pipeline.processes import running

_MESSAGE_MIB = 64


@contextmanager
def served(
    module: str, flags: Sequence[str], folder: Path, security: ClientSecurity = ClientSecurity()
) -> Iterator[grpc.Channel]:
    """A channel to ``python -m module``, which writes its log into ``folder/logs``; `security` is what it is shown.

    Raises:
        StartupError: The server does not start.
    """
    large = ["--max-message-mib", str(_MESSAGE_MIB)]
    with (
        running([(module, [*flags, *large])], folder / "logs", security) as servers,
        open_channel(servers[0].wait_until_serving(), max_message_mib=_MESSAGE_MIB, security=security) as channel,
    ):
        yield channel
