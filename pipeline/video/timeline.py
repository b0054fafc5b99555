"""The time line of a video: each frame's time stamp in the order of showing, from one pass over the packets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from av.packet import Packet
from numpy.typing import NDArray

from flowless.pipeline.video.container import Limits, OpenVideo, Unreadable, encrypted, packets_of, wrap_io_errors
from flowless.pipeline.video.container_ends import gif_is_cut, matroska_lacks_bytes
from flowless.pipeline.video.h264 import most_reordered
from flowless.pipeline.video.protection import is_scrambled

#: Packets of a file up to this many bytes stay in memory, so that decoding reads the file once.
KEEP_BYTES = 64 * 2**20
#: AVI and ASF store no time stamps of showing: what FFmpeg gives are made from the order of decoding, so B-frames come out wrong.
_NO_TIME_STAMPS = frozenset({"avi", "asf"})
#: Codecs whose decoders give each frame its own time stamp, in the order of those, from any key frame on. Others (such as SVQ3, which
#: lets its last two frames out in the wrong order) are decoded in order and counted.
_JUMPING = frozenset(
    {"h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg",
     "ffv1", "theora", "prores", "dnxhd", "huffyuv", "rawvideo"}
)  # fmt: skip
#: Containers in which a place is found by bytes: their own search by time lands behind the key frame, or reads the whole file.
SEARCHED_BY_PLACE = frozenset({"mpegts", "mpeg"})
#: Codecs whose decoders give no frame for some packets (MPEG-4's pictures that are not coded): only decoding counts frames.
_COUNTED = frozenset({"mpeg4"})
#: Packets by which FFmpeg has guessed, when it opens a file, how far H.264's frames are reordered.
_FIRST_SEEN = 7
#: How many frames shown later may be decoded before a frame: by the codecs' rules; those that are not named reorder none.
_MOST_REORDERED = {"h264": 16, "hevc": 16, "mpeg1video": 1, "mpeg2video": 1, "mpeg4": 1}
#: Containers that do not say where they end: only decoding the last frame shows whether it is whole.
_WITHOUT_AN_END = frozenset({"mpegts", "mpeg", "nut"})


@dataclass(kw_only=True)
class Timeline:
    """Where each frame is in time, and where decoding can start."""

    count: int
    """Packets that hold a shown frame."""
    pts: NDArray[np.int64]
    """Their time stamps, ascending; empty where they do not name frames."""
    key_frames: NDArray[np.int64]
    """Ordinals of frames that decoding can start from; empty where it has to start at the beginning."""
    key_bytes: NDArray[np.int64]
    """Place in the file of each key frame, where it is looked for by place."""
    missing: tuple[int, ...] = ()
    """The container lacks packets after that many frames."""
    dts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Ascending times of decoding of the shown frames: all that AVI knows of time. Empty for others."""
    certain: bool = True
    """Whether each of those packets gives a frame, as far as the codec is known."""
    ends: bool = True
    """Whether the container says that the last frame is whole."""
    packets: list[Packet] | None = None
    """All packets in the order of decoding, where they were kept."""

    @property
    def jumps(self) -> bool:
        """Whether time stamps name frames."""
        return len(self.key_frames) > 0


