"""`adcascade tokens` and `adcascade certs`: what they print, write, and never show."""

import json
import stat

import pytest
import typer
from typer.testing import CliRunner

from adcascade.serving.auth.commands import certs_app, tokens_app
from adcascade.serving.auth.tokens import PREFIX, StaticTokens, TokensFile
from adcascade.serving.errors import NotFound, StartupError

run = CliRunner()
app = typer.Typer()
app.add_typer(certs_app, name="certs")


def tokens(*words):
    return run.invoke(tokens_app, [str(word) for word in words], catch_exceptions=False)


def certs(*words):
    return run.invoke(app, ["certs", *(str(word) for word in words)], catch_exceptions=False)


def test_a_token_is_printed_once_and_shown_by_no_other_command(tmp_path):
    file = tmp_path / "tokens.txt"
    made = tokens("create", file, "--name", "shop", "--scope", "rank", "--scope", "bids:read", "--tenant", "acme")
    token = made.stdout.strip()
    assert token.startswith(PREFIX)
    for shown in (tokens("list", file).output, tokens("list", file, "--json").output, file.read_text()):
        assert token not in shown
        assert "shop" in shown
    (listed,) = json.loads(tokens("list", file, "--json").stdout)
    assert "sha256" not in json.dumps(listed)
    assert (listed["scopes"], listed["tenant"], listed["state"]) == (["bids:read", "rank"], "acme", "good")
    assert tokens("revoke", file, "shop").exit_code == 0
    assert json.loads(tokens("list", file, "--json").stdout)[0]["state"] == "revoked"


def test_a_token_goes_into_a_new_file_of_its_owner_and_never_over_another(tmp_path):
    file, out = tmp_path / "tokens.txt", tmp_path / "shop.token"
    made = tokens("create", file, "--name", "shop", "--scope", "rank", "--out", out, "--expires-days", "1")
    token = out.read_text().strip()
    assert token not in made.output
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert StaticTokens(file)
    with pytest.raises(StartupError, match="File exists"):
        tokens("create", file, "--name", "shop", "--scope", "rank", "--out", out)
    assert out.read_text().strip() == token
    assert len(TokensFile(file).tokens()) == 1


def test_what_is_wrong_leaves_nothing_behind(tmp_path):
    file, out = tmp_path / "tokens.txt", tmp_path / "shop.token"
    with pytest.raises(StartupError, match="no scope"):
        tokens("create", file, "--name", "shop", "--scope", "fly", "--out", out)
    assert not out.exists()
    assert not file.exists()
    file.write_text("damaged\n")
    with pytest.raises(StartupError, match="line 1"):
        tokens("create", file, "--name", "shop", "--scope", "rank", "--out", out)
    assert not out.exists()
    assert file.read_text() == "damaged\n"
    with pytest.raises(StartupError, match="cannot read"):
        tokens("list", tmp_path / "none")
    with pytest.raises(StartupError, match="cannot read"):
        tokens("revoke", tmp_path / "none", "shop")
    file.write_text("")
    with pytest.raises(NotFound, match="no good token"):
        tokens("revoke", file, "shop")


def test_development_certificates_come_with_the_commands_that_use_them(tmp_path):
    made = certs("dev", tmp_path / "certs", "--host", "ads.example")
    assert made.exit_code == 0
    assert "PRIVATE KEY" not in made.output
    for file in ("server.pem", "server.key", "ca.pem", "certificates.txt", "gateway.pem", "client.pem"):
        assert (tmp_path / "certs" / file).is_file()
        assert f"{tmp_path / 'certs' / file}" in made.output
