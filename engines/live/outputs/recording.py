"""Records each source with its overlay into MP4 files."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flowless.engines.live.outputs.board import Board
from flowless.engines.live.outputs.overlay import caption_of, drawn
from flowless.engines.live.outputs.page import Pictures
from flowless.errors import FlowlessError

#: Seconds between two looks at the newest frame: half a frame of a camera with 60 a second.
_POLL = 0.008
#: Seconds without a new frame after which a file ends.
_PAUSE = 5.0
#: Little work a frame, and no frames kept back for a better compression.
_X264 = {"preset": "ultrafast", "tune": "zerolatency", "crf": "23"}


class Recorder:
    """Records every source within a `with` block, each in its own thread, into files that appear when they are complete.

    Each thread encodes the newest frame; frames that come in the meantime are left out. A file ends after `seconds`, where the size of
    the pictures changes, after a pause without frames, and at the end of the block; the next frame begins another. Where a file cannot
    be written, for example because the disk is full, recording of this source ends with one line.

    Args:
        folder: Where the files go; made if it is missing.
        board: What is written on the pictures.
        pictures: The newest frames.
        seconds: The longest file.
        report: Takes one line for people.
    """

    def __init__(self, folder: Path, board: Board, pictures: Pictures, *, seconds: float, report: Callable[[str], None]) -> None:
        self._seconds, self._report = seconds, report
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(folder / stem, name, board, pictures), name=f"flowless recording of {name}")
            for name, stem in zip(board.names, _stems(board.names), strict=True)
        ]

    def __enter__(self) -> Recorder:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, stem: Path, name: str, board: Board, pictures: Pictures) -> None:
        from flowless.pipeline.video.encode import write_video

        newest = _Newest(lambda: pictures(name), self._stop)
        try:
            while newest.wait():
                film = _Film(newest, lambda: caption_of(board.row(name)), self._seconds)
                write_video(_free_path(stem), film.frames(), timestamps=film.times(), options=_X264)
        except FlowlessError as error:
            self._report(f"{name} is no longer recorded, watching goes on: {error}")


class _Newest:
    """The newest frame of a source, taken once.

    Args:
        picture: Returns the newest frame.
        stop: Ends all waiting.
    """

    def __init__(self, picture: Callable[[], NDArray[np.uint8] | None], stop: threading.Event) -> None:
        self._picture, self._stop = picture, stop
        self._taken: NDArray[np.uint8] | None = None

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until there is a frame that was not taken; return False where recording ends, or the time passed, before."""
        until = None if seconds is None else time.monotonic() + seconds
        while self.peek() is None:
            if self._stop.wait(_POLL) or (until is not None and time.monotonic() > until):
                return False
        return not self._stop.is_set()

    def peek(self) -> NDArray[np.uint8] | None:
        """Return the newest frame, uint8 `[H, W, 3]`, if it was not taken."""
        picture = self._picture()
        return None if picture is self._taken else picture

    def take(self, picture: NDArray[np.uint8]) -> None:
        """Note that a frame was used."""
        self._taken = picture


class _Film:
    """The frames of one file, and their times."""

    def __init__(self, newest: _Newest, caption: Callable, seconds: float) -> None:
        self._newest, self._caption, self._seconds = newest, caption, seconds
        self._started, self._last = time.monotonic(), -1

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the newest frame with its overlay, whenever there is one, until the file ends."""
        size: Sequence[int] | None = None
        while size is None or (time.monotonic() < self._started + self._seconds and self._newest.wait(_PAUSE)):
            picture = self._newest.peek()
            if picture is None:
                continue
            if size is not None and picture.shape != size:
                return
            size = picture.shape
            self._newest.take(picture)
            yield drawn(picture, self._caption())

    def times(self) -> Iterator[int]:
        """Yield the time of the frame that was yielded last, in milliseconds; it rises."""
        while True:
            self._last = max(self._last + 1, round(1000 * (time.monotonic() - self._started)))
            yield self._last


def _stems(names: Sequence[str]) -> list[str]:
    """Return a file name's beginning for each source, all different."""
    stems: list[str] = []
    for number, name in enumerate(names):
        stem = re.sub(r"[^\w.-]+", "_", name).strip("._")[-60:] or "source"
        taken = {other.lower() for other in stems}
        others = (f"{stem}-{further}" for further in itertools.count(number))
        stems.append(next(other for other in itertools.chain([stem], others) if other.lower() not in taken))
    return stems


def _free_path(stem: Path) -> Path:
    """Return the path of a new file that begins now."""
    now = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    path, number = stem.with_name(f"{stem.name}-{now}.mp4"), 1
    while path.exists():
        number += 1
        path = path.with_name(f"{stem.name}-{now}-{number}.mp4")
    return path
