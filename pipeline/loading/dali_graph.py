"""The one DALI graph: the network's pictures for training and evaluation, on the CPU and on a GPU.

Where PyAV decodes, pictures come small: resized and cropped by Pillow in the threads that decode, so that a clip of large frames
never lies in memory. Where DALI decodes, the graph resizes. A crop, a resize, a flip and an evaluation's centre crop are all one
thing there: a part of the frame, stretched over the network's picture (DALI's resize takes a region, and mirrors it where its ends
are swapped). Crops of `ClipSpec.crop_side` are resized a second time, as Pillow does. The graph therefore has no rules in it; each
sample brings its own numbers, from `augment.training_view` or `frame_source.evaluation_views`, and nothing is drawn inside. The filter
is ClipSpec's: a triangle as wide as the scale. It may reach over the edge of the part, not of the frame. Several crops of a frame are
several parts of it, decoded once.

Rotation is applied exactly once: PyAV's frames arrive upright; where DALI decodes, which does not turn frames, the part
is named in the stored frame's axes and the small pictures are transposed. Folders of pictures, which DALI does turn, are decoded in
a graph of their own (`picture_graph`) and come small, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn as _fn
from nvidia.dali import types as _types
from nvidia.dali.pipeline import Pipeline, pipeline_def

from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.loading.augment import View
from flowless.pipeline.loading.picture_graph import PictureFiles, PictureGraph, resized_parts

# DALI's stubs know neither its type constants nor that an operator takes a data node.
fn: Any = _fn
_dali: Any = _types

#: How far the evaluation's pictures may be from the light runtime's, Pillow's, in grey levels: any pixel, and on average
#: over a real clip. (Pillow rounds between its two passes; DALI does not. They differ by a level where that decides.) Crops that are
#: resized again (`ClipSpec.crop_side`) may be twice as far: measured 2, 0.2 on real clips, 0.3 on noise.
TOLERANCE_MAX = 1
TOLERANCE_MEAN = 0.15
#: The same average for pure noise, the worst case.
TOLERANCE_MEAN_NOISE = 0.25
#: Any pixel of a picture's outermost rows and columns where the crop reaches the frame's edge (full resolution, three crops) and
#: the frame is made smaller: of the filter's weight, up to an eighth lies beyond the edge; Pillow leaves it out, DALI gives it to
#: the last pixel. Measured: 8 on real clips, 13 on noise.
TOLERANCE_EDGE = 16

#: FFmpeg's names of the codecs that DALI decodes on a CPU (DALI 2.4); what a GPU decodes, `nvdec` asks its driver.
DALI_CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})

#: Where a graph's frames come from: decoded by PyAV, by DALI, or each sample its own way.
Frames = Literal["pyav", "dali", "both"]


@dataclass(frozen=True, kw_only=True)
class GraphInput:
    """One sample's numbers for the graph: of K different frames, each seen through `crops` parts."""

    order: NDArray[np.int32]
    """For each picture of the clip, its place among the crops * K pictures: all of the first part, then of the next."""
    colour: NDArray[np.float32]
    """`[crops * K, 4]`: each picture's factors of brightness, contrast and saturation, and degrees of hue."""
    pictures: NDArray[np.uint8] | None = None
    """`[crops * K, H, W, 3]`, RGB: the network's pictures, where PyAV or Pillow decoded."""
    files: PictureFiles | None = None
    """What they are made from, where DALI decodes the pictures of a folder."""
    encoded: NDArray[np.uint8] | None = None
    """The file's bytes, where DALI decodes; the rest is given then, too."""
    ordinals: NDArray[np.int32] | None = None
    """The K different frames."""
    start: NDArray[np.float32] | None = None
    """`[crops, 2]`: first row and column of each part, in pixels of the frame as it is stored."""
    end: NDArray[np.float32] | None = None
    """`[crops, 2]`: row and column where each part ends; before `start` where the axis is mirrored."""
    size: NDArray[np.float32] | None = None
    """Rows and columns of the part when it is resized, before the transposition."""
    turned: bool | None = None
    """Whether the picture is transposed at the end."""

    @property
    def by_dali(self) -> bool:
        """Whether DALI decodes it."""
        return self.encoded is not None or self.files is not None


def place(views: Sequence[View], spec: ClipSpec, *, width: int, height: int, rotation: int = 0) -> dict[str, Any]:
    """Return `start`, `end`, `size` and `turned` of a GraphInput.

    Args:
        views: the parts, in pixels of the upright frame.
        spec: says the size that the parts are resized to: the network's, or `crop_side`'s.
        width: columns of the upright frame.
        height: rows of the upright frame.
        rotation: clockwise degrees by which the frame that the graph sees has still to be turned.
    """
    x = np.array([(view.left, view.right) for view in views])
    y = np.array([(view.top, view.bottom) for view in views])
    size = spec.crop_size
    # Turned clockwise by 90 degrees, the upright frame's row y lies in the stored frame's column y, and its column x in
    # the stored row width - x, counted over the stored frame's rows, which are as many as the upright frame's columns.
    rows, columns = {
        0: (y, x),
        90: (width - x, y),
        180: (height - y, width - x),
        270: (x, height - y),
    }[rotation]
    turned = rotation in {90, 270}
    return {
        "start": np.stack([rows[:, 0], columns[:, 0]], axis=1).astype(np.float32),
        "end": np.stack([rows[:, 1], columns[:, 1]], axis=1).astype(np.float32),
        "size": np.array(size[::-1] if turned else size, np.float32),
        "turned": turned,
    }


