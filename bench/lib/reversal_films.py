"""Each video and its reversal, cut so that a model which ignores order sees exactly the same frames of both.

Sampling takes the middle of each of N segments. Played backwards, the middle of segment k is that of segment N-1-k, but only
if rounding falls the same way from both ends, and only if the segments in which training jitters tile the film without a
rest. For stacks of m frames both hold when n - m + 1, the number of places where a stack can begin, is an odd multiple of N.
Otherwise the sets of frames differ by a frame or so, and a network can tell a film from its reversal by remembering single
frames: it looks as if it read time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import load_record, resize_and_crop
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex, VideoRecord
from flowless.pipeline.video.encode import write_video
from flowless.pipeline.video.open_reader import open_reader

#: What a reversed video's class is called.
SUFFIX = "-reversed"
#: Without loss, a frame keeps its pixels whatever stands before and after it; with loss, a network could tell the two
#: films apart by what the encoder did to them.
LOSSLESS = {"qp": "0", "preset": "veryfast"}


@dataclass(frozen=True)
class Films:
    """What was written."""

    folder: Path
    """Folder-per-class tree."""
    videos: int
    """Source videos; there are twice as many films."""
    skipped: tuple[str, ...]
    """Source files that are no videos or are too short, with the reason."""


def film_length(frames: int, *, segments: int, stack: int) -> int:
    """Return the longest length up to `frames` that the sampling sees alike from both ends; 0 where there is none."""
    places = (frames - stack + 1) // segments
    places -= 1 - places % 2
    return places * segments + stack - 1 if places > 0 else 0


def write_films(source: Path, out: Path, *, spec: ClipSpec) -> Films:
    """Write each video of a folder forwards and backwards, at the size that the models see, without loss.

    Args:
        source: A folder with one folder a class, or a flat one in which every file is a class.
        out: The folder-per-class tree to write: classes NAME and NAME-reversed.
        spec: What a clip is; films are `film_length` long for its stacks, cut from the middle.

    Raises:
        FlowlessError: The folder holds no two videos that can be read.
    """
    skipped: list[str] = []
    done = 0
    for label, path in labelled_videos(source):
        try:
            frames = _small_frames(path, spec)
        except FlowlessError as error:
            skipped.append(str(error))
            continue
        length = film_length(len(frames), segments=spec.segments, stack=spec.frames_per_segment)
        if not length:
            skipped.append(f"{path}: {len(frames)} frames are too few for {spec.segments} stacks of {spec.frames_per_segment}.")
            continue
        start = (len(frames) - length) // 2
        film = frames[start : start + length]
        write_video(out / label / f"{path.stem}.mp4", film, options=LOSSLESS)
        write_video(out / (label + SUFFIX) / f"{path.stem}.mp4", film[::-1], options=LOSSLESS)
        done += 1
    if not done:
        reason = f" ({skipped[0]})" if skipped else ""
        raise FlowlessError(f"{source}: holds no video that can be used{reason}. Give a folder of videos, or one folder a class.")
    return Films(out, done, tuple(skipped))


def labelled_videos(source: Path) -> list[tuple[str, Path]]:
    """Return `(label, file)` of a folder of classes, or of a flat folder, whose files are a class each."""
    from flowless.pipeline.dataset.sources import VIDEO_SUFFIXES

    if not source.is_dir():
        raise FlowlessError(f"{source}: no such folder. Give a folder of videos, or one with a folder a class.")
    files = sorted(path for path in source.rglob("*") if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES)
    videos = [(path.relative_to(source).parts[0] if path.parent != source else path.stem, path) for path in files]
    if not videos:
        raise FlowlessError(f"{source}: holds no video file. Give a folder of videos, or one with a folder a class.")
    return videos


def videos_of(sources: Sequence[Path]) -> list[Path]:
    """Return the files that are named, and those of the folders that are.

    Raises:
        FlowlessError: There is no such file or folder, or a folder holds no video.
    """
    found: list[Path] = []
    for source in sources:
        if not source.exists():
            raise FlowlessError(f"{source}: there is no such file or folder. Check the name.")
        found.extend([file for _, file in labelled_videos(source)] if source.is_dir() else [source])
    return found


def inner_parts(index: DatasetIndex, *, stack: int) -> DatasetIndex:
    """Return the index for models of single frames: of each film the part whose places are the stacks' places.

    A film of places + m - 1 frames is `places` long for m = 1. Forwards and backwards the same pictures are kept, so the
    part begins (m-1)//2 frames in, and backwards at the mirror of its end.
    """
    before, after = (stack - 1) // 2, stack - 1 - (stack - 1) // 2

    def part(record: VideoRecord) -> VideoRecord:
        backwards = index.labels[record.label].endswith(SUFFIX)
        return replace(record, first_frame=after if backwards else before, frames=record.frames - stack + 1)

    return replace(index, videos=tuple(part(record) for record in index.videos))


def same_pictures(index: DatasetIndex, spec: ClipSpec) -> bool:
    """Return whether every film and its reversal give, pixel by pixel, the same pictures in the opposite order."""
    clips = {(index.labels[record.label], Path(record.path).stem): _clip(index, record, spec) for record in index.videos}
    forwards = {key: clip for key, clip in clips.items() if not key[0].endswith(SUFFIX)}
    return all(np.array_equal(clip, clips[label + SUFFIX, stem][::-1, ::-1]) for (label, stem), clip in forwards.items())


def clips_of(index: DatasetIndex, spec: ClipSpec) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the centre clips `[V, N, m, H, W, 3]` and labels `[V]` of an index."""
    clips = np.stack([_clip(index, record, spec) for record in index.videos])
    return clips, np.array([record.label for record in index.videos], np.int64)


def _clip(index: DatasetIndex, record: VideoRecord, spec: ClipSpec) -> NDArray[np.uint8]:
    return load_record(index, record, spec)[0]


def _small_frames(path: Path, spec: ClipSpec) -> NDArray[np.uint8]:
    """Return the frames `[K, height, width, 3]` as an evaluation crops them: a training crop then has no place to jitter to."""
    with open_reader(path) as video:
        return np.concatenate([resize_and_crop(frame[None], spec) for frame in video])
