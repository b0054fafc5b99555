"""The DALI graph that makes batches for training and evaluation, on the CPU and on a GPU.

Frames decoded by PyAV enter the graph resized and cropped: Pillow does that in the decoding threads, so that a clip is never in memory
at full size. Frames decoded by DALI are resized in the graph. There, crop, resize and flip are one operation: DALI's resize maps a region
of the frame to the network's input size, and mirrors it where the region's ends are swapped. Crops of `ClipSpec.crop_side` are resized a
second time, as with Pillow. The regions come with each sample, from `augment.training_view` or `frame_source.evaluation_views`; the graph
draws no random numbers. The filter is ClipSpec's: a triangle as wide as the scale, which reads pixels beyond the region's edge but not
beyond the frame's. Several crops of a frame are several regions of it, decoded once.

Rotation is applied exactly once. PyAV's frames arrive upright. DALI's video decoder does not rotate, so the region is given in the
stored frame's axes and the resized frames are transposed. DALI's image decoder does rotate: folders of pictures are decoded in a
separate graph (`dali_image_graph`) and enter this one resized.
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
from flowless.pipeline.loading.dali_image_graph import EncodedPictures, ImageGraph, resize_crops

# DALI's stubs lack its type constants and data nodes as operator arguments.
fn: Any = _fn
_dali: Any = _types

#: Largest and mean difference, in grey levels, between evaluation frames of DALI and of Pillow (the runtime), the mean over a real clip.
#: (Pillow rounds between its two passes and DALI does not, which changes some pixels by one level.) Crops that are resized again
#: (`ClipSpec.crop_side`) may differ by twice as much: measured 2, 0.2 on real clips, 0.3 on noise.
TOLERANCE_MAX = 1
TOLERANCE_MEAN = 0.15
#: The mean difference for noise, the worst case.
TOLERANCE_MEAN_NOISE = 0.25
#: Largest difference in the outermost rows and columns where the crop touches the frame's edge (full resolution, three crops) and the
#: frame is reduced: up to an eighth of the filter's weight lies beyond the edge; Pillow renormalises, DALI repeats the last pixel.
#: Measured: 8 on real clips, 13 on noise.
TOLERANCE_EDGE = 16

#: FFmpeg's names of the codecs that DALI decodes on a CPU (DALI 2.4); for a GPU, `nvdec` queries its driver.
DALI_CPU_CODECS = frozenset({"vp8", "vp9", "mjpeg"})

#: Decoder of a graph's frames: PyAV, DALI, or chosen per sample.
Frames = Literal["pyav", "dali", "both"]


@dataclass(frozen=True, kw_only=True)
class GraphInput:
    """The graph's input for one sample: K distinct frames, each with `crops` regions."""

    order: NDArray[np.int32]
    """For each frame of the clip, its position among the crops * K resized frames: all of the first region, then of the next."""
    colour: NDArray[np.float32]
    """`[crops * K, 4]`: factors of brightness, contrast and saturation, and hue rotation in degrees."""
    pictures: NDArray[np.uint8] | None = None
    """`[crops * K, H, W, 3]`, RGB, resized, if PyAV or Pillow decoded them."""
    files: EncodedPictures | None = None
    """The encoded pictures, if DALI decodes the pictures of a folder."""
    encoded: NDArray[np.uint8] | None = None
    """The video file's bytes, if DALI decodes it; the following fields are then set too."""
    ordinals: NDArray[np.int32] | None = None
    """The K distinct frames."""
    start: NDArray[np.float32] | None = None
    """`[crops, 2]`: first row and column of each region, in pixels of the stored frame."""
    end: NDArray[np.float32] | None = None
    """`[crops, 2]`: last row and column (exclusive) of each region; less than `start` where the axis is mirrored."""
    size: NDArray[np.float32] | None = None
    """Rows and columns of the resized region, before the transposition."""
    turned: bool | None = None
    """Whether the resized region is transposed."""

    @property
    def by_dali(self) -> bool:
        """Whether DALI decodes the sample."""
        return self.encoded is not None or self.files is not None