class ClipGraph:
    """The graph, made ready at its first batch."""

    def __init__(
        self,
        *,
        batch_size: int,
        threads: int,
        frames: Frames,
        colour: bool,
        device_id: int | None,
        crops: int = 1,
        side: int | None = None,
    ) -> None:
        """Say what the graph is for.

        Args:
            batch_size: the largest batch.
            threads: threads that work on a batch.
            frames: who decodes.
            colour: whether colours are changed; without it the graph has no such step.
            device_id: the GPU's number, or None for the CPU.
            crops: parts of each frame.
            side: side of the square that resized parts are resized to again (`ClipSpec.crop_side`); None leaves them as they are.
        """
        decoded = {"encoded", "ordinals", "start", "end", "size", "turned"}
        self._inputs = {"order"} | {"pyav": {"pictures"}, "dali": decoded}.get(frames, {*decoded, "pictures", "by_dali"})
        self._inputs |= {"colour"} if colour else set()
        self._crops, self._side, self._threads, self._device_id = crops, side, threads, device_id
        self._folders: PictureGraph | None = None
        # One batch at a time, and no queue inside: the loader's own thread runs ahead of the model.
        self.pipeline: Pipeline = _graph(
            frames,
            colour,
            crops,
            side,
            gpu=device_id is not None,
            batch_size=batch_size,
            num_threads=threads,
            device_id=device_id,
            prefetch_queue_depth=1,
        )

    def run(self, inputs: Sequence[GraphInput]) -> Any:
        """Run one batch.

        Returns:
            DALI's tensor, uint8 `[B, P, H, W, 3]` on the graph's device, P being the length of `order`. Whoever holds it,
            or a tensor that shares its memory, keeps it alive; the next batch lies elsewhere.

        Raises:
            RuntimeError: DALI could not decode a sample. It does not say which, and the graph is of no further use.
        """
        inputs = self._with_pictures(inputs)
        feeds = {name: [self._feed(item, name) for item in inputs] for name in self._inputs}
        return self.pipeline.run(**feeds)[0].as_tensor()

    def _with_pictures(self, inputs: Sequence[GraphInput]) -> list[GraphInput]:
        """Decode the pictures of folders, whose number differs by the sample, in a graph of their own."""
        sources = [item.files for item in inputs if item.files is not None]
        if not sources:
            return list(inputs)
        if self._folders is None:
            self._folders = PictureGraph(threads=self._threads, crops=self._crops, side=self._side, device_id=self._device_id)
        found = iter(self._folders.run(sources))
        return [item if item.files is None else replace(item, pictures=next(found)) for item in inputs]

    def _feed(self, item: GraphInput, name: str) -> NDArray[Any]:
        if name == "by_dali":
            return np.array(item.encoded is not None)
        value = getattr(item, name)
        if value is not None:
            return np.asarray(value)
        # A sample that brings no such input: the graph's other branch takes it.
        return {
            "pictures": np.zeros((1, 1, 1, 3), np.uint8),
            "encoded": np.zeros(1, np.uint8),
            "ordinals": np.zeros(1, np.int32),
            "turned": np.array(False),
            "size": np.ones(2, np.float32),
        }.get(name, np.zeros((self._crops, 2), np.float32))


@pipeline_def(enable_conditionals=True)
def _graph(frames: Frames, colour: bool, crops: int, side: int | None = None, *, gpu: bool) -> Any:
    """The graph's definition. DALI's own conditions (`by_dali`, `turned`) take each sample of a batch its own way."""
    if frames == "pyav":
        pictures = _small(gpu)
    elif frames == "dali":
        pictures = _decoded(crops, side, gpu)
    else:
        small = _small(gpu)
        if _input("by_dali", 0, _dali.BOOL):
            pictures = _decoded(crops, side, gpu)
        else:
            pictures = small
    if colour:
        changes = _input("colour", 2, _dali.FLOAT)
        brightness, contrast, saturation, hue = (fn.per_frame(changes[:, place]) for place in range(4))
        pictures = fn.color_twist(pictures, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    # Last, so that frames that a clip shows more than once are resized once.
    return fn.sequence_rearrange(pictures, new_order=_input("order", 1, _dali.INT32))


def _small(gpu: bool) -> Any:
    pictures = _input("pictures", 4, _dali.UINT8, layout="FHWC")
    return pictures.gpu() if gpu else pictures


def _decoded(crops: int, side: int | None, gpu: bool) -> Any:
    encoded, ordinals = _input("encoded", 1, _dali.UINT8), _input("ordinals", 1, _dali.INT32)
    return resized(fn.decoders.video(encoded, frames=ordinals, device="mixed" if gpu else "cpu"), crops, side)


def resized(pictures: Any, crops: int, side: int | None = None) -> Any:
    """Return the parts of stored frames that the inputs `start`, `end`, `size` and `turned` name, as the network's pictures."""
    start, end, size = _input("start", 2, _dali.FLOAT), _input("end", 2, _dali.FLOAT), _input("size", 1, _dali.FLOAT)
    parts = resized_parts(pictures, start, end, size, crops, side)
    pictures = parts[0] if crops == 1 else fn.cat(*parts, axis=0)
    turned = _input("turned", 0, _dali.BOOL)
    if turned:
        pictures = fn.transpose(pictures, perm=[0, 2, 1, 3], transpose_layout=False)
    return pictures


def _input(name: str, ndim: int, dtype: Any, layout: str | None = None) -> Any:
    # No copy: `run` returns when the batch is done, and holds the arrays until then.
    return fn.external_source(name=name, ndim=ndim, dtype=dtype, layout=layout, no_copy=True)
