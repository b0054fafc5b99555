"""Scores of videos that DALI decodes where the engine runs: decoding, preprocessing and the engine overlap.

The only difference from videos that PyAV decodes and Pillow resizes is DALI's arithmetic: see `decodes_on_gpu`.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np

from flowless import cuda_driver
from flowless.engines.device.device_array import borrow
from flowless.errors import FlowlessError
from flowless.machine import usable_cores
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.clip.view_scores import ViewAverage

if TYPE_CHECKING:
    from flowless.pipeline.loading.decoded_batches import DecodedBatch, DecodedVideo
    from flowless.pipeline.video.open_reader import VideoPart

#: Who decodes: `gpu` is DALI with NVDEC, `cpu` PyAV; `auto` is `gpu` where it can be.
Decode = Literal["auto", "gpu", "cpu"]


class ScoringEngine(Protocol):
    """What scores clips: an `Engine`."""

    device: str
    target: str

    @property
    def gpu(self) -> cuda_driver.Gpu | None:
        """The GPU whose memory it takes; None where it runs on the CPU."""
        ...

    def __call__(self, clip: Any) -> np.ndarray:
        """Return float32 `[B, classes]` of clips uint8 `[B, N, m, H, W, 3]`."""
        ...


@dataclass(frozen=True, kw_only=True)
class ScoredVideo:
    """A video with its scores, or with its error."""

    decoded: DecodedVideo
    """How it was decoded, without its pixels' owner, the batch."""
    scores: np.ndarray | None
    """float32 `[classes]`, averaged over its views; None where it could not be read."""
    seconds: float
    """Time of the engine: of a batch, divided by its videos."""

    @property
    def decoder(self) -> str:
        """`dali` or `pyav`; empty where it could not be read."""
        return "" if self.scores is None else "pyav" if self.decoded.row is None else "dali"


def decodes_on_gpu(decode: Decode | str, engine: ScoringEngine) -> bool:
    """Return whether DALI decodes for an engine, by the value of `decode`.

    DALI's frames differ from those of PyAV and Pillow by one to two grey levels on average, and by more at single pixels: it converts
    YUV to RGB differently. docs/deploy.md has what that does to scores.

    Raises:
        FlowlessError: It is none of `Decode`; or it is `gpu`, and something that it needs is not here.
    """
    if decode not in get_args(Decode):
        raise FlowlessError(f"decode is {decode!r}; it must be one of {', '.join(get_args(Decode))}.")
    if decode == "cpu":
        return False
    reason = why_not_gpu() or (
        f"{engine.target} runs on the CPU here; load an engine that runs on the GPU (target tensorrt, tensorrt-rtx or onnxruntime)"
        if engine.device != "GPU"
        else None
    )
    if reason and decode == "gpu":
        raise FlowlessError(f"decode is 'gpu', but {reason}. With 'auto' or 'cpu', PyAV decodes.")
    return reason is None


def why_not_gpu() -> str | None:
    """Return in one line why DALI cannot decode on a GPU here; None where it can."""
    if cuda_driver.compute_capability() is None:
        return "there is no NVIDIA GPU here"
    if reason := why_no_dali():
        return reason
    from flowless.pipeline.loading.nvdec import why_no_nvdec

    return (why_no_nvdec() or "").rstrip(".") or None


def why_no_dali() -> str | None:
    """Return that DALI is not installed, with the command that installs it; None where it is."""
    there = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali")
    return None if there else "DALI is not installed (pip install 'flowless[dali]')"


def score_decoded(
    engine: ScoringEngine,
    videos: Iterable[str | VideoPart],
    spec: ClipSpec,
    *,
    views_at_once: int,
    threads: int | None = None,
    device_id: int | None = 0,
) -> Generator[ScoredVideo, None, None]:
    """Decode videos with DALI and score them, in their order.

    Args:
        engine: The engine.
        videos: The videos: files, or parts of them.
        spec: How to cut their views.
        views_at_once: Views in one call of the engine; a batch has as many videos as give so many views, at least one.
        threads: Threads that read files, and DALI's; None: one per core.
        device_id: Number of the GPU that decodes; None: DALI's CPU device.

    Raises:
        FlowlessError: DALI is not installed.
    """
    if missing := why_no_dali():
        raise FlowlessError(f"{missing[0].upper()}{missing[1:]}.")
    from flowless.pipeline.loading.decoded_batches import decode_batches
    from flowless.pipeline.video.open_reader import whole_video

    parts = (whole_video(video) if isinstance(video, str) else video for video in videos)
    size = max(1, views_at_once // spec.views)
    batches = decode_batches(parts, spec, batch_size=size, threads=threads or usable_cores(), device_id=device_id)
    try:
        for batch in batches:
            yield from _score_batch(engine, batch, spec, views_at_once)
            del batch  # or three batches would exist while the next one is fetched
    finally:
        batches.close()


def _score_batch(engine: ScoringEngine, batch: DecodedBatch, spec: ClipSpec, views_at_once: int) -> list[ScoredVideo]:
    rows, spent = np.empty(0), 0.0
    if batch.clips is not None:
        started = time.perf_counter()
        rows = _score_rows(engine, batch.clips, spec, views_at_once)
        spent = (time.perf_counter() - started) / len(rows)
    scored = []
    for video in batch.videos:
        average, seconds = ViewAverage(spec.average), spent
        if video.row is not None:
            average.add(rows[video.row])
        elif video.views is not None:
            started = time.perf_counter()
            for clips in video.views.parts(views_at_once):
                average.add(engine(clips))
            seconds = time.perf_counter() - started
        scored.append(ScoredVideo(decoded=video, scores=average.scores if average.count else None, seconds=seconds))
    return scored


def _score_rows(engine: ScoringEngine, clips: Any, spec: ClipSpec, views_at_once: int) -> np.ndarray:
    """Return float32 `[videos, views, classes]` of DALI's tensor, which the engine reads where it lies."""
    taken = borrow(clips, name="batch", gpu=engine.gpu, stream=None, runs_on=engine.target)
    views = taken.reshape((len(taken) * spec.views, *spec.shape))
    parts = [engine(views.rows(start, start + views_at_once)) for start in range(0, len(views), views_at_once)]
    scores = np.concatenate(parts)
    return scores.reshape(len(taken), spec.views, -1)
