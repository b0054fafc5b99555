"""Opens video files with PyAV, and converts FFmpeg's errors into `Unreadable` with a reason and a remedy."""

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
from flowless.pipeline.video.encryption import says_encrypted

_FIX = "Check that it plays in a video player, or convert it again; `flowless scan` lists such files and leaves them out."
#: FFmpeg's default for `max_streams`.
_FFMPEG_MAX_STREAMS = 1000
#: The beginning of a URL (`pathlib` has collapsed `//` to `/`).
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
#: Formats of files that refer to other files or URLs, which FFmpeg would open.
_PLAYLISTS = frozenset({"hls", "concat", "dash", "imf", "rtsp", "sdp", "webm_dash_manifest"})
#: Formats of single images.
_PICTURES = frozenset({"image2", "image2pipe"})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Upper limits on a file's properties; environment variables change them for every command."""

    pixels: int = 2**27
    """Pixels per frame (FLOWLESS_MAX_PIXELS): 134 million, 16 times 4K."""
    streams: int = 256
    """Streams per file (FLOWLESS_MAX_STREAMS)."""
    frames: int = 10_000_000
    """Frames per video (FLOWLESS_MAX_FRAMES): four days at 30 frames per second."""

    @classmethod
    def from_environment(cls) -> Limits:
        """Read the environment variables; raise FlowlessError where one is not an integer of at least 1."""
        found: dict[str, int] = {}
        for item in fields(cls):
            variable = f"FLOWLESS_MAX_{item.name.upper()}"
            text = os.environ.get(variable, str(item.default))
            if not text.isascii() or not text.isdigit() or int(text) < 1:
                raise FlowlessError(f"{variable} is {text!r}; it must be an integer of at least 1.")
            found[item.name] = int(text)
        return cls(**found)

    def refuse(self, path: str | os.PathLike[str], name: str, count: int) -> None:
        """Raise Unreadable where `count` exceeds the limit `name`."""
        most = getattr(self, name)
        if count > most:
            raise Unreadable(
                path,
                f"it has {count:,} {name}, more than {most:,}",
                f"Raise the limit with FLOWLESS_MAX_{name.upper()}.",
            )


class OpenVideo(NamedTuple):
    """An open file and its selected video stream."""

    container: InputContainer
    stream: VideoStream

    @property
    def formats(self) -> set[str]:
        """FFmpeg's names of the container format."""
        return set(self.container.format.name.split(","))

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec."""
        return self.stream.codec_context.codec.canonical_name


class Unreadable(FlowlessError):
    """A file that is not a video, or is damaged. The message names the file; `reason` is its short form for tables."""

    def __init__(self, path: str | os.PathLike[str], reason: str, fix: str = _FIX) -> None:
        super().__init__(f"{printable(path)}: {reason}. {fix}")
        self.path = os.fspath(path)
        self.reason = reason
        self.fix = fix

    def __reduce__(self) -> tuple[type[Unreadable], tuple[str, str, str]]:
        """Pickle the constructor's arguments (the base class would pickle the message alone)."""
        return type(self), (self.path, self.reason, self.fix)


def open_video(path: str | os.PathLike[str], *, threads: int = 1) -> OpenVideo:
    """Open a file and select its video stream. The caller must close `container`; `VideoReader` is the public interface.

    Of several video streams, FFmpeg's `av_find_best_stream` selects one (default disposition, then number of frames
    and bit rate); cover images of audio files are ignored.

    Args:
        path: A file in any container and codec that PyAV's FFmpeg supports.
        threads: Threads for slice threading. H.264 benefits only where pictures are divided into slices, AV1 nearly always. (Frame
            threading was measured too: no gain once non-reference frames are skipped.)

    Raises:
        Unreadable: The file is missing, empty, not a video, encrypted, or too damaged to be opened.
    """
    with wrap_io_errors(path):
        _check_regular_file(Path(path))
        # An absolute path: FFmpeg would take the text before a colon in a relative one for a protocol. metadata_errors: old cameras and
        # editors write titles in other encodings than UTF-8.
        limits = Limits.from_environment()
        options = {"protocol_whitelist": "file", "max_streams": str(max(limits.streams, _FFMPEG_MAX_STREAMS))}
        name = absolute(path)
        container = av.open(name, metadata_errors="replace", container_options=options)
        try:
            limits.refuse(path, "streams", len(container.streams))
            stream = _select_stream(container, path, threads)
            limits.refuse(path, "pixels", stream.codec_context.width * stream.codec_context.height)
            stream.codec_context.options = {**stream.codec_context.options, "max_pixels": str(limits.pixels)}
            return OpenVideo(container, stream)
        except BaseException:
            container.close()
            raise


@contextmanager
def wrap_io_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Convert FFmpeg's errors and OSErrors into an Unreadable that names `path`; raise a Ctrl-C that PyAV swallowed."""
    try:
        with raise_lost_ctrl_c():
            yield
    except av.error.FFmpegError as error:
        raise Unreadable(path, _reason(error)) from error
    except OSError as error:
        raise Unreadable(path, f"it cannot be read ({error.strerror or error})") from error


def packets_of(video: OpenVideo, path: str | os.PathLike[str]) -> Iterator[Packet]:
    """Yield the packets of the video stream in decode order, from the current position of the file.

    Empty packets, which decoders take for the end of the stream, are left out.

    Raises:
        Unreadable: A packet refers to a stream that the container's header does not describe.
    """
    try:
        yield from (packet for packet in video.container.demux(video.stream) if packet.size)
    except IndexError as error:  # PyAV indexes its list of streams with the packet's stream number
        raise Unreadable(path, "its list of streams is damaged") from error


def damaged(path: str | os.PathLike[str], frame: int) -> Unreadable:
    """Return the error for a stream that is damaged at or near frame `frame`, counted in display order."""
    return Unreadable(path, f"the stream is damaged near frame {frame}")


def encrypted(path: str | os.PathLike[str]) -> Unreadable:
    """Return the error for an encrypted video."""
    return Unreadable(path, "it is encrypted (DRM)", "Use a copy without DRM.")


def _select_stream(container: InputContainer, path: str | os.PathLike[str], threads: int) -> VideoStream:
    if container.format.name in _PICTURES or container.format.name.endswith("_pipe"):
        raise Unreadable(path, "it is a single picture, not a video", "To read a folder of numbered pictures, name the folder.")
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
    # Set explicitly, never AUTO: the caller chooses the number of threads, which decides speed and memory.
    stream.thread_count = max(threads, 1)
    stream.thread_type = "SLICE" if threads > 1 else "NONE"
    return stream


def _check_regular_file(path: Path) -> None:
    if not os.path.exists(path):  # noqa: PTH110  pathlib raises where a name is too long
        if _ADDRESS.match(os.fspath(path)):
            raise Unreadable(path, "it is a URL, and videos are read from files", "Download it first.")
        raise Unreadable(path, "there is no such file", "Check the name.")
    if path.is_dir():
        raise Unreadable(path, "it is a folder, not a video file", "Name one file in it.")
    if not path.is_file():
        raise Unreadable(path, "it is not a regular file (a pipe or a device)", "Save it as a file first.")
    if path.stat().st_size == 0:
        raise Unreadable(path, "the file is empty", "Copy or download it again.")


def _reason(error: av.error.FFmpegError) -> str:
    if isinstance(error, av.error.InvalidDataError):
        return "it is not a video that FFmpeg can read, or it is damaged or cut off"
    if isinstance(error, av.error.DecoderNotFoundError):
        return "no decoder is installed for its codec"
    return f"it cannot be read ({error.strerror or error})"
