"""Reads a video's timeline, the time stamp of each frame in display order, in one pass over its packets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from av.packet import Packet
from numpy.typing import NDArray

from flowless.pipeline.video.container import Limits, OpenVideo, Unreadable, encrypted, packets_of, wrap_io_errors
from flowless.pipeline.video.encryption import is_scrambled
from flowless.pipeline.video.h264_header import max_reorder_frames
from flowless.pipeline.video.truncation import gif_is_truncated, matroska_is_truncated

#: Size up to which all packets of a file are kept in memory, so that the file is read only once.
KEEP_BYTES = 64 * 2**20
#: Containers without presentation time stamps (PTS): FFmpeg derives them from the decode order, which is wrong for B-frames.
_NO_TIME_STAMPS = frozenset({"avi", "asf"})
#: Codecs whose decoders return each frame with its own time stamp, in ascending order, from any key frame on. Others (such as SVQ3, which
#: returns its last two frames in the wrong order) are decoded sequentially and counted.
_SEEKABLE_CODECS = frozenset(
    {"h264", "hevc", "av1", "vp8", "vp9", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg",
     "ffv1", "theora", "prores", "dnxhd", "huffyuv", "rawvideo"}
)  # fmt: skip
#: Containers in which key frames are found by byte position: FFmpeg's seek by time lands behind the key frame, or reads the whole file.
SEEK_BY_BYTES = frozenset({"mpegts", "mpeg"})
#: Codecs in which some packets give no frame (`vop_coded` = 0 in MPEG-4), so that frames must be counted by decoding.
_PACKETS_WITHOUT_FRAMES = frozenset({"mpeg4"})
#: Packets from which FFmpeg, when it opens a file, estimates the reordering of H.264.
_PROBED_PACKETS = 7
#: Codec -> largest number of frames that precede a frame in decode order and follow it in display order; 0 for the others.
_MAX_REORDER = {"h264": 16, "hevc": 16, "mpeg1video": 1, "mpeg2video": 1, "mpeg4": 1}
#: Containers that do not store their length: only decoding shows whether the last frame is complete.
_WITHOUT_LENGTH = frozenset({"mpegts", "mpeg", "nut"})


@dataclass(kw_only=True)
class Timeline:
    """Time stamps of the frames, and the key frames that decoding can start from."""

    count: int
    """Number of packets with a displayed frame."""
    pts: NDArray[np.int64]
    """Their presentation time stamps, ascending; empty where time stamps do not identify frames."""
    key_frames: NDArray[np.int64]
    """Ordinals of frames that decoding can start from; empty where it must start at the beginning."""
    key_bytes: NDArray[np.int64]
    """Byte position of each key frame in containers of `SEEK_BY_BYTES`; else empty."""
    missing: tuple[int, ...] = ()
    """Numbers of frames after which packets are missing."""
    dts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Decode time stamps (DTS) of the displayed frames, ascending, for containers without PTS; else empty."""
    count_is_certain: bool = True
    """Whether every such packet gives a frame."""
    end_is_certain: bool = True
    """Whether the container shows that the last frame is complete."""
    packets: list[Packet] | None = None
    """All packets in decode order; None where they exceed `KEEP_BYTES`."""

    @property
    def seekable(self) -> bool:
        """Whether time stamps identify frames, so that decoding can start at any key frame."""
        return len(self.key_frames) > 0


