"""One sample for the graph: which frames, from which decoder, which part of them; and the replacement of a bad video."""

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
from flowless.pipeline.clip.preprocess import crop_corners, resize_and_crop, resize_part, resized_size
from flowless.pipeline.clip.sampling import clip_indices, sample_rng
from flowless.pipeline.clip.spec import ClipSpec, Rule
from flowless.pipeline.dataset.index import DatasetIndex, Refused, VideoRecord
from flowless.pipeline.loading import nvdec
from flowless.pipeline.loading.augment import Augmentation, View, training_view
from flowless.pipeline.loading.dali_graph import DALI_CPU_CODECS, Frames, GraphInput, place
from flowless.pipeline.loading.picture_graph import DALI_PICTURES, PictureFiles
from flowless.pipeline.video.frame_folder import FrameFolder
from flowless.pipeline.video.info import VideoInfo

#: Other videos tried in the place of a bad one, each bad itself, before the epoch is given up.
_TRIES = 8


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One clip on its way to the graph."""

    number: int
    """Place of the video in the index; after a replacement, of the video that stands in."""
    labels: tuple[int, ...]
    """Its label's position: one for each time that training draws the clip, after a flip that changes it."""
    views: int
    """Views of the video."""
    graph: GraphInput
    """What the graph makes it from."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The sample made for one video of the epoch."""

    sample: Sample | None
    """None where an evaluation leaves a bad video out."""
    refused: tuple[Refused, ...] = ()
    """Videos that could not be read: the one asked for, and any that should have stood in for it."""


