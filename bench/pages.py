"""Pages as people get them: one HTML file, in the project's style, that refers to nothing outside itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowless.files import whole_file

_HERE = Path(__file__).parent


def rendered(template: str, **values: Any) -> str:
    """Return the page of a template of this folder.

    Args:
        template: Its file's name.
        values: What it names; text is escaped unless it is marked as `Markup`.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    text = (_HERE / template).read_text(encoding="utf-8")
    style = Markup((_HERE / "page.css").read_text(encoding="utf-8"))
    return Environment(autoescape=True, undefined=StrictUndefined).from_string(text).render(style=style, **values)


def write_text(path: Path, text: str) -> None:
    """Write a page, whole or not at all."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")  # a file name may hold bytes that are no text
