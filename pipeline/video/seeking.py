"""Decoding from key frames: plans the runs, and checks that every frame is the expected one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame

from flowless.pipeline.video.container import OpenVideo
from flowless.pipeline.video.timeline import Timeline

#: Largest gap between wanted frames, in frames, that is decoded rather than skipped by a seek, which costs about as much.
_MAX_DECODED_GAP = 3
#: Packets from a seek position within which the key frame must appear.
_MAX_PACKETS_TO_KEY = 64


class UnexpectedFrame(Exception):
    """The decoder returned a frame other than the timeline predicts."""


@dataclass(frozen=True)
class DecodeRun:
    """Frames that are decoded from one key frame without another seek."""

    key: int
    """Position of the key frame in `Timeline.key_frames`; 0 decodes from the beginning of the file."""
    wanted: list[int]
    """Ordinals of the wanted frames, ascending."""


def plan_runs(timeline: Timeline, ordinals: list[int]) -> list[DecodeRun]:
    """Split ascending ordinals into runs, each decoded from the nearest key frame before it."""
    runs: list[DecodeRun] = []
    last = -1
    for ordinal in ordinals:
        key = max(int(np.searchsorted(timeline.key_frames, ordinal, side="right")) - 1, 0)
        if not runs or int(timeline.key_frames[key]) - last > _MAX_DECODED_GAP:
            runs.append(DecodeRun(key, []))
        runs[-1].wanted.append(ordinal)
        last = ordinal
    return runs


def from_key(packets: Iterable[Packet], stamp: int) -> Iterator[Packet]:
    """Skip packets up to the key frame with time stamp `stamp`, and yield the packets from there on.

    Raises:
        UnexpectedFrame: The key frame is not among the next packets.
    """
    found = False
    for number, packet in enumerate(packets):
        found = found or (packet.is_keyframe and packet.pts == stamp)
        if found:
            yield packet
        elif number > _MAX_PACKETS_TO_KEY:
            raise UnexpectedFrame


def check_order(frames: Iterable[VideoFrame], timeline: Timeline, run: DecodeRun, *, gaps: bool) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the frames of a run from its key frame on, with their ordinals.

    Args:
        frames: The decoder's output.
        timeline: Expected time stamps.
        run: The run that is being decoded.
        gaps: Whether the decoder skips non-reference frames.

    Raises:
        UnexpectedFrame: A frame is out of order or damaged; later frames may refer to it without being marked as damaged.
    """
    due, sound = int(timeline.key_frames[run.key]) if run.key else 0, run.key == 0
    for frame in frames:
        if frame.pts is None or frame.is_corrupt:
            raise UnexpectedFrame
        ordinal = int(np.searchsorted(timeline.pts, frame.pts))
        if not sound and frame.pts < timeline.pts[due]:
            continue  # a leading picture: displayed before the key frame, with references before the seek position
        if ordinal == len(timeline.pts) or timeline.pts[ordinal] != frame.pts or ordinal < due or (ordinal > due and not (gaps and sound)):
            raise UnexpectedFrame
        # Streams with intra refresh have no I-pictures: they refresh the picture a stripe at a time and mark the start of each
        # refresh as a key frame. Decoding from there gives an approximate picture only.
        if not sound and frame.pict_type != PictureType.I:
            raise UnexpectedFrame
        sound, due = True, ordinal + 1
        yield ordinal, frame


def can_skip_nonref(video: OpenVideo) -> bool:
    """Return whether the decoder can skip non-reference frames (`skip_frame=NONREF`) without changing the other frames.

    H.264 marks frames that no other frame refers to. HEVC marks frames that no other frame *of the same temporal layer* refers to,
    which is equivalent only with one layer; the configuration record has the number of layers. Other decoders (libdav1d, MPEG-4)
    return wrong time stamps when frames are skipped.
    """
    if video.codec != "hevc":
        return video.codec == "h264"
    record = video.stream.codec_context.extradata or b""
    return len(record) > 22 and record[0] == 1 and record[21] >> 3 & 7 == 1
