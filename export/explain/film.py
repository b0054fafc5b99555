"""An explanation as a film: every frame of the video with the model's cue beside it, the answer and the clip's place below."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.markup import escape

from flowless.console import progress
from flowless.export.explain.cue_pictures import font, paint, reach_of, resized, wheel
from flowless.export.explain.cues import Cue
from flowless.export.explain.explain_video import Explanation
from flowless.export.explain.introspection import Looker
from flowless.pipeline.clip.preprocess import resize_and_crop
from flowless.pipeline.video.encode import write_video
from flowless.pipeline.video.open_reader import open_reader

#: Fewest rows of a picture on the screen, rows of the band below, and columns between the two pictures.
_LEAST, _BAND, _GAP = 320, 76, 8
#: Frames per second where the file does not say.
_FPS = 25
_GROUND, _PALE, _SOFT, _LIT = (22, 28, 33), (238, 242, 245), (140, 153, 163), (79, 179, 217)

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Window:
    """One clip of a film, and where in its cue each frame's picture is."""

    frames: NDArray[np.int64]
    """`[N, m]`: what the clip is made of."""
    pictures: tuple[tuple[int, int, int], ...]
    """Frame, segment and place in the segment, for consecutive frames."""


def write_film(path: Path, explanation: Explanation, looker: Looker) -> None:
    """Write the film, whole or not at all.

    The cue is computed for every frame: of the frame and those right after it, as in a segment that begins there; of STM, of
    the frame and the one that lies as far away as the clip's segments lie apart.

    Raises:
        FlowlessError: The video cannot be read or the film cannot be written.
    """
    rate = Fraction(explanation.info.fps or _FPS).limit_denominator(1001)
    with progress() as bar:
        task = bar.add_task(escape(f"filming {Path(explanation.video).name}"), total=explanation.info.frames)

        def shown() -> Iterator[Bytes]:
            for frame, (pixels, cue) in enumerate(_pairs(explanation, looker)):
                yield _canvas(pixels, cue, explanation, frame)
                bar.advance(task)

        write_video(path, shown(), fps=rate, options={"crf": "18"})


