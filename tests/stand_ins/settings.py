"""What a stand-in can be told, beside what any server can."""

import sys
from pathlib import Path

from pydantic_settings import CliApp, SettingsConfigDict

from adcascade.serving.settings import ServerSettings


class StandInSettings(ServerSettings):
    model_config = SettingsConfigDict(cli_kebab_case=True)

    broken: Path | None = None


def settings_of_command() -> StandInSettings:
    """The flags; ends with exit code 2, as for files that are damaged, while the file `broken` is there."""
    settings = CliApp.run(StandInSettings)
    sys.stderr.write("a line of output\n")
    if settings.broken and settings.broken.exists():
        sys.stderr.write("error: the files are damaged\n")
        sys.exit(2)
    return settings
