"""What the pages say of settings, commands, rooms, metrics and figures is what there is; their links lead somewhere."""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from markdown_it import MarkdownIt

from benchmarks.api_docs import MARK as CONTRACT
from benchmarks.api_docs import contract_markdown
from benchmarks.config_docs import MARK as SETTINGS
from benchmarks.config_docs import settings_markdown
from benchmarks.documents import put_between
from benchmarks.links import broken_links, pages
from pipeline.cli import add_commands_of_others, app
from pipeline.settings import GatewaySettings
from ranking.settings import RankingSettings
from retrieval.settings import RetrievalSettings

ROOT = Path(__file__).parent.parent
SERVERS = {"retrieval": RetrievalSettings, "ranking": RankingSettings, "pipeline": GatewaySettings}
ROOMS = ("adcascade", "index_builder", "retrieval", "ranking", "pipeline", "benchmarks")


def test_the_settings_page_is_what_the_settings_say(tmp_path: Path):
    assert _unchanged(tmp_path, "configuration.md", SETTINGS, settings_markdown()), "run make config-docs"


def test_the_reference_is_what_the_protos_say(tmp_path: Path):
    assert _unchanged(tmp_path, "api.md", CONTRACT, contract_markdown(ROOT / "protos")), "run make api-docs"


def _unchanged(folder: Path, page: str, mark: str, made: str) -> bool:
    """Whether writing what was made into a copy of the page leaves it as it is."""
    before = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (folder / page).write_text(before, encoding="utf-8")
    assert put_between(folder / page, mark, made)
    return (folder / page).read_text(encoding="utf-8") == before


@pytest.mark.parametrize("settings", SERVERS.values())
def test_every_setting_of_a_server_has_a_row(settings):
    for name in settings.model_fields:
        assert f"\n| `{name}` | " in settings_markdown()


