"""From a video file to a clip: what each stage takes, beside what libav alone needs to reach the same frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowless.pipeline.clip.preprocess import load_clip, resize_and_crop
from flowless.pipeline.clip.sampling import clip_indices
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.video.container import open_video
from flowless.pipeline.video.info import VideoInfo
from flowless.pipeline.video.reader import VideoReader
from flowless.timing import Timing, time_interleaved

#: Stage -> what it does, for people.
STAGES = {
    "libav": "libav alone: demux and decode every frame up to the last needed one, converting none",
    "info": "count the frames and read the time line, from the packets; decode one frame",
    "decode": "decode the clip's frames to RGB, with no knowledge of the file",
    "known": "the same, with what an index knows of the file",
    "preprocess": "resize and crop the clip's frames",
    "load": "all of it: count, decode, preprocess, one frame at a time",
}


@dataclass(frozen=True)
class VideoStages:
    """What the stages took, each of the videos by itself."""

    paths: tuple[Path, ...]
    infos: tuple[VideoInfo, ...]
    timings: tuple[dict[str, Timing], ...]

    @property
    def libav_ratio(self) -> float:
        """Time of `decode` over that of `libav`, all videos together."""
        return self.mean_ms("decode") / self.mean_ms("libav")

    def mean_ms(self, stage: str) -> float:
        """Return the mean over the videos of the stage's medians, in milliseconds."""
        return fmean(timing[stage].p50_ms for timing in self.timings)

    def rows(self) -> list[dict[str, Any]]:
        """Return one JSON row a stage: mean of the medians, the worst video's p99, clips per second."""
        return [
            {
                "stage": stage,
                "what": what,
                "p50_ms": round(self.mean_ms(stage), 3),
                "p99_ms": max(timing[stage].p99_ms for timing in self.timings),
                "clips_per_s": round(1e3 / self.mean_ms(stage), 2),
            }
            for stage, what in STAGES.items()
        ]

    def videos(self) -> list[dict[str, Any]]:
        """Return one JSON row a video."""
        return [
            {
                "file": path.name,
                "codec": info.codec,
                "width": info.width,
                "height": info.height,
                "frames": info.frames,
                "fps": round(info.fps, 3),
                "key_frames": len(info.key_frames),
                "megabytes": round(path.stat().st_size / 1e6, 3),
                "p50_ms": {stage: timing.p50_ms for stage, timing in timings.items()},
            }
            for path, info, timings in zip(self.paths, self.infos, self.timings, strict=True)
        ]


def measure_stages(videos: Sequence[Path], spec: ClipSpec, *, runs: int) -> VideoStages:
    """Time the stages of one clip of each video, in turn, one thread for libav in all of them."""
    infos, timings = [], []
    for path in videos:
        info = _info(path)
        infos.append(info)
        timings.append(time_interleaved(_stages(path, info, spec), runs=runs))
    return VideoStages(tuple(videos), tuple(infos), tuple(timings))


def decode_with_libav_alone(path: Path, last: int) -> int:
    """Decode the frames 0 to `last` in presentation order, converting none; return how many came out.

    This is the floor: PyAV hands each packet to libav and takes each frame from it, and does nothing with it.
    """
    count = 0
    container, stream = open_video(path)
    with container:
        for _ in container.decode(stream):
            count += 1
            if count > last:
                break
    return count


def _info(path: Path) -> VideoInfo:
    with VideoReader(path) as video:
        return video.info


def _decoded(path: Path, wanted: NDArray[np.int64], known: VideoInfo | None) -> NDArray[np.uint8]:
    with VideoReader(path, known=known) as video:
        return video.stack(wanted)


def _stages(path: Path, info: VideoInfo, spec: ClipSpec) -> dict[str, Callable[[], object]]:
    indices = clip_indices(info.frames, segments=spec.segments, frames_per_segment=spec.frames_per_segment, rule=spec.sampling)
    wanted = np.unique(indices)
    last = int(wanted[-1])
    frames = _decoded(path, wanted, info)
    return {
        "libav": lambda: decode_with_libav_alone(path, last),
        "info": lambda: _info(path),
        "decode": lambda: _decoded(path, wanted, None),
        "known": lambda: _decoded(path, wanted, info),
        "preprocess": lambda: resize_and_crop(frames, spec),
        "load": lambda: load_clip(path, spec),
    }
