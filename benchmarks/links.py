"""Whether the links between pages lead anywhere: files, and headings by the anchors that GitHub gives them.

``python -m benchmarks.links`` looks at all pages under the working directory. Addresses of other hosts are not asked.
"""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token

_PARSER = MarkdownIt("commonmark").enable("table")
# Folders that hold what was installed or made, beside those whose names begin with a dot.
_NOT_OURS = frozenset({"node_modules", "build", "dist", "data", "adcascade-data", "adcascade-bench"})
_NAMED = re.compile(r"""<a\s[^>]*(?:id|name)=["']([^"']+)["']""")


def pages(root: Path) -> Iterator[Path]:
    """All Markdown files under a folder, but for what was installed or made there."""
    for path in sorted(root.rglob("*.md")):
        folders = path.relative_to(root).parts[:-1]
        if not any(name.startswith(".") or name in _NOT_OURS for name in folders):
            yield path


def links(text: str) -> Iterator[tuple[int, str]]:
    """Targets of the links and images of a page, each with its line, from 1. What stands in code is none."""
    line = 1
    for block in _PARSER.parse(text):
        line = block.map[0] + 1 if block.map else line
        for part in block.children or ():
            target = part.attrGet("href") if part.type == "link_open" else part.attrGet("src")
            if part.type in ("link_open", "image") and target:
                yield line, str(target)


def anchors(text: str) -> set[str]:
    """What may stand behind the # of a link to a page: its headings as GitHub names them, and ``<a id=...>``."""
    found, seen = set(_NAMED.findall(text)), Counter[str]()
    for opening, heading in pairwise(_PARSER.parse(text)):
        if opening.type == "heading_open":
            name = _anchor(heading)
            found.add(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
    return found


def broken_links(root: Path) -> list[str]:
    """A line for each link under `root` that leads nowhere: the page, the line, the target and what is wrong."""
    anchors_of = cache(lambda page: anchors(page.read_text(encoding="utf-8")))
    found = []
    for page in pages(root):
        for line, target in links(page.read_text(encoding="utf-8")):
            address = urlsplit(target)
            if address.scheme or address.netloc:
                continue
            goal = (page.parent / unquote(address.path)).resolve() if address.path else page.resolve()
            problem = ""
            if address.path.startswith("/") or not goal.is_relative_to(root.resolve()):
                problem = "leads out of the project"
            elif not goal.exists():
                problem = "there is no such file"
            elif address.fragment and goal.suffix == ".md" and unquote(address.fragment) not in anchors_of(goal):
                problem = "the page has no such heading"
            if problem:
                found.append(f"{page.relative_to(root)}:{line}: {target}: {problem}")
    return found


def _anchor(heading: Token) -> str:
    title = "".join(part.content for part in heading.children or () if part.type in ("text", "code_inline"))
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


if __name__ == "__main__":
    broken = broken_links(Path.cwd())
    sys.stderr.writelines(f"{line}\n" for line in broken)
    sys.exit(1 if broken else 0)