def test_every_field_of_every_message_has_what_is_written_beside_it():
    made = contract_markdown(ROOT / "protos")
    assert "| `k` | 3 | uint32 | How many ads are wanted: 1 to 1,000, at most `candidates`. |" in made
    assert "| `attributes` | 11 | map of string to string |" in made
    assert "| `p_click` | 4 | optional double |" in made
    assert "| `ads` | 1 | repeated [RankedAd](#rankedad) |" in made
    assert "One of `candidate`. Resolved in the server's index version" in made
    assert "| `EVENT_TYPE_HIDE` | 7 | The user hid or reported the ad: negative. |" in made
    undocumented = [line for line in made.splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert undocumented == []


def test_no_link_leads_nowhere():
    assert broken_links(ROOT) == []


def test_links_that_lead_nowhere_are_found_with_their_place(tmp_path: Path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "node_modules" / "other").mkdir(parents=True)
    (tmp_path / "node_modules" / "other" / "README.md").write_text("[not ours](gone.md)\n")
    (tmp_path / "README.md").write_text(
        "# Title\n\n[a page](docs/page.md) and [one that is gone](docs/gone.md)\n\n"
        "[a heading](docs/page.md#a-heading-of-code-1), [none](docs/page.md#none), [here](#title), [not](#tilte)\n\n"
        "| table |\n| --- |\n| ![picture](picture.png) |\n\n"
        "[elsewhere](https://example.org/gone) and [outside](../outside.md)\n\n```\n[code](gone.md)\n```\n"
    )
    (tmp_path / "docs" / "page.md").write_text("# A heading, of `code`\n\n# A heading of code\n\n[up](../README.md)\n")
    assert broken_links(tmp_path) == [
        "README.md:3: docs/gone.md: there is no such file",
        "README.md:5: docs/page.md#none: the page has no such heading",
        "README.md:5: #tilte: the page has no such heading",
        "README.md:9: picture.png: there is no such file",
        "README.md:11: ../outside.md: leads out of the project",
    ]


def test_the_readme_is_short():
    readme = (ROOT / "README.md").read_bytes()
    assert len(readme) < 9 * 1024
    assert readme.count(b"\n") < 150


def test_every_figure_of_the_readme_stands_on_the_page_that_it_names():
    bullets = (ROOT / "README.md").read_text().split("## How good it is")[1].split("\n\n")[1].split("\n- ")
    assert len(bullets) == 3
    for bullet in bullets:
        (page,) = re.findall(r"\]\((docs/\w+\.md)\)", bullet)
        said = (ROOT / page).read_text()
        figures = re.findall(r"\d+\.\d+ times|\[\d\.\d+, \d\.\d+\]|\d\.\d{4}|p50 \d+ ms, p99 \d+ ms", bullet)
        assert figures
        for figure in figures:
            assert figure in said, f"{page} does not say {figure}"


def test_every_command_in_the_pages_exists_with_all_its_flags():
    add_commands_of_others()
    root = typer.main.get_command(app)
    checked = 0
    for place, line in _command_lines():
        words = shlex.split(line, comments=True)
        if words[0] == "adcascade":
            flags = _flags_of(root, words[1:], place)
        elif words[:2] == ["python", "-m"] and words[2] in SERVERS:
            flags = {f"--{name.replace('_', '-')}" for name in SERVERS[words[2]].model_fields}
        else:
            continue
        checked += 1
        unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - flags - {"--help"}
        assert not unknown, f"{place}: {line}: no {', '.join(unknown)}"
    assert checked > 40


def _command_lines() -> Iterator[tuple[str, str]]:
    """Lines of blocks of code, and code inside lines, that begin like a command; continued lines are joined."""
    for page in pages(ROOT):
        if page.name == "CHANGELOG.md":  # which speaks of what was
            continue
        for block in MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8")):
            code = [part.content for part in block.children or () if part.type == "code_inline"]
            if block.type in ("fence", "code_block"):
                code += block.content.replace("\\\n", " ").splitlines()
            for line in code:
                if re.match(r"(adcascade|python -m) [a-z]", line.strip()):
                    yield str(page.relative_to(ROOT)), " ".join(line.split())


def _flags_of(command: Any, words: list[str], place: str) -> set[str]:
    """Flags of the command that the words name; of several, as in ``list|verify``, those of all."""
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        names, *words = words[0].split("|"), *words[1:]
        missing = [name for name in names if name not in command.commands]
        assert not missing, f"{place}: there is no command {' '.join(missing)}"
        if len(names) > 1:
            return set().union(*(_options(command.commands[name]) for name in names))
        command = command.commands[names[0]]
    return _options(command)


def _options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


def test_the_map_of_rooms_is_the_tree():
    rooms = set(re.findall(r"^\| `([\w/]+)/` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    found = {str(path.parent.relative_to(ROOT)) for name in ROOMS for path in (ROOT / name).rglob("__init__.py")}
    assert rooms - found <= {"protos/adcascade/v1"}
    assert found - rooms - {"benchmarks/speed/gpu"} == set()


def test_each_of_the_thirty_words_names_modules_that_there_are():
    words = (ROOT / "CONTRIBUTING.md").read_text().split("## Words")[1].split("## ")[0]
    rows = [row.split("|") for row in words.splitlines() if row.startswith("|")][2:]
    assert len(rows) == 30
    for row in rows:
        for module in re.findall(r"`([\w/]+\.py)`", row[3]):
            assert (ROOT / module).is_file(), f"{row[1].strip()}: there is no {module}"


def test_every_metric_of_the_servers_is_on_the_operations_page():
    said = (ROOT / "docs" / "operations.md").read_text()
    named = _metrics()
    assert len(named) >= 10
    for name, module in named.items():
        assert f"| `{name}` |" in said, f"{name} of {module} is not in docs/operations.md"


def _metrics() -> Mapping[str, Path]:
    found = {}
    for room in ROOMS[:-1]:
        for module in (ROOT / room).rglob("*.py"):
            for name in re.findall(r'(?:Counter|Gauge|Histogram)\(\s*"(adcascade_\w+)"', module.read_text()):
                found[name] = module.relative_to(ROOT)
    return found
