"""What a video file is: frames, time stamps, size as shown, rotation, codec, key frames."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction

from av.video.frame import VideoFrame

from flowless.errors import FlowlessError
from flowless.pipeline.container import OpenVideo, Unreadable, clockwise_degrees, frames_in_order, open_video
from flowless.pipeline.timeline import KEEP_BYTES, Timeline, read_timeline, varies


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What is known of a video without looking at its pictures. Frames are counted from 0 in presentation order."""

    path: str
    """The file."""
    frames: int
    """Frames that are shown."""
    fps: float
    """Average frames per second; 0 where the file does not say."""
    width: int
    """Columns as shown, after rotation, in pixels."""
    height: int
    """Rows as shown, after rotation, in pixels."""
    rotation: int
    """Clockwise degrees by which the stored frame is turned for showing: 0, 90, 180 or 270."""
    codec: str
    """FFmpeg's name of the codec."""
    variable_rate: bool
    """Whether the time between frames changes by more than rounding."""
    key_frames: tuple[int, ...]
    """Presentation ordinals of frames that decoding can start from; empty where only the beginning is known to do."""
    pts: tuple[int, ...]
    """Time stamp of each frame in ticks of `time_base`; empty where the file has none that can be trusted (AVI)."""
    time_base: Fraction
    """Seconds in a tick."""
    pixel_format: str
    """FFmpeg's name of the stored pixels' format."""
    decoded: bool
    """Whether every frame was decoded, so that `frames` and `pts` are proved rather than read from the packets."""

    def frame_at(self, seconds: float) -> int:
        """Return the ordinal of the first frame shown at `seconds` after the first frame or later; `frames` where there is none."""
        if self.pts:
            # Half a tick of grace: decimal seconds rarely fall on a tick.
            target = self.pts[0] + Fraction(seconds) / self.time_base - Fraction(1, 2)
            return sum(pts < target for pts in self.pts)
        if not self.fps:
            raise FlowlessError(
                f"{self.path}: a time of {seconds} s cannot be found in it, since it states neither time stamps nor a rate."
            )
        return min(max(round(seconds * self.fps), 0), self.frames)


def probe(path: str | os.PathLike[str], *, decode: bool = False) -> VideoInfo:
    """Look at a video file.

    By default one pass over the packets and one decoded frame: 1 to 5 ms for a clip of ten seconds. Where the packets
    cannot say how many frames there are (AVI, a stream that begins between key frames, missing or doubled time
    stamps) everything is decoded, as with `decode`.

    Args:
        path: The file.
        decode: Decode every frame, converting none: count the frames that truly decode, and find damage.

    Raises:
        Unreadable: A FlowlessError with the file's name: it is missing, empty, no video, cut off, or damaged.
    """
    with open_video(path) as video:
        timeline = read_timeline(video, path, keep_bytes=KEEP_BYTES)
        if timeline.packets is not None:
            return _look(video, path, timeline, decode=decode)
    with open_video(path) as video:
        return _look(video, path, timeline, decode=decode)


def _look(video: OpenVideo, path: str | os.PathLike[str], timeline: Timeline, *, decode: bool) -> VideoInfo:
    frames = frames_in_order(video, path, packets=timeline.packets)
    first = next(frames, None)
    if first is None:
        raise Unreadable(path, "no frame of it decodes")
    if decode or not timeline.trusted:
        return _proved(video, path, timeline, first, [first.pts, *(frame.pts for frame in frames)])
    return _info(video, path, first, timeline, decoded=False)


def _proved(video: OpenVideo, path: str | os.PathLike[str], timeline: Timeline, first: VideoFrame, decoded: list[int | None]) -> VideoInfo:
    if timeline.trusted and tuple(decoded) == timeline.pts:
        return _info(video, path, first, timeline, decoded=True)
    # The packets' story and the decoder's differ: the decoder is right, and only decoding in order finds a frame.
    counted = Timeline(pts=(), key_frames=(), time_base=timeline.time_base, trusted=False, count=len(decoded))
    return _info(video, path, first, counted, decoded=True)


def _info(video: OpenVideo, path: str | os.PathLike[str], first: VideoFrame, timeline: Timeline, *, decoded: bool) -> VideoInfo:
    if first.width < 1 or first.height < 1:
        raise Unreadable(path, f"its pictures are {first.width}x{first.height}")
    rotation = clockwise_degrees(first)
    width, height = (first.height, first.width) if rotation % 180 else (first.width, first.height)
    pts = timeline.pts
    stream = video.stream
    if len(pts) > 1:
        fps = float((len(pts) - 1) / ((pts[-1] - pts[0]) * timeline.time_base))
    else:
        fps = float(stream.average_rate or stream.guessed_rate or 0)
    return VideoInfo(
        path=os.fspath(path),
        frames=timeline.count,
        fps=fps,
        width=width,
        height=height,
        rotation=rotation,
        codec=stream.codec_context.codec.canonical_name,
        variable_rate=varies(pts),
        key_frames=timeline.key_frames,
        pts=pts,
        time_base=timeline.time_base,
        pixel_format=first.format.name,
        decoded=decoded,
    )