def region_inputs(views: Sequence[View], spec: ClipSpec, *, width: int, height: int, rotation: int = 0) -> dict[str, Any]:
    """Return `start`, `end`, `size` and `turned` of a GraphInput.

    Args:
        views: the regions, in pixels of the upright frame.
        spec: defines the size to which the regions are resized: the network's, or `crop_side`.
        width: columns of the upright frame.
        height: rows of the upright frame.
        rotation: clockwise rotation in degrees from the stored to the upright frame.
    """
    x = np.array([(view.left, view.right) for view in views])
    y = np.array([(view.top, view.bottom) for view in views])
    size = spec.crop_size
    # With a clockwise rotation by 90 degrees, the upright frame's row y is the stored frame's column y, and its column x is
    # the stored row width - x (the stored frame has as many rows as the upright one has columns).
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
    """The graph; DALI builds it at the first batch."""

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
        """Configure the graph.

        Args:
            batch_size: largest batch size.
            threads: DALI's threads.
            frames: the decoder.
            colour: whether the graph has a colour augmentation step.
            device_id: number of the GPU, or None for the CPU.
            crops: regions of each frame.
            side: side of the square to which resized regions are resized again (`ClipSpec.crop_side`); None: no second resize.
        """
        decoded = {"encoded", "ordinals", "start", "end", "size", "turned"}
        self._inputs = {"order"} | {"pyav": {"pictures"}, "dali": decoded}.get(frames, {*decoded, "pictures", "by_dali"})
        self._inputs |= {"colour"} if colour else set()
        self._crops, self._side, self._threads, self._device_id = crops, side, threads, device_id
        self._folders: ImageGraph | None = None
        # No prefetching inside DALI: the loader's own thread prefetches batches.
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
            DALI's tensor, uint8 `[B, P, H, W, 3]` on the graph's device, P being the length of `order`. It stays valid while it, or a
            tensor that shares its memory, is referenced; the next batch uses other memory.

        Raises:
            RuntimeError: DALI could not decode a sample. It does not report which, and the graph cannot be used again.
        """
        inputs = self._decode_folders(inputs)
        feeds = {name: [self._feed(item, name) for item in inputs] for name in self._inputs}
        return self.pipeline.run(**feeds)[0].as_tensor()

    def _decode_folders(self, inputs: Sequence[GraphInput]) -> list[GraphInput]:
        """Decode folders of pictures in a separate graph, since the number of pictures differs between samples."""
        sources = [item.files for item in inputs if item.files is not None]
        if not sources:
            return list(inputs)
        if self._folders is None:
            self._folders = ImageGraph(threads=self._threads, crops=self._crops, side=self._side, device_id=self._device_id)
        found = iter(self._folders.run(sources))
        return [item if item.files is None else replace(item, pictures=next(found)) for item in inputs]

    def _feed(self, item: GraphInput, name: str) -> NDArray[Any]:
        if name == "by_dali":
            return np.array(item.encoded is not None)
        value = getattr(item, name)
        if value is not None:
            return np.asarray(value)
        # A placeholder: this sample takes the graph's other branch.
        return {
            "pictures": np.zeros((1, 1, 1, 3), np.uint8),
            "encoded": np.zeros(1, np.uint8),
            "ordinals": np.zeros(1, np.int32),
            "turned": np.array(False),
            "size": np.ones(2, np.float32),
        }.get(name, np.zeros((self._crops, 2), np.float32))


@pipeline_def(enable_conditionals=True)
def _graph(frames: Frames, colour: bool, crops: int, side: int | None = None, *, gpu: bool) -> Any:
    """Define the graph. DALI evaluates the conditions `by_dali` and `turned` per sample."""
    if frames == "pyav":
        pictures = _pyav_frames(gpu)
    elif frames == "dali":
        pictures = _dali_frames(crops, side, gpu)
    else:
        from_pyav = _pyav_frames(gpu)
        if _input("by_dali", 0, _dali.BOOL):
            pictures = _dali_frames(crops, side, gpu)
        else:
            pictures = from_pyav
    if colour:
        changes = _input("colour", 2, _dali.FLOAT)
        brightness, contrast, saturation, hue = (fn.per_frame(changes[:, column]) for column in range(4))
        pictures = fn.color_twist(pictures, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
    # Last, so that repeated frames of a clip are resized once.
    return fn.sequence_rearrange(pictures, new_order=_input("order", 1, _dali.INT32))


def _pyav_frames(gpu: bool) -> Any:
    pictures = _input("pictures", 4, _dali.UINT8, layout="FHWC")
    return pictures.gpu() if gpu else pictures


def _dali_frames(crops: int, side: int | None, gpu: bool) -> Any:
    encoded, ordinals = _input("encoded", 1, _dali.UINT8), _input("ordinals", 1, _dali.INT32)
    return resize_regions(fn.decoders.video(encoded, frames=ordinals, device="mixed" if gpu else "cpu"), crops, side)


def resize_regions(pictures: Any, crops: int, side: int | None = None) -> Any:
    """Resize the regions of stored frames that the inputs `start`, `end`, `size` and `turned` define to the network's input size."""
    start, end, size = _input("start", 2, _dali.FLOAT), _input("end", 2, _dali.FLOAT), _input("size", 1, _dali.FLOAT)
    regions = resize_crops(pictures, start, end, size, crops, side)
    pictures = regions[0] if crops == 1 else fn.cat(*regions, axis=0)
    turned = _input("turned", 0, _dali.BOOL)
    if turned:
        pictures = fn.transpose(pictures, perm=[0, 2, 1, 3], transpose_layout=False)
    return pictures


def _input(name: str, ndim: int, dtype: Any, layout: str | None = None) -> Any:
    # No copy: `run` keeps the arrays alive until the batch is done.
    return fn.external_source(name=name, ndim=ndim, dtype=dtype, layout=layout, no_copy=True)


def failure_reason(error: BaseException) -> str:
    """Return the line of DALI's message that says what failed; its first lines name the operator and its place in the graph."""
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Critical error")]
    return next((line for line in lines if "failed" in line), lines[0] if lines else type(error).__name__)
