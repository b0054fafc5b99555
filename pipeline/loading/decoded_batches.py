"""The evaluation views of videos, batch by batch, decoded, resized and cropped in DALI's graph; needs no PyTorch.

Three things overlap: threads read the files of the next batches, one thread runs the graph for the next batch, and the caller works on
the current one. So two batches of views exist at a time. A video that DALI cannot decode is decoded by PyAV and resized by Pillow, as
without DALI; a video that cannot be read is an error of its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from flowless.errors import FlowlessError
from flowless.files import printable
from flowless.pipeline.clip.preprocess import ClipViews, load_views
from flowless.pipeline.clip.sampling import clip_indices
from flowless.pipeline.clip.spec import CROPS, ClipSpec
from flowless.pipeline.loading.dali_graph import ClipGraph, GraphInput, failure_reason, region_inputs
from flowless.pipeline.loading.frame_source import bytes_of, evaluation_views, reason_for_pyav, view_order
from flowless.pipeline.video.frame_folder import FrameFolder
from flowless.pipeline.video.open_reader import VideoPart
from flowless.pipeline.video.reader import VideoReader

#: Bytes of a file above which PyAV decodes it: it reads what it needs of a file, DALI all of it.
_LARGEST = 2**29


@dataclass(frozen=True, kw_only=True)
class DecodedVideo:
    """One video: a row of its batch's clips, or its views by PyAV, or why it could not be read."""

    part: VideoPart
    row: int | None = None
    """Its place in `DecodedBatch.clips`, if DALI decoded it."""
    views: ClipViews | None = None
    """Its views, if PyAV decoded it."""
    error: FlowlessError | None = None
    """Why it could not be read."""
    fallback: str = ""
    """Why PyAV decoded it and not DALI."""
    gaps: str = ""
    """What is missing from the video (`VideoInfo.gaps`)."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of `decode` and `preprocess`. DALI's is all `decode`: the graph's time divided by the videos of the batch."""


@dataclass(frozen=True, kw_only=True)
class DecodedBatch:
    """Consecutive videos."""

    videos: list[DecodedVideo]
    """In the order of the parts."""
    clips: Any
    """DALI's tensor, uint8 `[rows, views * N * m, H, W, 3]`, on the graph's device; None where DALI decoded none of them."""


def decode_batches(
    parts: Iterable[VideoPart], spec: ClipSpec, *, batch_size: int, threads: int, device_id: int | None
) -> Generator[DecodedBatch, None, None]:
    """Decode videos in their order; the next batch is decoded while the caller works on the current one.

    Args:
        parts: The videos; taken as they are needed.
        spec: Defines the views.
        batch_size: Videos per batch.
        threads: Threads that read files, and DALI's.
        device_id: Number of the GPU, whose NVDEC decodes; None: the CPU.
    """
    remaining, reading = iter(parts), deque[list[Future[_Prepared]]]()
    graph = _Graph(spec, batch_size=batch_size, threads=threads, device_id=device_id)
    with ThreadPoolExecutor(threads, thread_name_prefix="flowless-decode") as readers, ThreadPoolExecutor(1, "flowless-dali") as runner:

        def read_next() -> None:
            if some := list(islice(remaining, batch_size)):
                reading.append([readers.submit(_prepare, part, spec, device_id) for part in some])

        def run_next() -> Future[DecodedBatch] | None:
            return runner.submit(graph.run, reading.popleft()) if reading else None

        try:
            read_next()
            read_next()
            running = run_next()
            while running is not None:
                batch = running.result()
                read_next()
                running = run_next()
                yield batch
        finally:
            for future in (future for some in reading for future in some):
                future.cancel()


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A video that is ready for the graph, or needs none."""

    video: DecodedVideo
    graph: GraphInput | None = None


def _prepare(part: VideoPart, spec: ClipSpec, device_id: int | None) -> _Prepared:
    """Read a video's properties, and its bytes for DALI or its views by PyAV. Runs in a thread."""
    started = time.perf_counter()
    try:
        with part.open() as video:
            info = video.info
            reason = "a folder of pictures, which Pillow decodes" if info.folder else reason_for_pyav(info, device_id=device_id)
            if reason is None and Path(part.path).stat().st_size > _LARGEST:
                reason = f"its file has more than {_LARGEST >> 20} MiB, and DALI takes the whole file into memory"
            if reason is not None:
                return _Prepared(video=_by_pyav(part, video, spec, fallback=reason, started=started))
            frames = video.count - part.first_frame if part.frames is None else part.frames
            indices = clip_indices(frames, segments=spec.segments, frames_per_segment=spec.frames_per_segment, rule=spec.sampling)
            ordinals, positions = np.unique(part.first_frame + indices, return_inverse=True)
            regions = evaluation_views(width=info.width, height=info.height, spec=spec)
            order = view_order(positions, frames=len(ordinals), crops=len(regions))
            made = GraphInput(
                order=order,
                colour=np.tile(np.array([1, 1, 1, 0], np.float32), (len(regions) * len(ordinals), 1)),
                encoded=bytes_of(part.path),
                ordinals=ordinals.astype(np.int32),
                **region_inputs(regions, spec, width=info.width, height=info.height, rotation=info.rotation),
            )
        seconds = {"decode": time.perf_counter() - started, "preprocess": 0.0}
        return _Prepared(video=DecodedVideo(part=part, gaps=info.gaps, seconds=seconds), graph=made)
    except FlowlessError as error:
        return _Prepared(video=DecodedVideo(part=part, error=error))
    except OSError as error:
        refused = FlowlessError(f"{printable(part.path)}: cannot be read ({error.strerror}).")
        return _Prepared(video=DecodedVideo(part=part, error=refused))


