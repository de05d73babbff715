"""Pages of HTML that need nothing else: a template of the caller's, inside the look that all share."""

from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from records.errors import InputError


def make_room(path: Path) -> None:
    """Makes the folder that a page is to be written to, before the work whose result it will show.

    Raises:
        InputError: The folder cannot be made, or `path` is a folder itself.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"no page can be written to {path}: {error.strerror}") from error
    if path.is_dir():
        raise InputError(f"no page can be written to {path}: it is a folder; give the name of a file in it")


def render(package: str, template: str, **values: Any) -> str:
    """The page of a template in `package`; it extends ``base.html.j2``, and may import ``numbers.html.j2``."""
    pages = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("reports", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
    )
    return pages.get_template(template).render(**values)
