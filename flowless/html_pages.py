"""Self-contained HTML pages in the project's style, rendered from Jinja templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowless.files import whole_file

_STYLE = Path(__file__).with_name("page.css")


def rendered(template: Path, **values: Any) -> str:
    """Render a template with the project's style sheet.

    Args:
        template: The template's file.
        values: Its variables; text is escaped unless it is `Markup`.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    text = template.read_text(encoding="utf-8")
    style = Markup(_STYLE.read_text(encoding="utf-8"))
    return Environment(autoescape=True, undefined=StrictUndefined).from_string(text).render(style=style, **values)


def write_text(path: Path, text: str) -> None:
    """Write a page atomically."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")  # a file name may hold bytes that are not UTF-8