def _by_pyav(part: VideoPart, video: VideoReader | FrameFolder, spec: ClipSpec, *, fallback: str, started: float) -> DecodedVideo:
    resizing: list[float] = []
    views = load_views(video, spec, first_frame=part.first_frame, num_frames=part.frames, resizing=resizing)
    seconds = {"decode": time.perf_counter() - started - sum(resizing), "preprocess": sum(resizing)}
    return DecodedVideo(part=part, views=views, fallback=fallback, gaps=video.info.gaps, seconds=seconds)


class _Graph:
    """Runs the graph, and makes another one where DALI fails."""

    def __init__(self, spec: ClipSpec, *, batch_size: int, threads: int, device_id: int | None) -> None:
        self._spec = spec
        self._settings: dict[str, Any] = {"batch_size": batch_size, "threads": threads, "device_id": device_id}
        self._graph: ClipGraph | None = None

    def run(self, reading: list[Future[_Prepared]]) -> DecodedBatch:
        """Decode a batch once its files are read."""
        prepared = [future.result() for future in reading]
        inputs = [item.graph for item in prepared if item.graph is not None]
        if not inputs:
            return DecodedBatch(videos=[item.video for item in prepared], clips=None)
        started = time.perf_counter()
        try:
            clips = self._open().run(inputs)
        except RuntimeError as error:
            # DALI fails for the whole batch, does not report which video is the cause, and the graph cannot be used again.
            self._graph = None
            why = f"DALI could not decode a video of its batch ({failure_reason(error)})"
            return DecodedBatch(
                videos=[item.video if item.graph is None else self._again(item.video, why) for item in prepared], clips=None
            )
        share, rows = (time.perf_counter() - started) / len(inputs), iter(range(len(inputs)))
        videos = [item.video if item.graph is None else _in_row(item.video, next(rows), share) for item in prepared]
        return DecodedBatch(videos=videos, clips=clips)

    def _open(self) -> ClipGraph:
        if self._graph is None:
            spec = self._spec
            side = None if spec.crop_side is None else spec.height
            self._graph = ClipGraph(frames="dali", colour=False, crops=CROPS[spec.crop], side=side, **self._settings)
        return self._graph

    def _again(self, video: DecodedVideo, why: str) -> DecodedVideo:
        """Decode a video with PyAV."""
        started = time.perf_counter()
        try:
            with video.part.open() as opened:
                return _by_pyav(video.part, opened, self._spec, fallback=why, started=started)
        except FlowlessError as error:
            return DecodedVideo(part=video.part, error=error)


def _in_row(video: DecodedVideo, row: int, share: float) -> DecodedVideo:
    return replace(video, row=row, seconds={**video.seconds, "decode": video.seconds["decode"] + share})
