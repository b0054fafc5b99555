"""The index of a data set: the properties and labels of its videos, written by `flowless scan` and read by training and evaluation."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowless.errors import FlowlessError
from flowless.files import whole_file
from flowless.pipeline.video.info import VideoInfo

if TYPE_CHECKING:
    from flowless.pipeline.video.frame_folder import FrameFolder
    from flowless.pipeline.video.reader import VideoReader

FORMAT = "flowless-index"
VERSION = 2


@dataclass(frozen=True, kw_only=True)
class VideoRecord:
    """One labelled video, or a part of one."""

    id: str
    """Unique name in the index: the path, with `#start-end` appended for a part of a video."""
    path: str
    """The file or folder of frames; relative to the index's root if it lies below it, else absolute."""
    label: int
    """Position in the index's `labels`."""
    frames: int
    """Number of decodable frames of the video or part."""
    first_frame: int = 0
    """Ordinal of the part's first frame in the whole video."""
    info: VideoInfo
    """Properties of the whole video."""
    stamp: tuple[int, int] = (-1, -1)
    """Size in bytes and modification time (ns) of the file when it was scanned."""

    def info_if_unchanged(self, path: str | os.PathLike[str]) -> VideoInfo | None:
        """Return `info` if the file still has the size and modification time of the scan, else None."""
        try:
            return self.info if self.stamp == stamp_of(path) else None
        except FlowlessError:
            return None  # opening it raises the error


def stamp_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return size in bytes and modification time (ns) of a file; of a folder, the sum and the latest of its files.

    Raises:
        FlowlessError: The file is missing, or access is denied.
    """
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):  # overwriting a picture does not change the folder's own modification time
            with os.scandir(path) as entries:
                inside = [entry.stat() for entry in entries]
            return sum(item.st_size for item in inside), max(item.st_mtime_ns for item in (status, *inside))
    except OSError as error:
        raise FlowlessError(f"{os.fspath(path)}: it cannot be read ({error.strerror}). Check the name.") from error
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A video that was refused, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class DatasetIndex:
    """All videos of a data set with their labels."""

    root: Path
    """Folder to which the records' paths are relative."""
    labels: tuple[str, ...]
    """Label names in the order of the class scores."""
    videos: tuple[VideoRecord, ...]
    refused: tuple[Refused, ...] = field(default=())
    source: Path | None = field(default=None, compare=False)
    """The index file, for messages; None if it was not loaded or saved."""

    @property
    def name(self) -> str:
        """Name for messages: the index file."""
        return str(self.source or "the index")

    def path_of(self, record: VideoRecord) -> Path:
        """Return the path of a record's video."""
        return self.root / record.path

    def open(self, record: VideoRecord) -> VideoReader | FrameFolder:
        """Open a record's video, reusing the properties in the index if the file is unchanged.

        Raises:
            FlowlessError: The file cannot be read, or has fewer frames than when it was scanned.
        """
        # Imported here: reading an index needs no PyAV.
        from flowless.pipeline.video.container import Unreadable
        from flowless.pipeline.video.open_reader import open_reader

        path = self.path_of(record)
        known = record.info_if_unchanged(path)
        video = open_reader(path, known=known)
        try:
            if known is None and record.info.proved and video.count != record.info.frames:
                video.prove()
            if known is None and record.first_frame + record.frames > video.count:
                raise Unreadable(path, f"it has {video.count} frames, fewer than when it was indexed", "Run `flowless scan` again.")
        except BaseException:
            video.close()
            raise
        return video

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index atomically as JSON lines: a header, then one line per video."""
        target = Path(path)
        header = {
            "format": FORMAT,
            "version": VERSION,
            "root": os.path.relpath(self.root.resolve(), target.resolve().parent),
            "labels": list(self.labels),
            "videos": len(self.videos),
            "refused": [asdict(item) for item in self.refused],
        }
        described: set[str] = set()
        with whole_file(target) as draft, draft.open("w", encoding="ascii") as stream:
            # ASCII only: names may contain bytes that are not valid UTF-8, and characters that some readers take for line ends.
            stream.write(json.dumps(header) + "\n")
            for video in self.videos:
                stream.write(json.dumps(_record_to_json(video, described)) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DatasetIndex:
        """Read an index; raise FlowlessError where the file is missing, not an index, or damaged."""
        if not isinstance(path, str | os.PathLike):
            raise FlowlessError(f"{path!r} is no index; it must be a DatasetIndex or the path of one (flowless scan writes it).")
        source = Path(path)
        try:
            lines = source.read_text(encoding="utf-8").split("\n")
            if not lines[0]:
                raise ValueError("the file is empty")
            header = json.loads(lines[0])
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                raise ValueError(f"its first line is not the header of a {FORMAT}")
            if header.get("version") != VERSION:
                raise ValueError(f"its version is {header.get('version')}, and this flowless reads version {VERSION}")
            described: dict[str, dict[str, Any]] = {}
            videos = tuple(_record_from_json(json.loads(line), len(header["labels"]), described) for line in lines[1:] if line)
            if header.get("videos", len(videos)) != len(videos):
                raise ValueError(f"it holds {len(videos)} of its {header['videos']} videos; it is cut off")
            if not all(isinstance(name, str) for name in header["labels"]) or len(set(header["labels"])) < len(header["labels"]):
                raise ValueError("its labels are not distinct strings")
            refused = tuple(Refused(**item) for item in header["refused"])
            root = Path(os.path.normpath(source.resolve().parent / header["root"]))
        except FileNotFoundError:
            raise FlowlessError(f"{source}: no such index. Create one with: flowless scan SOURCE --out {source}") from None
        except OSError as error:
            raise FlowlessError(f"{source}: cannot be read ({error.strerror}).") from error
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
            raise FlowlessError(f"{source}: not a readable index ({error}). Create one with: flowless scan SOURCE --out INDEX") from error
        return cls(root=root, labels=tuple(header["labels"]), videos=videos, refused=refused, source=source)


def is_index(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins with the header of an index, of any version."""
    with Path(path).open("rb") as stream:
        return stream.read(64).startswith(b'{"format": "' + FORMAT.encode() + b'"')


