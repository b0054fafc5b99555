"""The time line of a video: each frame's time stamp in presentation order, from one pass over the packets."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

from av.packet import Packet
from av.video.stream import VideoStream

from flowless.pipeline.container import OpenVideo, Unreadable, told_by_name

#: Packets of a file up to this many bytes stay in memory, so that decoding reads the file once.
KEEP_BYTES = 64 * 2**20
#: Containers and codecs whose packets' time stamps are not what they seem. AVI stores none: they are made from the
#: order of decoding, so B-frames come out wrong.
_NO_TIME_STAMPS = frozenset({"avi"})


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Where each frame is in time, and where decoding can start."""

    pts: tuple[int, ...]
    """Time stamps of the frames that are shown, ascending, in ticks of `time_base`; empty where none can be trusted."""
    key_frames: tuple[int, ...]
    """Presentation ordinals of frames that decoding can start from."""
    time_base: Fraction
    """Seconds in a tick."""
    trusted: bool
    """Whether time stamps identify frames; where not, only decoding in order gives the right ones."""
    packets: list[Packet] | None = field(default=None, repr=False, compare=False)
    """All packets in the order of decoding, where they were kept."""
    count: int = 0
    """Packets that hold a shown frame, whether or not their time stamps can be trusted."""

    @cached_property
    def ordinal_of(self) -> dict[int, int]:
        """Presentation ordinal of each time stamp."""
        return {pts: ordinal for ordinal, pts in enumerate(self.pts)}


def read_timeline(video: OpenVideo, path: str | os.PathLike[str], *, keep_bytes: int = 0) -> Timeline:
    """Read all packets of an open file.

    Args:
        video: The open file, at its beginning.
        path: Its name, for errors.
        keep_bytes: Keep the packets if together they are no larger; 0 keeps none.

    Raises:
        Unreadable: The file has no packets, or ends before what its own header promises.
    """
    kept: list[Packet] | None = [] if keep_bytes else None
    size, shown, keys, corrupt = 0, [], [], False
    start: tuple[int | None, bool] | None = None
    earliest: int | None = None
    codec = video.stream.codec_context.codec.canonical_name
    with told_by_name(path):
        for packet in video.container.demux(video.stream):
            if not packet.size:
                continue  # the demuxer's mark of the end
            pts, key = packet.pts, packet.is_keyframe
            start = start or (pts, key)
            corrupt |= packet.is_corrupt
            if pts is not None:
                earliest = pts if earliest is None else min(earliest, pts)
            if not packet.is_discard and not _hidden(packet, codec):
                shown.append(pts)
                if key:
                    keys.append(pts)
            if kept is not None:
                size += packet.size
                kept.append(packet)
                if size > keep_bytes:
                    kept = None
    if start is None or not shown:
        raise Unreadable(path, "it has no frames")
    trusted = _trusted(video, shown, first=start, earliest=earliest)
    ordered = tuple(sorted(shown)) if trusted else ()
    _refuse_cut_off(video.stream, path, len(shown), ordered, corrupt=corrupt)
    ordinal_of = {pts: ordinal for ordinal, pts in enumerate(ordered)}
    return Timeline(
        pts=ordered,
        key_frames=tuple(sorted(ordinal_of[pts] for pts in keys)) if trusted else (),
        time_base=video.stream.time_base or Fraction(1),
        trusted=trusted,
        packets=kept,
        count=len(shown),
    )


def varies(pts: tuple[int, ...]) -> bool:
    """Return whether the time between frames changes by more than rounding to the container's ticks.

    One difference of two rounded stamps is off by up to one tick; a hundredth of the mean on top forgives drift.
    """
    if len(pts) < 3:
        return False
    mean = (pts[-1] - pts[0]) / (len(pts) - 1)
    return any(abs(later - earlier - mean) > 1.5 + mean / 100 for earlier, later in pairwise(pts))


def _hidden(packet: Packet, codec: str) -> bool:
    """Return whether a packet is decoded but never shown: VP8 keeps its alternative reference frames in packets of their own.

    Bit 4 of a VP8 frame's first byte is `show_frame` (RFC 6386, section 9.1). VP9 and AV1 wrap such frames in the next shown one.
    Frames outside an MP4 edit list, hidden too, are flagged by the demuxer (`is_discard`).
    """
    return codec == "vp8" and not memoryview(packet)[0] >> 4 & 1


def _trusted(video: OpenVideo, shown: list[int | None], *, first: tuple[int | None, bool], earliest: int | None) -> bool:
    if _NO_TIME_STAMPS & set(video.container.format.name.split(",")) or any(pts is None for pts in shown):
        return False
    # Frames before the first key frame may or may not decode: only decoding tells how many there are.
    begins_cleanly = first[1] and first[0] == earliest
    return begins_cleanly and len(set(shown)) == len(shown)


def _refuse_cut_off(stream: VideoStream, path: str | os.PathLike[str], count: int, pts: tuple[int, ...], *, corrupt: bool) -> None:
    promised = _declared_seconds(stream)
    # A stream's declared length includes its last frame and rounding, so half a second or a twentieth is no damage.
    have = float((pts[-1] - min(pts[0], 0)) * (stream.time_base or 0)) if pts else None
    if corrupt or (promised and have is not None and have < promised - max(0.5, promised / 20)):
        ends = f"after {count} frames" + (f" ({have:.1f} of {promised:.1f} s)" if promised and have is not None else "")
        raise Unreadable(path, f"it is cut off {ends}")


def _declared_seconds(stream: VideoStream) -> float:
    tag = stream.metadata.get("DURATION", "")  # Matroska: one tag a stream; its own length may belong to the sound
    if tag.count(":") == 2:
        try:
            hours, minutes, seconds = (float(part) for part in tag.split(":"))
            return hours * 3600 + minutes * 60 + seconds
        except ValueError:
            return 0.0
    return float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
