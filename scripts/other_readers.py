"""Read videos by PyAV's plain loop, FFmpeg's command, torchcodec and decord: what `flowless bench decode` compares with."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from flowless.pipeline.video.picture import Converter, upright_size

#: Reads frames by their ordinals: uint8 `[K, H, W, 3]`.
Read = Callable[[Path, list[int]], Any]


def full_decode(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield every frame uint8 `[H, W, 3]` from PyAV's plain loop, turned upright."""
    convert = None
    with _opened(path) as container:
        for frame in container.decode(video=_best_stream(container)):
            convert = convert or Converter(upright_size(frame))
            yield convert(frame)


def decode_in_order(path: Path, ordinals: list[int]) -> list[NDArray[np.uint8]]:
    """Return frames by PyAV's plain loop up to the last one, not turned."""
    found = []
    with _opened(path) as container:
        for number, frame in enumerate(container.decode(video=_best_stream(container))):
            if number in ordinals:
                found.append(frame.to_ndarray(format="rgb24"))
            if number == ordinals[-1]:
                break
    return found


def frames_of_ffmpegs_command(path: Path, *, frame_bytes: int) -> Iterator[bytes] | None:
    """Return every frame's RGB bytes by FFmpeg's command, which may be of another version; None where it is not installed."""
    command = shutil.which("ffmpeg")
    return None if command is None else _piped(command, path, frame_bytes)


def _piped(command: str, path: Path, frame_bytes: int) -> Iterator[bytes]:
    with _opened(path) as container:
        stream = _best_stream(container)
    run = [command, "-v", "quiet", "-nostdin", "-i", f"file:{path}", "-map", f"0:v:{stream}", "-fps_mode", "passthrough"]
    with subprocess.Popen([*run, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"], stdout=subprocess.PIPE, bufsize=frame_bytes) as running:
        assert running.stdout is not None
        yield from iter(partial(running.stdout.read, frame_bytes), b"")


def installed_readers() -> dict[str, Read]:
    """Return torchcodec and decord (or a successor: decord2, eva-decord), as far as they are installed."""
    known: dict[str, Read] = {"torchcodec": _by_torchcodec, "decord": _by_decord}
    return {name: read for name, read in known.items() if importlib.util.find_spec(name) is not None}


def _by_torchcodec(path: Path, ordinals: list[int]) -> NDArray[np.uint8]:
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    return VideoDecoder(str(path), num_ffmpeg_threads=1, dimension_order="NHWC").get_frames_at(ordinals).data.numpy()


def _by_decord(path: Path, ordinals: list[int]) -> NDArray[np.uint8]:
    import decord  # pyright: ignore[reportMissingImports]

    return decord.VideoReader(str(path), num_threads=1).get_batch(ordinals).asnumpy()


def _opened(path: Path) -> InputContainer:
    return av.open(f"file:{path}", metadata_errors="replace")


def _best_stream(container: InputContainer) -> int:
    """Return the number, among the video streams, of the one that FFmpeg takes."""
    best = container.streams.best("video")
    return next(place for place, stream in enumerate(container.streams.video) if best is not None and stream.index == best.index)
