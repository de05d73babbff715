"""The ``adcascade`` command before anything is imported that only an extra brings."""

from adcascade.terminal.extras import require_serve
from adcascade.terminal.threads import share_cores


def main() -> None:
    """Entry point of the console script."""
    require_serve()
    share_cores()
    from pipeline.cli import main as run_cli

    run_cli()
