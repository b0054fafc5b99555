"""VideoInfo: the properties of a video, as read from the file and stored in the index."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, NamedTuple, SupportsIndex, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from flowless.errors import FlowlessError

#: Gaps that a message lists at most.
_MAX_LISTED = 3
#: Longest list that is stored uncompressed.
_MAX_PLAIN = 16


class Orientation(NamedTuple):
    """Transformation from a stored to a displayed picture: mirrored first, then rotated."""

    rotation: int = 0
    """Clockwise degrees: 0, 90, 180 or 270."""
    mirrored: bool = False
    """Whether the picture is flipped left to right before the rotation."""

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the displayed picture as a view of the stored one `[H, W, 3]`."""
        return np.rot90(image[:, ::-1] if self.mirrored else image, -(self.rotation // 90))


class CompactInts(Sequence[int]):
    """A sequence of integers, stored as compressed differences: a video's time stamps take a few dozen bytes.

    Args:
        values: The integers; they and their differences must fit into 64 bits.
    """

    __slots__ = ("_data", "_length")

    def __init__(self, values: Iterable[int] = ()) -> None:
        array = np.asarray(list(values), np.int64)
        self._length = len(array)
        self._data = zlib.compress(np.diff(array, prepend=np.int64(0)).tobytes(), 9) if self._length else b""

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the numbers as int64 `[length]`."""
        array = np.cumsum(np.frombuffer(zlib.decompress(self._data), np.int64)) if self._length else np.empty(0, np.int64)
        return array if dtype is None else array.astype(dtype)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: SupportsIndex) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> int | tuple[int, ...]:
        found = np.asarray(self)[index]
        return tuple(found.tolist()) if isinstance(index, slice) else int(found)

    def __iter__(self) -> Iterator[int]:
        return iter(np.asarray(self).tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, CompactInts):
            return self._length == other._length and self._data == other._data
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash((self._length, self._data))

    def __repr__(self) -> str:
        return f"CompactInts({list(self)})"

    def to_json(self) -> list[int] | str:
        """Return a short sequence as a list, a long one as base-85 text."""
        return list(self) if self._length <= _MAX_PLAIN else base64.b85encode(self._data).decode()

    @classmethod
    def from_json(cls, value: object) -> CompactInts:
        """Read the output of `to_json`; raise ValueError for anything else."""
        if isinstance(value, list):
            return cls(value)
        if not isinstance(value, str):
            raise ValueError(f"{value!r:.40} is not a list of integers")
        made = cls()
        try:
            made._data = base64.b85decode(value)
            size = len(zlib.decompress(made._data))
        except zlib.error as error:
            raise ValueError(f"{value!r:.40} is not a compressed list of integers") from error
        if size % 8:
            raise ValueError(f"{value!r:.40} is not a compressed list of 64-bit integers")
        made._length = size // 8
        return made


_NONE = CompactInts()


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Properties of a video. Frames are counted from 0 in display order."""

    frames: int
    """Number of displayed frames."""
    fps: float
    """Average frames per second, for display and `seconds`; 0 where the file has neither time stamps nor a rate."""
    width: int
    """Columns of the displayed (rotated) frame, in pixels."""
    height: int
    """Rows of the displayed (rotated) frame, in pixels."""
    rotation: int = 0
    """Clockwise rotation of the stored picture for display, after mirroring: 0, 90, 180 or 270 degrees."""
    mirrored: bool = False
    """Whether the stored picture is flipped left to right for display."""
    codec: str = ""
    """FFmpeg's name of the codec; for a folder, the format of its pictures."""
    folder: bool = False
    """Whether it is a folder of numbered pictures rather than a file."""
    pixel_format: str = ""
    """FFmpeg's name of the pixel format."""
    variable_rate: bool = False
    """Whether the interval between frames varies by more than rounding."""
    time_base: Fraction = Fraction(1)
    """Seconds in a tick."""
    pts: CompactInts = _NONE
    """Each frame's time stamp in ticks of `time_base`, never descending; empty where the file has none."""
    key_frames: CompactInts = _NONE
    """Ordinals of frames that decoding can start from; empty where it must start at the beginning."""
    key_bytes: CompactInts = _NONE
    """Byte position of each key frame, for containers in which seeking by time fails (MPEG-TS, MPEG-PS)."""
    proved: bool = False
    """Whether the frames were counted by decoding all of them, rather than by counting packets."""
    steady: bool = True
    """Whether all decoded pictures have the same size."""
    missing: tuple[int, ...] = ()
    """Numbers of frames after which the container's packet counter has a gap: packets are lost, or recordings were joined; for a folder,
    after which picture numbers are missing. The frames that exist decode."""

    @property
    def seekable(self) -> bool:
        """Whether time stamps identify frames, so that decoding can start at the key frame before a wanted frame."""
        return bool(self.key_frames)

    @property
    def seconds(self) -> float:
        """Duration in seconds, the last frame counted with the average interval; 0 where `fps` is 0."""
        return self.frames / self.fps if self.fps else 0.0

    @property
    def gaps(self) -> str:
        """Describe `missing`, such as "packets are missing after frame 49, or recordings were joined there"; "" where nothing is."""
        if not self.missing:
            return ""
        frames = [str(count - 1) for count in self.missing[:_MAX_LISTED]]
        more = f" and {len(self.missing) - _MAX_LISTED} more" if len(self.missing) > _MAX_LISTED else ""
        where = f"after frame{'s' if len(self.missing) > 1 else ''} {', '.join(frames)}{more}"
        return f"pictures are missing {where}" if self.folder else f"packets are missing {where}, or recordings were joined there"

    def frame_at(self, seconds: float) -> int:
        """Return the first frame that is displayed at or after `seconds` from the first frame; `frames` where there is none.

        Raises:
            FlowlessError: The file has no time stamps.
        """
        return self.frames_at([seconds])[0]

    def frames_at(self, times: Sequence[float]) -> list[int]:
        """Return `frame_at` of several times; the time stamps are unpacked once.

        Raises:
            FlowlessError: The file has no time stamps.
        """
        late = next((seconds for seconds in times if seconds > 0), None)
        if late is None:
            return [0] * len(times)
        if not self.pts:
            why = "its pictures have no frame rate: pass --rate" if self.folder else "its frames have no time stamps"
            raise FlowlessError(f"the frame at {late:g} s cannot be found, since {why}.")
        stamps = np.asarray(self.pts)
        # Tolerate half a tick: decimal seconds rarely fall on one, and time stamps are rounded to one. Ticks of a frame (AVI) are exact.
        tolerance = Fraction(1, 2) if len(stamps) < 2 or np.median(np.diff(stamps)) > 1 else Fraction(1, 100)
        ticks = [float(Fraction(seconds) / self.time_base - tolerance) if seconds > 0 else -np.inf for seconds in times]
        return np.searchsorted(stamps - stamps[0], ticks, side="left").tolist()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, as JSON values."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if getattr(self, item.name) != item.default}
        return {name: _to_json(value) for name, value in values.items()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> VideoInfo:
        """Read the output of `to_dict`; raise ValueError, TypeError or KeyError for anything else."""
        values = dict(document)
        for name in ("pts", "key_frames", "key_bytes"):
            if name in values:
                values[name] = CompactInts.from_json(values[name])
        if "time_base" in values:
            values["time_base"] = Fraction(values["time_base"])
        if "missing" in values:
            values["missing"] = tuple(values["missing"])
        made = cls(**values)
        if any(not isinstance(getattr(made, name), int) for name in ("frames", "width", "height", "rotation")):
            raise ValueError(f"frames, width, height or rotation of {values!r:.80} is not an integer")
        if len(made.pts) not in {0, made.frames} or len(made.key_bytes) not in {0, len(made.key_frames)}:
            raise ValueError("the lengths of its time stamps or key frames do not match")
        if made.key_frames and (len(made.pts) != made.frames or made.key_frames[-1] >= made.frames):
            raise ValueError("its key frames are not among its frames")
        return made


def _to_json(value: Any) -> Any:
    if isinstance(value, CompactInts):
        return value.to_json()
    return str(value) if isinstance(value, Fraction) else value


def varies(pts: Sequence[int] | NDArray[np.int64]) -> bool:
    """Return whether the interval between frames varies by more than the rounding to the container's ticks.

    The difference of two rounded time stamps is off by up to one tick; another 1 % of the mean allows for drift.
    """
    if len(pts) < 3:
        return False
    steps = np.diff(np.asarray(pts))
    mean = steps.mean()
    return bool((np.abs(steps - mean) > 1.5 + mean / 100).any())
