"""Pages of HTML that need nothing else: a template of the caller's, inside the look that all share."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from adcascade.records.errors import InputError
from adcascade.records.printable import printable

log = logging.getLogger(__name__)


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
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("adcascade.reports", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
    )
    return pages.get_template(template).render(**values)


def _shown(value: Any) -> Any:
    """What a template writes: texts of others without control characters; the template escapes them for HTML."""
    return printable(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


@contextmanager
def never_at_the_cost_of(result: str, instead: str) -> Iterator[None]:
    """What shows a result may fail, whatever a plot or a template raises; the result stays, and a warning is logged.

    Args:
        result: What is there in any case, such as "model version X is saved".
        instead: How to get what failed after all.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 (of libraries that draw what others wrote)
        log.warning("the report failed (%s: %s); %s. %s", type(error).__name__, error, result, instead)