def read_timeline(video: OpenVideo, path: str | os.PathLike[str]) -> Timeline:
    """Read all packets of an open file.

    Args:
        video: The open file, at its beginning.
        path: Its name, for error messages.

    Raises:
        Unreadable: The file has no packets, is truncated, or is encrypted.
    """
    seen = _PacketScan(kept=[], is_mpeg=video.codec in {"mpeg1video", "mpeg2video"}, behind=2 if "mpegts" in video.formats else 1)
    most = Limits.from_environment().frames
    with wrap_io_errors(path):
        for packet in packets_of(video, path):
            if seen.first and packet.has_sidedata("encryption_info"):
                raise encrypted(path)
            seen.add(packet, shown=not packet.is_discard and not _hidden(packet, video.codec))
            if len(seen.pts) > most:
                Limits(frames=most).refuse(path, "frames", len(seen.pts))
    if not seen.pts:
        if "mpegts" in video.formats and is_scrambled(path):
            raise encrypted(path)
        raise Unreadable(path, "it has no frames")
    if _is_truncated(video, path, seen):
        incomplete = "gif" in video.formats  # a GIF's last packet is then an incomplete picture
        raise Unreadable(path, f"it is cut off after {len(seen.pts) - incomplete} frames")
    limit = max_reorder_frames(video.stream.codec_context.extradata) if video.codec == "h264" else None
    order = _display_order(video, seen, limit)
    keys = np.empty(0, np.int64)
    positions = np.empty(0, np.int64)
    pts = np.empty(0, np.int64)
    if order is not None:
        pts = np.asarray(seen.pts, np.int64)[order]
        keys = np.flatnonzero(np.asarray(seen.keys)[order])
        if SEEK_BY_BYTES & video.formats:
            # A packet of MPEG-PS may begin with the end of the previous frame: start at the packet before it.
            positions = np.asarray(seen.previous_positions if "mpeg" in video.formats else seen.positions, np.int64)[order][keys]
    dts = [stamp for stamp in seen.dts if stamp is not None] if _NO_TIME_STAMPS & video.formats else []
    return Timeline(
        count=len(seen.pts),
        pts=pts,
        key_frames=keys,
        key_bytes=positions,
        missing=tuple(sorted({min(count, len(seen.pts)) for count in seen.missing})),
        dts=np.sort(np.asarray(dts, np.int64)) if len(dts) == len(seen.dts) else np.empty(0, np.int64),
        count_is_certain=(
            video.codec not in _PACKETS_WITHOUT_FRAMES
            and not seen.sizes_differ
            and not (video.codec == "h264" and limit is None and _reorders_more_than_probed(order))
        ),
        end_is_certain=not _WITHOUT_LENGTH & video.formats,
        packets=seen.kept,
    )