def read_timeline(video: OpenVideo, path: str | os.PathLike[str]) -> Timeline:
    """Read all packets of an open file.

    Args:
        video: The open file, at its beginning.
        path: Its name, for errors.

    Raises:
        Unreadable: The file has no packets, or ends before what its own index says.
    """
    seen = _Seen(kept=[], is_mpeg=video.codec in {"mpeg1video", "mpeg2video"}, behind=2 if "mpegts" in video.formats else 1)
    most = Limits.from_environment().frames
    with wrap_io_errors(path):
        for packet in packets_of(video, path):
            if seen.first and packet.has_sidedata("encryption_info"):
                raise encrypted(path)
            seen.take(packet, shown=not packet.is_discard and not _hidden(packet, video.codec))
            if len(seen.pts) > most:
                Limits(frames=most).refuse(path, "frames", len(seen.pts))
    if not seen.pts:
        if "mpegts" in video.formats and is_scrambled(path):
            raise encrypted(path)
        raise Unreadable(path, "it has no frames")
    if _cut_off(video, path, seen):
        torn = "gif" in video.formats  # whose last packet is what is left of a picture
        raise Unreadable(path, f"it is cut off after {len(seen.pts) - torn} frames")
    limit = most_reordered(video.stream.codec_context.extradata) if video.codec == "h264" else None
    order = _order(video, seen, limit)
    keys = np.empty(0, np.int64)
    places = np.empty(0, np.int64)
    pts = np.empty(0, np.int64)
    if order is not None:
        pts = np.asarray(seen.pts, np.int64)[order]
        keys = np.flatnonzero(np.asarray(seen.keys)[order])
        if SEARCHED_BY_PLACE & video.formats:
            # A packet of MPEG-PS may begin with the end of another frame: reading begins one before.
            places = np.asarray(seen.places_before if "mpeg" in video.formats else seen.places, np.int64)[order][keys]
    dts = [stamp for stamp in seen.dts if stamp is not None] if _NO_TIME_STAMPS & video.formats else []
    return Timeline(
        count=len(seen.pts),
        pts=pts,
        key_frames=keys,
        key_bytes=places,
        missing=tuple(sorted({min(place, len(seen.pts)) for place in seen.missing})),
        dts=np.sort(np.asarray(dts, np.int64)) if len(dts) == len(seen.dts) else np.empty(0, np.int64),
        certain=video.codec not in _COUNTED and not seen.sizes_differ and not (video.codec == "h264" and limit is None and _guesses(order)),
        ends=not _WITHOUT_AN_END & video.formats,
        packets=seen.kept,
    )