def _record_to_json(video: VideoRecord, described: set[str]) -> dict[str, Any]:
    """Return a record's JSON; properties of a file are written only with the first record of the file."""
    line: dict[str, Any] = {"id": video.id, "path": video.path, "label": video.label, "frames": video.frames}
    if video.first_frame:
        line["first_frame"] = video.first_frame
    if video.path not in described:
        described.add(video.path)
        line |= {"info": video.info.to_dict(), "stamp": list(video.stamp)}
    return line


def _record_from_json(document: dict[str, Any], labels: int, described: dict[str, dict[str, Any]]) -> VideoRecord:
    if not isinstance(document, dict):
        raise ValueError(f"a line is {document!r:.40}, not the record of a video")
    if "info" in document:
        described[document["path"]] = {"info": VideoInfo.from_dict(document.pop("info")), "stamp": tuple(document.pop("stamp"))}
    known = {item.name for item in fields(VideoRecord)}
    if set(document) - known:
        raise ValueError(f"unknown fields {sorted(set(document) - known)}")
    record = VideoRecord(**document, **described[document["path"]])
    numbers = (record.label, record.frames, record.first_frame, *record.stamp)
    if not isinstance(record.id, str) or not isinstance(record.path, str) or any(type(number) is not int for number in numbers):
        raise ValueError(f"a value of the record {record.id!r:.40} has the wrong type")
    if record.frames < 1 or record.first_frame < 0 or record.first_frame + record.frames > record.info.frames:
        raise ValueError(
            f"video {record.id} has frames {record.first_frame} to {record.first_frame + record.frames - 1}, but its file has "
            f"{record.info.frames}"
        )
    if not 0 <= record.label < labels:
        raise ValueError(f"video {record.id} has label {record.label}, but the index has {labels} labels")
    return record
