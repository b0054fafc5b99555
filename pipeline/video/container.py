"""Opening video files with PyAV: the one place that does, and that turns what FFmpeg says into what the user can act on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import av
import av.error
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from flowless.errors import FlowlessError
from flowless.files import absolute, printable
from flowless.interrupts import raise_lost_ctrl_c
from flowless.pipeline.video.protection import says_encrypted

_FIX = "Check that it plays in a video player, or convert it again; `flowless scan` lists such files and leaves them out."
#: Streams that FFmpeg opens at most, where nothing is said.
_FFMPEGS_STREAMS = 1000
#: What begins an address on a network (`pathlib` has made one stroke of two).
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
#: Formats of files that name other files or addresses, which FFmpeg would open in their place.
_PLAYLISTS = frozenset({"hls", "concat", "dash", "imf", "rtsp", "sdp", "webm_dash_manifest"})
#: Formats of single pictures.
_PICTURES = frozenset({"image2", "image2pipe"})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a file may ask for before it is refused; environment variables set them for every command."""

    pixels: int = 2**27
    """Pixels of a picture (FLOWLESS_MAX_PIXELS): 134 million, 16 times 4K."""
    streams: int = 256
    """Streams of a file (FLOWLESS_MAX_STREAMS)."""
    frames: int = 10_000_000
    """Frames of a video (FLOWLESS_MAX_FRAMES): four days at 30 a second."""

    @classmethod
    def from_environment(cls) -> Limits:
        """Read the variables; raise FlowlessError where one is no whole number above 0."""
        found: dict[str, int] = {}
        for item in fields(cls):
            variable = f"FLOWLESS_MAX_{item.name.upper()}"
            text = os.environ.get(variable, str(item.default))
            if not text.isascii() or not text.isdigit() or int(text) < 1:
                raise FlowlessError(f"{variable} is {text!r}; it must be a whole number above 0.")
            found[item.name] = int(text)
        return cls(**found)

    def refuse(self, path: str | os.PathLike[str], name: str, count: int) -> None:
        """Raise Unreadable where a file has more of something than it may."""
        most = getattr(self, name)
        if count > most:
            raise Unreadable(path, f"it has {count:,} {name}, more than {most:,}", f"If that is right, set FLOWLESS_MAX_{name.upper()}.")


class OpenVideo(NamedTuple):
    """An open file and the one video stream of it that flowless looks at."""

    container: InputContainer
    stream: VideoStream

    @property
    def formats(self) -> set[str]:
        """FFmpeg's names of the container's format."""
        return set(self.container.format.name.split(","))

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec."""
        return self.stream.codec_context.codec.canonical_name


class Unreadable(FlowlessError):
    """A file that is not a video, or a damaged one; the text names it, `reason` is the part for a table."""

    def __init__(self, path: str | os.PathLike[str], reason: str, fix: str = _FIX) -> None:
        super().__init__(f"{printable(path)}: {reason}. {fix}")
        self.path = os.fspath(path)
        self.reason = reason
        self.fix = fix

    def __reduce__(self) -> tuple[type[Unreadable], tuple[str, str, str]]:
        """Cross a process boundary as what it was made of."""
        return type(self), (self.path, self.reason, self.fix)


def open_video(path: str | os.PathLike[str], *, threads: int = 1) -> OpenVideo:
    """Open the video stream of a file; close `container` in the end; users read videos with `VideoReader`.

    Of several video streams it is the one that FFmpeg's `av_find_best_stream` names (default disposition, then frames
    seen and bit rate); cover pictures of audio files do not count.

    Args:
        path: A file, in any container and codec that PyAV's FFmpeg reads.
        threads: Threads that the codec may use within a frame. H.264 gains by them only where pictures are cut into slices,
            AV1 nearly always. (Several frames at a time were measured too: no gain once unreferenced frames are left out.)

    Raises:
        Unreadable: The file is missing, empty, no video, encrypted, or damaged so that nothing of it can be read.
    """
    with wrap_io_errors(path):
        _refuse_what_is_no_file(Path(path))
        # Absolute, since a colon in a name would be taken for the end of a protocol's. A title in another encoding than UTF-8, as old
        # cameras and editors write it, says nothing about the pictures.
        limits = Limits.from_environment()
        options = {"protocol_whitelist": "file", "max_streams": str(max(limits.streams, _FFMPEGS_STREAMS))}
        name = absolute(path)
        container = av.open(name, metadata_errors="replace", container_options=options)
        try:
            limits.refuse(path, "streams", len(container.streams))
            stream = _stream(container, path, threads)
            limits.refuse(path, "pixels", stream.codec_context.width * stream.codec_context.height)
            stream.codec_context.options = {**stream.codec_context.options, "max_pixels": str(limits.pixels)}
            return OpenVideo(container, stream)
        except BaseException:
            container.close()
            raise


@contextmanager
def wrap_io_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn FFmpeg's and the system's errors about `path` into an Unreadable that names it; a Ctrl-C that PyAV loses is raised."""
    try:
        with raise_lost_ctrl_c():
            yield
    except av.error.FFmpegError as error:
        raise Unreadable(path, _reason(error)) from error
    except OSError as error:
        raise Unreadable(path, f"it cannot be read ({error.strerror or error})") from error


