"""Reads a folder of numbered pictures as a video, the format of Jester, Something-Something V1 and many private data sets."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from flowless.errors import FlowlessError
from flowless.files import printable
from flowless.pipeline.video.container import Limits, Unreadable, wrap_io_errors
from flowless.pipeline.video.info import CompactInts, VideoInfo
from flowless.pipeline.video.rgb_conversion import stacked

#: Lower-case suffixes of pictures.
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
_FIX = "Number the pictures of one video in one folder, such as 00001.jpg, 00002.jpg."


def pictures_in(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the pictures directly in a folder, unordered and without hidden files."""
    with wrap_io_errors(folder), os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if not entry.name.startswith(".") and _is_picture(entry.name) and entry.is_file()]


class FrameFolder:
    """A folder of numbered pictures as a video, with the interface of `VideoReader`.

    Args:
        path: The folder. A picture's number is the last number in its name; frames are ordered by it.
        rate: Frames per second, for `VideoInfo.frame_at`; None if times are not needed.

    Raises:
        Unreadable: The folder is missing or has no numbered pictures, two pictures have the same number, or their suffixes differ.
    """

    def __init__(self, path: str | os.PathLike[str], *, rate: float | Fraction | None = None) -> None:
        self.path = os.fspath(path)
        self._rate = None if rate is None else Fraction(rate).limit_denominator(100_000)
        numbered: dict[int, Path] = {}
        for picture in pictures_in(path):
            digits = re.findall(r"\d+", picture.stem)
            if not digits:
                raise Unreadable(path, f"{printable(picture.name)} has no number in its name", _FIX)
            number = int(digits[-1])
            if number in numbered:
                twice = " and ".join(sorted(printable(item.name) for item in (numbered[number], picture)))
                raise Unreadable(path, f"two pictures have the number {number} ({twice})", _FIX)
            numbered[number] = picture
        if not numbered:
            raise Unreadable(path, "the folder has no pictures", _FIX)
        kinds = sorted({picture.suffix.lower() for picture in numbered.values()})
        if len(kinds) > 1:
            raise Unreadable(path, f"its pictures are of several kinds ({', '.join(kinds)})", _FIX)
        numbers = sorted(numbered)
        self._pictures = [numbered[number] for number in numbers]
        self._missing = tuple(number + 1 for number, (one, other) in enumerate(pairwise(numbers)) if other != one + 1)
        self._info: VideoInfo | None = None

    def close(self) -> None:
        """Do nothing: a picture is open only while it is read."""

    def __enter__(self) -> Self:
        """Return the reader."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Do nothing."""

    @property
    def count(self) -> int:
        """The number of pictures."""
        return len(self._pictures)

    @property
    def info(self) -> VideoInfo:
        """The video's properties; `missing` lists the frames after which numbers are missing.

        Raises:
            Unreadable: The first picture cannot be read.
        """
        if self._info is None:
            height, width = self._read(0).shape[:2]
            self._info = VideoInfo(
                frames=self.count,
                fps=float(self._rate or 0),
                width=width,
                height=height,
                folder=True,
                codec=self._pictures[0].suffix.lower().lstrip(".").replace("jpg", "jpeg"),
                time_base=1 / self._rate if self._rate else Fraction(1),
                pts=CompactInts(range(self.count)) if self._rate else CompactInts(),
                missing=self._missing,
            )
        return self._info

    def prove(self) -> VideoInfo:
        """Read every picture, to check them; return `info`.

        Raises:
            Unreadable: A picture cannot be read.
        """
        sizes = {self._read(number).shape for number in range(self.count)}
        self._info = replace(self.info, proved=True, steady=len(sizes) == 1)
        return self._info

    def frames(self, ordinals: Iterable[int]) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
        """Yield `(ordinal, frame)` for each distinct ordinal, ascending: uint8 `[H, W, 3]`, RGB, upright.

        A picture that differs in size from the first is resized to the first's size (bicubic).

        Raises:
            FlowlessError: A picture cannot be read, or there is no frame with that ordinal.
        """
        for ordinal, _ in self._wanted(ordinals):
            frame = self._read(ordinal)
            size = (self.info.width, self.info.height)
            if frame.shape[1::-1] != size:
                frame = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
            yield ordinal, frame

    def stack(self, ordinals: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint8]:
        """Return frames uint8 `[K, H, W, 3]` in the given order, with repetitions; raises as `frames` does."""
        wanted = [int(ordinal) for ordinal in ordinals]
        return stacked(self.frames(wanted), wanted, (self.info.height, self.info.width))

    def paths(self, ordinals: Iterable[int]) -> list[Path]:
        """Return the picture file of each distinct ordinal, ascending.

        Raises:
            FlowlessError: There is no frame with that ordinal.
        """
        return [path for _, path in self._wanted(ordinals)]

    def _wanted(self, ordinals: Iterable[int]) -> list[tuple[int, Path]]:
        wanted = sorted(set(ordinals))
        if wanted and not 0 <= wanted[0] <= wanted[-1] < self.count:
            raise FlowlessError(
                f"{printable(self.path)}: frames {wanted[0]} to {wanted[-1]} were requested, but the folder has {self.count} pictures "
                f"(0 to {self.count - 1}). If it has changed since it was indexed, run `flowless scan` again."
            )
        return [(ordinal, self._pictures[ordinal]) for ordinal in wanted]

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield every frame; see `frames`."""
        return (frame for _, frame in self.frames(range(self.count)))

    def _read(self, number: int) -> NDArray[np.uint8]:
        picture = self._pictures[number]
        try:
            with wrap_io_errors(picture), Image.open(picture) as image:
                Limits.from_environment().refuse(picture, "pixels", image.width * image.height)
                return _upright(image)
        except Unreadable as error:
            raise Unreadable(self.path, f"its picture {printable(picture.name)}: {error.reason}", error.fix) from error
        except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError, TypeError, struct.error) as error:
            raise Unreadable(self.path, f"its picture {printable(picture.name)} cannot be read ({error})") from error


def _upright(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):  # 16 bits per pixel: Pillow's conversion would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    with suppress(Exception):  # damaged metadata does not affect the pixels
        image = ImageOps.exif_transpose(image)
    return np.asarray(image.convert("RGB"))


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in PICTURE_SUFFIXES
