"""What the owner reads when a setting is wrong, and where settings come from."""

from collections.abc import Sequence

import pytest
from pydantic_settings import CliApp, SettingsConfigDict

from adcascade.records.errors import InputError
from adcascade.serving.errors import ServiceError, StartupError
from adcascade.serving.settings import ServerSettings
from adcascade.terminal.exits import EXIT_BAD_INPUT, clean_exit


class Settings(ServerSettings):
    model_config = SettingsConfigDict(env_prefix="ADCASCADE_TEST_", cli_prog_name="python -m test")

    topic: str = "ads"


def read(*flags: str) -> Settings:
    return CliApp.run(Settings, cli_args=list(flags))


def failure(capsys: pytest.CaptureFixture[str], flags: Sequence[str] = ()) -> tuple[int | str | None, str]:
    """Exit code and standard error of a command with settings that are wrong."""
    with pytest.raises(SystemExit) as exit_, clean_exit():
        read(*flags)
    shown = capsys.readouterr()
    assert shown.out == ""
    return exit_.value.code, shown.err


def test_the_defaults_suit_a_server_on_this_machine_alone():
    settings = read()
    assert (settings.host, settings.port, settings.metrics_port) == ("127.0.0.1", 0, None)
    assert (settings.tls_certificate, settings.tls_key, settings.address_file) == (None, None, None)
    assert settings.log_level == "INFO"
    assert not settings.exit_with_parent


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("log_level", "LOUD", "'LOUD' is not a log level: DEBUG, INFO, WARNING or ERROR"),
        ("port", "65536", "less than or equal to 65535"),
        ("port", "-1", "greater than or equal to 0"),
        ("port", "http", "valid integer"),
        ("metrics_port", "70000", "less than or equal to 65535"),
        ("max_concurrent", "0", "greater than or equal to 1"),
        ("max_message_mib", "0", "greater than or equal to 1"),
        ("max_message_mib", "513", "less than or equal to 512"),
        ("grace_seconds", "-0.5", "greater than or equal to 0"),
        ("exit_with_parent", "perhaps", "valid boolean"),
    ],
)
def test_a_wrong_setting_ends_with_exit_code_2_and_names_the_setting(capsys, flag, value, message):
    code, err = failure(capsys, [f"--{flag}={value}"])
    assert code == EXIT_BAD_INPUT == 2
    first, line = err.splitlines()
    assert first == "error: these settings are wrong:"
    assert line.startswith(f"  {flag}: ")
    assert message in line


def test_every_wrong_setting_is_told_at_once(capsys):
    _, err = failure(capsys, ["--port=-1", "--log_level=LOUD", "--grace_seconds=-1"])
    names = {line.split(":")[0].strip() for line in err.splitlines()[1:]}
    assert names == {"port", "log_level", "grace_seconds"}
    assert "Traceback" not in err


def test_an_unknown_flag_ends_with_exit_code_2_too(capsys):
    code, err = failure(capsys, ["--prot=1"])
    assert code == EXIT_BAD_INPUT
    assert "--prot" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("given", "level"), [("debug", "DEBUG"), ("Warning", "WARNING"), ("ERROR", "ERROR")])
def test_a_log_level_is_understood_in_any_case(given, level):
    assert read("--log_level", given).log_level == level


def test_environment_variables_with_the_prefix_are_read(monkeypatch):
    monkeypatch.setenv("ADCASCADE_TEST_PORT", "8123")
    monkeypatch.setenv("ADCASCADE_TEST_TOPIC", "shoes")
    monkeypatch.setenv("ADCASCADE_TEST_LOG_LEVEL", "warning")
    monkeypatch.setenv("PORT", "9999")
    settings = read()
    assert (settings.port, settings.topic, settings.log_level) == (8123, "shoes", "WARNING")


def test_a_flag_overrides_the_environment(monkeypatch):
    monkeypatch.setenv("ADCASCADE_TEST_PORT", "8123")
    assert read("--port", "0").port == 0


def test_a_wrong_environment_variable_is_told_like_a_wrong_flag(capsys, monkeypatch):
    monkeypatch.setenv("ADCASCADE_TEST_PORT", "70000")
    code, err = failure(capsys)
    assert code == EXIT_BAD_INPUT
    assert "port: Input should be less than or equal to 65535" in err


def test_an_expected_error_becomes_its_message_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as exit_, clean_exit(ServiceError, InputError):
        raise StartupError("port 80 is taken; choose another with --port")
    assert exit_.value.code == EXIT_BAD_INPUT
    assert capsys.readouterr().err == "error: port 80 is taken; choose another with --port\n"


def test_an_error_nobody_expected_keeps_its_traceback(capsys):
    with pytest.raises(KeyError, match="bug"), clean_exit(ServiceError):
        raise KeyError("bug")
    assert capsys.readouterr().err == ""


def test_without_an_error_nothing_happens(capsys):
    done = []
    with clean_exit(ServiceError):
        done.append(True)
    assert done == [True]
    assert capsys.readouterr().err == ""
