"""Exactly the frames asked for, as upright RGB, with as little decoding as the codec allows.

A frame is named by its ordinal in presentation order. Where a file's time stamps can be trusted, decoding starts at the
key frame before a wanted frame, stops at the last packet that a wanted frame needs, and leaves out frames that no other
refers to (H.264 and HEVC say which). Where they cannot (AVI), it decodes in order and counts. Either way a wanted
frame is recognised by its own time stamp or place, and if one does not come out as the time line promised, everything is
decoded in order instead: fast or slow, the pixels are those of `iter_frames`.

Colour: YUV becomes RGB by the matrix and range that the stream states, BT.601 and limited range where it states none, which
is FFmpeg's own rule. The conversion is swscale's fast one, within 3 levels of exact arithmetic (4 from ten bits; it
rounds down: half a level to a level on average). Non-square pixels stay as they are stored.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import av.error
import numpy as np
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from flowless.errors import FlowlessError
from flowless.pipeline.container import OpenVideo, Unreadable, clockwise_degrees, frames_in_order, open_video, told_by_name
from flowless.pipeline.probe import VideoInfo, probe
from flowless.pipeline.timeline import KEEP_BYTES, Timeline, read_timeline

#: Frames between two wanted ones that are decoded rather than jumped over: a jump costs about as much.
_WORTH_A_JUMP = 3


def decode_frames(
    path: str | os.PathLike[str], indices: Sequence[int] | NDArray[np.integer], *, info: VideoInfo | None = None, threads: int = 1
) -> NDArray[np.uint8]:
    """Decode some frames of a video.

    Args:
        path: The file.
        indices: Presentation ordinals from 0, in any order, repeated or not. K is their number.
        info: What `probe` said of this file, if it is known: long files are then not read twice.
        threads: Threads that the codec may use.

    Returns:
        uint8 `[K, H, W, 3]`, RGB, upright, in the order of `indices`.

    Raises:
        FlowlessError: The file cannot be read, a wanted frame is damaged, or the video has no frame of that ordinal.
    """
    order = np.asarray(indices, dtype=np.int64).reshape(-1)
    if not order.size:
        info = info or probe(path)
        return np.empty((0, info.height, info.width, 3), np.uint8)
    wanted, places = np.unique(order, return_inverse=True)
    places_of = [np.flatnonzero(places == unique) for unique in range(len(wanted))]
    convert, result = _Converter(), None
    with closing(_wanted_frames(path, wanted.tolist(), info=info, threads=threads)) as frames:
        for ordinal, frame in frames:
            shape = (*convert.size(frame), 3)
            if result is None:
                result = np.empty((len(order), *shape), np.uint8)
            if result.shape[1:] != shape:
                sizes = " and ".join(f"{width}x{height}" for height, width, _ in (result.shape[1:], shape))
                raise Unreadable(path, f"the size of its pictures changes on the way ({sizes})")
            first, *others = places_of[np.searchsorted(wanted, ordinal)]
            # Straight into its place: at large sizes fresh memory costs as much as the conversion.
            convert(frame, out=result[first])
            result[others] = result[first]
    assert result is not None  # a wanted frame that does not come is an error above
    return result


def read_frames(
    path: str | os.PathLike[str], ordinals: Iterable[int], *, info: VideoInfo | None = None, threads: int = 1
) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
    """Yield `(ordinal, frame)` for each different ordinal, each frame converted as it is decoded.

    What `decode_frames` stacks; for who resizes each frame and does not want them all in memory. Frames are uint8
    `[H, W, 3]`, RGB, upright, nearly always in ascending order. Close the generator to close the file.

    Raises:
        FlowlessError: As `decode_frames` does.
    """
    convert = _Converter()
    with closing(_wanted_frames(path, ordinals, info=info, threads=threads)) as frames:
        for ordinal, frame in frames:
            yield ordinal, convert(frame)


def _wanted_frames(
    path: str | os.PathLike[str], ordinals: Iterable[int], *, info: VideoInfo | None, threads: int
) -> Generator[tuple[int, VideoFrame], None, None]:
    left = set(ordinals)
    if left and min(left) < 0:
        raise FlowlessError(f"{os.fspath(path)}: frame {min(left)} was asked for; frames are counted from 0.")
    with open_video(path, threads=threads) as video:
        timeline = _timeline(video, path, info)
        if timeline.trusted:
            _refuse_beyond(path, left, len(timeline.pts))
            for ordinal, frame in _by_time_stamp(video, path, timeline, sorted(left)):
                left.discard(ordinal)
                yield ordinal, frame
    if not left:
        return
    last, count = max(left), 0
    with open_video(path, threads=threads) as video:
        for ordinal, frame in enumerate(frames_in_order(video, path)):
            count = ordinal + 1
            if ordinal in left:
                left.discard(ordinal)
                yield ordinal, frame
            if ordinal == last:
                return
    _refuse_beyond(path, left, count)


def iter_frames(path: str | os.PathLike[str], *, threads: int = 1) -> Generator[NDArray[np.uint8], None, None]:
    """Yield every frame, uint8 `[H, W, 3]`, RGB, upright, in presentation order: the full decode.

    Raises:
        FlowlessError: The file cannot be read, or a frame is damaged (after the good ones before it).
    """
    convert = _Converter()
    with open_video(path, threads=threads) as video:
        for frame in frames_in_order(video, path):
            yield convert(frame)


class _Converter:
    """Decoded frame to upright RGB; keeps swscale's tables from one frame to the next."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def size(self, frame: VideoFrame) -> tuple[int, int]:
        """Return rows and columns of the upright frame."""
        return (frame.width, frame.height) if clockwise_degrees(frame) % 180 else (frame.height, frame.width)

    def __call__(self, frame: VideoFrame, *, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Convert a frame into `out`, or into an array of its own."""
        plane = self._reformatter.reformat(frame, format="rgb24", threads=1).planes[0]
        # Rows may end in padding.
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(frame.height, plane.line_size)[:, : 3 * frame.width]
        image = np.rot90(rows.reshape(frame.height, frame.width, 3), -(clockwise_degrees(frame) // 90))
        if out is None:
            return image.copy()
        np.copyto(out, image)
        return out


@dataclass(frozen=True)
class _Run:
    """Frames decoded in one go from a key frame."""

    key: int | None
    """Time stamp of the key frame to start from; None starts at the file's beginning."""
    wanted: dict[int, int]
    """Time stamp -> ordinal of the frames to take."""


def _timeline(video: OpenVideo, path: str | os.PathLike[str], info: VideoInfo | None) -> Timeline:
    if info is None:
        return read_timeline(video, path, keep_bytes=KEEP_BYTES)
    return Timeline(pts=info.pts, key_frames=info.key_frames, time_base=info.time_base, trusted=bool(info.pts), count=info.frames)


def _refuse_beyond(path: str | os.PathLike[str], ordinals: set[int], count: int) -> None:
    if ordinals and max(ordinals) >= count:
        raise FlowlessError(
            f"{os.fspath(path)}: frame {max(ordinals)} was asked for, but the video has {count} frames (0 to {count - 1}). "
            "If the file has changed since it was indexed, run `flowless scan` again."
        )


def _by_time_stamp(
    video: OpenVideo, path: str | os.PathLike[str], timeline: Timeline, ordinals: list[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the wanted frames that come out as promised; who asked decodes in order for what is missing."""
    drops = _drops_unreferenced(video)
    context = video.stream.codec_context
    with told_by_name(path):
        for number, run in enumerate(_runs(timeline, ordinals)):
            if number:
                context.flush_buffers()
            # Some streams have no pictures that stand alone, but renew them a stripe at a time (H.264's intra refresh), and
            # call the start of such a wave a key frame. Decoding from there comes near the right picture, and no more.
            sound = run.key is None
            try:
                for frame in _decode_run(video, timeline, run, drops=drops, first=number == 0):
                    sound = sound or (frame.pts == run.key and frame.pict_type == PictureType.I)
                    if not sound or frame.pts is None:
                        continue
                    if frame.is_corrupt:
                        return  # and later frames may be made from this one, though no decoder says so
                    if frame.pts in run.wanted:
                        yield run.wanted[frame.pts], frame
            except av.error.InvalidDataError:
                return  # decoding in order says whether this is damage, and where


def _runs(timeline: Timeline, ordinals: list[int]) -> list[_Run]:
    runs: list[_Run] = []
    keys = np.asarray(timeline.key_frames, dtype=np.int64)
    last = -1
    for ordinal in ordinals:
        place = int(np.searchsorted(keys, ordinal, side="right")) - 1
        key = int(keys[place]) if place >= 0 else 0
        if not runs or key - last > _WORTH_A_JUMP:
            # The file's first packet may lie before the first frame shown: begin where the file begins.
            runs.append(_Run(timeline.pts[key] if place > 0 else None, {}))
        runs[-1].wanted[timeline.pts[ordinal]] = ordinal
        last = ordinal
    return runs


def _decode_run(video: OpenVideo, timeline: Timeline, run: _Run, *, drops: bool, first: bool) -> Iterator[VideoFrame]:
    context = video.stream.codec_context
    to_feed = set(run.wanted)
    for packet in _packets_from(video, timeline, run.key, rewind=not first):
        wanted = packet.pts in to_feed
        if drops:
            context.skip_frame = "DEFAULT" if wanted else "NONREF"
        yield from video.stream.decode(packet)
        if wanted:
            to_feed.discard(packet.pts)
            if not to_feed:
                break
    # Nothing wanted lies beyond: have the frames that wait for their turn come out now.
    try:
        yield from video.stream.decode(None)
    except av.error.EOFError:
        return


def _packets_from(video: OpenVideo, timeline: Timeline, key: int | None, *, rewind: bool) -> Iterator[Packet]:
    if timeline.packets is not None:
        start = 0 if key is None else next(place for place, packet in enumerate(timeline.packets) if packet.pts == key)
        yield from timeline.packets[start:]
        return
    if key is not None:
        video.container.seek(key, stream=video.stream, backward=True)
    elif rewind:
        video.container.seek(timeline.pts[0], stream=video.stream, backward=True)
    for packet in video.container.demux(video.stream):
        if packet.size:
            yield packet


def _drops_unreferenced(video: OpenVideo) -> bool:
    """Return whether the decoder may leave out unreferenced frames without harm to the others.

    H.264 marks a frame that no other refers to. HEVC marks one that no other *of its temporal layer* refers to, which is the
    same only in a stream of one layer; the configuration record in its header counts the layers. Others (libdav1d, MPEG-4) do
    not keep time stamps and frames together when frames are left out.
    """
    context = video.stream.codec_context
    codec = context.codec.canonical_name
    if codec != "hevc":
        return codec == "h264"
    record = context.extradata or b""
    return len(record) > 22 and record[0] == 1 and record[21] >> 3 & 7 == 1
