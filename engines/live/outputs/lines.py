"""Lines: one JSON object for each result, or a sentence for people; to standard output, and to a file."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flowless.engines.live.events import Event
from flowless.engines.live.records import Answer, SourceChange
from flowless.errors import FlowlessError


def json_line(item: Answer | SourceChange | Event) -> str:
    """Return an item as one line of JSON, without the line's end."""
    return json.dumps(item.to_dict(), ensure_ascii=True, allow_nan=False)


def one_line(text: str) -> str:
    """Return a text of a bundle or a stream without what controls a terminal: such characters become U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def event_line(event: Event) -> str:
    """Return an event as a line for people."""
    when = event.begin_time if event.end_time is None else event.end_time
    start = f"{clock_time(when)}  {event.source}: {event.label}"
    if event.end_ns is None:
        return one_line(f"{start} began, score {event.peak:.2f}")
    return one_line(f"{start} ended after {event.seconds:.1f} s, highest score {event.peak:.2f}")


def change_line(change: SourceChange, when: float) -> str:
    """Return a change of a source at a time, seconds since 1970, as a line for people."""
    reason = f": {change.reason}" if change.reason else ""
    retry = f"; next try in {change.retry_in:.1f} s" if change.retry_in is not None else ""
    return one_line(f"{clock_time(when)}  {change.source} is {change.state}{reason}{retry}")


def clock_time(seconds: float) -> str:
    """Return the local time of day of seconds since 1970."""
    return time.strftime("%H:%M:%S", time.localtime(seconds))


class StandardOutput:
    """Writes lines to standard output, each at once, without a buffer: where the reader has gone, nothing is left to flush at the end."""

    def __init__(self) -> None:
        self._handle: int | None = None
        if sys.stdout is not None:  # it is None where it was closed before the program began, as a daemon's may be
            sys.stdout.flush()
            with suppress(OSError, ValueError):  # replaced by an object without a file, as in a notebook
                self._handle = sys.stdout.fileno()
        self._usable = True

    def write(self, line: str) -> None:
        """Write one line; nothing after one that failed or was interrupted, so that a reader that has stopped reading is waited for once.

        Raises:
            BrokenPipeError: The reader has gone.
            FlowlessError: It cannot be written, for example because the disk is full.
        """
        if not self._usable:
            return
        self._usable = False
        try:
            if self._handle is None:
                print(line, flush=True)
            else:
                data = memoryview(f"{line}\n".encode(sys.stdout.encoding or "utf-8", "backslashreplace"))
                while data:
                    data = data[os.write(self._handle, data) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise FlowlessError(f"standard output: cannot be written ({error.strerror}).") from error
        self._usable = True


def has_lines(path: Path) -> bool:
    """Return whether lines may be appended to a file: it is not there, is empty, is no regular file, or begins with such a line."""
    try:
        if not path.is_file() or not path.stat().st_size:
            return True
        with path.open("rb") as file:
            first = json.loads(file.readline(2**20))
    except OSError:
        return True  # opening it gives the reason
    except ValueError:
        return False
    return isinstance(first, dict) and "kind" in first


class LineFile:
    """Appends whole lines to a file, which is opened once. A line that cannot be written is left out and counted; the next is tried.

    Args:
        path: The file; it may exist.
        report: Takes one line for people: where writing begins to fail, and where it works again.

    Raises:
        FlowlessError: The file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], report: Callable[[str], None]) -> None:
        self.path, self.lost = Path(path), 0
        self._report, self._failing = report, 0
        try:
            self._handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise FlowlessError(f"{self.path}: cannot be opened to append to it ({error.strerror}). Name another file.") from error
        self._regular = stat.S_ISREG(os.fstat(self._handle).st_mode)

    def write(self, line: str) -> None:
        """Append one line, or count it as lost."""
        data = f"{line}\n".encode()
        try:
            self._append(data)
        except OSError as error:
            self.lost, self._failing = self.lost + 1, self._failing + 1
            if self._failing == 1:
                self._report(f"{self.path}: cannot be written ({error.strerror}). Watching goes on; lines are left out until it can.")
            return
        if self._failing:
            self._report(f"{self.path}: is written again; {self._failing} lines are missing.")
            self._failing = 0

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def _append(self, data: bytes) -> None:
        before = os.fstat(self._handle).st_size
        written = 0
        try:
            while written < len(data):
                written += os.write(self._handle, data[written:])
        except OSError:
            if written and self._regular:
                os.ftruncate(self._handle, before)  # no part of a line stays
            raise
