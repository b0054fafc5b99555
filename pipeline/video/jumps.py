"""Decoding from key frames on: which runs of frames, which frames may be left out, and whether each comes out in its turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame

from flowless.pipeline.video.container import OpenVideo
from flowless.pipeline.video.timeline import Timeline

#: Frames between two wanted ones that are decoded rather than jumped over: a jump costs about as much.
_WORTH_A_JUMP = 3
#: Packets between a place in the file and the key frame that is looked for there.
_SOON = 64


class UnexpectedFrame(Exception):
    """A frame came out that the time line has elsewhere, or not at all."""


@dataclass(frozen=True)
class Run:
    """Frames decoded in one go from a key frame."""

    key: int
    """The key frame's number among `key_frames`; the first stands for the file's beginning."""
    wanted: list[int]
    """Ordinals of the frames to take, ascending."""


def runs_of(line: Timeline, ordinals: list[int]) -> list[Run]:
    """Return the runs in which ascending ordinals are reached."""
    runs: list[Run] = []
    last = -1
    for ordinal in ordinals:
        key = max(int(np.searchsorted(line.key_frames, ordinal, side="right")) - 1, 0)
        if not runs or int(line.key_frames[key]) - last > _WORTH_A_JUMP:
            runs.append(Run(key, []))
        runs[-1].wanted.append(ordinal)
        last = ordinal
    return runs


def from_key(packets: Iterable[Packet], stamp: int) -> Iterator[Packet]:
    """Yield packets from a key frame on, which lies near: reading may have begun in the middle of what is before it.

    Raises:
        UnexpectedFrame: It does not come soon.
    """
    found = False
    for number, packet in enumerate(packets):
        found = found or (packet.is_keyframe and packet.pts == stamp)
        if found:
            yield packet
        elif number > _SOON:
            raise UnexpectedFrame


def check_order(frames: Iterable[VideoFrame], line: Timeline, run: Run, *, gaps: bool) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the frames of a run from its key frame on, with their ordinals.

    Args:
        frames: What the decoder gives.
        line: Where each frame should be.
        run: Where decoding began.
        gaps: Whether the decoder leaves frames out.

    Raises:
        UnexpectedFrame: A frame comes out of turn, or is damaged; later ones may be made from it, though no decoder says so.
    """
    due, sound = int(line.key_frames[run.key]) if run.key else 0, run.key == 0
    for frame in frames:
        if frame.pts is None or frame.is_corrupt:
            raise UnexpectedFrame
        ordinal = int(np.searchsorted(line.pts, frame.pts))
        if not sound and frame.pts < line.pts[due]:
            continue  # shown before the key frame, and made from what was jumped over
        if ordinal == len(line.pts) or line.pts[ordinal] != frame.pts or ordinal < due or (ordinal > due and not (gaps and sound)):
            raise UnexpectedFrame
        # Some streams have no pictures that stand alone, but renew them a stripe at a time (H.264's intra refresh), and
        # call the start of such a wave a key frame. Decoding from there comes near the right picture, and no more.
        if not sound and frame.pict_type != PictureType.I:
            raise UnexpectedFrame
        sound, due = True, ordinal + 1
        yield ordinal, frame


def drops_unreferenced(video: OpenVideo) -> bool:
    """Return whether the decoder may leave out unreferenced frames without harm to the others.

    H.264 marks a frame that no other refers to. HEVC marks one that no other *of its temporal layer* refers to, which is the
    same only in a stream of one layer; the configuration record in its header counts the layers. Others (libdav1d, MPEG-4) do
    not keep time stamps and frames together when frames are left out.
    """
    if video.codec != "hevc":
        return video.codec == "h264"
    record = video.stream.codec_context.extradata or b""
    return len(record) > 22 and record[0] == 1 and record[21] >> 3 & 7 == 1
