"""Draws label, score, source and time on a picture."""

from __future__ import annotations

import functools
import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flowless.engines.live.outputs.board import Row
from flowless.engines.live.outputs.lines import one_line

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

#: A picture whose shorter side has fewer pixels is enlarged by a whole number, so that the text can be read.
MIN_SIDE = 240
#: Nothing is enlarged beyond this many pixels of the longer side.
_LARGEST = 1920
#: Size of the picture that takes the place of one where a source has had none yet.
_EMPTY = (270, 480)
_GREEN, _WHITE, _YELLOW = (120, 255, 120), (255, 255, 255), (255, 220, 90)


@dataclass(frozen=True, kw_only=True)
class Caption:
    """The text on a picture."""

    title: str
    """Above: the source and the time."""
    text: str
    """Below: label and score, or the state of a source that has no frames now."""
    colour: tuple[int, int, int]
    """Colour of the text below."""


def caption_of(row: Row) -> Caption:
    """Return the text for a source: its name, the time of its newest scored frame (of day, and of the stream), its label and score."""
    when = f"  {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(row.arrived))}  {_stream_time(row.pts_ns)}" if row.arrived else ""
    title = one_line(row.name + when)
    if row.state != "running":
        return Caption(title=title, text=one_line(f"{row.state}: {row.reason}" if row.reason else row.state), colour=_YELLOW)
    text = one_line(f"{row.label}  {row.score:.2f}") if row.label else ""
    return Caption(title=title, text=text, colour=_GREEN if row.label in row.actions else _WHITE)


def drawn(picture: NDArray[np.uint8] | None, caption: Caption, *, max_width: int | None = None) -> NDArray[np.uint8]:
    """Return a copy of a picture with a caption on dark strips above and below.

    Args:
        picture: uint8 `[H, W, 3]`, RGB, of any size; None draws on an empty picture.
        caption: What is written. Text that is too long for the picture is cut; characters that Pillow's font lacks are boxes.
        max_width: A wider picture is made this wide, its shape kept.

    Returns:
        uint8 `[H', W', 3]`: enlarged by a whole number where the picture is small, and of even sides, which video encoders need.
    """
    result = _sized(np.zeros((*_EMPTY, 3), np.uint8) if picture is None else picture, max_width)
    size = max(14, min(result.shape[:2]) // 20)
    strip = min(size * 3 // 2, len(result) // 2)
    _write(result[:strip], caption.title, _WHITE, size)
    if caption.text:
        _write(result[-strip:], caption.text, caption.colour, size)
    return result


def _sized(picture: NDArray[np.uint8], max_width: int | None) -> NDArray[np.uint8]:
    """Return a copy of a picture of even sides, enlarged where it is small, smaller where it is too wide."""
    from PIL import Image

    height, width = picture.shape[:2]
    if min(height, width) < 2:
        picture = picture.repeat(2, axis=0).repeat(2, axis=1)
        height, width = picture.shape[:2]
    picture = picture[: height // 2 * 2, : width // 2 * 2]
    height, width = picture.shape[:2]
    factor = max(1, min(-(-MIN_SIDE // min(height, width)), _LARGEST // max(height, width)))
    if factor > 1:
        return np.repeat(np.repeat(picture, factor, axis=0), factor, axis=1)
    if max_width is None or width <= max_width:
        return picture.copy()
    smaller = (max_width, max(2, round(height * max_width / width / 2) * 2))
    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.array(image.resize(smaller, Image.Resampling.BILINEAR, reducing_gap=2.0))


def _write(strip: NDArray[np.uint8], text: str, colour: tuple[int, int, int], size: int) -> None:
    """Darken a strip of a picture and write a line on it, in place."""
    from PIL import Image, ImageDraw
    from PIL.ImageFont import FreeTypeFont

    font, margin = _font(size), size // 3
    image = Image.fromarray(strip // 3)
    anchor = "lm" if isinstance(font, FreeTypeFont) else None
    place = (margin, image.height / 2) if anchor else (margin, 0)
    ImageDraw.Draw(image).text(place, _fitted(text, font, image.width - 2 * margin), fill=colour, font=font, anchor=anchor)
    strip[:] = np.asarray(image)


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    """Return a picture, uint8 `[H, W, 3]` RGB, as a JPEG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="jpeg", quality=80)
    return stream.getvalue()


def _stream_time(nanoseconds: int) -> str:
    """Return a time stamp as hours, minutes and seconds of the stream."""
    tenths = nanoseconds // 100_000_000
    return f"{tenths // 36000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"


@functools.cache
def _font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _fitted(text: str, font: FreeTypeFont | ImageFont, width: int) -> str:
    """Return the longest beginning of a text that fits a width in pixels, with an ellipsis where it was cut."""
    text = text[:200]
    if font.getlength(text) <= width:
        return text
    shortest, longest = 0, len(text)
    while shortest < longest:
        middle = (shortest + longest + 1) // 2
        if font.getlength(text[:middle] + "...") <= width:
            shortest = middle
        else:
            longest = middle - 1
    return text[:shortest] + "..."
