"""Figures put into documents, between marks, so that no figure is copied by hand. Knows no figures."""

from pathlib import Path


def put_between(document: Path, name: str, text: str) -> bool:
    """Replaces what stands between ``<!-- name: begin -->`` and ``<!-- name: end -->``; False if that is not there."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before = document.read_text(encoding="utf-8") if document.exists() else ""
    if begin not in before or end not in before:
        return False
    head, tail = before.split(begin)[0], before.split(end)[1]
    document.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")
    return True
