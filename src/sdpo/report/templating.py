"""Renders the HTML pages from Jinja2 templates, which escape every value that is not markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sdpo.report.line_styles import css_colours
from sdpo.system.replaceable import holds_text

TEMPLATES = Path(__file__).with_name("templates")

_EVERY_PAGE = '<p class="kicker">'  # in macros.html.j2


def is_page(path: Path) -> bool:
    """Whether a file is an HTML page of this package."""
    return path.is_file() and holds_text(_EVERY_PAGE)(path)


def render_html(template: str, folder: Path = TEMPLATES, **values: Any) -> str:
    """Return a whole HTML page that loads nothing from elsewhere.

    Args:
        template: file name of the template.
        folder: the template's folder; the template may extend and import those of this package too.
        values: the template's variables.
    """
    environment = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["css_colours"] = css_colours
    return environment.get_template(template).render(**values)
