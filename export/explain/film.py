"""Render the explanation of a video as a film: every frame with its motion cue beside it, and the prediction below."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.markup import escape

from flowless.console import progress
from flowless.export.explain.cue_pictures import font, paint, reach_of, resized, wheel
from flowless.export.explain.cues import Cue
from flowless.export.explain.explain_video import VideoExplanation
from flowless.export.explain.introspection import InspectableModel
from flowless.pipeline.clip.preprocess import resize_and_crop
from flowless.pipeline.video.encode import write_video
from flowless.pipeline.video.open_reader import open_reader

#: Pixels: least height of a picture, height of the caption below, gap between the two pictures, and the caption's margin.
_MIN_HEIGHT, _CAPTION, _GAP, _MARGIN = 320, 76, 8, 14
#: Frames per second where the file does not say.
_FPS = 25
_BACKGROUND, _TRACK, _WHITE, _GREY, _BLUE = (22, 28, 33), (52, 62, 70), (238, 242, 245), (140, 153, 163), (79, 179, 217)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class CueClip:
    """A clip whose cue has the pictures of some consecutive frames."""

    frames: NDArray[np.int64]
    """`[N, m]`: the frames that it is made of."""
    shown: range
    """The frames whose pictures its cue has."""
    stride: int
    """Of the cue's N * K pictures in order, every `stride`-th is that of a frame in `shown`."""


def write_film(path: Path, explanation: VideoExplanation, model: InspectableModel) -> None:
    """Write the film, whole or not at all.

    The cue is computed for every frame: from that frame and the ones after it, as in a segment that begins there; for STM, from
    that frame and the one that is as far away as the clip's segments are from each other.

    Raises:
        FlowlessError: The video cannot be read or the film cannot be written.
    """
    rate = Fraction(explanation.info.fps or _FPS).limit_denominator(1001)
    with progress() as bar:
        task = bar.add_task(escape(f"rendering {Path(explanation.video).name}"), total=explanation.info.frames)

        def canvases() -> Iterator[Pixels]:
            for frame, (pixels, cue) in enumerate(_frames_with_cue(explanation, model)):
                yield _canvas(pixels, cue, explanation, frame)
                bar.advance(task)

        write_video(path, canvases(), fps=rate, options={"crf": "18"})


