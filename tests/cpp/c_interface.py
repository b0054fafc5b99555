"""The C interface of libflowless through ctypes: what a C program sees, with numpy arrays for its buffers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int32, c_int64, c_size_t, c_ssize_t, c_uint64, c_void_p, sizeof
from pathlib import Path
from typing import Any

import numpy as np

STATUSES = ("ok", "invalid", "missing", "damaged", "unsupported", "runtime")
DEFAULT, ROLLING, ONLINE = range(3)


class Options(ctypes.Structure):
    """flowless_options."""

    _fields_ = [
        ("size", c_size_t),
        ("target", c_char_p),
        ("precision", c_char_p),
        ("device", c_char_p),
        ("threads", c_int32),
        ("reserved", c_int32),
    ]


class Info(ctypes.Structure):
    """flowless_info."""

    _fields_ = [
        ("size", c_size_t),
        *((name, c_int32) for name in ("segments", "frames", "height", "width", "classes", "online", "crops", "clips")),
        ("clip_bytes", c_size_t),
        ("picture_bytes", c_size_t),
        *((name, c_char_p) for name in ("model", "target", "precision", "device", "why")),
    ]


class Frame(ctypes.Structure):
    """flowless_frame."""

    _fields_ = [
        ("size", c_size_t),
        ("rgb", c_void_p),
        ("width", c_int32),
        ("height", c_int32),
        ("stride", c_ssize_t),
        ("pts_ns", c_int64),
    ]


class StreamOptions(ctypes.Structure):
    """flowless_stream_options."""

    _fields_ = [("size", c_size_t), ("mode", c_int32), ("window_frames", c_int32), ("window_ns", c_int64), ("max_gap_ns", c_int64)]


class StreamState(ctypes.Structure):
    """flowless_stream_state."""

    _fields_ = [
        ("size", c_size_t),
        *((name, c_uint64) for name in ("pushed", "replaced", "scored", "resets")),
        ("ready", c_int32),
        ("frames", c_int32),
        ("pts_ns", c_int64),
    ]


class StatusError(Exception):
    """A call's status that is not OK, with the library's sentence."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Library:
    """A loaded libflowless."""

    def __init__(self, path: Path) -> None:
        self.calls = ctypes.CDLL(str(path))
        self.calls.flowless_error.restype = c_char_p
        self.calls.flowless_version.restype = c_char_p

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; raise `StatusError` where its status is not OK."""
        status = getattr(self.calls, f"flowless_{name}")(*arguments)
        if status:
            raise StatusError(STATUSES[status], self.calls.flowless_error().decode())


def _address(array: np.ndarray) -> c_void_p:
    assert array.flags.c_contiguous
    return c_void_p(array.ctypes.data)


def frame_of(pixels: np.ndarray, *, pts_ns: int = 0) -> Frame:
    """Return uint8 `[H, W, 3]`, whose rows may lie apart, as a flowless_frame; keep the array alive."""
    assert pixels.dtype == np.uint8
    assert pixels.strides[1:] == (3, 1)
    height, width = pixels.shape[:2]
    return Frame(sizeof(Frame), pixels.ctypes.data, width, height, pixels.strides[0], pts_ns)


class CEngine:
    """An engine that the C interface opened."""

    def __init__(
        self, library: Library, bundle: Path, *, target: str | None = None, precision: str | None = None, threads: int = 0
    ) -> None:
        self.library, self.handle = library, c_void_p()
        options = Options(sizeof(Options), _text(target), _text(precision), None, threads, 0)
        library.call("open", str(bundle).encode(), byref(options), byref(self.handle))
        self.info = Info(size=sizeof(Info))
        library.call("describe", self.handle, byref(self.info))

    def close(self) -> None:
        """Close it."""
        self.library.call("close", self.handle)

    @property
    def labels(self) -> list[str]:
        """The names of the classes."""
        names = [c_char_p() for _ in range(self.info.classes)]
        for index, name in enumerate(names):
            self.library.call("label", self.handle, index, byref(name))
        return [(name.value or b"").decode() for name in names]

    def indices(self, num_frames: int) -> np.ndarray:
        """Return int64 `[clips, N, m]`."""
        found = np.empty((self.info.clips, self.info.segments, self.info.frames), np.int64)
        self.library.call("indices", self.handle, c_int64(num_frames), _address(found), c_size_t(found.size))
        return found

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Return uint8 `[crops, height, width, 3]`."""
        picture, frame = np.empty((self.info.crops, self.info.height, self.info.width, 3), np.uint8), frame_of(pixels)
        self.library.call("prepare", self.handle, byref(frame), _address(picture), c_size_t(picture.nbytes))
        return picture

    def run(self, clips: np.ndarray) -> np.ndarray:
        """Return float32 `[B, classes]`."""
        scores = np.full((len(clips), self.info.classes), np.nan, np.float32)
        sizes = c_size_t(clips.nbytes), c_int32(len(clips))
        self.library.call("run", self.handle, _address(clips), *sizes, _address(scores), c_size_t(scores.size))
        return scores

    def average(self, views: np.ndarray) -> np.ndarray:
        """Return float32 `[classes]`."""
        scores = np.empty(self.info.classes, np.float32)
        self.library.call("average", self.handle, _address(views), c_int32(len(views)), _address(scores), c_size_t(scores.size))
        return scores

    def stream(self, *, mode: int = DEFAULT, window_frames: int = 0, window_ns: int = 0, max_gap_ns: int = 0) -> CStream:
        """Open a stream."""
        return CStream(self, StreamOptions(sizeof(StreamOptions), mode, window_frames, window_ns, max_gap_ns))

    def step(self, streams: Sequence[CStream]) -> tuple[np.ndarray, np.ndarray]:
        """Return float32 `[streams, classes]`, NaN where a stream had no new frame, and which had one."""
        scores = np.full((len(streams), self.info.classes), np.nan, np.float32)
        answered = np.full(len(streams), 7, np.uint8)
        handles = (c_void_p * len(streams))(*(stream.handle for stream in streams))
        sizes = c_int32(len(streams)), _address(scores), c_size_t(scores.size)
        self.library.call("step", self.handle, handles, *sizes, _address(answered))
        return scores, answered.astype(bool)


class CStream:
    """A stream that the C interface opened."""

    def __init__(self, engine: CEngine, options: StreamOptions) -> None:
        self.engine, self.handle = engine, c_void_p()
        engine.library.call("stream_open", engine.handle, byref(options), byref(self.handle))

    def push(self, pixels: np.ndarray, *, pts_ns: int = 0) -> None:
        """Push a frame."""
        frame = frame_of(pixels, pts_ns=pts_ns)
        self.engine.library.call("stream_push", self.handle, byref(frame))

    def reset(self) -> None:
        """Forget the frames so far."""
        self.engine.library.call("stream_reset", self.handle)

    def close(self) -> None:
        """Close it."""
        self.engine.library.call("stream_close", self.handle)

    @property
    def state(self) -> StreamState:
        """What happened so far."""
        state = StreamState(size=sizeof(StreamState))
        self.engine.library.call("stream_look", self.handle, byref(state))
        return state


def _text(value: str | None) -> bytes | None:
    return None if value is None else value.encode()
