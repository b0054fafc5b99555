"""Pages as people get them: one HTML file, in the project's style, that refers to nothing outside itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowless.files import whole_file

_STYLE = Path(__file__).with_name("page.css")


def rendered(template: Path, **values: Any) -> str:
    """Return the page of a template.

    Args:
        template: Its file, which lies beside the module that fills it.
        values: What it names; text is escaped unless it is marked as `Markup`.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    text = template.read_text(encoding="utf-8")
    style = Markup(_STYLE.read_text(encoding="utf-8"))
    return Environment(autoescape=True, undefined=StrictUndefined).from_string(text).render(style=style, **values)


def write_text(path: Path, text: str) -> None:
    """Write a page, whole or not at all."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")  # a file name may hold bytes that are no text
