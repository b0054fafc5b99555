"""Motion cues and Grad-CAM maps as pictures: a heat map of magnitudes, a colour wheel of displacements, colours around grey.

Throughout, `reach` is the value at the end of the colour scale (`vmax` in matplotlib); larger values get the same colour.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFont

from flowless.export.explain.cues import Cue

#: Quantile of a cue's values at which the colour scale ends: a few outliers would leave everything else dark.
_REACH_QUANTILE = 0.998


def paint(cue: Cue, *, reach: float | None = None) -> NDArray[np.uint8]:
    """Paint a cue.

    Args:
        cue: The cue.
        reach: End of the colour scale (a length, of a flow). Default: `reach_of(cue)`, the same for all pictures, so that they compare.

    Returns:
        uint8 `[B, N, K, H, W, 3]`, RGB, of the cue's resolution.
    """
    painters = {"map": heat, "flow": wheel_colours, "colour": centred_colours}
    return painters[cue.kind](cue.values, reach=reach_of(cue) if reach is None else reach)


def reach_of(cue: Cue) -> float:
    """Return the value that nearly all of a cue's magnitudes (lengths, of a flow) lie below."""
    sizes = cue.magnitudes
    if sizes.size == 0:
        return 1.0
    # Where little moves, the quantile alone would amplify noise.
    return max(float(np.quantile(sizes, _REACH_QUANTILE)), float(sizes.max()) / 4, 1e-6)


def heat(maps: NDArray[np.floating], *, reach: float) -> NDArray[np.uint8]:
    """Paint magnitudes `[..., H, W]`, 0 black and `reach` pale yellow: uint8 `[..., H, W, 3]`."""
    from matplotlib import colormaps

    return _to_uint8(colormaps["inferno"](np.clip(maps / reach, 0, 1))[..., :3])


def wheel_colours(flow: NDArray[np.floating], *, reach: float) -> NDArray[np.uint8]:
    """Paint displacements `[..., 2, h, w]`, rows first: uint8 `[..., h, w, 3]`.

    The hue is the direction on the screen (right red, down yellow-green, left cyan, up violet), the saturation the length: white is no
    motion, and `reach` fully saturated.
    """
    from matplotlib.colors import hsv_to_rgb

    down, right = flow[..., 0, :, :], flow[..., 1, :, :]
    hue = np.arctan2(down, right) / (2 * np.pi) % 1.0
    saturation = np.clip(np.hypot(down, right) / reach, 0, 1)
    return _to_uint8(hsv_to_rgb(np.stack([hue, saturation, np.ones_like(hue)], axis=-1)))


def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib and covers more scripts than Latin."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf", size)


def wheel(side: int) -> NDArray[np.uint8]:
    """Return the legend of `wheel_colours`: a disc where each point has the colour of the displacement from the centre to it.

    Returns:
        uint8 `[side, side, 4]`, RGBA.
    """
    steps = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    flow = np.stack(np.meshgrid(steps, steps, indexing="ij"))
    alpha = np.clip((1 - np.hypot(*flow)) * side / 2, 0, 1)  # one pixel of antialiasing
    return np.concatenate([wheel_colours(flow, reach=1.0), _to_uint8(alpha)[..., None]], axis=-1)


def centred_colours(pictures: NDArray[np.floating], *, reach: float) -> NDArray[np.uint8]:
    """Paint colours centred at zero `[..., 3, H, W]`: uint8 `[..., H, W, 3]`, 0 middle grey, `reach` white, -`reach` black."""
    return _to_uint8(np.clip(np.moveaxis(pictures, -3, -1) / reach, -1, 1) / 2 + 0.5)


def resized(pictures: NDArray[np.uint8], *, height: int, width: int) -> NDArray[np.uint8]:
    """Resize pictures uint8 `[..., h, w, 3]` to `[..., height, width, 3]`; whole multiples keep their pixels sharp."""
    from PIL import Image

    if pictures.shape[-3:-1] == (height, width):
        return pictures
    whole = height % pictures.shape[-3] == 0 == width % pictures.shape[-2]
    resampling = Image.Resampling.NEAREST if whole else Image.Resampling.BILINEAR
    flat = pictures.reshape(-1, *pictures.shape[-3:])
    made = np.stack([np.asarray(Image.fromarray(picture).resize((width, height), resampling)) for picture in flat])
    return made.reshape(*pictures.shape[:-3], height, width, 3)


def overlaid(frames: NDArray[np.uint8], maps: NDArray[np.float32], *, reach: float) -> NDArray[np.uint8]:
    """Overlay heat maps on frames, which are darkened and desaturated so that the heat stands out.

    Args:
        frames: uint8 `[K, H, W, 3]`.
        maps: `[K, h, w]`, upsampled bilinearly to the frames' size.
        reach: The value of the strongest, most opaque colour; where a map is 0 the darkened frame alone is left.

    Returns:
        uint8 `[K, H, W, 3]`.
    """
    from PIL import Image

    height, width = frames.shape[1:3]
    upsampled = np.stack([np.asarray(Image.fromarray(one, mode="F").resize((width, height), Image.Resampling.BILINEAR)) for one in maps])
    shares = np.clip(upsampled / reach, 0, 1)
    grey = frames @ np.array([0.299, 0.587, 0.114])
    darkened = 0.7 * (0.6 * grey[..., None] + 0.4 * frames) / 255
    # Opacity grows with the value, so that the frame stays visible.
    opacity = 0.8 * np.sqrt(shares)[..., None]
    return _to_uint8((1 - opacity) * darkened + opacity * heat(shares, reach=1.0) / 255)


def heat_stops(count: int = 9) -> str:
    """Return the colours of `heat` from 0 to `reach`, for a CSS gradient."""
    return ", ".join(f"rgb({r}, {g}, {b})" for r, g, b in heat(np.linspace(0, 1, count), reach=1.0).tolist())


def _to_uint8(shares: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.rint(np.asarray(shares) * 255).astype(np.uint8)
