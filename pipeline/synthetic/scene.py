"""Draws the frames of one scene of Moving Shapes from its seed, in pure NumPy, so that all machines draw the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

#: Each action with its time-reversal: a clip of the first, played backwards, is a clip of the second.
PAIRS: tuple[tuple[str, str], ...] = (
    ("right", "left"),
    ("down", "up"),
    ("clockwise", "counter-clockwise"),
    ("grow", "shrink"),
    ("part", "approach"),
    ("unfold", "fold"),
)
#: The labels in the order of the class scores (sorted, as a scan sorts them).
CLASSES: tuple[str, ...] = tuple(sorted(name for pair in PAIRS for name in pair))
#: Action -> its time-reversal.
TWIN: dict[str, str] = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}

Floats = NDArray[np.float32]

_KINDS = ("disc", "square", "bar", "triangle", "cross", "ring")
#: Shapes whose rotation is visible: the others are symmetric under quarter turns or all rotations.
_ROTATABLE = ("bar", "triangle")
_BACKGROUND_GRIDS = (2, 5, 11)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A painted shape, with one pose per frame (a still shape has one pose). Lengths in pixels, angles in radians."""

    kind: str
    x: Floats
    y: Floats
    radius: Floats
    angle: Floats
    spread: Floats
    """Half the opening angle of a fan; other kinds ignore it."""
    colours: tuple[Floats, Floats]
    """RGB, 0 to 255, of its two halves, so that rotation and size are visible inside the outline too."""


def scene_frames(action: str, *, size: int, frames: int, shake: bool, seed: tuple[int, ...]) -> NDArray[np.uint8]:
    """Draw one scene.

    Args:
        action: one of CLASSES.
        size: side of the square frame, in pixels.
        frames: number of frames.
        shake: whether the camera shakes, by about a hundredth of the frame's side.
        seed: the random seed.

    Returns:
        uint8 `[frames, size, size, 3]`, RGB. The second action of a pair is the first one's clip reversed.
    """
    rng = np.random.default_rng(seed)
    forwards = next(pair[0] for pair in PAIRS if action in pair)
    margin = math.ceil(size / 50) if shake else 0
    canvas, mean_colour = _background(size + 2 * margin, rng)
    movers = _movers(forwards, size=size, progress=_progress(frames, rng), mean_colour=mean_colour, rng=rng)
    offsets = _camera(frames, margin, rng)
    clip = np.stack([canvas[top : top + size, left : left + size] for top, left in offsets])
    for mover in movers:
        _paint(clip, mover, shift=margin - offsets)
    clip = np.clip(clip + np.float32(0.5), 0, 255).astype(np.uint8)
    return clip if action == forwards else clip[::-1].copy()


def _progress(frames: int, rng: np.random.Generator) -> Floats:
    """Return the progress of the action at each frame, 0 to 1: still, constant speed from a random start, still."""
    moving = rng.uniform(0.6, 0.95) * (frames - 1)
    start = rng.uniform(0, frames - 1 - moving)
    return np.clip((np.arange(frames) - start) / moving, 0, 1).astype(np.float32)


