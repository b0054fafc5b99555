"""Long videos of which it is known what happens when: clips of actions, joined with background between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowless.bench.timeline.average_precision import Part
from flowless.errors import FlowlessError
from flowless.pipeline.dataset.index import DatasetIndex, VideoRecord
from flowless.pipeline.synthetic.moving_shapes import FPS, ShapesOptions, Split, draw, scenes
from flowless.pipeline.video.encode import write_video

#: Label of what is no action.
BACKGROUND = "background"
Frames = NDArray[np.uint8]
_ENCODER = {"crf": "18", "preset": "veryfast"}


@dataclass(frozen=True, kw_only=True)
class JoinedVideo:
    """A video, and what happens when."""

    path: Path
    frames: int
    fps: float
    truth: tuple[Part, ...]


def moving_part(clip: Frames) -> tuple[int, int]:
    """Return the first and the last frame between which a clip of Moving Shapes moves: it is still before and after."""
    changes = np.flatnonzero((clip[1:] != clip[:-1]).any(axis=(1, 2, 3)))
    return int(changes[0]), int(changes[-1]) + 1


def shapes_videos(folder: Path, options: ShapesOptions, *, actions: int, seed: int = 0) -> list[JoinedVideo]:
    """Join the validation scenes of Moving Shapes, `actions` in a video, and write the videos.

    Each scene is shown forwards or backwards. Between two, the last frame of the one and then the first frame of the next stand still, for
    12 to 40 frames in all; an action lasts as long as something moves.
    """
    rng = np.random.default_rng([seed, 1])
    order = list(scenes("val", options))
    rng.shuffle(order)
    videos = []
    for number in range(len(order) // actions):
        path, parts, truth, count = folder / f"shapes_{number:02d}.mp4", [], [], 0
        for scene, labels in order[number * actions : (number + 1) * actions]:
            which = int(rng.integers(len(labels)))
            clip = draw("val", scene, labels, options)[which]
            before, after = rng.integers(6, 21, size=2)
            first, last = moving_part(clip)
            begin = count + int(before)
            truth.append(Part(path.name, labels[which], (begin + first) / FPS, (begin + last) / FPS))
            parts += [clip[:1].repeat(before, axis=0), clip, clip[-1:].repeat(after, axis=0)]
            count = begin + len(clip) + int(after)
        write_video(path, np.concatenate(parts), fps=FPS, options=_ENCODER)
        videos.append(JoinedVideo(path=path, frames=count, fps=FPS, truth=tuple(truth)))
    return videos


def write_backgrounds(folder: Path, options: ShapesOptions, *, count: int, seed: int = 0) -> None:
    """Write training videos of background: a still scene of the training split, or a cut between two of them."""
    rng = np.random.default_rng([seed, 2])
    order = list(scenes("train", options))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        stills = [_still(rng, order, options) for _ in range(2)]
        cut = int(rng.integers(1, options.frames)) if number % 2 else options.frames
        clip = np.concatenate([stills[0].repeat(cut, axis=0), stills[1].repeat(options.frames - cut, axis=0)])
        write_video(folder / f"{number:05d}.mp4", clip, fps=FPS, options=_ENCODER)


def _still(rng: np.random.Generator, order: Sequence[tuple[int, tuple[str, ...]]], options: ShapesOptions) -> Frames:
    split: Split = "train"
    scene, labels = order[int(rng.integers(len(order)))]
    clip = draw(split, scene, labels, options)[0]
    return clip[:1] if rng.integers(2) else clip[-1:]


def with_background(index: DatasetIndex, actions: Sequence[str], *, others: int) -> DatasetIndex:
    """Return an index of the videos of `actions`, and of each other label the first `others` as BACKGROUND.

    Raises:
        FlowlessError: The index lacks one of the actions.
    """
    if missing := [label for label in actions if label not in index.labels]:
        raise FlowlessError(f"bench timeline: the index has no label {missing[0]!r}; its labels: {', '.join(index.labels)}.")
    labels = tuple(sorted([*actions, BACKGROUND]))
    seen: dict[int, int] = {}
    chosen = []
    for video in index.videos:
        name = index.labels[video.label]
        seen[video.label] = seen.get(video.label, 0) + 1
        if name in actions or seen[video.label] <= others:
            chosen.append(replace(video, label=labels.index(name if name in actions else BACKGROUND)))
    return replace(index, labels=labels, videos=tuple(chosen))


def real_videos(folder: Path, test: DatasetIndex, actions: Sequence[str], *, seed: int = 0) -> list[JoinedVideo]:
    """Join test clips: every clip of one of `actions` is in one video, as many in a video as there are actions, in a random order.

    Before and after each is a clip of another label, which is background.
    """
    rng = np.random.default_rng([seed, 3])
    wanted = [video for video in test.videos if test.labels[video.label] in actions]
    others = [video for video in test.videos if test.labels[video.label] not in actions]
    if not wanted or not others:
        raise FlowlessError("bench timeline: the test index needs clips of the actions and of other labels, which are the background.")
    rng.shuffle(wanted)  # pyright: ignore[reportArgumentType]
    rng.shuffle(others)  # pyright: ignore[reportArgumentType]
    videos, between = [], iter(others * (1 + 2 * len(wanted) // len(others)))
    for number in range(max(1, len(wanted) // len(actions))):
        clips = wanted[number * len(actions) : (number + 1) * len(actions)]
        line: list[VideoRecord] = [next(between)]
        for clip in clips:
            line += [clip, next(between)]
        path, truth, count, fps = folder / f"real_{number:02d}.mp4", [], 0, round(clips[0].info.fps, 3)
        for clip in line:
            label = test.labels[clip.label]
            if label in actions:
                truth.append(Part(path.name, label, count / fps, (count + clip.frames) / fps))
            count += clip.frames
        write_video(path, _frames(test, line), fps=round(fps), options=_ENCODER)
        videos.append(JoinedVideo(path=path, frames=count, fps=round(fps), truth=tuple(truth)))
    return videos


def _frames(index: DatasetIndex, line: Iterable[VideoRecord]) -> Iterator[Frames]:
    for clip in line:
        with index.open(clip) as video:
            for _, frame in video.frames(range(clip.first_frame, clip.first_frame + clip.frames)):
                yield frame


def described(videos: Sequence[JoinedVideo]) -> dict[str, Any]:
    """Return how many videos, seconds and actions there are."""
    seconds = sum(video.frames / video.fps for video in videos)
    return {"videos": len(videos), "seconds": round(seconds, 1), "actions": sum(len(video.truth) for video in videos)}