class FrameSource:
    """Makes samples. Each depends on (seed, epoch, video) alone, so any thread may make any of them at any time."""

    def __init__(
        self, index: DatasetIndex, spec: ClipSpec, *, rule: Rule, seed: int, augmentation: Augmentation | None, by_dali: frozenset[int]
    ) -> None:
        """Say what samples are.

        Args:
            index: the videos.
            spec: what a clip is; `rule` stands in for its sampling.
            rule: which frames are taken.
            seed: of everything drawn.
            augmentation: training's changes; None makes evaluation samples, in which nothing is drawn.
            by_dali: places in the index of the videos that the graph decodes.

        Raises:
            FlowlessError: the augmentation names a label that the index does not know.
        """
        # Training's crop is resized to the network's frame at once, however an evaluation crops.
        self._spec = spec if augmentation is None else replace(spec, crop_side=None)
        self._index, self._seed, self._augmentation = index, seed, augmentation
        self._rule: Rule = rule
        self._by_dali = set(by_dali)
        #: Videos that turned out to be decoded rightly in order alone.
        self._in_order: dict[int, VideoInfo] = {}
        self._mirror_labels = augmentation.mirrored(index.labels) if augmentation else ()

    def leave_to_pyav(self, numbers: Iterable[int]) -> None:
        """Have PyAV decode these videos from now on, because DALI could not decode one of them."""
        self._by_dali -= set(numbers)

    def draw(self, number: int, epoch: int) -> Drawn:
        """Make the sample of a video, or in training of another where it is bad.

        The one that stands in is chosen by (seed, epoch, the bad video's id). An evaluation has no stand-in: the bad
        video is left out and named.

        Args:
            number: place of the video in the index.
            epoch: the epoch.

        Raises:
            FlowlessError: the videos that should stand in are bad, too.
        """
        refused: list[Refused] = []
        videos = self._index.videos
        chooser = sample_rng(self._seed, epoch, f"{videos[number].id}\0stands in")
        for _ in range(_TRIES):
            try:
                return Drawn(sample=self._sample(number, epoch), refused=tuple(refused))
            except FlowlessError as error:
                refused.append(Refused(path=videos[number].path, reason=str(error)))
            if self._augmentation is None:
                return Drawn(sample=None, refused=tuple(refused))
            number = int(chooser.integers(len(videos)))
        names = ", ".join(item.path for item in refused)
        raise FlowlessError(
            f"{_TRIES} videos in a row cannot be read ({names}); the last one: {refused[-1].reason} "
            "Is the data set's folder where the index says it is? If files have changed, run `flowless scan` again."
        )

    def _sample(self, number: int, epoch: int) -> Sample:
        record, spec, augmentation = self._index.videos[number], self._spec, self._augmentation
        if number in self._in_order:
            record = replace(record, info=self._in_order[number])
        rng = sample_rng(self._seed, epoch, record.id)
        indices = record.first_frame + clip_indices(
            record.frames,
            segments=spec.segments,
            frames_per_segment=spec.frames_per_segment,
            rule=self._rule,
            rng=rng if augmentation else None,
        )
        ordinals, order = np.unique(indices, return_inverse=True)
        if number in self._by_dali and record.known(self._index.path_of(record)):
            parts = self._parts(rng, record.info.width, record.info.height)
            source: dict[str, Any] = self._for_dali(record, parts, ordinals)
        else:
            with self._index.open(record) as video, closing(video.frames(ordinals.tolist())) as frames:
                parts = self._parts(rng, video.info.width, video.info.height)
                # Frame by frame: a clip of large frames never lies in memory at full size.
                small = [self._small(frame, parts) for _, frame in frames]
                if record.info.jumps and not video.info.jumps:
                    self._in_order[number] = video.info
            source = {"pictures": np.concatenate([np.stack(crop) for crop in zip(*small, strict=True)])}
        # Crops outside, clips inside; the graph lays the pictures of one crop behind those of the other.
        order = np.concatenate([order.reshape(-1) + crop * len(ordinals) for crop in range(len(parts))])
        return Sample(
            number=number,
            labels=self._labels(record.label, parts),
            views=len(parts) * len(indices),
            graph=GraphInput(
                order=order.astype(np.int32),
                colour=np.repeat(np.array([part.colour for part in parts], np.float32), len(ordinals), axis=0),
                **source,
            ),
        )

    def _for_dali(self, record: VideoRecord, parts: Sequence[View], ordinals: NDArray[np.int64]) -> dict[str, Any]:
        """Return what DALI decodes, unread, and where in it the parts are."""
        info, path = record.info, self._index.path_of(record)
        if info.folder:
            placed = place(parts, self._spec, width=info.width, height=info.height)
            with FrameFolder(path) as folder:
                files = tuple(_bytes_of(picture) for picture in folder.paths(ordinals.tolist()))
            return {"files": PictureFiles(files=files, start=placed["start"], end=placed["end"], size=placed["size"])}
        return {
            **place(parts, self._spec, width=info.width, height=info.height, rotation=info.rotation),
            "encoded": _bytes_of(path),
            "ordinals": ordinals.astype(np.int32),
        }

    def _small(self, frame: NDArray[np.uint8], parts: Sequence[View]) -> list[NDArray[np.uint8]]:
        if self._augmentation is None:
            return list(resize_and_crop(frame[None], self._spec))
        return [resize_part(frame, self._spec, part=(part.left, part.top, part.right, part.bottom)) for part in parts]

    def _parts(self, rng: np.random.Generator, width: int, height: int) -> Sequence[View]:
        if self._augmentation is None:
            return evaluation_views(width=width, height=height, spec=self._spec)
        return [
            training_view(rng, width=width, height=height, spec=self._spec, augmentation=self._augmentation)
            for _ in range(self._augmentation.draws)
        ]

    def _labels(self, label: int, parts: Sequence[View]) -> tuple[int, ...]:
        if self._augmentation is None:
            return (label,)
        return tuple(self._mirror_labels[label] if part.mirrored else label for part in parts)


def evaluation_views(*, width: int, height: int, spec: ClipSpec) -> tuple[View, ...]:
    """Return the parts of a frame that ClipSpec's resize and crops show, in pixels of the upright, unresized frame."""
    rows, columns = spec.crop_size
    across, down = resized_size(width, height, short_side=spec.short_side)
    x, y = width / across, height / down
    return tuple(
        View(top=top * y, left=left * x, bottom=(top + rows) * y, right=(left + columns) * x)
        for left, top in crop_corners(across, down, spec)
    )


