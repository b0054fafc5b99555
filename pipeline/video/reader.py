"""Reading videos: the one way from a file to its facts and to exactly the frames asked for, upright RGB.

A frame is named by its ordinal in the order of showing. Where a file's time stamps name frames, decoding starts at the key frame
before a wanted frame, stops at the last packet that a wanted frame needs, and leaves out frames that no other refers to (H.264 and
HEVC say which). Where they do not (AVI, joined recordings), it decodes in order and counts. Either way the pixels are those of a
full decode in order. That is checked: if a frame comes out of turn, or a jump lands elsewhere, everything from there on is
decoded in order.
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
from flowless.pipeline.video.jumps import Run, UnexpectedFrame, check_order, drops_unreferenced, from_key, runs_of
from flowless.pipeline.video.picture import Converter, orientation_of, stacked, upright_size
from flowless.pipeline.video.timeline import Timeline, ascending, read_timeline


class FewerFrames(Unreadable):
    """Fewer frames decode than the file has packets for; `VideoReader.prove` counts them."""


class VideoReader:
    """A video file, open: its facts, exactly the frames asked for, or all of them.

    Args:
        path: The file, in any container and codec that PyAV's FFmpeg reads.
        threads: Threads that the codec may use within a frame.
        known: The file's `info` from an earlier look, so that its packets need not be read again.

    Raises:
        Unreadable: A FlowlessError with the file's name: it is missing, empty, no video, encrypted, cut off, or damaged.

    Frames are read by one iterator at a time: beginning another ends the first, which then raises a FlowlessError.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 1, known: VideoInfo | None = None) -> None:
        self.path = os.fspath(path)
        self._threads = threads
        self._info = known
        self._closed = False
        self._reading = 0
        self._open()
        try:
            self._line = _line_of(known) if known else self._read_timeline()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._closed = True
        self._video.container.close()

    def __enter__(self) -> Self:
        """Return the reader, which is open already."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file."""
        self.close()

    @property
    def info(self) -> VideoInfo:
        """What is known of the video. Where its packets cannot say how many frames there are, all are decoded once for it.

        Raises:
            Unreadable: No frame decodes, or where all are decoded, one is damaged.
        """
        if self._info is None:
            self._info = self._look(decode=not (self._line.jumps and self._line.certain and (self._line.ends or self._ends_well())))
        return self._info

    def prove(self) -> VideoInfo:
        """Decode every frame, converting none: return the facts of the frames that truly decode.

        Raises:
            Unreadable: A frame is damaged.
        """
        if self._info is None or not self._info.proved:
            self._info = self._look(decode=True)
        return self._info

    @property
    def count(self) -> int:
        """The number of frames; cheaper than `info`, which looks at a picture as well."""
        line = self._line
        return line.count if self._info is None and line.jumps and line.certain and line.ends else self.info.frames

    def frames(self, ordinals: Iterable[int]) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
        """Yield `(ordinal, frame)` for each different ordinal, ascending; each frame is converted as it is decoded.

        Args:
            ordinals: Frames counted from 0, in any order, repeated or not.

        Yields:
            The ordinal, and the frame, uint8 `[H, W, 3]`, RGB, upright. All have the size of the video's first frame (`info`).

        Raises:
            FlowlessError: A wanted frame is damaged, or the video has no frame of that ordinal.
        """
        left = sorted(set(ordinals))
        if not left:
            return
        if left[0] < 0:
            raise FlowlessError(f"{printable(self.path)}: frame {left[0]} was asked for; frames are counted from 0.")
        convert = Converter(self._size())
        if self._line.jumps:
            self._refuse_beyond(left[-1], self._line.count)
            done = 0
            for ordinal, frame in self._by_time_stamp(left):
                done += 1
                yield ordinal, convert(frame)
            left = left[done:]
            if left:
                self._distrust()
        if not left:
            return
        wanted, count = set(left), 0
        for ordinal, frame in enumerate(self._in_order()):
            count = ordinal + 1
            if ordinal in wanted:
                yield ordinal, convert(frame)
            if ordinal == left[-1]:
                return
        if count < self._line.count and not (self._info and self._info.proved):
            raise FewerFrames(self.path, f"only {count} of the {self._line.count} frames in its packets decode")
        self._refuse_beyond(left[-1], count)

    def stack(self, ordinals: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint8]:
        """Return frames uint8 `[K, H, W, 3]` in the order asked for, which may repeat; the errors are those of `frames`."""
        asked = [int(ordinal) for ordinal in ordinals]
        return stacked(self.frames(asked), asked, self._size())

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield every frame, uint8 `[H, W, 3]`, RGB, upright, in the order of showing: the full decode.

        Raises:
            FlowlessError: A frame is damaged; the good ones before it were yielded.
        """
        convert = Converter(self._size())
        for frame in self._in_order():
            yield convert(frame)

    def _ends_well(self) -> bool:
        """Return whether the last frames decode, from their key frame on, all of them."""
        return any(True for _ in self._by_time_stamp([self._line.count - 1], all_of_them=True))

    def _distrust(self) -> None:
        """Decode in order from now on, and say so in `info`: a frame came out of turn."""
        nothing = np.empty(0, np.int64)
        self._line = replace(self._line, key_frames=nothing, key_bytes=nothing)
        if self._info is not None:
            self._info = replace(self._info, key_frames=CompactInts(), key_bytes=CompactInts())

    def _look(self, *, decode: bool) -> VideoInfo:
        frames = self._in_order()
        first = next(frames, None)
        if first is None:
            raise Unreadable(self.path, "no frame of it decodes")
        if first.width < 1 or first.height < 1:
            raise Unreadable(self.path, f"its pictures are {first.width}x{first.height}")
        line, size, steady = self._line, upright_size(first), True
        if decode:
            stamps = [first.pts]
            for frame in frames:
                stamps.append(frame.pts)
                steady = steady and upright_size(frame) == size
            if not line.jumps or not np.array_equal(np.asarray(stamps, np.float64), line.pts):
                # The packets' story and the decoder's differ: the decoder is right, and only decoding in order finds a frame.
                line = self._line = _counted(line, stamps)
        return replace(self._info_of(first, line), proved=decode, steady=steady)

    def _info_of(self, first: VideoFrame, line: Timeline) -> VideoInfo:
        stream = self._video.stream
        tick = stream.time_base or Fraction(1)
        lasts = float((line.pts[-1] - line.pts[0]) * tick) if len(line.pts) > 1 else 0.0
        height, width = upright_size(first)
        rotation, mirrored = orientation_of(first)
        return VideoInfo(
            frames=line.count,
            fps=(line.count - 1) / lasts if lasts > 0 else float(stream.average_rate or stream.guessed_rate or 0),
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

    def _refuse_beyond(self, ordinal: int, count: int) -> None:
        if ordinal >= count:
            raise FlowlessError(
                f"{printable(self.path)}: frame {ordinal} was asked for, but the video has {count} frames (0 to {count - 1}). "
                "If the file has changed since it was indexed, run `flowless scan` again."
            )

    def _in_order(self) -> Iterator[VideoFrame]:
        """Decode every frame in the order of showing: what all other ways of decoding are compared with.

        Raises:
            Unreadable: A frame is damaged, after the good ones before it were yielded.
        """
        packets = self._line.packets
        self._to_the_beginning()
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
        """Raise FlowlessError where another reading has begun since this one, or the file was closed."""
        if self._closed:
            raise FlowlessError(f"{printable(self.path)}: it is closed; read its frames before, inside `with`.")
        if reading != self._reading:
            raise FlowlessError(f"{printable(self.path)}: another reading of it has begun, which ends this one. Use two VideoReaders.")

    def _to_the_beginning(self) -> None:
        """Have the file at its first packet, and a decoder that has seen nothing of it; what comes next uses both."""
        self._reading += 1
        self._check_current(self._reading)
        kept = self._line.packets is not None
        if self._decoder_fresh and (kept or self._at_start):
            pass
        elif kept and self._line.jumps:
            self._video.stream.codec_context.flush_buffers()
            self._video.stream.codec_context.skip_frame = "DEFAULT"
        else:
            # Not every decoder forgets what it has seen, nor does every container find its first byte again.
            self._video.container.close()
            self._open()
        self._at_start = self._decoder_fresh = False

    def _by_time_stamp(self, ordinals: list[int], *, all_of_them: bool = False) -> Iterator[tuple[int, VideoFrame]]:
        """Yield the wanted frames, ascending, up to the first that comes out of turn; with `all_of_them` nothing between is left out."""
        # What is left out cannot be checked: only where each frame is known to come out in its turn, or stamps at a steady rate say so.
        sure = (self._info is not None and self._info.proved) or not varies(self._line.pts)
        drops = sure and not all_of_them and drops_unreferenced(self._video)
        with wrap_io_errors(self.path):
            for run in runs_of(self._line, ordinals):
                left = run.wanted[::-1]
                try:
                    for ordinal, frame in check_order(self._decode_run(run, drops=drops), self._line, run, gaps=drops):
                        if ordinal == left[-1]:
                            yield left.pop(), frame
                        elif ordinal > left[-1]:
                            return
                        if not left:
                            break
                except (av.error.FFmpegError, UnexpectedFrame):
                    return  # decoding in order says whether this is damage, and where
                if left:
                    return

    def _decode_run(self, run: Run, *, drops: bool) -> Iterator[VideoFrame]:
        packets = self._packets_from(run.key)
        reading = None
        context = self._video.stream.codec_context
        begin = int(self._line.key_frames[run.key]) if run.key else 0
        # What is shown before a wanted frame may be decoded after it; where nothing is left out, all of it has to come out in its turn.
        to_feed = set(self._line.pts[run.wanted if drops else slice(begin, run.wanted[-1] + 1)].tolist())
        for packet in packets:
            reading = reading or self._reading
            self._check_current(reading)
            wanted = packet.pts in to_feed
            if drops:
                context.skip_frame = "DEFAULT" if wanted else "NONREF"
            yield from self._video.stream.decode(packet)
            to_feed.discard(packet.pts)
            if not to_feed:
                break
        # Nothing wanted lies beyond: have the frames that wait for their turn come out now.
        with suppress(av.error.EOFError):
            yield from self._video.stream.decode(None)

    def _packets_from(self, key: int) -> Iterator[Packet]:
        """Go to a key frame, one of `key_frames` by its number; yield the packets from there on."""
        line = self._line
        if key == 0:
            # The file's first packet may lie before the first frame shown: begin where the file begins.
            self._to_the_beginning()
        else:
            self._reading += 1
            self._check_current(self._reading)
            if not self._decoder_fresh:
                self._video.stream.codec_context.flush_buffers()
        self._decoder_fresh = False
        container, stream, stamp = self._video.container, self._video.stream, int(line.pts[line.key_frames[key]])
        if line.packets is not None:
            begin = 0 if key == 0 else next(place for place, packet in enumerate(line.packets) if packet.pts == stamp)
            return iter(line.packets[begin:])
        if key:
            self._at_start = False
            if len(line.key_bytes):
                container.seek(int(line.key_bytes[key]), stream=stream, unsupported_byte_offset=True)
                return from_key(packets_of(self._video, self.path), stamp)
            container.seek(stamp, stream=stream, backward=True)
        return packets_of(self._video, self.path)


def _line_of(info: VideoInfo) -> Timeline:
    named = np.asarray(info.pts) if info.jumps else np.empty(0, np.int64)
    return Timeline(
        count=info.frames, pts=named, key_frames=np.asarray(info.key_frames), key_bytes=np.asarray(info.key_bytes), missing=info.missing
    )


def _counted(line: Timeline, stamps: list[int | None]) -> Timeline:
    """Return the time line of frames that were decoded in order: times to look frames up by, which name none."""
    times = np.empty(0, np.int64)
    if len(line.dts) == len(stamps):
        times = line.dts  # in the order of showing they are the same, later by a constant
    elif None not in stamps:
        times = np.asarray(stamps, np.int64)
    nothing = np.empty(0, np.int64)
    return replace(line, count=len(stamps), pts=ascending(times), key_frames=nothing, key_bytes=nothing)
