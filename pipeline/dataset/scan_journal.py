"""What an interrupted scan had found already, so that the next one need not look again."""

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
from flowless.pipeline.dataset.scan_jobs import Found, Job
from flowless.pipeline.video.info import VideoInfo

_VERSION = 2


class Journal:
    """Findings by file, appended as they come; a finding holds while the file's size and time of change do."""

    def __init__(self, path: Path, known: dict[str, dict[str, Any]], stream: TextIO) -> None:
        self._path, self._known, self._stream = path, known, stream

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Read what there is and go on after it; one of another version of flowless or of FFmpeg is begun anew.

        Raises:
            FlowlessError: The journal cannot be written at that place.
        """
        known: dict[str, dict[str, Any]] = {}
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
            goes_on = bool(lines) and _parse(lines[0]) == _header()
            for line in lines[1:] if goes_on else ():
                # The line that an interruption tore is no JSON; its file is looked at again.
                entry = _parse(line)
                if entry is not None and "key" in entry and "found" in entry:
                    known[json.dumps(entry["key"])] = entry["found"]
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = path.open("a" if goes_on else "w", encoding="utf-8")
            journal = cls(path, known, stream)
            journal._write("\n" if goes_on else json.dumps(_header()) + "\n")
        except OSError as error:
            raise FlowlessError(f"{path}: cannot write there ({error.strerror}). Choose another --out.") from error
        return journal

    def finding(self, job: Job) -> Found | None:
        """Return what is noted of a job, if its file is still the same."""
        found = self._known.get(json.dumps(_key(job)))
        if found is None:
            return None
        try:
            info = found["info"]
            return Found(
                reason=found["reason"],
                parts=tuple((first, frames) for first, frames in found["parts"]),
                info=None if info is None else VideoInfo.from_dict(info),
                stamp=tuple(found["stamp"]),
            )
        except (TypeError, KeyError, ValueError, ArithmeticError):
            return None

    def note(self, job: Job, found: Found) -> None:
        """Append a finding.

        Raises:
            FlowlessError: The disk is full.
        """
        try:
            info = None if found.info is None else found.info.to_dict()
            noted = {"reason": found.reason, "parts": found.parts, "info": info, "stamp": found.stamp}
            self._write(json.dumps({"key": _key(job), "found": noted}) + "\n")
        except OSError as error:
            raise FlowlessError(
                f"{self._path}: the scan's findings cannot be noted ({error.strerror}). Free some space and scan again; it goes on here."
            ) from error

    def remove(self) -> None:
        """Remove the journal: the index is written."""
        self._stream.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # What a full disk kept back must not hide the error that is already under way.
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
