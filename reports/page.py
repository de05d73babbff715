"""Pages of HTML that need nothing else: a template of the caller's, inside the look that all share."""

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def render(package: str, template: str, **values: Any) -> str:
    """The page of a template in `package`; it extends ``base.html.j2``, and may import ``numbers.html.j2``."""
    pages = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("reports", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
    )
    return pages.get_template(template).render(**values)
