"""What is known of a video: the one type in which its facts go from the reader to the index and back."""

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

#: Places that a sentence names at most.
_NAMED = 3
#: Lists up to this long are spelt out in a file.
_SPELT_OUT = 16


class Orientation(NamedTuple):
    """How a stored picture is turned for showing: first mirrored, then turned."""

    rotation: int = 0
    """Clockwise degrees: 0, 90, 180 or 270."""
    mirrored: bool = False
    """Whether left and right change places, before the turn."""

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a view of the stored picture `[H, W, 3]` as it is shown."""
        return np.rot90(image[:, ::-1] if self.mirrored else image, -(self.rotation // 90))


class CompactInts(Sequence[int]):
    """A sequence of whole numbers, kept as its compressed differences: time stamps of a video take a few dozen bytes.

    Args:
        values: The numbers, each within 64 bits, as are their differences.
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
    def __getitem__(self, place: SupportsIndex) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[int, ...]: ...

    def __getitem__(self, place: SupportsIndex | slice) -> int | tuple[int, ...]:
        found = np.asarray(self)[place]
        return tuple(found.tolist()) if isinstance(place, slice) else int(found)

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
        """Return a short list as it is, a long one as text."""
        return list(self) if self._length <= _SPELT_OUT else base64.b85encode(self._data).decode()

    @classmethod
    def from_json(cls, value: object) -> CompactInts:
        """Read what `to_json` gave; raise ValueError where it is something else."""
        if isinstance(value, list):
            return cls(value)
        if not isinstance(value, str):
            raise ValueError(f"{value!r:.40} is no list of numbers")
        made = cls()
        try:
            made._data = base64.b85decode(value)
            size = len(zlib.decompress(made._data))
        except zlib.error as error:
            raise ValueError(f"{value!r:.40} is no compressed list of numbers") from error
        if size % 8:
            raise ValueError(f"{value!r:.40} is no list of whole numbers")
        made._length = size // 8
        return made


_NONE = CompactInts()


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What is known of a video besides its pictures. Frames are counted from 0 in the order in which they are shown."""

    frames: int
    """Frames that are shown."""
    fps: float
    """Average frames per second, for people; 0 where the file has no time stamps and states no rate."""
    width: int
    """Columns as shown, after rotation, in pixels."""
    height: int
    """Rows as shown, after rotation, in pixels."""
    rotation: int = 0
    """Clockwise degrees by which the stored picture is turned for showing, after mirroring: 0, 90, 180 or 270."""
    mirrored: bool = False
    """Whether the stored picture's left and right change places for showing."""
    codec: str = ""
    """FFmpeg's name of the codec; of a folder, the kind of its pictures."""
    folder: bool = False
    """Whether it is a folder of numbered pictures rather than a file."""
    pixel_format: str = ""
    """FFmpeg's name of the stored pixels' format."""
    variable_rate: bool = False
    """Whether the time between frames changes by more than rounding."""
    time_base: Fraction = Fraction(1)
    """Seconds in a tick."""
    pts: CompactInts = _NONE
    """Each frame's time stamp in ticks of `time_base`, never descending; empty where the file has none."""
    key_frames: CompactInts = _NONE
    """Frames that decoding can start from; empty where it has to start at the beginning."""
    key_bytes: CompactInts = _NONE
    """Place of each key frame in the file, where the container (MPEG-TS, MPEG-PS) is searched by place and not by time."""
    proved: bool = False
    """Whether every frame was decoded, rather than counted in the packets."""
    steady: bool = True
    """Whether all pictures have one size, as far as they were decoded."""
    missing: tuple[int, ...] = ()
    """The container's count of packets has a gap after that many frames: packets are lost, or recordings were joined. Numbers left out,
    of a folder of pictures. The frames that are there decode."""

    @property
    def jumps(self) -> bool:
        """Whether a frame is known by its time stamp, so that decoding may begin at the key frame before it."""
        return bool(self.key_frames)

    @property
    def seconds(self) -> float:
        """How long it lasts: from the first frame to the last, and the last as long as the others on average."""
        return self.frames / self.fps if self.fps else 0.0

    @property
    def gaps(self) -> str:
        """What is missing of it, such as "packets are missing after frame 49, or recordings were joined there"; else empty."""
        if not self.missing:
            return ""
        places = [str(place - 1) for place in self.missing[:_NAMED]]
        more = f" and {len(self.missing) - _NAMED} more" if len(self.missing) > _NAMED else ""
        where = f"after frame{'s' if len(self.missing) > 1 else ''} {', '.join(places)}{more}"
        return f"pictures are missing {where}" if self.folder else f"packets are missing {where}, or recordings were joined there"

    def frame_at(self, seconds: float) -> int:
        """Return the first frame shown at `seconds` after the first frame or later; `frames` where there is none.

        Raises:
            FlowlessError: The file has no time stamps.
        """
        if seconds <= 0:
            return 0
        if not self.pts:
            why = "its pictures have no rate: name one with --rate" if self.folder else "its frames have no time stamps"
            raise FlowlessError(f"a time of {seconds:g} s cannot be found in it, since {why}.")
        times = np.asarray(self.pts)
        # Decimal seconds rarely fall on a tick, and stamps are rounded to one. A tick as long as a frame (AVI) rounds nothing.
        grace = Fraction(1, 2) if len(times) < 2 or np.median(np.diff(times)) > 1 else Fraction(1, 100)
        ticks = Fraction(seconds) / self.time_base - grace
        return int(np.searchsorted(times - times[0], float(ticks), side="left"))

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON values, without those that are as usual."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if getattr(self, item.name) != item.default}
        return {name: _to_json(value) for name, value in values.items()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> VideoInfo:
        """Read what `to_dict` gave; raise ValueError, TypeError or KeyError where it is something else."""
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
            raise ValueError(f"frames, width, height or rotation of {values!r:.80} is no whole number")
        if len(made.pts) not in {0, made.frames} or len(made.key_bytes) not in {0, len(made.key_frames)}:
            raise ValueError("its lists of time stamps or key frames are not as long as they must be")
        if made.key_frames and (len(made.pts) != made.frames or made.key_frames[-1] >= made.frames):
            raise ValueError("its key frames are not among its frames")
        return made


def _to_json(value: Any) -> Any:
    if isinstance(value, CompactInts):
        return value.to_json()
    return str(value) if isinstance(value, Fraction) else value


def varies(pts: Sequence[int] | NDArray[np.int64]) -> bool:
    """Return whether the time between frames changes by more than rounding to the container's ticks.

    One difference of two rounded stamps is off by up to one tick; a hundredth of the mean on top forgives drift.
    """
    if len(pts) < 3:
        return False
    steps = np.diff(np.asarray(pts))
    mean = steps.mean()
    return bool((np.abs(steps - mean) > 1.5 + mean / 100).any())
