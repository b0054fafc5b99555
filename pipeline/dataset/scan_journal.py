"""The journal of a scan: results on disk, from which an interrupted scan resumes."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import av

from flowless.errors import FlowlessError
from flowless.files import absolute
from flowless.pipeline.dataset.index import stamp_of
from flowless.pipeline.dataset.scan_jobs import Inspection, Job
from flowless.pipeline.video.info import VideoInfo

_VERSION = 2


class Journal:
    """Results by file, appended as they arrive; a result is valid while the file's size and modification time are unchanged."""

    def __init__(self, path: Path, known: dict[str, dict[str, Any]], stream: TextIO) -> None:
        self._path, self._known, self._stream = path, known, stream

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Open a journal to append to it; one of another format version or of another FFmpeg is discarded.

        Raises:
            FlowlessError: The journal cannot be written.
        """
        known: dict[str, dict[str, Any]] = {}
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
            resumes = bool(lines) and _parse(lines[0]) == _header()
            for line in lines[1:] if resumes else ():
                # A line that an interruption truncated is not JSON; its file is inspected again.
                entry = _parse(line)
                if entry is not None and "key" in entry and "found" in entry:
                    known[json.dumps(entry["key"])] = entry["found"]
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("a" if resumes else "w", encoding="utf-8")
            journal = cls(path, known, stream)
            journal._write("\n" if resumes else json.dumps(_header()) + "\n")
        except OSError as error:
            raise FlowlessError(f"{path}: cannot write there ({error.strerror}). Choose another --out.") from error
        return journal

    def finding(self, job: Job) -> Inspection | None:
        """Return the stored result of a job if its file is unchanged, else None."""
        found = self._known.get(json.dumps(_key(job)))
        if found is None:
            return None
        try:
            info = found["info"]
            return Inspection(
                reason=found["reason"],
                parts=tuple((first, frames) for first, frames in found["parts"]),
                info=None if info is None else VideoInfo.from_dict(info),
                stamp=tuple(found["stamp"]),
            )
        except (TypeError, KeyError, ValueError, ArithmeticError):
            return None

    def note(self, job: Job, found: Inspection) -> None:
        """Append a result.

        Raises:
            FlowlessError: The disk is full.
        """
        try:
            info = None if found.info is None else found.info.to_dict()
            noted = {"reason": found.reason, "parts": found.parts, "info": info, "stamp": found.stamp}
            self._write(json.dumps({"key": _key(job), "found": noted}) + "\n")
        except OSError as error:
            raise FlowlessError(
                f"{self._path}: the scan's results cannot be written ({error.strerror}). Free some space and run the scan again to resume."
            ) from error

    def remove(self) -> None:
        """Delete the journal, once the index is written."""
        self._stream.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # Closing flushes again: on a full disk, do not hide the error that is already raised.
        with suppress(OSError):
            self._stream.close()

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def _header() -> dict[str, Any]:
    return {"format": "flowless-scan-journal", "version": _VERSION, "ffmpeg": list(av.library_versions["libavcodec"])}


def _key(job: Job) -> list[Any]:
    try:
        stamp = stamp_of(job.path)
    except FlowlessError:
        stamp = (-1, -1)
    return [absolute(job.path), *stamp, [list(part) for part in job.parts], job.decode, job.rate]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
