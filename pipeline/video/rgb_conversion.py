"""Converts decoded frames to upright RGB of one size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from flowless.pipeline.video.info import Orientation


def orientation_of(frame: VideoFrame) -> Orientation:
    """Read the display matrix of a decoded frame as FFmpeg's autorotation does; angles are rounded to multiples of 90 degrees.

    The matrix maps the direction of stored columns to (a, b) and of stored rows to (c, d), x to the right and y downwards.
    """
    try:
        # Not `frame.side_data`: it and the frame refer to each other, so the picture would be freed only by the garbage collector.
        matrix = SideDataContainer(frame).get(Type.DISPLAYMATRIX)  # pyright: ignore[reportArgumentType, reportCallIssue]
    except ValueError:  # PyAV fails where a frame has side data of a type that it does not know
        return Orientation(round(-frame.rotation / 90) % 4 * 90)
    if matrix is None:
        return Orientation()
    (a, b, _), (c, d, _), _ = np.frombuffer(memoryview(matrix), np.int32)[:9].reshape(3, 3).astype(np.float64)
    mirrored = bool(a * d - b * c < 0)
    # Mirrored first: the direction of the stored columns is reversed.
    x, y = (-a, -b) if mirrored else (a, b)
    return Orientation(round(np.degrees(np.arctan2(y, x)) / 90) % 4 * 90, mirrored)


def upright_size(frame: VideoFrame) -> tuple[int, int]:
    """Return rows and columns of a decoded frame as displayed."""
    return (frame.width, frame.height) if orientation_of(frame).rotation % 180 else (frame.height, frame.width)


#: FFmpeg's filters for each orientation, as its autorotation inserts them.
_ORIENTATION_FILTERS = {
    Orientation(0, False): "",
    Orientation(90, False): "transpose=clock,",
    Orientation(180, False): "hflip,vflip,",
    Orientation(270, False): "transpose=cclock,",
    Orientation(0, True): "hflip,",
    Orientation(90, True): "transpose=clock_flip,",
    Orientation(180, True): "vflip,",
    Orientation(270, True): "transpose=cclock_flip,",
}
#: Formats that swscale converts without interpolating chroma, so that conversion and rotation commute, where the picture's sides are even
#: and it is not interlaced.
_PIXELWISE = frozenset({"yuv420p", "yuvj420p", "rgb24", "bgr24", "rgba", "bgra", "gray"})


class Converter:
    """Converts a decoded frame to upright RGB, with the pixels of `ffmpeg -pix_fmt rgb24`; reuses swscale's tables between frames.

    YUV is converted with the matrix and range that the stream specifies, or else BT.601 and limited range, which
    is FFmpeg's default. The conversion is swscale's fast one, within 3 levels of exact arithmetic (4 from ten bits; it
    rounds down: half a level to a level on average). Non-square pixels are not rescaled.

    Args:
        size: Rows and columns of the output. Frames of another size are resized (bicubic), as FFmpeg does where the size changes within
            a stream.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self._reformatter = VideoReformatter()
        self._graph: Graph | None = None
        self._made_for: tuple[object, ...] = ()

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Return uint8 `[H, W, 3]`, a copy."""
        orientation = orientation_of(frame)
        stored = self.size[::-1] if orientation.rotation % 180 else self.size
        plain = frame.format.name in _PIXELWISE and not (frame.height % 2 or frame.width % 2 or frame.interlaced_frame)
        if plain and (frame.height, frame.width) == stored:
            picture = self._reformatter.reformat(frame, format="rgb24", threads=1)
            return orientation.apply(_pixels(picture)).copy()
        return _pixels(self._by_filters(frame, orientation)).copy()

    def _by_filters(self, frame: VideoFrame, orientation: Orientation) -> VideoFrame:
        """Rotate, resize and convert a frame with FFmpeg's filters, in the order of its command line tool."""
        wanted = (frame.format.name, frame.width, frame.height, frame.colorspace, frame.color_range, orientation)
        if self._graph is None or wanted != self._made_for:
            self._graph, self._made_for = _filters(frame, orientation, self.size), wanted
        self._graph.vpush(frame)
        return self._graph.vpull()


def stacked(frames: Iterable[tuple[int, NDArray[np.uint8]]], ordinals: Sequence[int], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Stack `(ordinal, frame)` pairs to uint8 `[K, H, W, 3]` in the order of `ordinals`, which may repeat."""
    found = dict(frames)
    return np.stack([found[ordinal] for ordinal in ordinals]) if ordinals else np.empty((0, *size, 3), np.uint8)


def _filters(frame: VideoFrame, orientation: Orientation, size: tuple[int, int]) -> Graph:
    graph = Graph()
    graph.threads = 1
    colour = f"colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
    source = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/25:{colour}"
    same = upright_size(frame) == size  # FFmpeg inserts the conversion by itself
    steps = _ORIENTATION_FILTERS[orientation] + ("" if same else f"scale=w={size[1]}:h={size[0]}:flags=bicubic,") + "format=rgb24"
    nodes = [graph.add("buffer", source)]
    for step in steps.split(","):
        name, _, options = step.partition("=")
        nodes.append(graph.add(name, options) if options else graph.add(name))
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    return graph


def _pixels(picture: VideoFrame) -> NDArray[np.uint8]:
    plane = picture.planes[0]
    # Rows may be padded.
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(picture.height, plane.line_size)[:, : 3 * picture.width]
    return rows.reshape(picture.height, picture.width, 3)
