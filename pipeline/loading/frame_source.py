"""Makes samples for the DALI graph: samples frames, chooses the decoder and regions, and replaces unreadable videos."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import crop_corners, resize_and_crop, resize_region, resized_size
from flowless.pipeline.clip.sampling import clip_indices, sample_rng
from flowless.pipeline.clip.spec import ClipSpec, Rule
from flowless.pipeline.dataset.index import DatasetIndex, Refused, VideoRecord
from flowless.pipeline.loading import nvdec
from flowless.pipeline.loading.augment import Augmentation, View, training_view
from flowless.pipeline.loading.dali_graph import DALI_CPU_CODECS, Frames, GraphInput, region_inputs
from flowless.pipeline.loading.dali_image_graph import DALI_IMAGE_FORMATS, EncodedPictures
from flowless.pipeline.video.frame_folder import FrameFolder
from flowless.pipeline.video.info import VideoInfo

#: Videos in a row that may be unreadable, replacements included, before the epoch is aborted.
_MAX_TRIES = 8


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One clip, as input of the graph."""

    number: int
    """Position of the video in the index; after a replacement, of the replacement."""
    labels: tuple[int, ...]
    """Label indices: one per augmented view, since a flip may change the label."""
    views: int
    """Number of views of the video."""
    graph: GraphInput
    """The graph's input."""


@dataclass(frozen=True, kw_only=True)
class DrawResult:
    """Result of drawing the sample of one video of the epoch."""

    sample: Sample | None
    """The sample; None where an evaluation leaves an unreadable video out."""
    refused: tuple[Refused, ...] = ()
    """Videos that could not be read: the requested one, and unreadable replacements."""


