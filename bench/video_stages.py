"""From a video file to a clip: what each stage takes, beside what libav alone needs to reach the same frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from flowless.pipeline.container import open_video
from flowless.pipeline.decode import decode_frames
from flowless.pipeline.preprocess import load_clip, resize_and_crop
from flowless.pipeline.probe import VideoInfo, probe
from flowless.pipeline.sampling import clip_indices
from flowless.pipeline.spec import ClipSpec
from flowless.timing import Timing, time_in_turn

#: Stage -> what it does, for people.
STAGES = {
    "libav": "libav alone: demux and decode every frame up to the last needed one, converting none",
    "probe": "count the frames and read the time line, from the packets",
    "decode": "decode the clip's frames to RGB, with no knowledge of the file",
    "preprocess": "resize and crop the clip's frames",
    "load": "all of it: probe, decode, preprocess, one frame at a time",
}


@dataclass(frozen=True)
class VideoStages:
    """What the stages took, each of the videos by itself."""

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
                "file": Path(info.path).name,
                "codec": info.codec,
                "width": info.width,
                "height": info.height,
                "frames": info.frames,
                "fps": round(info.fps, 3),
                "key_frames": len(info.key_frames),
                "megabytes": round(Path(info.path).stat().st_size / 1e6, 3),
                "p50_ms": {stage: timing.p50_ms for stage, timing in timings.items()},
            }
            for info, timings in zip(self.infos, self.timings, strict=True)
        ]


def measure_stages(videos: Sequence[Path], spec: ClipSpec, *, runs: int) -> VideoStages:
    """Time the stages of one clip of each video, in turn, one thread for libav in all of them."""
    infos, timings = [], []
    for path in videos:
        info = probe(path)
        infos.append(info)
        timings.append(time_in_turn(_stages(path, info, spec), runs=runs))
    return VideoStages(tuple(infos), tuple(timings))


def decode_with_libav_alone(path: Path, last: int) -> int:
    """Decode the frames 0 to `last` in presentation order, converting none; return how many came out.

    This is the floor: PyAV hands each packet to libav and takes each frame from it, and does nothing with it.
    """
    count = 0
    with open_video(path) as video:
        for _ in video.container.decode(video.stream):
            count += 1
            if count > last:
                break
    return count


def _stages(path: Path, info: VideoInfo, spec: ClipSpec) -> dict[str, Callable[[], object]]:
    indices = clip_indices(info.frames, segments=spec.segments, frames_per_segment=spec.frames_per_segment, rule=spec.sampling)
    wanted = np.unique(indices)
    last = int(wanted[-1])
    frames = decode_frames(path, wanted, info=info)
    return {
        "libav": lambda: decode_with_libav_alone(path, last),
        "probe": lambda: probe(path),
        "decode": lambda: decode_frames(path, wanted),
        "preprocess": lambda: resize_and_crop(frames, spec),
        "load": lambda: load_clip(path, spec),
    }
