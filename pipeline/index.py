"""The index of a data set: what `flowless scan` learnt about each video, read by everything that follows."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from flowless.errors import FlowlessError
from flowless.files import whole_file

FORMAT = "flowless-index"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class VideoRecord:
    """One labelled video, or a part of one."""

    id: str
    """Unique name in the index: the path, and `#start-end` where only a part is meant."""
    path: str
    """The file, relative to the index's root where it lies below it."""
    label: int
    """Position in the index's `labels`."""
    frames: int
    """Frames that decode, of the part meant."""
    first_frame: int = 0
    """Presentation ordinal in the file of the part's first frame."""
    fps: float = 0.0
    """Average frames per second; 0 where the file does not say."""
    width: int
    """Columns as shown, after rotation, in pixels."""
    height: int
    """Rows as shown, after rotation, in pixels."""
    rotation: int = 0
    """Clockwise degrees by which the stored frame is turned for showing: 0, 90, 180 or 270."""
    codec: str = ""
    """FFmpeg's name of the codec."""
    pixel_format: str = ""
    """FFmpeg's name of the stored pixels' format; empty where an older scan did not write it down."""
    variable_rate: bool = False
    """Whether the time between frames changes by more than rounding."""
    key_frames: tuple[int, ...] = ()
    """Presentation ordinals, in the whole file, of frames that decoding can start from."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A file that the scan could not take, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class DatasetIndex:
    """All videos of a data set with their labels."""

    root: Path
    """Folder that the records' paths are relative to."""
    labels: tuple[str, ...]
    """Label names in the order of the class scores."""
    videos: tuple[VideoRecord, ...]
    refused: tuple[Refused, ...] = field(default=())
    source: Path | None = field(default=None, compare=False)
    """Its file, for messages; None where it has none."""

    @property
    def name(self) -> str:
        """What a message calls it: its file."""
        return str(self.source or "the index")

    def path_of(self, record: VideoRecord) -> Path:
        """Return the file of a record."""
        return self.root / record.path

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index as JSON lines (a header, then one line a video), whole or not at all."""
        target = Path(path)
        header = {
            "format": FORMAT,
            "version": VERSION,
            "root": os.path.relpath(self.root.resolve(), target.resolve().parent),
            "labels": list(self.labels),
            "refused": [asdict(item) for item in self.refused],
        }
        with whole_file(target) as draft, draft.open("w", encoding="utf-8") as stream:
            for line in (header, *(asdict(video) for video in self.videos)):
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DatasetIndex:
        """Read an index; raise FlowlessError where the file is missing, foreign or damaged."""
        source = Path(path)
        try:
            lines = source.read_text(encoding="utf-8").splitlines()
            if not lines:
                raise ValueError("the file is empty")
            header = json.loads(lines[0])
            if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("version") != VERSION:
                raise ValueError(f"its first line is not the header of a {FORMAT} of version {VERSION}")
            videos = tuple(_record(json.loads(line), len(header["labels"])) for line in lines[1:])
            refused = tuple(Refused(**item) for item in header["refused"])
            root = Path(os.path.normpath(source.resolve().parent / header["root"]))
        except FileNotFoundError:
            raise FlowlessError(f"{source}: no such index. Make one with: flowless scan SOURCE --out {source}") from None
        except OSError as error:
            raise FlowlessError(f"{source}: cannot be read ({error.strerror}).") from error
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise FlowlessError(
                f"{source}: not a readable index ({error}). Make it again with: flowless scan SOURCE --out {source}"
            ) from error
        return cls(root=root, labels=tuple(header["labels"]), videos=videos, refused=refused, source=source)


def _record(document: dict[str, Any], labels: int) -> VideoRecord:
    known = {item.name for item in fields(VideoRecord)}
    if not isinstance(document, dict):
        raise ValueError(f"a line is {document!r:.40}, not the record of a video")
    if set(document) - known:
        raise ValueError(f"unknown fields {sorted(set(document) - known)}")
    record = VideoRecord(**{**document, "key_frames": tuple(document.get("key_frames", ()))})
    if not 0 <= record.label < labels:
        raise ValueError(f"video {record.id} has label {record.label}, but the index knows {labels} labels")
    return record