def _camera(frames: int, margin: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return top and left of the camera's window on the canvas at each frame: a random walk within the margin."""
    if not margin:
        return np.zeros((frames, 2), np.int64)
    walk = np.cumsum(rng.integers(-1, 2, size=(frames, 2)), axis=0)
    # Reflected at the margin, so that the camera neither leaves the canvas nor sticks to its edge.
    folded = np.abs((walk + margin) % (4 * margin) - 2 * margin)
    return folded.astype(np.int64)


def _movers(action: str, *, size: int, progress: Floats, mean_colour: Floats, rng: np.random.Generator) -> list[Shape]:
    """Return the moving shapes of an action that is the first of its pair."""
    if action == "part":
        return _parting(size=size, progress=progress, mean_colour=mean_colour, rng=rng)
    kinds = {"clockwise": _ROTATABLE, "unfold": ("fan",)}.get(action, _KINDS)
    kind = kinds[rng.integers(len(kinds))]
    low, high = (0.18, 0.3) if action in {"clockwise", "unfold"} else (0.11, 0.19)
    radius = np.full_like(progress, rng.uniform(low, high) * size)
    angle = np.full_like(progress, rng.uniform(0, 2 * math.pi))
    spread = np.full_like(progress, 0)
    centre = rng.uniform(0.3, 0.7, 2) * size
    x, y = (np.full_like(progress, value) for value in centre)
    if action in {"right", "down"}:
        travel, across = rng.uniform(0.35, 0.62), rng.uniform(0.18, 0.82)
        first = rng.uniform(0.12, 0.88 - travel)
        along = ((first + travel * progress) * size).astype(np.float32)
        x, y = (along, np.full_like(along, across * size)) if action == "right" else (np.full_like(along, across * size), along)
    elif action == "clockwise":
        angle += progress * np.float32(math.radians(rng.uniform(100, 260)))
    elif action == "grow":
        largest = rng.uniform(0.22, 0.34) * size
        radius = (largest * (1 + progress * (ratio := rng.uniform(1.2, 2.4))) / (1 + ratio)).astype(np.float32)
    elif action == "unfold":
        closed, opened = rng.uniform(0.08, 0.15), rng.uniform(0.6, 0.9)
        spread = ((closed + (opened - closed) * progress) * math.pi).astype(np.float32)
    return [Shape(kind=kind, x=x, y=y, radius=radius, angle=angle, spread=spread, colours=_colours(mean_colour, rng))]


def _parting(*, size: int, progress: Floats, mean_colour: Floats, rng: np.random.Generator) -> list[Shape]:
    """Return two shapes that touch at first and move apart."""
    radius = rng.uniform(0.09, 0.14) * size
    axis = rng.uniform(0, math.pi)
    nearest, farthest = radius * 1.05, rng.uniform(0.27, 0.36) * size
    distance = nearest + (farthest - nearest) * progress
    centre = rng.uniform(0.42, 0.58, 2) * size
    still = np.full_like(progress, 1)
    return [
        Shape(
            kind=_KINDS[rng.integers(len(_KINDS))],
            x=(centre[0] + side * distance * math.cos(axis)).astype(np.float32),
            y=(centre[1] + side * distance * math.sin(axis)).astype(np.float32),
            radius=still * np.float32(radius),
            angle=still * np.float32(rng.uniform(0, 2 * math.pi)),
            spread=still,
            colours=_colours(mean_colour, rng),
        )
        for side in (-1, 1)
    ]


def _colours(mean_colour: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return two shades of a colour that contrasts with the background."""
    tries = rng.uniform(20, 235, (8, 3))
    colour = tries[np.argmax(np.linalg.norm(tries - mean_colour, axis=1) * (np.arange(8) < rng.integers(3, 9)))]
    shade = np.clip(colour * rng.uniform(0.55, 0.8), 0, 255)
    return colour.astype(np.float32), shade.astype(np.float32)


def _background(side: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return a textured background with a few still shapes, float32 `[side, side, 3]`, and its mean colour."""
    mean_colour = rng.uniform(50, 205, 3).astype(np.float32)
    picture = np.tile(mean_colour, (side, side, 1))
    for points in _BACKGROUND_GRIDS:
        grid = rng.normal(0, rng.uniform(8, 22), (points, points, 3))
        up = _stretch(points, side)
        # In float64: the summation order of a matrix product depends on machine and memory alignment, which in float32
        # changes some pixels.
        picture += np.einsum("yi,ijc,xj->yxc", up, grid, up, optimize=True).astype(np.float32)
    picture += rng.normal(0, rng.uniform(1, 4), (side, side, 1)).astype(np.float32)
    clip = picture[None]
    still = np.zeros((1, 2), np.int64)
    for _ in range(rng.integers(1, 4)):
        where = rng.uniform(0.05, 0.95, 2) * side
        values = {"x": where[0], "y": where[1], "radius": rng.uniform(0.05, 0.12) * side, "angle": rng.uniform(0, 2 * math.pi), "spread": 1}
        poses = {name: np.array([value], np.float32) for name, value in values.items()}
        _paint(clip, Shape(kind=_KINDS[rng.integers(len(_KINDS))], colours=_colours(mean_colour, rng), **poses), shift=still)
    return clip[0], mean_colour


@lru_cache(maxsize=32)
def _stretch(points: int, side: int) -> NDArray[np.float64]:
    """Return the matrix `[side, points]` that interpolates `points` values linearly over `side` pixels."""
    at = np.linspace(0, points - 1, side)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(points)))


def _paint(clip: Floats, shape: Shape, *, shift: NDArray[np.int64]) -> None:
    """Paint `shape` onto `clip` `[T, H, W, 3]` in place, moved by `shift` `[T, 2]` (down, right), with antialiased edges."""
    x, y = shape.x + shift[:, 1].astype(np.float32), shape.y + shift[:, 0].astype(np.float32)
    # Compute only the bounding box of the shape over all frames.
    reach = shape.radius * np.float32(1.25) + 2
    top, left = (max(0, int((centre - reach).min())) for centre in (y, x))
    bottom, right = (min(limit, math.ceil((centre + reach).max())) for centre, limit in ((y, clip.shape[1]), (x, clip.shape[2])))
    if bottom <= top or right <= left:
        return
    dy = np.arange(top, bottom, dtype=np.float32)[None, :, None] + np.float32(0.5) - y[:, None, None]
    dx = np.arange(left, right, dtype=np.float32)[None, None, :] + np.float32(0.5) - x[:, None, None]
    cos, sin = (np.asarray(f(shape.angle) / shape.radius, np.float32)[:, None, None] for f in (np.cos, np.sin))
    u, v = (np.asarray(along, np.float32) for along in (dx * cos + dy * sin, dy * cos - dx * sin))
    radius = shape.radius[:, None, None]
    alpha = np.clip(np.float32(0.5) - _distance(shape, u, v) * radius, 0, 1)[..., None]
    bright, dark = shape.colours
    half = np.clip(np.float32(0.5) + u * radius, 0, 1)[..., None]
    box = clip[:, top:bottom, left:right]
    box += alpha * (dark + half * (bright - dark) - box)


def _distance(shape: Shape, u: Floats, v: Floats) -> Floats:
    """Return the signed distance to the outline of a shape of radius 1, negative inside; `u`, `v` in units of the radius."""
    if shape.kind == "disc":
        return np.sqrt(u * u + v * v) - 1
    if shape.kind == "ring":
        return np.abs(np.sqrt(u * u + v * v) - np.float32(0.75)) - np.float32(0.25)
    if shape.kind == "fan":
        rho = np.sqrt(u * u + v * v)
        return np.maximum(rho - 1, rho * (np.abs(np.arctan2(v, u)) - shape.spread[:, None, None]))
    if shape.kind == "triangle":
        lean = np.float32(math.sqrt(3) / 2) * np.abs(v) + np.float32(0.5) * u
        return np.maximum(lean, -u) - np.float32(0.55)
    u, v = np.abs(u), np.abs(v)
    if shape.kind == "square":
        return np.maximum(u, v) - np.float32(0.85)
    along = np.maximum(u - 1, v - np.float32(0.35))
    if shape.kind == "bar":
        return along
    return np.minimum(along, np.maximum(v - 1, u - np.float32(0.35)))
