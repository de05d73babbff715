"""The ``adcascade`` command before anything is imported that only an extra brings."""

from adcascade.terminal.extras import require_serve


def main() -> None:
    """Entry point of the console script."""
    require_serve()
    from pipeline.cli import main as run_cli

    run_cli()
