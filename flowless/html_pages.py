"""Write self-contained HTML pages in the project's style: render a template, embed images as data URIs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowless import __version__
from flowless.files import whole_file

_STYLE = Path(__file__).with_name("page.css")


def rendered(template: Path, **values: Any) -> str:
    """Render a Jinja template.

    Args:
        template: The template's file. It gets the style sheet's text as `style` and the project's version as `version`.
        values: Its other variables; text is escaped unless it is marked as `Markup`.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    text = template.read_text(encoding="utf-8")
    shared = {"style": Markup(_STYLE.read_text(encoding="utf-8")), "version": __version__}
    return Environment(autoescape=True, undefined=StrictUndefined).from_string(text).render(shared | values)


def write_text(path: Path, text: str) -> None:
    """Write a page or an SVG, whole or not at all."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")  # a file name may hold bytes that are not valid text


def image_uri(pixels: NDArray[np.uint8], *, lossless: bool = False) -> str:
    """Return uint8 `[H, W, 3]` (RGB) or `[H, W, 4]` (RGBA) as a data URI of a WebP image.

    Lossy by default, which makes photographs ten times smaller than PNG; small and transparent images are lossless.
    """
    from PIL import Image

    stream = io.BytesIO()
    lossless = lossless or min(pixels.shape[:2]) < 160 or pixels.shape[2] == 4
    Image.fromarray(pixels).save(stream, format="webp", lossless=lossless, quality=90)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
