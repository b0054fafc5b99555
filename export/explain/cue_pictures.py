"""Motion cues as pictures: heat for strengths, the colour wheel for displacements, colours around grey for appearance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

from flowless.export.explain.cues import Cue

#: Share of a cue's values that the colours span: the few largest would leave all others dark.
_SPANNED = 0.998


def paint(cue: Cue, *, reach: float | None = None) -> NDArray[np.uint8]:
    """Paint a cue.

    Args:
        cue: The cue.
        reach: The value (a length, of a flow) that gets the strongest colour; by default `reach_of(cue)`, one for all pictures, so
            that they can be compared.

    Returns:
        uint8 `[B, N, K, H, W, 3]`, RGB, of the cue's own size.
    """
    reach = reach_of(cue) if reach is None else reach
    painters = {"map": heat, "flow": wheel_colours, "colour": centred_colours}
    return painters[cue.kind](cue.values, reach=reach)


def reach_of(cue: Cue) -> float:
    """Return the value that nearly all of a cue's values lie below: strengths, lengths of displacements, sizes of colours."""
    if cue.values.size == 0:
        return 1.0
    sizes = np.hypot(cue.values[..., 0, :, :], cue.values[..., 1, :, :]) if cue.kind == "flow" else np.abs(cue.values)
    # Where little moves the share alone would stretch noise.
    return max(float(np.quantile(sizes, _SPANNED)), float(sizes.max()) / 4, 1e-6)


def heat(maps: NDArray[np.floating], *, reach: float) -> NDArray[np.uint8]:
    """Paint strengths `[..., H, W]`, 0 black and `reach` pale yellow: uint8 `[..., H, W, 3]`."""
    from matplotlib import colormaps

    return _bytes(colormaps["inferno"](np.clip(maps / reach, 0, 1))[..., :3])


def wheel_colours(flow: NDArray[np.floating], *, reach: float) -> NDArray[np.uint8]:
    """Paint displacements `[..., 2, h, w]`, rows first: uint8 `[..., h, w, 3]`.

    The hue is the direction on the screen (right red, down yellow-green, left cyan, up violet), the saturation the length; white
    is no motion, and `reach` the fullest colour.
    """
    from matplotlib.colors import hsv_to_rgb

    down, right = flow[..., 0, :, :], flow[..., 1, :, :]
    hue = np.arctan2(down, right) / (2 * np.pi) % 1.0
    saturation = np.clip(np.hypot(down, right) / reach, 0, 1)
    return _bytes(hsv_to_rgb(np.stack([hue, saturation, np.ones_like(hue)], axis=-1)))


def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return matplotlib's own font: every machine that draws has it, and it knows more than Latin letters."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf", size)


def wheel(side: int) -> NDArray[np.uint8]:
    """Return the legend of `wheel_colours`, a disc whose every place has the colour of the motion that leads there from the middle.

    Returns:
        uint8 `[side, side, 4]`: red, green, blue, opacity.
    """
    steps = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    flow = np.stack(np.meshgrid(steps, steps, indexing="ij"))
    # The edge is a pixel soft.
    inside = np.clip((1 - np.hypot(*flow)) * side / 2, 0, 1)
    return np.concatenate([wheel_colours(flow, reach=1.0), _bytes(inside)[..., None]], axis=-1)


def centred_colours(pictures: NDArray[np.floating], *, reach: float) -> NDArray[np.uint8]:
    """Paint colours around zero `[..., 3, H, W]`: uint8 `[..., H, W, 3]`, 0 middle grey, `reach` and beyond white, -`reach` black."""
    return _bytes(np.clip(np.moveaxis(pictures, -3, -1) / reach, -1, 1) / 2 + 0.5)


def resized(pictures: NDArray[np.uint8], *, height: int, width: int) -> NDArray[np.uint8]:
    """Resize pictures uint8 `[..., h, w, 3]` to `[..., height, width, 3]`; whole multiples keep their pixels sharp."""
    from PIL import Image

    if pictures.shape[-3:-1] == (height, width):
        return pictures
    rule = Image.Resampling.NEAREST if height % pictures.shape[-3] == 0 == width % pictures.shape[-2] else Image.Resampling.BILINEAR
    flat = pictures.reshape(-1, *pictures.shape[-3:])
    made = np.stack([np.asarray(Image.fromarray(picture).resize((width, height), rule)) for picture in flat])
    return made.reshape(*pictures.shape[:-3], height, width, 3)


def overlaid(frames: NDArray[np.uint8], maps: NDArray[np.float32], *, reach: float) -> NDArray[np.uint8]:
    """Lay strengths over frames, which are darkened and lose most of their own colours for it.

    Args:
        frames: uint8 `[K, H, W, 3]`.
        maps: `[K, h, w]`, of any size: stretched to the frames', smooth between the places' middles.
        reach: The strength that covers a frame most.

    Returns:
        uint8 `[K, H, W, 3]`; where a map is 0 the darkened frame alone.
    """
    from PIL import Image

    height, width = frames.shape[1:3]
    stretched = np.stack([np.asarray(Image.fromarray(one, mode="F").resize((width, height), Image.Resampling.BILINEAR)) for one in maps])
    shares = np.clip(stretched / reach, 0, 1)
    grey = frames @ np.array([0.299, 0.587, 0.114])
    pale = 0.7 * (0.6 * grey[..., None] + 0.4 * frames) / 255
    # As much of the colour as there is strength, so that what lies below stays visible.
    opacity = 0.8 * np.sqrt(shares)[..., None]
    return _bytes((1 - opacity) * pale + opacity * heat(shares, reach=1.0) / 255)


def heat_stops(count: int = 9) -> str:
    """Return the colours of `heat` from 0 to the reach as a list for CSS."""
    return ", ".join(f"rgb({r}, {g}, {b})" for r, g, b in heat(np.linspace(0, 1, count), reach=1.0).tolist())


def _bytes(shares: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.rint(np.asarray(shares) * 255).astype(np.uint8)
