"""What the README says of settings and commands is what there is."""

import re
from pathlib import Path

import pytest

from adcascade.serving.settings import ServerSettings
from pipeline.settings import GatewaySettings
from ranking.settings import RankingSettings
from retrieval.settings import RetrievalSettings

README = (Path(__file__).parent.parent / "README.md").read_text()
CONFIGURATION = README.split("## Configuration")[1].split("## ")[0]


@pytest.mark.parametrize("settings", [ServerSettings, RetrievalSettings, RankingSettings, GatewaySettings])
def test_every_setting_is_in_the_table_with_its_default(settings):
    for name, field in settings.model_fields.items():
        row = _row(name)
        assert row, f"{name} is not in the README's table"
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert f"{field.default:g}" in row.replace(",", " ").split("|")[2].split()


def _row(name):
    rows = [line for line in CONFIGURATION.splitlines() if line.startswith("|")]
    return next((row for row in rows if f"`{name}`" in row.split("|")[1]), "")


def test_the_table_names_no_setting_that_does_not_exist():
    known = {name for kind in (RetrievalSettings, RankingSettings, GatewaySettings) for name in kind.model_fields}
    for row in CONFIGURATION.splitlines():
        if row.startswith("| `"):
            assert set(re.findall(r"`(\w+)`", row.split("|")[1])) <= known
