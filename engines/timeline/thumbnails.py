"""Small pictures of a video's frames, kept on disk while the video is read."""

from __future__ import annotations

import bisect
import io
import tempfile
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Longer side of a thumbnail, in pixels, and its JPEG quality.
_SIDE, _QUALITY = 192, 75


class Thumbnails:
    """JPEGs of frames, at most one every `spacing` seconds: 3 KB each, in a temporary file, so that an hour takes no memory.

    Args:
        spacing: Seconds between two of them, at least.
    """

    def __init__(self, spacing: float) -> None:
        self._spacing = spacing
        self._file = tempfile.TemporaryFile(prefix="flowless-")  # noqa: SIM115 - __exit__ closes it
        self._times: list[float] = []
        self._places: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Remove the temporary file."""
        self._file.close()

    def add(self, seconds: float, frame: NDArray[np.uint8]) -> None:
        """Keep a frame uint8 `[H, W, 3]`, unless the last one that was kept is nearer than the spacing."""
        if self._times and seconds < self._times[-1] + self._spacing - 1e-9:
            return
        image = Image.fromarray(frame)
        image.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
        stream = io.BytesIO()
        image.save(stream, format="jpeg", quality=_QUALITY)
        data = stream.getvalue()
        self._times.append(seconds)
        self._places.append((self._file.seek(0, io.SEEK_END), len(data)))
        self._file.write(data)

    def nearest(self, seconds: float) -> bytes | None:
        """Return the JPEG of the frame nearest to a time; None where there is none."""
        if not self._times:
            return None
        after = bisect.bisect_left(self._times, seconds)
        number = min({max(after - 1, 0), min(after, len(self._times) - 1)}, key=lambda one: abs(self._times[one] - seconds))
        offset, size = self._places[number]
        self._file.seek(offset)
        return self._file.read(size)