class FrameSource:
    """Makes samples. Each depends only on (seed, epoch, video), so any thread may make any of them at any time."""

    def __init__(
        self, index: DatasetIndex, spec: ClipSpec, *, rule: Rule, seed: int, augmentation: Augmentation | None, by_dali: frozenset[int]
    ) -> None:
        """Configure the samples.

        Args:
            index: the videos.
            spec: definition of a clip; `rule` replaces its sampling.
            rule: frame sampling rule.
            seed: random seed.
            augmentation: training augmentation; None makes evaluation samples, which are deterministic.
            by_dali: positions in the index of the videos that DALI decodes.

        Raises:
            FlowlessError: the augmentation names a label that the index does not have.
        """
        # Training resizes a crop directly to the network's input size; `crop_side` is for evaluation.
        self._spec = spec if augmentation is None else replace(spec, crop_side=None)
        self._index, self._seed, self._augmentation = index, seed, augmentation
        self._rule: Rule = rule
        self._by_dali = set(by_dali)
        #: Videos that turned out to need sequential decoding, with their corrected properties.
        self._not_seekable: dict[int, VideoInfo] = {}
        self._mirror_labels = augmentation.mirrored(index.labels) if augmentation else ()

    def assign_to_pyav(self, numbers: Iterable[int]) -> None:
        """Decode these videos with PyAV from now on, because DALI could not decode one of them."""
        self._by_dali -= set(numbers)

    def draw(self, number: int, epoch: int) -> DrawResult:
        """Make the sample of a video; if it is unreadable, in training of a replacement.

        The replacement depends on (seed, epoch, the unreadable video's id). In evaluation, an unreadable video is left out and
        reported.

        Args:
            number: position of the video in the index.
            epoch: the epoch.

        Raises:
            FlowlessError: the replacements are unreadable, too.
        """
        refused: list[Refused] = []
        videos = self._index.videos
        # The text is part of the seed: changing it would change the replacements of existing runs.
        chooser = sample_rng(self._seed, epoch, f"{videos[number].id}\0stands in")
        for _ in range(_MAX_TRIES):
            try:
                return DrawResult(sample=self._sample(number, epoch), refused=tuple(refused))
            except FlowlessError as error:
                refused.append(Refused(path=videos[number].path, reason=str(error)))
            if self._augmentation is None:
                return DrawResult(sample=None, refused=tuple(refused))
            number = int(chooser.integers(len(videos)))
        names = ", ".join(item.path for item in refused)
        raise FlowlessError(
            f"{_MAX_TRIES} videos in a row cannot be read ({names}); the last one: {refused[-1].reason} "
            "Check that the data set is at the path in the index. If files have changed, run `flowless scan` again."
        )

    def _sample(self, number: int, epoch: int) -> Sample:
        record, spec, augmentation = self._index.videos[number], self._spec, self._augmentation
        if number in self._not_seekable:
            record = replace(record, info=self._not_seekable[number])
        rng = sample_rng(self._seed, epoch, record.id)
        indices = record.first_frame + clip_indices(
            record.frames,
            segments=spec.segments,
            frames_per_segment=spec.frames_per_segment,
            rule=self._rule,
            rng=rng if augmentation else None,
        )
        ordinals, order = np.unique(indices, return_inverse=True)
        if number in self._by_dali and record.info_if_unchanged(self._index.path_of(record)):
            regions = self._regions(rng, record.info.width, record.info.height)
            source: dict[str, Any] = self._for_dali(record, regions, ordinals)
        else:
            with self._index.open(record) as video, closing(video.frames(ordinals.tolist())) as frames:
                regions = self._regions(rng, video.info.width, video.info.height)
                # Frame by frame, so that a clip of large frames is never in memory at full size.
                resized = [self._resize(frame, regions) for _, frame in frames]
                if record.info.seekable and not video.info.seekable:
                    self._not_seekable[number] = video.info
            source = {"pictures": np.concatenate([np.stack(crop) for crop in zip(*resized, strict=True)])}
        return Sample(
            number=number,
            labels=self._labels(record.label, regions),
            views=len(regions) * len(indices),
            graph=GraphInput(
                order=view_order(order, frames=len(ordinals), crops=len(regions)),
                colour=np.repeat(np.array([region.colour for region in regions], np.float32), len(ordinals), axis=0),
                **source,
            ),
        )

    def _for_dali(self, record: VideoRecord, regions: Sequence[View], ordinals: NDArray[np.int64]) -> dict[str, Any]:
        """Return the graph's inputs for a video that DALI decodes: encoded bytes, frames and regions."""
        info, path = record.info, self._index.path_of(record)
        if info.folder:
            placed = region_inputs(regions, self._spec, width=info.width, height=info.height)
            with FrameFolder(path) as folder:
                files = tuple(bytes_of(picture) for picture in folder.paths(ordinals.tolist()))
            return {"files": EncodedPictures(files=files, start=placed["start"], end=placed["end"], size=placed["size"])}
        return {
            **region_inputs(regions, self._spec, width=info.width, height=info.height, rotation=info.rotation),
            "encoded": bytes_of(path),
            "ordinals": ordinals.astype(np.int32),
        }

    def _resize(self, frame: NDArray[np.uint8], regions: Sequence[View]) -> list[NDArray[np.uint8]]:
        if self._augmentation is None:
            return list(resize_and_crop(frame[None], self._spec))
        return [resize_region(frame, self._spec, region=(region.left, region.top, region.right, region.bottom)) for region in regions]

    def _regions(self, rng: np.random.Generator, width: int, height: int) -> Sequence[View]:
        if self._augmentation is None:
            return evaluation_views(width=width, height=height, spec=self._spec)
        return [
            training_view(rng, width=width, height=height, spec=self._spec, augmentation=self._augmentation)
            for _ in range(self._augmentation.draws)
        ]

    def _labels(self, label: int, regions: Sequence[View]) -> tuple[int, ...]:
        if self._augmentation is None:
            return (label,)
        return tuple(self._mirror_labels[label] if region.mirrored else label for region in regions)


def evaluation_views(*, width: int, height: int, spec: ClipSpec) -> tuple[View, ...]:
    """Return the regions of ClipSpec's crops, in pixels of the upright frame before resizing."""
    rows, columns = spec.crop_size
    across, down = resized_size(width, height, short_side=spec.short_side)
    x, y = width / across, height / down
    return tuple(
        View(top=top * y, left=left * x, bottom=(top + rows) * y, right=(left + columns) * x)
        for left, top in crop_corners(across, down, spec)
    )


def view_order(positions: NDArray[np.int64], *, frames: int, crops: int) -> NDArray[np.int32]:
    """Return `GraphInput.order` of a video's views: ordered by crop, then by clip, as the graph concatenates the frames of the crops.

    Args:
        positions: For each frame of the clips, its position among the distinct frames.
        frames: Number of distinct frames.
        crops: Crops of each frame.
    """
    return np.concatenate([positions.reshape(-1) + crop * frames for crop in range(crops)]).astype(np.int32)


