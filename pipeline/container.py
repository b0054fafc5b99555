"""Opening video files with PyAV: the one place that turns what FFmpeg says into what the user can act on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import av
import av.error
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from flowless.errors import FlowlessError
from flowless.interrupts import raise_lost_ctrl_c

_FIX = "Check that it plays in a video player, or convert it again; `flowless scan` lists such files and leaves them out."


class OpenVideo(NamedTuple):
    """An open file and the one video stream of it that flowless looks at."""

    container: InputContainer
    stream: VideoStream


class Unreadable(FlowlessError):
    """A file that is not a video, or a damaged one; the text names it, `reason` is the part for a table."""

    def __init__(self, path: str | os.PathLike[str], reason: str, fix: str = _FIX) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}. {fix}")
        self.path = os.fspath(path)
        self.reason = reason
        self.fix = fix

    def __reduce__(self) -> tuple[type[Unreadable], tuple[str, str, str]]:
        """Cross a process boundary as what it was made of."""
        return type(self), (self.path, self.reason, self.fix)


@contextmanager
def open_video(path: str | os.PathLike[str], *, threads: int = 1) -> Iterator[OpenVideo]:
    """Open the video stream of a file, and close the file whatever happens.

    Of several video streams it is the one that FFmpeg's `av_find_best_stream` names (default disposition, then frames
    seen and bit rate); cover pictures of audio files do not count.

    Args:
        path: A file, in any container and codec that PyAV's FFmpeg reads.
        threads: Threads that the codec may use within a frame. H.264 gains by them only where pictures are cut into slices,
            AV1 nearly always. (Several frames at a time were measured too: no gain once unreferenced frames are left out.)

    Raises:
        Unreadable: The file is missing, empty, no video, or damaged so that nothing of it can be read.
    """
    with told_by_name(path):
        _refuse_what_is_no_file(Path(path))
        # A title in another encoding than UTF-8, as old cameras and editors write it, says nothing about the pictures.
        with av.open(os.fspath(path), metadata_errors="replace") as container:
            streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
            if not streams:
                raise Unreadable(path, "it has no video stream" + (", only audio" if container.streams.audio else ""))
            best = container.streams.best("video")
            stream = next((candidate for candidate in streams if best is not None and candidate.index == best.index), streams[0])
            # Chosen by us, never AUTO: the threads' number decides speed and memory, and must be the caller's choice.
            stream.thread_count = max(threads, 1)
            stream.thread_type = "SLICE" if threads > 1 else "NONE"
            yield OpenVideo(container, stream)


@contextmanager
def told_by_name(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn FFmpeg's and the system's errors about `path` into an Unreadable that names it; a Ctrl-C that PyAV loses is raised."""
    try:
        with raise_lost_ctrl_c():
            yield
    except av.error.FFmpegError as error:
        raise Unreadable(path, _reason(error)) from error
    except OSError as error:
        raise Unreadable(path, f"it cannot be read ({error.strerror or error})") from error


def frames_in_order(video: OpenVideo, path: str | os.PathLike[str], *, packets: Iterable[Packet] | None = None) -> Iterator[VideoFrame]:
    """Decode every frame in presentation order: what all other ways of decoding are compared with.

    Args:
        video: An open file.
        path: Its name, for errors.
        packets: All packets of the stream in the order of decoding; None reads them from the file, from where it stands.

    Raises:
        Unreadable: A frame is damaged, after the good ones before it were yielded.
    """
    done = 0
    source = iter(video.container.demux(video.stream) if packets is None else packets)
    with told_by_name(path):
        ended = False
        while not ended:
            packet = next(source, None)
            ended = packet is None or not packet.size
            try:
                frames = video.stream.decode(None if ended else packet)
            except av.error.EOFError:
                return
            except av.error.InvalidDataError as error:
                raise damaged(path, done) from error
            for frame in frames:
                if frame.is_corrupt:
                    raise damaged(path, done)
                done += 1
                yield frame


def damaged(path: str | os.PathLike[str], frame: int) -> Unreadable:
    """Return the error for a stream that is damaged at presentation ordinal `frame`, or thereabouts."""
    return Unreadable(path, f"the stream is damaged near frame {frame}")


def clockwise_degrees(frame: VideoFrame) -> int:
    """Return by how much a decoded frame is turned clockwise for showing: 0, 90, 180 or 270.

    FFmpeg reads counter-clockwise degrees from the display matrix. Cameras write quarter turns; others are rounded.
    """
    return round(-frame.rotation / 90) % 4 * 90


def _refuse_what_is_no_file(path: Path) -> None:
    if not path.exists():
        raise Unreadable(path, "there is no such file", "Check the name.")
    if path.is_dir():
        raise Unreadable(path, "it is a folder, not a video file", "Name one file in it.")
    if path.is_file() and path.stat().st_size == 0:
        raise Unreadable(path, "the file is empty", "Copy or download it again.")


def _reason(error: av.error.FFmpegError) -> str:
    if isinstance(error, av.error.InvalidDataError):
        return "it is not a video that FFmpeg can read, or it is damaged or cut off"
    if isinstance(error, av.error.DecoderNotFoundError):
        return "no decoder is installed for its codec"
    return f"it cannot be read ({error.strerror or error})"