@dataclass(frozen=True, kw_only=True)
class Decoders:
    """Who decodes the videos of an index."""

    by_dali: frozenset[int]
    """Places in the index of the videos that DALI decodes; PyAV decodes the others."""
    left: dict[str, int]
    """Where DALI was wanted: why it does not decode a video, and of how many that is true."""
    frames: Frames
    """The same for the graph."""


def decoders_for(
    index: DatasetIndex,
    *,
    device: Literal["cpu", "gpu"],
    decoder: Literal["auto", "pyav", "dali"],
    device_id: int = 0,
    training: bool = False,
) -> Decoders:
    """Return who decodes the videos of a data set; on a GPU its driver is asked what it decodes.

    On the CPU, where nothing is asked for, PyAV decodes videos, DALI the pictures of folders in training and Pillow those of an
    evaluation, whose clips are then the light runtime's, pixel by pixel.

    Raises:
        FlowlessError: `dali` was asked for, and it can decode no video of the index on this device.
    """
    by_default = decoder == "auto" and device == "cpu"
    if decoder == "pyav" or (by_default and not (training and any(video.info.folder for video in index.videos))):
        return Decoders(by_dali=frozenset(), left={}, frames="pyav")
    reasons = _reasons_for_pyav(index, device_id=device_id if device == "gpu" else None, folders_only=by_default)
    by_dali = frozenset(place for place, reason in enumerate(reasons) if reason is None)
    left = dict(Counter(reason for reason in reasons if reason is not None).most_common())
    if decoder == "dali" and not by_dali:
        raise FlowlessError(f"decoder is 'dali', which can decode no video of the index: {'; '.join(left)}. Use decoder 'auto' or 'pyav'.")
    films = {place for place in by_dali if not index.videos[place].info.folder}
    return Decoders(by_dali=by_dali, left=left, frames="pyav" if not films else "both" if len(films) < len(index.videos) else "dali")


def _reasons_for_pyav(index: DatasetIndex, *, device_id: int | None, folders_only: bool) -> list[str | None]:
    """Return for each video why DALI cannot decode it on this GPU, or on the CPU; None where it can."""
    nothing = nvdec.why_no_nvdec(device_id) if device_id is not None else "its videos are PyAV's" if folders_only else None

    def reason(video: VideoRecord) -> str | None:
        info = video.info
        if info.folder:
            return _reason_for_pillow(info)
        if nothing:
            return nothing.rstrip(".")
        if not info.jumps:
            return "its time stamps do not name frames, and only PyAV counts them"
        if info.mirrored:
            return "it is shown mirrored, which DALI does not know"
        if not info.steady:
            return "the size of its pictures changes on the way"
        if device_id is None:
            able = ", ".join(sorted(DALI_CPU_CODECS))
            return None if info.codec in DALI_CPU_CODECS else f"{info.codec}: on the CPU, DALI decodes {able}"
        width, height = (info.height, info.width) if info.rotation % 180 else (info.width, info.height)
        stream = nvdec.Stream(codec=info.codec, pixel_format=info.pixel_format, width=width, height=height)
        return nvdec.why_not(stream, device_id)

    return [reason(video) for video in index.videos]


def _reason_for_pillow(info: VideoInfo) -> str | None:
    if info.codec not in DALI_PICTURES:
        return f"{info.codec} pictures, which DALI does not decode"
    if not info.proved:
        return "not all of its pictures were read by the scan, so their sizes may differ"
    return None if info.steady else "the size of its pictures changes on the way"


def _bytes_of(path: os.PathLike[str]) -> NDArray[np.uint8]:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise FlowlessError(f"{os.fspath(path)}: cannot be read ({error.strerror}).") from error
    if not data.size:
        raise FlowlessError(f"{os.fspath(path)}: the file is empty.")
    return data