def windows(cue: Cue | None, frames: int, places: NDArray[np.int64]) -> Iterator[Window]:
    """Yield clips whose cues together show every frame of a video once, in order.

    Args:
        cue: A cue of the model, for what it is of.
        frames: Frames of the video.
        places: `[N, m]`: the frames of the explained clip.
    """
    segments, many = places.shape
    last = frames - 1
    if cue is not None and cue.over == "segments":
        # Neighbours in pairs: the first of each pair has the cue of the two.
        apart = max(1, int(places[1, 0] - places[0, 0])) if segments > 1 else 1
        pairs = max(1, segments // 2)
        for start in range(0, frames, pairs):
            firsts = [start + place // 2 + apart * (place % 2) for place in range(segments)]
            shown = range(start, min(start + pairs, frames))
            pictures = tuple((frame, min(2 * (frame - start), segments - 1), 0) for frame in shown)
            yield Window(np.minimum(np.array(firsts)[:, None] + np.arange(many), last), pictures)
        return
    # Adjacent frames: a segment shows as many frames as it has pictures.
    step = max(1, many - 1) if cue is not None and cue.over == "frames" else 1
    for start in range(0, frames, segments * step):
        firsts = start + step * np.arange(segments)
        shown = range(start, min(start + segments * step, frames))
        pictures = tuple((frame, (frame - start) // step, (frame - start) % step) for frame in shown)
        yield Window(np.minimum(firsts[:, None] + np.arange(many), last), pictures)


def _pairs(explanation: Explanation, looker: Looker) -> Iterator[tuple[Bytes, Bytes | None]]:
    """Yield every frame as the network sees it, and its cue, painted; both uint8 `[H, W, 3]`."""
    count, spec, cue = explanation.info.frames, explanation.spec, explanation.cue
    reach = 1.0 if cue is None else reach_of(cue)
    held: dict[int, Bytes] = {}
    with open_reader(explanation.video, known=explanation.info) as video:
        stream = video.frames(range(count))
        for window in windows(cue, count, explanation.places):
            missing = set(window.frames.ravel().tolist()) - held.keys()
            while missing:
                ordinal, frame = next(stream)
                missing.discard(ordinal)
                held[ordinal] = resize_and_crop(frame[None], spec)[0]
            clip = np.stack([np.stack([held[place] for place in segment]) for segment in window.frames.tolist()])
            found = None if cue is None else looker.cue(clip[None])
            painted = None if found is None else paint(found, reach=reach)[0]
            for frame, segment, place in window.pictures:
                yield held[frame], None if painted is None else painted[segment, place]
            # Only what later windows read stays in memory.
            for ordinal in [ordinal for ordinal in held if ordinal <= window.pictures[-1][0] and ordinal < count - 1]:
                del held[ordinal]


def _canvas(pixels: Bytes, cue: Bytes | None, explanation: Explanation, frame: int) -> Bytes:
    """Lay a frame and its cue side by side, and the answer and the time line below."""
    times = -(-_LEAST // pixels.shape[0])
    height, width = (times * side for side in pixels.shape[:2])
    parts = [pixels] if cue is None else [pixels, cue]
    across = len(parts) * width + (len(parts) - 1) * _GAP
    canvas = np.empty((2 * ((height + _BAND + 1) // 2), 2 * ((across + 1) // 2), 3), np.uint8)
    canvas[:] = _GROUND
    for place, part in enumerate(parts):
        left = place * (width + _GAP)
        canvas[:height, left : left + width] = resized(part, height=height, width=width)
    if explanation.cue is not None and explanation.cue.kind == "flow":
        _lay(canvas, _wheel(height // 5), top=8, left=across - height // 5 - 8)
    band = Image.fromarray(canvas[height:])
    _write_band(band, explanation, frame)
    canvas[height:] = np.asarray(band)
    return canvas


def _write_band(band: Image.Image, explanation: Explanation, frame: int) -> None:
    """Draw the answer, what is shown, and the time line with the clip's segments."""
    draw = ImageDraw.Draw(band)
    answer = explanation.top[0]
    right = band.width - 14
    cue = "no motion cue" if explanation.cue is None else explanation.cue.name
    small, large = font(14), font(24)
    room = right - 28
    label = _fitting(draw, answer.label, large, room - draw.textlength("  100 %", large))
    draw.text((14, 10), label, font=large, fill=_PALE)
    draw.text((14 + draw.textlength(label + "  ", large), 10), f"{100 * answer.score:.0f} %", font=large, fill=_LIT)
    left = 14 + draw.textlength(f"{label}  100 %  ", large)
    told = (text for text in (f"{explanation.model}, {cue}", cue) if left + draw.textlength(text, small) < right)
    draw.text((right, 18), next(told, ""), font=small, fill=_SOFT, anchor="ra")
    top, bottom, span = band.height - 20, band.height - 14, max(explanation.info.frames - 1, 1)

    def across(ordinal: float) -> float:
        return 14 + (right - 14) * min(ordinal, span) / span

    draw.rectangle((14, top, right, bottom), fill=(52, 62, 70))
    for segment in explanation.places:
        draw.rectangle((across(segment[0]), top, max(across(segment[-1]), across(segment[0]) + 3), bottom), fill=_LIT)
    draw.rectangle((across(frame) - 1, top - 5, across(frame) + 1, bottom + 5), fill=_PALE)


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """Cut a text so that it fits."""
    if draw.textlength(text, font) <= room:
        return text
    while text and draw.textlength(text + "…", font) > room:
        text = text[:-1]
    return text + "…"


@cache
def _wheel(side: int) -> Bytes:
    return wheel(side)


def _lay(canvas: Bytes, picture: Bytes, *, top: int, left: int) -> None:
    """Lay a picture with opacity, uint8 `[h, w, 4]`, onto a canvas."""
    height, width = picture.shape[:2]
    under = canvas[top : top + height, left : left + width]
    opacity = picture[..., 3:].astype(np.float32) / 255
    under[:] = np.rint(picture[..., :3] * opacity + under * (1 - opacity)).astype(np.uint8)
