"""Reads a video file's properties and exactly the requested frames, as upright RGB.

A frame is identified by its ordinal in display order. Where time stamps identify frames, decoding starts at the key frame before a
wanted frame, stops at the last packet that a wanted frame needs, and skips non-reference frames (which H.264 and HEVC mark). Where they
do not (AVI, joined recordings), the file is decoded sequentially and frames are counted. In both cases the pixels equal those of a full
sequential decode. This is checked: if a frame comes out of order, or a seek lands elsewhere, the rest is decoded sequentially.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from types import TracebackType
from typing import Self

import av.error
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from flowless.errors import FlowlessError
from flowless.files import printable
from flowless.pipeline.video.container import OpenVideo, Unreadable, damaged, open_video, packets_of, wrap_io_errors
from flowless.pipeline.video.info import CompactInts, VideoInfo, varies
from flowless.pipeline.video.rgb_conversion import Converter, orientation_of, stacked, upright_size
from flowless.pipeline.video.seeking import DecodeRun, UnexpectedFrame, can_skip_nonref, check_order, from_key, plan_runs
from flowless.pipeline.video.timeline import Timeline, ascending, read_timeline


class FewerFrames(Unreadable):
    """Fewer frames decode than the file has packets; `VideoReader.prove` counts the frames that do."""


class VideoReader:
    """An open video file: its properties, selected frames, or all frames.

    Args:
        path: The file, in any container and codec that PyAV's FFmpeg supports.
        threads: Threads that the codec may use within a frame.
        known: The file's `info` from an earlier scan, so that its packets need not be read again.

    Raises:
        Unreadable: The file is missing, empty, not a video, encrypted, truncated, or damaged.

    Only one iterator over frames may be active: starting another invalidates the first, which then raises a FlowlessError.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 1, known: VideoInfo | None = None) -> None:
        self.path = os.fspath(path)
        self._threads = threads
        self._info = known
        self._closed = False
        self._reading = 0  # number of the active iterator
        self._open()
        try:
            self._timeline = _timeline_from(known) if known else self._read_timeline()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._closed = True
        self._video.container.close()

    def __enter__(self) -> Self:
        """Return the reader."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file."""
        self.close()

    @property
    def info(self) -> VideoInfo:
        """The video's properties. If the packets do not determine the number of frames, all frames are decoded once.

        Raises:
            Unreadable: No frame decodes; or, where all are decoded, a frame is damaged.
        """
        if self._info is None:
            line = self._timeline
            counted = line.seekable and line.count_is_certain and (line.end_is_certain or self._last_frame_decodes())
            self._info = self._inspect(decode=not counted)
        return self._info

    def prove(self) -> VideoInfo:
        """Decode every frame without converting it; return `info` with the number of frames that decode.

        Raises:
            Unreadable: A frame is damaged.
        """
        if self._info is None or not self._info.proved:
            self._info = self._inspect(decode=True)
        return self._info

    @property
    def count(self) -> int:
        """The number of frames; cheaper than `info`, which also decodes a frame."""
        line = self._timeline
        if self._info is None and line.seekable and line.count_is_certain and line.end_is_certain:
            return line.count
        return self.info.frames

    def frames(self, ordinals: Iterable[int]) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
        """Yield `(ordinal, frame)` for each distinct ordinal, ascending; each frame is converted as it is decoded.

        Args:
            ordinals: Frames counted from 0, in any order; repetitions are ignored.

        Yields:
            The ordinal, and the frame, uint8 `[H, W, 3]`, RGB, upright. All frames have the size of the first (`info`).

        Raises:
            FlowlessError: A wanted frame is damaged, or the video has no frame with that ordinal.
        """
        left = sorted(set(ordinals))
        if not left:
            return
        if left[0] < 0:
            raise FlowlessError(f"{printable(self.path)}: frame {left[0]} was requested; frames are counted from 0.")
        convert = Converter(self._size())
        if self._timeline.seekable:
            self._check_ordinal(left[-1], self._timeline.count)
            done = 0
            for ordinal, frame in self._decode_by_seeking(left):
                done += 1
                yield ordinal, convert(frame)
            left = left[done:]
            if left:
                self._disable_seeking()
        if not left:
            return
        wanted, count = set(left), 0
        for ordinal, frame in enumerate(self._decode_sequentially()):
            count = ordinal + 1
            if ordinal in wanted:
                yield ordinal, convert(frame)
            if ordinal == left[-1]:
                return
        if count < self._timeline.count and not (self._info and self._info.proved):
            raise FewerFrames(self.path, f"only {count} of {self._timeline.count} frames decode")
        self._check_ordinal(left[-1], count)

    def stack(self, ordinals: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint8]:
        """Return frames uint8 `[K, H, W, 3]` in the given order, with repetitions; raises as `frames` does."""
        wanted = [int(ordinal) for ordinal in ordinals]
        return stacked(self.frames(wanted), wanted, self._size())

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield every frame in display order, uint8 `[H, W, 3]`, RGB, upright, from a full sequential decode.

        Raises:
            FlowlessError: A frame is damaged; the frames before it have been yielded.
        """
        convert = Converter(self._size())
        for frame in self._decode_sequentially():
            yield convert(frame)

    def _last_frame_decodes(self) -> bool:
        """Return whether all frames from the last key frame on decode."""
        return any(True for _ in self._decode_by_seeking([self._timeline.count - 1], skip_nonref=False))

    def _disable_seeking(self) -> None:
        """Decode sequentially from now on, and record it in `info`: a frame came out of order."""
        nothing = np.empty(0, np.int64)
        self._timeline = replace(self._timeline, key_frames=nothing, key_bytes=nothing)
        if self._info is not None:
            self._info = replace(self._info, key_frames=CompactInts(), key_bytes=CompactInts())

    def _inspect(self, *, decode: bool) -> VideoInfo:
        """Decode the first frame, or with `decode` all frames, and return the video's properties."""
        frames = self._decode_sequentially()
        first = next(frames, None)
        if first is None:
            raise Unreadable(self.path, "no frame of it decodes")
        if first.width < 1 or first.height < 1:
            raise Unreadable(self.path, f"its pictures are {first.width}x{first.height}")
        line, size, steady = self._timeline, upright_size(first), True
        if decode:
            stamps = [first.pts]
            for frame in frames:
                stamps.append(frame.pts)
                steady = steady and upright_size(frame) == size
            if not line.seekable or not np.array_equal(np.asarray(stamps, np.float64), line.pts):
                # The decoded frames differ from the packets' time stamps: frames can be found only by sequential decoding.
                line = self._timeline = _timeline_of_decoded(line, stamps)
        return replace(self._info_of(first, line), proved=decode, steady=steady)

    def _info_of(self, first: VideoFrame, line: Timeline) -> VideoInfo:
        stream = self._video.stream
        tick = stream.time_base or Fraction(1)
        duration = float((line.pts[-1] - line.pts[0]) * tick) if len(line.pts) > 1 else 0.0
        height, width = upright_size(first)
        rotation, mirrored = orientation_of(first)
        return VideoInfo(
            frames=line.count,
            fps=(line.count - 1) / duration if duration > 0 else float(stream.average_rate or stream.guessed_rate or 0),
            width=width,
            height=height,
            rotation=rotation,
            mirrored=mirrored,
            codec=self._video.codec,
            pixel_format=first.format.name,
            variable_rate=varies(line.pts),
            time_base=tick,
            pts=CompactInts(line.pts),
            key_frames=CompactInts(line.key_frames),
            key_bytes=CompactInts(line.key_bytes),
            missing=line.missing,
        )

    def _size(self) -> tuple[int, int]:
        return self.info.height, self.info.width

    def _check_ordinal(self, ordinal: int, count: int) -> None:
        if ordinal >= count:
            raise FlowlessError(
                f"{printable(self.path)}: frame {ordinal} was requested, but the video has {count} frames (0 to {count - 1}). "
                "If the file has changed since it was indexed, run `flowless scan` again."
            )

    def _decode_sequentially(self) -> Iterator[VideoFrame]:
        """Decode every frame from the beginning, in display order.

        Raises:
            Unreadable: A frame is damaged; the frames before it have been yielded.
        """
        packets = self._timeline.packets
        self._rewind()
        source = packets_of(self._video, self.path) if packets is None else packets
        reading, done = self._reading, 0
        with wrap_io_errors(self.path):
            for packet in chain(source, [None]):
                self._check_current(reading)
                try:
                    frames = self._video.stream.decode(packet)
                except av.error.EOFError:
                    return
                except av.error.InvalidDataError as error:
                    raise damaged(self.path, done) from error
                for frame in frames:
                    if frame.is_corrupt:
                        raise damaged(self.path, done)
                    done += 1
                    yield frame

    def _open(self) -> None:
        self._video: OpenVideo = open_video(self.path, threads=self._threads)
        self._at_start, self._decoder_fresh = True, True

    def _read_timeline(self) -> Timeline:
        self._at_start = False
        return read_timeline(self._video, self.path)

    def _check_current(self, reading: int) -> None:
        """Raise FlowlessError where another iterator has been started since this one, or the file was closed."""
        if self._closed:
            raise FlowlessError(f"{printable(self.path)}: it is closed; read its frames inside `with`.")
        if reading != self._reading:
            raise FlowlessError(f"{printable(self.path)}: another iterator was started, which ends this one. Use two VideoReaders.")

    def _rewind(self) -> None:
        """Reset file and decoder to the beginning, and invalidate earlier iterators."""
        self._reading += 1
        self._check_current(self._reading)
        kept = self._timeline.packets is not None
        if self._decoder_fresh and (kept or self._at_start):
            pass
        elif kept and self._timeline.seekable:
            self._video.stream.codec_context.flush_buffers()
            self._video.stream.codec_context.skip_frame = "DEFAULT"
        else:
            # Reopen: some decoders keep state after a flush, and some containers cannot seek to their beginning.
            self._video.container.close()
            self._open()
        self._at_start = self._decoder_fresh = False

    def _decode_by_seeking(self, ordinals: list[int], *, skip_nonref: bool = True) -> Iterator[tuple[int, VideoFrame]]:
        """Yield the wanted frames, ascending, up to the first that comes out of order; `skip_nonref` allows skipping others."""
        # Skipped frames cannot be checked, so skip only where all time stamps are confirmed by a decode or have a constant interval.
        confirmed = (self._info is not None and self._info.proved) or not varies(self._timeline.pts)
        skip = skip_nonref and confirmed and can_skip_nonref(self._video)
        with wrap_io_errors(self.path):
            for run in plan_runs(self._timeline, ordinals):
                left = run.wanted[::-1]
                try:
                    for ordinal, frame in check_order(self._decode_run(run, skip=skip), self._timeline, run, gaps=skip):
                        if ordinal == left[-1]:
                            yield left.pop(), frame
                        elif ordinal > left[-1]:
                            return
                        if not left:
                            break
                except (av.error.FFmpegError, UnexpectedFrame):
                    return  # the sequential decode finds out whether the stream is damaged, and where
                if left:
                    return

    def _decode_run(self, run: DecodeRun, *, skip: bool) -> Iterator[VideoFrame]:
        packets = self._packets_from(run.key)
        reading = None
        context = self._video.stream.codec_context
        begin = int(self._timeline.key_frames[run.key]) if run.key else 0
        # A frame displayed before a wanted one may be decoded after it; if none is skipped, all of them must be decoded for the check.
        to_feed = set(self._timeline.pts[run.wanted if skip else slice(begin, run.wanted[-1] + 1)].tolist())
        for packet in packets:
            reading = reading or self._reading
            self._check_current(reading)
            wanted = packet.pts in to_feed
            if skip:
                context.skip_frame = "DEFAULT" if wanted else "NONREF"
            yield from self._video.stream.decode(packet)
            to_feed.discard(packet.pts)
            if not to_feed:
                break
        # Flush the frames that the decoder still holds back for reordering.
        with suppress(av.error.EOFError):
            yield from self._video.stream.decode(None)

    def _packets_from(self, key: int) -> Iterator[Packet]:
        """Seek to the key frame at position `key` of `key_frames`; return the packets from there on."""
        line = self._timeline
        if key == 0:
            # The first packet may precede the first displayed frame: start at the beginning of the file.
            self._rewind()
        else:
            self._reading += 1
            self._check_current(self._reading)
            if not self._decoder_fresh:
                self._video.stream.codec_context.flush_buffers()
        self._decoder_fresh = False
        container, stream, stamp = self._video.container, self._video.stream, int(line.pts[line.key_frames[key]])
        if line.packets is not None:
            begin = 0 if key == 0 else next(number for number, packet in enumerate(line.packets) if packet.pts == stamp)
            return iter(line.packets[begin:])
        if key:
            self._at_start = False
            if len(line.key_bytes):
                container.seek(int(line.key_bytes[key]), stream=stream, unsupported_byte_offset=True)
                return from_key(packets_of(self._video, self.path), stamp)
            container.seek(stamp, stream=stream, backward=True)
        return packets_of(self._video, self.path)


def _timeline_from(info: VideoInfo) -> Timeline:
    pts = np.asarray(info.pts) if info.seekable else np.empty(0, np.int64)
    return Timeline(
        count=info.frames, pts=pts, key_frames=np.asarray(info.key_frames), key_bytes=np.asarray(info.key_bytes), missing=info.missing
    )


def _timeline_of_decoded(line: Timeline, stamps: list[int | None]) -> Timeline:
    """Return the timeline of sequentially decoded frames: its times serve `frame_at`, not seeking."""
    times = np.empty(0, np.int64)
    if len(line.dts) == len(stamps):
        times = line.dts  # without PTS: in display order they equal DTS plus a constant
    elif None not in stamps:
        times = np.asarray(stamps, np.int64)
    nothing = np.empty(0, np.int64)
    return replace(line, count=len(stamps), pts=ascending(times), key_frames=nothing, key_bytes=nothing)
