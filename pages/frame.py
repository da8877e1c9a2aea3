"""The frame of every page: head, style and policy once; a page's own template extends `frame.html`.

What comes from a run or a log is escaped by the template; only our own SVG and style sheets are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from raylign.pages import STYLE
from raylign.pages.numbers import percent


def render_page(template: Path, values: Mapping[str, object], *, styles: tuple[Path, ...] = ()) -> str:
    """The page of `template`, which extends `frame.html`; `styles` follow the shared style sheet.

    Raises jinja2's UndefinedError for a name that `values` lacks.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FileSystemLoader([template.parent, STYLE.parent]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    style = "\n".join(path.read_text(encoding="utf-8") for path in (STYLE, *styles))
    return environment.get_template(template.name).render(style=Markup(style), **values)
