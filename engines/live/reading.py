"""Reads the frames of a source: of a file as `predict` reads them, of a camera or network stream with as little delay as it allows.

RTSP is opened with a small `probesize` and no `analyzeduration`: 0.05 s where libav's defaults take 1.1 s. Its `nobuffer` is not set: it
throws away what was read for probing, with it the first key frame, and nothing decodes until the next.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from flowless.engines.live.addresses import Address
from flowless.engines.live.options import WatchOptions
from flowless.pipeline.video.container import Limits
from flowless.pipeline.video.reader import VideoReader
from flowless.pipeline.video.rgb_conversion import Converter, upright_size

#: Protocols that a network stream may open in turn: a playlist of another host must not read files of this one.
_PROTOCOLS = {"rtsp": "rtsp,rtp,srtp,udp,tcp,tls", "http": "http,https,httpproxy,tcp,tls,crypto,data"}
_QUICK = {"probesize": "32", "analyzeduration": "0"}
#: Formats that are text or pictures, which FFmpeg would show as a video.
_NO_VIDEO = frozenset({"tty", "image2", "image2pipe"})
#: The next segment of a live playlist, or the next key frame of a stream that was joined between two, may take so long.
_SLOW_SECONDS = 20.0
#: Nanoseconds from a frame without a time stamp to the one before, where the stream does not say its rate.
_FRAME_NS = 40_000_000


class Lost(Exception):
    """A camera or network stream that cannot be opened, or that ended; the message is one line without the address."""


@dataclass(frozen=True)
class Decoded:
    """A decoded frame."""

    pts_ns: int
    """Nanoseconds since the first frame."""
    rgb: Callable[[], NDArray[np.uint8]]
    """Returns its picture, uint8 `[H, W, 3]`, upright."""


def read_file(address: Address) -> Generator[Decoded, None, None]:
    """Yield a file's frames, with the pixels that `predict` scores.

    Raises:
        FlowlessError: The file cannot be read, is no video, or is damaged.
    """
    with VideoReader(address.url) as video:
        info = video.info
        stamps = np.asarray(info.pts, np.int64)
        tick = info.time_base * 1_000_000_000
        frame_ns = round(1e9 / info.fps) if info.fps > 0 else _FRAME_NS
        for number, picture in enumerate(video):
            pts_ns = round(int(stamps[number] - stamps[0]) * tick) if number < len(stamps) else number * frame_ns
            yield Decoded(pts_ns, lambda picture=picture: picture)


def read_live(address: Address, options: WatchOptions) -> Generator[Decoded, None, None]:
    """Yield the frames of a camera or network stream; it never returns.

    Raises:
        Lost: It cannot be opened, nothing came from it for `timeout_seconds`, or it ended.
    """
    container, stream = _open(address, options)
    convert, stamps = Converter((0, 0)), _TimeStamps(stream)
    last = time.monotonic()
    try:
        for packet in container.demux(stream):
            try:
                frames = stream.decode(packet) if packet.size else []
            except av.error.InvalidDataError:  # a part of it was lost on the way; the decoder goes on with the next
                frames = []
            for frame in frames:
                last = time.monotonic()
                if (size := upright_size(frame)) != convert.size:
                    convert = Converter(size)
                yield Decoded(stamps(frame), partial(_picture, convert, frame))
            if time.monotonic() - last > max(options.timeout_seconds, _SLOW_SECONDS):
                raise Lost(f"stalled: no frame decodes for {max(options.timeout_seconds, _SLOW_SECONDS):g} s")
        raise Lost("the stream ended")
    except (av.error.FFmpegError, OSError) as error:
        raise Lost(_reason(error, address, "no frame", since=last, options=options)) from error
    finally:
        container.close()


def _picture(convert: Converter, frame: VideoFrame) -> NDArray[np.uint8]:
    try:
        return convert(frame)
    except av.error.FFmpegError as error:
        raise Lost(f"its frames cannot be converted from {frame.format.name} ({error.strerror})") from error


class _TimeStamps:
    """Time stamps in nanoseconds since a stream's first frame; a frame without one comes one frame's time after the one before."""

    def __init__(self, stream: VideoStream) -> None:
        self._tick = (stream.time_base or Fraction(1, 90_000)) * 1_000_000_000
        rate = stream.average_rate
        self._frame_ns = round(1_000_000_000 / rate) if rate else _FRAME_NS
        self._origin: int | None = None
        self._next = 0

    def __call__(self, frame: VideoFrame) -> int:
        stamp = self._next
        if frame.pts is not None:
            own = round(frame.pts * self._tick)
            if self._origin is None:
                self._origin = own - stamp
            stamp = own - self._origin
        self._next = stamp + self._frame_ns
        return stamp


def _patience(address: Address, options: WatchOptions) -> float:
    return max(options.timeout_seconds, _SLOW_SECONDS) if address.kind == "http" else options.timeout_seconds


def _open(address: Address, options: WatchOptions) -> tuple[InputContainer, VideoStream]:
    opened = time.monotonic()
    try:
        if address.kind != "rtsp":
            return _select(_connect(address, options, {}))
        container = _connect(address, options, _QUICK)
        # The picture's size is not needed: each frame has its own.
        if any(stream.codec_context is not None for stream in container.streams.video):
            return _select(container)
        # The description does not say what is in it (MPEG-TS): libav's defaults find out from the packets.
        container.close()
        return _select(_connect(address, options, {}))
    except (av.error.FFmpegError, OSError) as error:
        raise Lost(_reason(error, address, "no reply", since=opened, options=options)) from error


def _connect(address: Address, options: WatchOptions, more: dict[str, str]) -> InputContainer:
    if address.kind == "camera":
        return av.open(address.url, format="v4l2", timeout=options.timeout_seconds)
    micros = str(round(options.timeout_seconds * 1e6))
    settings = {"protocol_whitelist": _PROTOCOLS[address.kind], **more}
    if address.kind == "rtsp":
        settings |= {"rtsp_transport": options.transport, "timeout": micros}
    else:
        settings["rw_timeout"] = micros
    # The second limit also ends what libav's own does not: packets that are no frames, a playlist that does not grow.
    return av.open(address.url, options=settings, timeout=(options.timeout_seconds, _patience(address, options)), metadata_errors="replace")


def _select(container: InputContainer) -> tuple[InputContainer, VideoStream]:
    """Return the container and its video stream, set to decode each frame at once; close it where it has none."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or container.format.name in _NO_VIDEO or container.format.name.endswith("_pipe"):
        kinds = ", only audio" if container.streams.audio else ""
        container.close()
        raise Lost(f"not a video: it has no video stream{kinds}")
    context = stream.codec_context
    if context is None:
        container.close()
        raise Lost("no decoder is installed for its codec")
    # Threads over frames would hold back as many frames.
    context.thread_type, context.thread_count = "NONE", 1
    context.options = {**context.options, "max_pixels": str(Limits.from_environment().pixels)}
    return container, stream