def packets_of(video: OpenVideo, path: str | os.PathLike[str]) -> Iterator[Packet]:
    """Yield the packets of the video stream in the order of decoding, from where the file stands.

    Empty ones, which decoders take for the end, are left out.

    Raises:
        Unreadable: The container names a stream that it does not describe.
    """
    try:
        yield from (packet for packet in video.container.demux(video.stream) if packet.size)
    except IndexError as error:  # PyAV looks the stream up in a list that has it not
        raise Unreadable(path, "its list of streams is damaged") from error


def damaged(path: str | os.PathLike[str], frame: int) -> Unreadable:
    """Return the error for a stream that is damaged at presentation ordinal `frame`, or thereabouts."""
    return Unreadable(path, f"the stream is damaged near frame {frame}")


def encrypted(path: str | os.PathLike[str]) -> Unreadable:
    """Return the error for pictures that only the holder of a key can decode."""
    return Unreadable(path, "its pictures are encrypted (DRM)", "Only a copy without protection can be read.")


def _stream(container: InputContainer, path: str | os.PathLike[str], threads: int) -> VideoStream:
    if container.format.name in _PICTURES or container.format.name.endswith("_pipe"):
        raise Unreadable(path, "it is one picture, not a video", "Of a folder of numbered pictures name the folder.")
    if names := _PLAYLISTS & set(container.format.name.split(",")):
        raise Unreadable(path, f"it is a list of other files ({', '.join(names)}), not a video", "Name the video files themselves.")
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise Unreadable(path, "it has no video stream" + (", only audio" if container.streams.audio else ""))
    best = container.streams.best("video")
    stream = next((candidate for candidate in streams if best is not None and candidate.index == best.index), streams[0])
    context = stream.codec_context
    if context is None:
        raise Unreadable(path, "no decoder is installed for its codec", "Convert it, to H.264 for example.")
    if says_encrypted(container, stream, path):
        raise encrypted(path)
    # Chosen by us, never AUTO: the threads' number decides speed and memory, and must be the caller's choice.
    stream.thread_count = max(threads, 1)
    stream.thread_type = "SLICE" if threads > 1 else "NONE"
    return stream


def _refuse_what_is_no_file(path: Path) -> None:
    if not os.path.exists(path):  # noqa: PTH110  pathlib raises where a name is too long
        if _ADDRESS.match(os.fspath(path)):
            raise Unreadable(path, "it is an address, and videos are read from files", "Download it first.")
        raise Unreadable(path, "there is no such file", "Check the name.")
    if path.is_dir():
        raise Unreadable(path, "it is a folder, not a video file", "Name one file in it.")
    if not path.is_file():
        raise Unreadable(path, "it is no regular file (a pipe or a device), and cannot be read twice", "Save it as a file first.")
    if path.stat().st_size == 0:
        raise Unreadable(path, "the file is empty", "Copy or download it again.")


def _reason(error: av.error.FFmpegError) -> str:
    if isinstance(error, av.error.InvalidDataError):
        return "it is not a video that FFmpeg can read, or it is damaged or cut off"
    if isinstance(error, av.error.DecoderNotFoundError):
        return "no decoder is installed for its codec"
    return f"it cannot be read ({error.strerror or error})"