def ascending(stamps: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the time stamps of frames in display order, made strictly ascending.

    In joined recordings, the clock of a later one may start anywhere: a step that is not positive is replaced by the median step.
    """
    times = np.asarray(stamps, np.int64)
    if len(times) < 2:
        return times
    steps = np.diff(times)
    forward = steps[steps > 0]
    usual = int(np.median(forward)) if len(forward) else 1
    return times[0] + np.concatenate([[0], np.cumsum(np.where(steps > 0, steps, usual))])


@dataclass
class _PacketScan:
    """Data of the packets with a displayed frame, in decode order, collected in one pass over all packets."""

    kept: list[Packet] | None
    is_mpeg: bool
    """Whether the codec is MPEG-1 or MPEG-2."""
    behind: int
    """Packets from a packet marked as corrupt to the gap: in a transport stream the demuxer marks the packet before the incomplete one."""
    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    keys: list[bool] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    """Byte position of each packet, or of the last packet before it with a known position."""
    previous_positions: list[int] = field(default_factory=list)
    """The last position before that one that differs from it."""
    missing: list[int] = field(default_factory=list)
    """Numbers of displayed frames after which the demuxer found packets missing."""
    all_dts: list[int] = field(default_factory=list)
    """DTS of all packets that have one."""
    packets: int = 0
    size: int = 0
    begins_with_key: bool = False
    first: bool = True
    first_pts: int | None = None
    position: int = 0
    previous_position: int = 0
    last_is_corrupt: bool = False
    """Whether the last packet is incomplete."""
    mpeg_size: bytes = b""
    """The size field of the latest sequence header of MPEG-1 or MPEG-2."""
    sizes_differ: bool = False
    """Whether the size changes: the decoder drops a frame there."""

    def add(self, packet: Packet, *, shown: bool) -> None:
        if self.first:
            self.first, self.begins_with_key, self.first_pts = False, packet.is_keyframe and packet.pts is not None, packet.pts
        self.packets += 1
        self.size += packet.size
        self.last_is_corrupt = packet.is_corrupt
        if packet.is_corrupt:
            self.missing.append(len(self.pts) + self.behind)
        if packet.pos is not None and packet.pos != self.position:
            self.previous_position, self.position = self.position, packet.pos
        if packet.dts is not None:
            self.all_dts.append(packet.dts)
        if shown:
            self.pts.append(packet.pts)
            self.dts.append(packet.dts)
            self.keys.append(packet.is_keyframe)
            self.positions.append(self.position)
            self.previous_positions.append(self.previous_position)
        if self.is_mpeg and packet.is_keyframe:
            self._note_size(bytes(packet))
        if self.kept is not None:
            self.kept.append(packet)
            if self.size > KEEP_BYTES:
                self.kept = None

    def _note_size(self, data: bytes) -> None:
        start = data.find(b"\0\0\1\xb3") + 4
        size = data[start : start + 3] if start > 3 else self.mpeg_size
        self.sizes_differ = self.sizes_differ or (self.mpeg_size not in {b"", size})
        self.mpeg_size = size


def _hidden(packet: Packet, codec: str) -> bool:
    """Return whether a packet is decoded but never displayed: VP8 stores its alternate reference frames in separate packets.

    Bit 4 of a VP8 frame's first byte is `show_frame` (RFC 6386, section 9.1). VP9 and AV1 put such frames
    into the packet of the next displayed one. For frames outside an MP4 edit list, the demuxer sets `is_discard`.
    """
    return codec == "vp8" and not memoryview(packet)[0] >> 4 & 1


def _display_order(video: OpenVideo, seen: _PacketScan, limit: int | None) -> NDArray[np.int64] | None:
    """Return the permutation of the displayed packets from decode to display order; None where time stamps do not determine it.

    That is where time stamps are missing or repeated, where the stream begins between key frames or lacks packets (the number of frames is
    then known only after decoding), and where the clocks of joined recordings overlap: then DTS decrease, or the reordering exceeds the
    codec's limit.
    """
    if _NO_TIME_STAMPS & video.formats or video.codec not in _SEEKABLE_CODECS or seen.missing or None in seen.pts:
        return None
    stamps = np.asarray(seen.pts, np.int64)
    order = np.argsort(stamps, kind="stable")
    begins_cleanly = seen.begins_with_key and seen.first_pts is not None and seen.first_pts <= stamps[order[0]]
    if not begins_cleanly or not (np.diff(stamps[order]) > 0).all() or (np.diff(np.asarray(seen.all_dts, np.int64)) < 0).any():
        return None
    depths = _reorder_depths(order)
    most = _MAX_REORDER.get(video.codec, 0) if limit is None else limit
    # If the decoder reorders frames but the time stamps do not, PTS were copied from DTS.
    if depths.max() > most or (not depths.any() and len(order) > 2 and video.stream.codec_context.has_b_frames):
        return None
    return order


def _reorder_depths(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each packet, in decode order, how many of the 32 packets before it are displayed later."""
    depths = np.zeros(len(order), np.int64)
    shown = np.empty(len(order), np.int64)
    shown[order] = np.arange(len(order))
    if not (shown == np.arange(len(order))).all():
        for distance in range(1, min(33, len(order))):
            depths[distance:] += shown[:-distance] > shown[distance:]
    return depths


def _reorders_more_than_probed(order: NDArray[np.int64] | None) -> bool:
    """Return whether a stream reorders more than its first packets: H.264's decoder then drops a frame when it raises its estimate."""
    if order is None:
        return False
    depths = _reorder_depths(order)
    return depths.max() > depths[:_PROBED_PACKETS].max()


def _is_truncated(video: OpenVideo, path: str | os.PathLike[str], seen: _PacketScan) -> bool:
    """Return whether the file is shorter than its container's index, length or blocks state (metadata tags are not used)."""
    if "gif" in video.formats:
        return gif_is_truncated(path)
    if "mp4" in video.formats:
        return seen.packets < sum(entry.size > 0 for entry in video.stream.index_entries)
    if "matroska" in video.formats:
        return seen.last_is_corrupt or matroska_is_truncated(path)
    return seen.last_is_corrupt and not SEEK_BY_BYTES & video.formats
