"""``adcascade serve`` has every setting of its servers as a flag, and passes on what is given to whom it is for."""

from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from adcascade.serving.errors import StartupError
from adcascade.serving.settings import ServerSettings
from pipeline.cli import app
from pipeline.serve_command import OWN_FLAGS, SETTINGS
from pipeline.server_flags import with_server_flags

ALL_SETTINGS = sorted({name for settings in SETTINGS.values() for name in settings.model_fields})


def told(*flags: str) -> Any:
    """What a command with the flags of all servers is told."""
    given: dict[str, Any] = {}
    command = typer.Typer()

    @command.command()
    @with_server_flags(SETTINGS, OWN_FLAGS)
    def serve(server_flags: dict[str, list[str]]) -> None:
        given.update(server_flags)

    assert CliRunner().invoke(command, [*flags]).exit_code == 0
    return given


@pytest.mark.parametrize("name", ALL_SETTINGS)
def test_every_setting_of_a_server_is_a_flag_of_serve_or_serves_own_business(name):
    help_text = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "300"}).output
    # `--events` is the event store's `data`.
    assert f"--{name.replace('_', '-')}" in help_text or name in {"address_file", "exit_with_parent", "data"}


def test_a_setting_that_all_servers_have_goes_to_all_and_others_to_theirs_alone():
    flags = told("--max-unsent", "7", "--cache-mib", "9", "--device", "cpu", "--candidates", "50")
    assert flags == {
        "retrieval": ["--max-unsent", "7", "--device", "cpu"],
        "ranking": ["--max-unsent", "7", "--device", "cpu", "--cache-mib", "9"],
        "gateway": ["--max-unsent", "7", "--candidates", "50"],
        "events": ["--max-unsent", "7"],
    }


def test_nothing_is_passed_on_that_was_not_given():
    assert told() == {"retrieval": [], "ranking": [], "gateway": [], "events": []}


@pytest.mark.parametrize("server", SETTINGS)
def test_servers_understand_the_flags_as_they_are_passed_on(server):
    flags = told("--no-reflection", "--max-connections", "9", "--message-seconds", "2.5", "--no-prewarm-ads")[server]
    needed = {"retrieval": ["--index", "x"], "ranking": ["--model", "x"], "gateway": [], "events": ["--data", "x"]}[
        server
    ]
    settings: ServerSettings = SETTINGS[server](_cli_parse_args=[*needed, *flags])  # type: ignore[call-arg]
    assert (settings.reflection, settings.max_connections, settings.message_seconds) == (False, 9, 2.5)
    assert getattr(settings, "prewarm_ads", False) is False


def test_a_setting_of_the_event_store_needs_the_store(tmp_path):
    given = ["serve", "--index", str(tmp_path), "--model", str(tmp_path), "--logs", str(tmp_path / "logs")]
    ended = CliRunner().invoke(app, [*given, "--retention-days", "3"])
    assert isinstance(ended.exception, StartupError)
    assert str(ended.exception) == "--retention-days is of the event store: give --events FOLDER, too"


def test_a_flag_of_a_wrong_kind_is_an_error():
    ended = CliRunner().invoke(app, ["serve", "--index", "x", "--model", "x", "--cache-mib", "many"])
    assert ended.exit_code == 2
    assert "--cache-mib" in ended.output