def _reason(error: Exception, address: Address, what: str, *, since: float, options: WatchOptions) -> str:
    """Return in one line why a camera or network stream is lost; never libav's own text, which may contain the address."""
    waited = options.timeout_seconds if what == "no reply" else _patience(address, options)
    late = time.monotonic() - since > 0.9 * waited
    if isinstance(error, av.error.HTTPUnauthorizedError | av.error.HTTPForbiddenError):
        return (
            "its user or password is wrong" if address.has_user else "it needs a user and a password (401): rtsp://USER:PASSWORD@HOST/..."
        )
    if isinstance(error, av.error.HTTPNotFoundError):
        return "there is no such stream (404)"
    # A reply that does not come makes libav's RTSP client report invalid data.
    if isinstance(error, TimeoutError | av.error.ExitError) or (late and isinstance(error, av.error.InvalidDataError)):
        return f"stalled: {what} for {waited:g} s"
    if isinstance(error, ConnectionRefusedError):
        return f"the connection was refused: nothing listens at {address.host}"
    if isinstance(error, FileNotFoundError):
        return f"there is no such camera ({address.shown})" if address.kind == "camera" else "there is no such stream"
    if address.host and not _known(address.host):
        return f"there is no such host ({address.host})"
    if isinstance(error, av.error.InvalidDataError):
        return "not a video that FFmpeg can read" if what == "no reply" else "the stream was cut off"
    return f"it cannot be read ({getattr(error, 'strerror', None) or type(error).__name__})"


def _known(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return True
