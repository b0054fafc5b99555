"""Colour conversion, compared with an independent conversion of the decoded planes in float64."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from video_files import frames_of

#: FFmpeg's number of a matrix -> its Kr and Kb: ITU-R BT.709-6, BT.601-7, BT.2020-2.
MATRIX = {1: (0.2126, 0.0722), 2: (0.299, 0.114), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
UNSTATED, FULL = 2, 2
#: Bits -> largest difference of swscale's fast conversion from exact arithmetic, in levels.
TOLERANCE = {8: 3.0, 10: 4.0}


def reference(frame: VideoFrame) -> np.ndarray:
    """Convert a 4:2:0 frame exactly, repeating each chroma sample for its 2x2 pixels; float64 [H, W, 3], 0 to 255."""
    bits = frame.format.components[0].bits
    planes = []
    for plane in frame.planes:
        samples = np.frombuffer(memoryview(plane), np.uint8 if bits == 8 else np.uint16)
        planes.append(samples.reshape(plane.height, -1)[:, : plane.width].astype(np.float64) / 2 ** (bits - 8))
    luma, blue, red = planes[0], *(plane.repeat(2, 0).repeat(2, 1)[: frame.height, : frame.width] for plane in planes[1:])
    if frame.color_range == FULL:
        most = (2**bits - 1) / 2 ** (bits - 8)
        luma, blue, red = luma / most, (blue - 128) / most, (red - 128) / most
    else:
        luma, blue, red = (luma - 16) / 219, (blue - 128) / 224, (red - 128) / 224
    kr, kb = MATRIX[frame.colorspace]
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    return np.clip(np.stack([r, g, b], axis=-1) * 255, 0, 255)


def decoded(path: Path, number: int) -> VideoFrame:
    with av.open(path) as container:
        return next(frame for place, frame in enumerate(container.decode(video=0)) if place == number)


@pytest.mark.parametrize("name", ["bt709_full_range.mp4", "arm_wrestling.mp4", "av1_video.mkv", "gestures/book.mkv"])
def test_8_bit_clips(name, clips):
    for number in (0, 17):
        wrong = np.abs(frames_of(clips / name, [number])[0] - reference(decoded(clips / name, number)))
        assert wrong.max() <= TOLERANCE[8]
        assert wrong.mean() < 1.6  # half a level of rounding, and swscale's rounding down


def test_10_bit_clips(clips):
    """For 10 bits, swscale interpolates chroma: compare where the chroma around a pixel is constant."""
    path = clips / "h264_10bits.mp4"
    frame = decoded(path, 5)
    assert frame.format.name == "yuv420p10le"
    assert_equal_where_flat(frames_of(path, [5])[0], frame, share=0.002)


@pytest.mark.parametrize("matrix", [1, 6, 9, UNSTATED])
@pytest.mark.parametrize(("pixels", "wide"), [("yuv420p", 1), ("yuv420p", 2), ("yuv420p10le", 1), ("yuv420p10le", 2)])
def test_matrices_and_ranges(matrix, pixels, wide, tmp_path):
    path = tmp_path / "patches.mkv"
    write_patches(path, matrix, pixels, wide)
    frame = decoded(path, 0)
    assert (frame.colorspace, frame.color_range) == (matrix, wide)
    assert_equal_where_flat(frames_of(path, [0])[0], frame, share=0.2)


def assert_equal_where_flat(image: np.ndarray, frame: VideoFrame, *, share: float) -> None:
    exact = reference(frame)
    bits = frame.format.components[0].bits
    flat = np.ones(exact.shape[:2], bool)
    for plane in frame.planes[1:]:
        samples = (
            np.frombuffer(memoryview(plane), np.uint8 if bits == 8 else np.uint16).reshape(plane.height, -1)[:, : plane.width].astype(int)
        )
        padded = np.pad(samples, 2, mode="edge")  # the radius of a bicubic filter
        around = np.stack([padded[y : y + plane.height, x : x + plane.width] for y in range(5) for x in range(5)])
        still = (around.max(axis=0) - around.min(axis=0)) <= 1
        flat &= still.repeat(2, 0).repeat(2, 1)[: frame.height, : frame.width]
    assert flat.mean() >= share, "too little to compare"
    assert np.abs(image - exact)[flat].max() <= TOLERANCE[bits]


def write_patches(path: Path, matrix: int, pixels: str, wide: int) -> None:
    """Write one lossless frame of 8 x 6 patches of 16 pixels that cover the range; set matrix and range in the stream."""
    bits = 10 if "10" in pixels else 8
    rng = np.random.default_rng(matrix)
    low, high = (0, 255) if wide == FULL else (16, 235)
    frame = VideoFrame(128, 96, pixels)
    for plane, size in zip(frame.planes, (16, 8, 8), strict=True):
        values = rng.uniform(low, high, (6, 8)) * 2 ** (bits - 8)
        samples = values.astype(np.uint8 if bits == 8 else np.uint16).repeat(size, 0).repeat(size, 1)
        rows = np.zeros((plane.height, plane.line_size // samples.itemsize), samples.dtype)
        rows[:, : plane.width] = samples
        plane.update(rows.tobytes())
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, pixels
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, wide
        frame.colorspace, frame.color_range = matrix, wide
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