def cue_clips(cue: Cue | None, frames: int, indices: NDArray[np.int64]) -> Iterator[CueClip]:
    """Yield clips whose cues together have one picture for every frame of a video, in order.

    Args:
        cue: A cue of the model, for what its pictures are computed from.
        frames: Frames of the video.
        indices: `[N, m]`: the frames of the explained clip.
    """
    segments, frames_per_segment = indices.shape
    if cue is not None and cue.over == "segments":
        # Pairs of segments as far apart as the explained clip's, the next pair one frame later.
        distance = max(1, int(indices[1, 0] - indices[0, 0])) if segments > 1 else 1
        count, stride = max(1, segments // 2), 2
        firsts = np.array([segment // 2 + distance * (segment % 2) for segment in range(segments)])
    else:
        # Each segment begins where the pictures of the one before end.
        step = max(1, frames_per_segment - 1) if cue is not None and cue.over == "frames" else 1
        count, stride = segments * step, 1
        firsts = step * np.arange(segments)
    clip = firsts[:, None] + np.arange(frames_per_segment)
    for start in range(0, frames, count):
        shown = range(start, min(start + count, frames))
        yield CueClip(frames=np.minimum(start + clip, frames - 1), shown=shown, stride=stride)


def _frames_with_cue(explanation: VideoExplanation, model: InspectableModel) -> Iterator[tuple[Pixels, Pixels | None]]:
    """Yield every frame as the network gets it, and its cue, painted; both uint8 `[H, W, 3]`."""
    count, spec, cue = explanation.info.frames, explanation.model.spec, explanation.cue
    reach = 1.0 if cue is None else reach_of(cue)
    decoded: dict[int, Pixels] = {}
    with open_reader(explanation.video, known=explanation.info) as video:
        stream = video.frames(range(count))
        for clip in cue_clips(cue, count, explanation.frame_indices):
            missing = set(clip.frames.ravel().tolist()) - decoded.keys()
            while missing:
                index, frame = next(stream)
                missing.discard(index)
                decoded[index] = resize_and_crop(frame[None], spec)[0]
            pixels = np.stack([np.stack([decoded[index] for index in segment]) for segment in clip.frames.tolist()])
            found = model.cue(pixels[None])
            pictures: Iterable[Pixels | None] = repeat(None)
            if found is not None:
                pictures = paint(found, reach=reach).reshape(-1, *found.values.shape[-2:], 3)[:: clip.stride]
            yield from zip((decoded[index] for index in clip.shown), pictures, strict=False)
            # Later clips need only later frames, and the last one, which fills clips up.
            decoded = {index: frame for index, frame in decoded.items() if index > clip.shown[-1] or index == count - 1}


def _canvas(pixels: Pixels, cue: Pixels | None, explanation: VideoExplanation, frame: int) -> Pixels:
    """Lay out a frame and its cue side by side with the caption below."""
    scale = -(-_MIN_HEIGHT // pixels.shape[0])
    height, width = scale * pixels.shape[0], scale * pixels.shape[1]
    parts = [pixels] if cue is None else [pixels, cue]
    total = len(parts) * (width + _GAP) - _GAP
    # H.264 takes even sizes.
    canvas = np.empty((2 * ((height + _CAPTION + 1) // 2), 2 * ((total + 1) // 2), 3), np.uint8)
    canvas[:] = _BACKGROUND
    for place, part in enumerate(parts):
        left = place * (width + _GAP)
        canvas[:height, left : left + width] = resized(part, height=height, width=width)
    image = Image.fromarray(canvas)
    if explanation.cue is not None and explanation.cue.kind == "flow":
        legend = _legend(height // 5)
        image.paste(legend, (total - height // 5 - 8, 8), legend)
    _draw_caption(image, explanation, frame, top=height)
    return np.asarray(image)


def _draw_caption(image: Image.Image, explanation: VideoExplanation, frame: int, *, top: int) -> None:
    """Draw the prediction, the name of the cue, and a time line with the clip's segments."""
    draw = ImageDraw.Draw(image)
    predicted = explanation.top[0]
    left, right = _MARGIN, image.width - _MARGIN
    small, large = font(14), font(24)
    label = _shortened(draw, predicted.label, large, right - left - draw.textlength("  100 %", large))
    draw.text((left, top + 10), label, font=large, fill=_WHITE)
    draw.text((left + draw.textlength(label + "  ", large), top + 10), f"{100 * predicted.score:.0f} %", font=large, fill=_BLUE)
    cue = "no motion cue" if explanation.cue is None else explanation.cue.name
    free = right - left - draw.textlength(f"{label}  100 %  ", large)
    captions = (text for text in (f"{explanation.model.name}, {cue}", cue) if draw.textlength(text, small) < free)
    draw.text((right, top + 18), next(captions, ""), font=small, fill=_GREY, anchor="ra")
    upper, lower, last = image.height - 20, image.height - 14, max(explanation.info.frames - 1, 1)

    def x_of(index: float) -> float:
        return left + (right - left) * min(index, last) / last

    draw.rectangle((left, upper, right, lower), fill=_TRACK)
    for segment in explanation.frame_indices.tolist():
        draw.rectangle((x_of(segment[0]), upper, max(x_of(segment[-1]), x_of(segment[0]) + 3), lower), fill=_BLUE)
    draw.rectangle((x_of(frame) - 1, upper - 5, x_of(frame) + 1, lower + 5), fill=_WHITE)


def _shortened(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """Cut a text to a width in pixels, with an ellipsis."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"


@cache
def _legend(side: int) -> Image.Image:
    return Image.fromarray(wheel(side))
