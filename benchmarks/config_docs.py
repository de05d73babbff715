"""The tables of docs/configuration.md, from the fields of the settings themselves. Knows no server.

``make config-docs`` writes them; a test fails where the page says anything else.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from adcascade.events.settings import EventsSettings
from adcascade.serving.auth.settings import AuthSettings
from adcascade.serving.settings import ServerSettings
from benchmarks.documents import put_between
from pipeline.settings import GatewaySettings
from ranking.settings import RankingSettings
from retrieval.settings import RetrievalSettings

PAGE = Path("docs/configuration.md")
MARK = "settings"
_OWN = (
    ("Retrieval", RetrievalSettings),
    ("Ranking", RankingSettings),
    ("Gateway", GatewaySettings),
    ("Events", EventsSettings),
)
_COLUMNS = ("setting", "default", "allowed", "meaning")


def settings_markdown() -> str:
    """One table for what all servers have, one for who may call, and one for each server's own."""
    auth, shared = AuthSettings.model_fields, ServerSettings.model_fields
    parts = [
        _part("All servers", "", {name: field for name, field in shared.items() if name not in auth}),
        _part("All servers: who may call", "", auth),
    ]
    for name, settings in _OWN:
        own = {name: field for name, field in settings.model_fields.items() if name not in shared}
        program, prefix = settings.model_config.get("cli_prog_name"), settings.model_config.get("env_prefix")
        parts.append(_part(name, f"Flags of `{program}`; variables `{prefix}*`.", own))
    return "\n\n".join(parts)


def _part(title: str, note: str, fields: Mapping[str, FieldInfo]) -> str:
    lines: list[Iterable[str]] = [_COLUMNS, ("---",) * len(_COLUMNS)]
    for name, field in fields.items():
        lines.append((f"`{name}`", _default(field), _allowed(field.metadata), field.description or ""))
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n\n".join(filter(None, (f"### {title}", note, table)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None or value == "":
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _allowed(limits: Iterable[Any]) -> str:
    lowest = next((f"{one.ge:g}" for one in limits if isinstance(one, Ge)), "")
    above = next((f"{one.gt:g}" for one in limits if isinstance(one, Gt)), "")
    highest = next((f"{one.le:g}" for one in limits if isinstance(one, Le)), "")
    below = next((f"{one.lt:g}" for one in limits if isinstance(one, Lt)), "")
    start = f"from {lowest}" if lowest else f"above {above}" if above else ""
    end = f"to {highest}" if highest else f"below {below}" if below else ""
    return f"{lowest} {end}" if lowest and end else " ".join(filter(None, (start, end)))


if __name__ == "__main__":
    if not put_between(PAGE, MARK, settings_markdown()):
        raise SystemExit(f"{PAGE} has no place for the tables: <!-- {MARK}: begin --> and <!-- {MARK}: end -->")
