"""From a decoded picture to upright RGB of one size."""

from __future__ import annotations

import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from flowless.pipeline.video.info import Orientation


def orientation_of(frame: VideoFrame) -> Orientation:
    """Read the display matrix of a decoded frame, as FFmpeg's autorotation does; turns that are no quarter turns are rounded.

    The matrix takes stored columns to (a, b) and stored rows to (c, d), x to the right and y downwards.
    """
    try:
        # Not `frame.side_data`, which the frame holds and which holds the frame: the decoder's pictures would wait for the collector.
        matrix = SideDataContainer(frame).get(Type.DISPLAYMATRIX)  # pyright: ignore[reportArgumentType, reportCallIssue]
    except ValueError:  # PyAV does not know all kinds of data that FFmpeg puts beside a frame, and then shows none
        return Orientation(round(-frame.rotation / 90) % 4 * 90)
    if matrix is None:
        return Orientation()
    (a, b, _), (c, d, _), _ = np.frombuffer(memoryview(matrix), np.int32)[:9].reshape(3, 3).astype(np.float64)
    mirrored = bool(a * d - b * c < 0)
    # Mirrored first: the stored columns run the other way then.
    x, y = (-a, -b) if mirrored else (a, b)
    return Orientation(round(np.degrees(np.arctan2(y, x)) / 90) % 4 * 90, mirrored)


def upright_size(frame: VideoFrame) -> tuple[int, int]:
    """Return rows and columns of a decoded frame as it is shown."""
    return (frame.width, frame.height) if orientation_of(frame).rotation % 180 else (frame.height, frame.width)


class Converter:
    """Decoded frame to upright RGB; keeps swscale's tables from one frame to the next.

    Colour: YUV becomes RGB by the matrix and range that the stream states, BT.601 and limited range where it states none, which
    is FFmpeg's own rule. The conversion is swscale's fast one, within 3 levels of exact arithmetic (4 from ten bits; it
    rounds down: half a level to a level on average). Non-square pixels stay as they are stored.

    Args:
        size: Rows and columns of every picture. One whose own size differs is scaled to it (bicubic), as FFmpeg does where the size of a
            stream's pictures changes on the way.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Return uint8 `[H, W, 3]`, an array of its own."""
        orientation = orientation_of(frame)
        height, width = self.size[::-1] if orientation.rotation % 180 else self.size
        same = (frame.height, frame.width) == (height, width)
        scaling = {} if same else {"width": width, "height": height, "interpolation": Interpolation.BICUBIC}
        plane = self._reformatter.reformat(frame, format="rgb24", threads=1, **scaling).planes[0]
        # Rows may end in padding.
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)[:, : 3 * width]
        return orientation.apply(rows.reshape(height, width, 3)).copy()
