"""Videos to measure with: those that the user names, or made ones that are as hard to decode as what a camera records."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowless.errors import FlowlessError

#: x264's defaults spelt out, with a key frame every ten seconds, as data sets and phones have them.
ENCODER = {"g": "250", "bf": "3", "crf": "23", "preset": "medium"}
#: Columns and rows of consecutive videos: data sets store them small, phones and cameras do not.
SIZES = ((340, 256), (426, 240), (640, 360), (340, 256))


def videos_of(sources: Sequence[Path]) -> list[Path]:
    """Return the files that are named, and the video files in the folders that are; raise FlowlessError where there is none."""
    from flowless.pipeline.dataset.sources import VIDEO_SUFFIXES

    found: list[Path] = []
    for source in sources:
        inside = sorted(path for path in source.rglob("*") if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES)
        if not (source.is_file() or inside):
            raise FlowlessError(f"{source}: no such file, and no folder that holds a video. Check the name.")
        found += inside or [source]
    return found


def sample_videos(folder: Path, *, count: int = 4, sizes: Sequence[tuple[int, int]] = SIZES, frames: int = 250) -> list[Path]:
    """Write `count` H.264 videos of `sample_frames` and return the files; `sizes` (columns, rows; even numbers) repeat."""
    from flowless.pipeline.video.encode import write_video

    paths = [folder / f"sample_{number}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        rng = np.random.default_rng([0, number])
        width, height = sizes[number % len(sizes)]
        write_video(path, sample_frames(rng, width=width, height=height, frames=frames), fps=25, options=ENCODER)
    return paths


def sample_frames(rng: np.random.Generator, *, width: int, height: int, frames: int) -> Iterator[NDArray[np.uint8]]:
    """Yield frames uint8 `[height, width, 3]`, RGB: textured things that move over a textured background, a moving camera, sensor noise."""
    swing = max(4, min(width, height) // 8)
    scene = _texture(rng, width + 2 * swing, height + 2 * swing)
    things = [_texture(rng, side, side) for side in rng.integers(max(4, height // 8), max(5, height // 3), size=3)]
    paths = rng.uniform(0, 2 * math.pi, size=(4, 2))
    speeds = rng.uniform(0.5, 1.5, size=(4, 2)) * 2 * math.pi / 100
    for time in range(frames):
        places = np.sin(paths + speeds * time)
        left, top = (swing + np.round(places[3] * swing).astype(int)).tolist()
        frame = scene[top : top + height, left : left + width].copy()
        for thing, place in zip(things, places, strict=False):
            x, y = (round((at + 1) / 2 * max(size - len(thing), 0)) for at, size in zip(place, (width, height), strict=True))
            target = frame[y : y + len(thing), x : x + len(thing)]
            target[:] = thing[: target.shape[0], : target.shape[1]]
        # A little noise in half resolution: what a sensor adds and an encoder has to spend bits on.
        noise = rng.integers(-3, 4, size=((height + 1) // 2, (width + 1) // 2, 1), dtype=np.int16)
        noise = noise.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
        yield np.clip(frame + noise, 0, 255).astype(np.uint8)


def _texture(rng: np.random.Generator, width: int, height: int) -> NDArray[np.int16]:
    """Return noise with detail at every size: int16 `[height, width, 3]`, 0 to 255."""
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(5):
        cells = 3 * 2**octave
        grid = rng.integers(0, 256, size=(cells, cells, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC), np.float32) / 1.6**octave
    total -= total.min()
    return (total * (255 / max(float(total.max()), 1.0))).astype(np.int16)
