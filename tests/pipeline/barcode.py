"""Videos whose frames contain their own number as a bar code of ten bits, over a moving background."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flowless.pipeline.video.encode import write_video

BITS = 10
BAR = 16
WIDTH, HEIGHT = BITS * BAR, 96


def draw(number: int) -> np.ndarray:
    """Return frame `number`, uint8 [96, 160, 3]: bars on top, below them a moving texture and a block at changing positions."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    texture = 110 + 60 * np.sin((columns + 3 * number) / 7.0) * np.cos((rows - number) / 5.0)
    frame = np.repeat(texture[:, :, None], 3, axis=2)
    frame[50:70, (number * 11) % 120 : (number * 11) % 120 + 30, number % 3] = 230
    for bit in range(BITS):
        frame[:32, bit * BAR : (bit + 1) * BAR] = 235 if number >> bit & 1 else 20
    return frame.astype(np.uint8)


def read(frame: np.ndarray) -> int:
    """Return the number in the bar code of an upright frame."""
    assert frame.shape == (HEIGHT, WIDTH, 3), frame.shape
    bars = frame[8:24].reshape(16, BITS, BAR, 3)[:, :, 4:12].mean(axis=(0, 2, 3))
    assert not np.any((bars > 90) & (bars < 165)), f"unreadable bars {bars}"
    return sum(1 << bit for bit in range(BITS) if bars[bit] > 128)


@dataclass(frozen=True)
class Kind:
    """An encoding: container, codec and options."""

    name: str
    suffix: str
    codec: str
    options: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    frames: int = 100

    def write(self, folder: Path, numbers: Iterable[int] | None = None) -> Path:
        path = folder / f"{self.name}{self.suffix}"
        quarter_turns = self.more.get("rotation", 0) // 90
        # Stored with the inverse rotation, so that the displayed frame is upright.
        images = (np.rot90(draw(number), quarter_turns) for number in numbers or range(self.frames))
        write_video(path, images, codec=self.codec, options=self.options, **self.more)
        return path


_VARYING = [int(1000 * (number / 25 + 0.4 * (number // 10) + 0.013 * (number % 3))) for number in range(100)]
_X265 = "log-level=error"
_SVT = {"preset": "12", "crf": "40", "svtav1-params": "keyint=30"}

KINDS = (
    Kind("h264_b_pyramid", ".mp4", "libx264", {"bf": "3", "b-pyramid": "normal", "g": "24", "refs": "4"}),
    Kind("h264_open_gop", ".mkv", "libx264", {"x264-params": "open-gop=1:keyint=15:bframes=4:b-adapt=0:scenecut=0"}),
    Kind("h264_intra_refresh", ".mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}),
    Kind("h264_intra_refresh", ".ts", "libx264", {"x264-params": "intra-refresh=1:keyint=20:bframes=0"}),
    Kind("h264_one_key_frame", ".mov", "libx264", {"g": "1000", "bf": "2", "sc_threshold": "0"}),
    Kind("h264_variable_rate", ".mp4", "libx264", {"g": "30", "bf": "3"}, {"timestamps": _VARYING}),
    Kind("h264_variable_rate", ".mkv", "libx264", {"g": "30", "bf": "3"}, {"timestamps": _VARYING}),
    Kind("h264_10_bits", ".mp4", "libx264", {"g": "30"}, {"pixel_format": "yuv420p10le"}),
    Kind("h264_444", ".mp4", "libx264", {"g": "30"}, {"pixel_format": "yuv444p"}),
    Kind("h264_rotated_90", ".mp4", "libx264", {"g": "30"}, {"rotation": 90}),
    Kind("h264_rotated_180", ".mp4", "libx264", {"g": "30"}, {"rotation": 180}),
    Kind("h264_rotated_270", ".mov", "libx264", {"g": "30"}, {"rotation": 270}),
    Kind("h264_transport", ".ts", "libx264", {"g": "24", "bf": "3"}),
    Kind("h264_in_avi", ".avi", "libx264", {"g": "24", "bf": "3"}),
    Kind("h264_bare", ".h264", "libx264", {"g": "24", "bf": "3"}),
    Kind("hevc_open_gop", ".mp4", "libx265", {"x265-params": f"{_X265}:open-gop=1:keyint=20:bframes=4:b-pyramid=1"}),
    Kind("hevc_leading", ".mkv", "libx265", {"x265-params": f"{_X265}:open-gop=0:radl=2:keyint=20:bframes=4"}),
    Kind("hevc_layers", ".mp4", "libx265", {"x265-params": f"{_X265}:temporal-layers=3:keyint=32:bframes=4:b-pyramid=1"}),
    Kind("hevc_10_bits", ".mkv", "libx265", {"x265-params": f"{_X265}:keyint=25"}, {"pixel_format": "yuv420p10le"}),
    Kind("vp8_hidden_frames", ".webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "30", "deadline": "realtime"}),
    Kind("vp9_hidden_frames", ".webm", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "30", "cpu-used": "8"}),
    Kind("av1", ".mkv", "libsvtav1", _SVT),
    Kind("av1", ".mp4", "libsvtav1", _SVT),
    Kind("mpeg4", ".avi", "mpeg4", {"bf": "2", "g": "12", "q": "3"}),
    Kind("mpeg4", ".mp4", "mpeg4", {"bf": "2", "g": "12", "q": "3"}),
    Kind("mpeg2", ".mpg", "mpeg2video", {"bf": "2", "g": "12", "q": "3"}),
    Kind("mjpeg", ".mov", "mjpeg", {"q": "3"}, {"pixel_format": "yuvj420p"}, 40),
    Kind("ffv1", ".mkv", "ffv1", {}, {"pixel_format": "yuv420p"}, 40),
    Kind("long", ".mp4", "libx264", {"g": "50", "bf": "3", "preset": "ultrafast"}, {}, 700),
)