@dataclass(frozen=True, kw_only=True)
class Decoders:
    """The decoder of each video of an index."""

    by_dali: frozenset[int]
    """Positions in the index of the videos that DALI decodes; PyAV decodes the others."""
    reasons: dict[str, int]
    """Where DALI was requested: reason why DALI does not decode a video -> number of such videos."""
    frames: Frames
    """The graph's frame source."""


def decoders_for(
    index: DatasetIndex,
    *,
    device: Literal["cpu", "gpu"],
    decoder: Literal["auto", "pyav", "dali"],
    device_id: int = 0,
    training: bool = False,
) -> Decoders:
    """Choose the decoder of each video of a data set; for a GPU, by the capabilities that its driver reports.

    On the CPU with `auto`, PyAV decodes videos. Folders of pictures are decoded by DALI in training, and by Pillow in evaluation, so that
    evaluation clips equal the runtime's pixel by pixel.

    Raises:
        FlowlessError: `decoder` is `dali`, and DALI can decode no video of the index on this device.
    """
    by_default = decoder == "auto" and device == "cpu"
    if decoder == "pyav" or (by_default and not (training and any(video.info.folder for video in index.videos))):
        return Decoders(by_dali=frozenset(), reasons={}, frames="pyav")
    reasons = _reasons_for_pyav(index, device_id=device_id if device == "gpu" else None, folders_only=by_default)
    by_dali = frozenset(number for number, reason in enumerate(reasons) if reason is None)
    counts = dict(Counter(reason for reason in reasons if reason is not None).most_common())
    if decoder == "dali" and not by_dali:
        raise FlowlessError(
            f"decoder is 'dali', which can decode no video of the index: {'; '.join(counts)}. Use decoder 'auto' or 'pyav'."
        )
    files = {number for number in by_dali if not index.videos[number].info.folder}
    return Decoders(by_dali=by_dali, reasons=counts, frames="pyav" if not files else "both" if len(files) < len(index.videos) else "dali")


def _reasons_for_pyav(index: DatasetIndex, *, device_id: int | None, folders_only: bool) -> list[str | None]:
    """Return for each video why DALI cannot decode it, None where it can; `device_id` None is the CPU."""
    unavailable = nvdec.why_no_nvdec(device_id) if device_id is not None else "its videos are PyAV's" if folders_only else None

    def reason(info: VideoInfo) -> str | None:
        if info.folder:
            return _reason_for_pillow(info)
        return unavailable.rstrip(".") if unavailable else reason_for_pyav(info, device_id=device_id)

    return [reason(video.info) for video in index.videos]


def reason_for_pyav(info: VideoInfo, *, device_id: int | None) -> str | None:
    """Return why DALI cannot decode a video file, None where it can; `device_id` None is the CPU.

    Raises:
        FlowlessError: The GPU's decoder cannot be queried.
    """
    if not info.seekable:
        return "its time stamps do not identify frames, and only PyAV counts frames"
    if info.mirrored:
        return "it is displayed mirrored, which DALI does not support"
    if not info.steady:
        return "its frame size changes"
    if device_id is None:
        able = ", ".join(sorted(DALI_CPU_CODECS))
        return None if info.codec in DALI_CPU_CODECS else f"{info.codec}: on the CPU, DALI decodes {able}"
    width, height = (info.height, info.width) if info.rotation % 180 else (info.width, info.height)
    stream = nvdec.Stream(codec=info.codec, pixel_format=info.pixel_format, width=width, height=height)
    return nvdec.why_not(stream, device_id)


def _reason_for_pillow(info: VideoInfo) -> str | None:
    if info.codec not in DALI_IMAGE_FORMATS:
        return f"{info.codec} pictures, which DALI does not decode"
    if not info.proved:
        return "not all of its pictures were read by the scan, so their sizes may differ"
    return None if info.steady else "its pictures differ in size"


def bytes_of(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Return a file's bytes.

    Raises:
        FlowlessError: It cannot be read, or is empty.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise FlowlessError(f"{os.fspath(path)}: cannot be read ({error.strerror}).") from error
    if not data.size:
        raise FlowlessError(f"{os.fspath(path)}: the file is empty.")
    return data
