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
    seen = _Seen(kept=[] if keep_bytes else None)
    codec = video.stream.codec_context.codec.canonical_name
    with told_by_name(path):
        for packet in video.container.demux(video.stream):
            if packet.size:  # the demuxer marks the end by an empty one
                seen.take(packet, shown=not packet.is_discard and not _hidden(packet, codec), keep_bytes=keep_bytes)
    if not seen.shown:
        raise Unreadable(path, "it has no frames")
    trusted = _trusted(video, seen)
    ordered = tuple(sorted(pts for pts in seen.shown if pts is not None)) if trusted else ()
    if _cut_off(video, seen):
        raise Unreadable(path, f"it is cut off after {len(seen.shown)} frames")
    ordinal_of = {pts: ordinal for ordinal, pts in enumerate(ordered)}
    return Timeline(
        pts=ordered,
        key_frames=tuple(sorted(ordinal_of[pts] for pts in seen.keys if pts is not None)) if trusted else (),
        time_base=video.stream.time_base or Fraction(1),
        trusted=trusted,
        packets=seen.kept,
        count=len(seen.shown),
    )


def varies(pts: tuple[int, ...]) -> bool:
    """Return whether the time between frames changes by more than rounding to the container's ticks.

    One difference of two rounded stamps is off by up to one tick; a hundredth of the mean on top forgives drift.
    """
    if len(pts) < 3:
        return False
    mean = (pts[-1] - pts[0]) / (len(pts) - 1)
    return any(abs(later - earlier - mean) > 1.5 + mean / 100 for earlier, later in pairwise(pts))


@dataclass
class _Seen:
    """What one pass over the packets gathers, in the order of decoding."""

    kept: list[Packet] | None
    shown: list[int | None] = field(default_factory=list)
    """Time stamps of packets that hold a shown frame."""
    keys: list[int | None] = field(default_factory=list)
    """Those of them that decoding can start from."""
    stamped: list[int] = field(default_factory=list)
    """Time stamps of all packets that have one."""
    packets: int = 0
    size: int = 0
    end: int = 0
    corrupt: bool = False
    begins_with_key: bool = False

    def take(self, packet: Packet, *, shown: bool, keep_bytes: int) -> None:
        pts, key = packet.pts, packet.is_keyframe
        if not self.packets:
            self.begins_with_key = key and pts is not None
        self.packets += 1
        self.size += packet.size
        self.corrupt |= packet.is_corrupt
        if pts is not None:
            self.stamped.append(pts)
            self.end = max(self.end, pts + (packet.duration or 0))
        if shown:
            self.shown.append(pts)
            if key:
                self.keys.append(pts)
        if self.kept is not None:
            self.kept.append(packet)
            if self.size > keep_bytes:
                self.kept = None


def _hidden(packet: Packet, codec: str) -> bool:
    """Return whether a packet is decoded but never shown: VP8 keeps its alternative reference frames in packets of their own.

    Bit 4 of a VP8 frame's first byte is `show_frame` (RFC 6386, section 9.1). VP9 and AV1 wrap such frames
    in the next shown one. Frames outside an MP4 edit list, hidden too, are flagged by the demuxer (`is_discard`).
    """
    return codec == "vp8" and not memoryview(packet)[0] >> 4 & 1


def _trusted(video: OpenVideo, seen: _Seen) -> bool:
    if _NO_TIME_STAMPS & _formats(video) or None in seen.shown:
        return False
    # Frames before the first key frame may or may not decode: only decoding tells how many there are.
    begins_cleanly = seen.begins_with_key and seen.stamped[0] == min(seen.stamped)
    return begins_cleanly and len(set(seen.shown)) == len(seen.shown)


def _cut_off(video: OpenVideo, seen: _Seen) -> bool:
    """Return whether the file ends before what its own header promises."""
    if seen.corrupt:  # the demuxer's word for a packet that the file's end tore
        return True
    if "mp4" in _formats(video):
        return seen.packets < len(video.stream.index_entries)
    # Matroska: one tag a stream (the file's own length may belong to the sound). It includes the last frame, whose length is
    # often unknown, and rounding: short of it by half a second, a twentieth or the longest gap between frames is no damage.
    promised = _tagged_seconds(video.stream)
    if not promised or len(seen.stamped) < 2:
        return False
    ticks = float(video.stream.time_base or 0)
    stamps = sorted(seen.stamped)
    gap = max(later - earlier for earlier, later in pairwise(stamps)) * ticks
    return seen.end * ticks < promised - max(0.5, promised / 20, gap)


def _tagged_seconds(stream: VideoStream) -> float:
    tag = stream.metadata.get("DURATION", "")
    try:
        hours, minutes, seconds = (float(part) for part in tag.split(":"))
    except ValueError:
        return 0.0
    return hours * 3600 + minutes * 60 + seconds


def _formats(video: OpenVideo) -> set[str]:
    return set(video.container.format.name.split(","))