def ascending(stamps: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return time stamps in the order of showing as a clock that never goes back.

    Where recordings were joined, a later one's clock may begin anywhere: a step back becomes a usual step.
    """
    times = np.asarray(stamps, np.int64)
    if len(times) < 2:
        return times
    steps = np.diff(times)
    forward = steps[steps > 0]
    usual = int(np.median(forward)) if len(forward) else 1
    return times[0] + np.concatenate([[0], np.cumsum(np.where(steps > 0, steps, usual))])


@dataclass
class _Seen:
    """What one pass over the packets gathers of those that hold a shown frame, in the order of decoding."""

    kept: list[Packet] | None
    is_mpeg: bool
    """Whether it is MPEG-1 or MPEG-2."""
    behind: int
    """Packets from one that the demuxer marks up to the gap: in a transport stream it marks the one before the torn one."""
    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    keys: list[bool] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """Where in the file a packet begins, as far as the container says: the newest place up to it."""
    places_before: list[int] = field(default_factory=list)
    """The newest other place before that."""
    missing: list[int] = field(default_factory=list)
    """Numbers of shown frames after which the demuxer found packets missing."""
    all_dts: list[int] = field(default_factory=list)
    """Times of decoding of all packets that have one."""
    packets: int = 0
    size: int = 0
    begins_with_key: bool = False
    first: bool = True
    first_pts: int | None = None
    place: int = 0
    place_before: int = 0
    torn: bool = False
    """Whether the last packet is not whole."""
    mpeg_size: bytes = b""
    """Rows and columns by the newest header of MPEG-1 or MPEG-2."""
    sizes_differ: bool = False
    """Whether those change: the decoder loses a frame there."""

    def take(self, packet: Packet, *, shown: bool) -> None:
        if self.first:
            self.first, self.begins_with_key, self.first_pts = False, packet.is_keyframe and packet.pts is not None, packet.pts
        self.packets += 1
        self.size += packet.size
        self.torn = packet.is_corrupt
        if packet.is_corrupt:
            self.missing.append(len(self.pts) + self.behind)
        if packet.pos is not None and packet.pos != self.place:
            self.place_before, self.place = self.place, packet.pos
        if packet.dts is not None:
            self.all_dts.append(packet.dts)
        if shown:
            self.pts.append(packet.pts)
            self.dts.append(packet.dts)
            self.keys.append(packet.is_keyframe)
            self.places.append(self.place)
            self.places_before.append(self.place_before)
        if self.is_mpeg and packet.is_keyframe:
            self._note_size(bytes(packet))
        if self.kept is not None:
            self.kept.append(packet)
            if self.size > KEEP_BYTES:
                self.kept = None

    def _note_size(self, data: bytes) -> None:
        place = data.find(b"\0\0\1\xb3") + 4
        size = data[place : place + 3] if place > 3 else self.mpeg_size
        self.sizes_differ = self.sizes_differ or (self.mpeg_size not in {b"", size})
        self.mpeg_size = size


def _hidden(packet: Packet, codec: str) -> bool:
    """Return whether a packet is decoded but never shown: VP8 keeps its alternative reference frames in packets of their own.

    Bit 4 of a VP8 frame's first byte is `show_frame` (RFC 6386, section 9.1). VP9 and AV1 wrap such frames
    in the next shown one. Frames outside an MP4 edit list, hidden too, are flagged by the demuxer (`is_discard`).
    """
    return codec == "vp8" and not memoryview(packet)[0] >> 4 & 1


def _order(video: OpenVideo, seen: _Seen, limit: int | None) -> NDArray[np.int64] | None:
    """Return the shown packets' places in the order of showing; None where time stamps do not say it.

    They do not where some are missing or doubled, where the stream begins between key frames or lacks packets (only decoding says how many
    frames there are), and where clocks overlap: then the times of decoding go back, or a frame would be shown long before its turn.
    """
    if _NO_TIME_STAMPS & video.formats or video.codec not in _JUMPING or seen.missing or None in seen.pts:
        return None
    stamps = np.asarray(seen.pts, np.int64)
    order = np.argsort(stamps, kind="stable")
    begins_cleanly = seen.begins_with_key and seen.first_pts is not None and seen.first_pts <= stamps[order[0]]
    if not begins_cleanly or not (np.diff(stamps[order]) > 0).all() or (np.diff(np.asarray(seen.all_dts, np.int64)) < 0).any():
        return None
    before = _decoded_before(order)
    most = _MOST_REORDERED.get(video.codec, 0) if limit is None else limit
    # A decoder that reorders frames whose stamps do not was given the times of decoding.
    if before.max() > most or (not before.any() and len(order) > 2 and video.stream.codec_context.has_b_frames):
        return None
    return order


def _decoded_before(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each packet, in the order of decoding, how many frames shown later come before it (none but the next 32 are looked at)."""
    before = np.zeros(len(order), np.int64)
    shown = np.empty(len(order), np.int64)
    shown[order] = np.arange(len(order))
    if not (shown == np.arange(len(order))).all():
        for distance in range(1, min(33, len(order))):
            before[distance:] += shown[:-distance] > shown[distance:]
    return before


def _guesses(order: NDArray[np.int64] | None) -> bool:
    """Return whether a decoder that has to guess how far frames are reordered (H.264's) begins with too little: it loses a frame then."""
    if order is None:
        return False
    before = _decoded_before(order)
    return before.max() > before[:_FIRST_SEEN].max()


def _cut_off(video: OpenVideo, path: str | os.PathLike[str], seen: _Seen) -> bool:
    """Return whether the file ends before what its own container says, by its index, length or blocks (a tag is not believed)."""
    if "gif" in video.formats:
        return gif_is_cut(path)
    if "mp4" in video.formats:
        return seen.packets < sum(entry.size > 0 for entry in video.stream.index_entries)
    if "matroska" in video.formats:
        return seen.torn or matroska_lacks_bytes(path)
    return seen.torn and not SEARCHED_BY_PLACE & video.formats
