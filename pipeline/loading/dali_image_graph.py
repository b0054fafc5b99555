"""The DALI graph that decodes and resizes folders of numbered pictures, on the CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn as _fn
from nvidia.dali import types as _types
from nvidia.dali.pipeline import Pipeline, pipeline_def

# DALI's stubs lack its type constants and data nodes as operator arguments.
fn: Any = _fn
_dali: Any = _types

#: FrameFolder's names of the image formats that DALI decodes to the same pixels as Pillow.
DALI_IMAGE_FORMATS = frozenset({"jpeg", "png", "bmp", "webp"})
#: Pictures per DALI batch: enough for a processor's cores, few enough that large ones fit into memory.
_BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class EncodedPictures:
    """The distinct frames of one sample of a folder, as encoded pictures."""

    files: tuple[NDArray[np.uint8], ...]
    """The bytes of K files."""
    start: NDArray[np.float32]
    """`[crops, 2]`: first row and column of each region, in pixels of the upright picture."""
    end: NDArray[np.float32]
    """`[crops, 2]`: last row and column (exclusive) of each region; less than `start` where the axis is mirrored."""
    size: NDArray[np.float32]
    """Rows and columns of the resized region."""


class ImageGraph:
    """Decodes pictures and resizes regions of them with the filter of `ClipSpec`, as `dali_graph` does for videos.

    Args:
        threads: Decoding threads.
        crops: Regions of each picture.
        side: Side of the square to which resized regions are resized again, or None.
        device_id: Number of the GPU, or None for the CPU.
    """

    def __init__(self, *, threads: int, crops: int, side: int | None, device_id: int | None) -> None:
        gpu = device_id is not None
        self._pipeline: Pipeline = _graph(
            crops, side, gpu=gpu, batch_size=_BATCH_SIZE, num_threads=threads, device_id=device_id, prefetch_queue_depth=1
        )

    def run(self, sources: Sequence[EncodedPictures]) -> list[NDArray[np.uint8]]:
        """Return the resized regions of each sample, uint8 `[crops * K, H, W, 3]`: all of the first region, then of the next.

        Raises:
            RuntimeError: DALI could not decode a picture. It does not report which, and the graph cannot be used again.
        """
        flat = [(source, file) for source in sources for file in source.files]
        found: list[NDArray[np.uint8]] = []
        for begin in range(0, len(flat), _BATCH_SIZE):
            some = flat[begin : begin + _BATCH_SIZE]
            feeds = {name: [getattr(source, name) for source, _ in some] for name in ("start", "end", "size")}
            (made,) = self._pipeline.run(files=[file for _, file in some], **feeds)
            found.extend(np.array(made.as_cpu().as_array()))
        ends = np.cumsum([len(source.files) for source in sources])
        parts = (np.stack(found[end - len(source.files) : end], axis=1) for source, end in zip(sources, ends.tolist(), strict=True))
        return [part.reshape(-1, *part.shape[2:]) for part in parts]


@pipeline_def
def _graph(crops: int, side: int | None, *, gpu: bool) -> Any:
    files = fn.external_source(name="files", ndim=1, dtype=_dali.UINT8)
    decoded = fn.decoders.image(files, device="mixed" if gpu else "cpu", output_type=_dali.RGB)
    start, end = (fn.external_source(name=name, ndim=2, dtype=_dali.FLOAT) for name in ("start", "end"))
    size = fn.external_source(name="size", ndim=1, dtype=_dali.FLOAT)
    return fn.stack(*resize_crops(decoded, start, end, size, crops, side))


def resize_crops(pictures: Any, start: Any, end: Any, size: Any, crops: int, side: int | None) -> list[Any]:
    """Resize the regions of pictures from `start` to `end` with the filter of `ClipSpec`: a triangle as wide as the scale.

    With `side` each result is resized again to a square of that side; that filter does not read beyond the region's edge.
    """
    filtered = {"interp_type": _dali.INTERP_LINEAR, "antialias": True}
    parts = [fn.resize(pictures, roi_start=start[crop], roi_end=end[crop], size=size, **filtered) for crop in range(crops)]
    return parts if side is None else [fn.resize(part, size=[side, side], **filtered) for part in parts]
