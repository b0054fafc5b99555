"""Time each stage from a video file to a clip, beside what libav alone needs to reach the same frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from flowless.pipeline.clip.preprocess import load_clip, resize_and_crop
from flowless.pipeline.clip.sampling import clip_indices
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.video.container import open_video
from flowless.pipeline.video.info import VideoInfo
from flowless.pipeline.video.reader import VideoReader
from flowless.timing import time_in_turn

STAGES = {
    "libav": "libav alone: demux and decode every frame up to the last needed one, converting none",
    "decode": "decode the clip's frames to RGB from the file alone",
    "known": "the same, with what an index records of the file",
    "preprocess": "resize and crop the clip's frames",
    "load": "all of it: count, decode, preprocess, one frame at a time",
}


def stage_rows(videos: Sequence[Path], spec: ClipSpec, *, runs: int) -> list[dict[str, Any]]:
    """Time the stages of one clip of each video, interleaved; return a JSON row a stage: the mean over the videos of the medians."""
    timings = [time_in_turn(_stages(path, spec), runs=runs) for path in videos]
    means = {stage: fmean(timing[stage].p50_ms for timing in timings) for stage in STAGES}
    return [{"stage": stage, "what": what, "p50_ms": round(means[stage], 3)} for stage, what in STAGES.items()]


def decode_with_libav_alone(path: Path, last: int) -> int:
    """Decode the frames 0 to `last` in presentation order without converting them; return how many there were."""
    count = 0
    container, stream = open_video(path)
    with container:
        for count, _ in enumerate(container.decode(stream), start=1):
            if count > last:
                break
    return count


def _stages(path: Path, spec: ClipSpec) -> dict[str, Callable[[], object]]:
    def decode(known: VideoInfo | None) -> np.ndarray:
        with VideoReader(path, known=known) as video:
            return video.stack(wanted)

    with VideoReader(path) as video:
        info = video.info
    wanted = np.unique(clip_indices(info.frames, segments=spec.segments, frames_per_segment=spec.frames_per_segment, rule=spec.sampling))
    return {
        "libav": partial(decode_with_libav_alone, path, int(wanted[-1])),
        "decode": partial(decode, None),
        "known": partial(decode, info),
        "preprocess": partial(resize_and_crop, decode(info), spec),
        "load": partial(load_clip, path, spec),
    }
