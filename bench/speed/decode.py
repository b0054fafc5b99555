"""Is every frame the one asked for, and how fast: each file against its full decode, beside PyAV's plain loop and other readers."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from flowless.console import emit, progress
from flowless.errors import FlowlessError
from flowless.files import refuse_unwritable, write_json

if TYPE_CHECKING:
    import numpy as np
    from av.container import InputContainer
    from rich.table import Table

    from flowless.pipeline.video.info import VideoInfo

#: Frames of the clip that is timed, spread evenly over the video.
_CLIP = 8


@dataclass(frozen=True, kw_only=True)
class DecodeArgs:
    """Compare every file, frame by frame, with a full decode in order, and time a clip of 8 frames.

    Asked for are single frames far apart (jumping), a clip (sparse), all frames (dense) and the last; of a file that is not known, and
    of one whose facts an index has. A full decode is PyAV's plain loop, turned upright; where FFmpeg's own command is installed, all frames
    are compared with its, too. Timed beside it are torchcodec and decord (or a successor: decord2, eva-decord) where they are installed,
    and it is noted whether each of their frames is nearer to the one asked for than to any other. A file that is refused is listed
    with the reason.
    """

    videos: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Videos, or folders of them. None: one of every codec that PyAV encodes is made, in every container that takes it."""
    generated: bool = False
    """Add the made ones to the videos that are named."""
    runs: int = 5
    """Rounds in which every reader of a clip is timed once."""
    out: Path = Path("runs/bench/decode.json")
    """JSON to write."""
    json: bool = False
    """Print one JSON document instead of the table."""

    def __post_init__(self) -> None:
        """Refuse counts that measure nothing."""
        if self.runs < 1:
            raise FlowlessError(f"bench decode: runs is {self.runs}; it must be at least 1.")


def main(words: Sequence[str]) -> int:
    """`flowless bench decode`: 3 where a file's frames are not those of its full decode."""
    settings = tyro.cli(DecodeArgs, prog="flowless bench decode", description=inspect.getdoc(DecodeArgs), args=words)
    document = measure(settings)
    emit(document, *tables(document), as_json=settings.json)
    return 0 if all(row["exact"] is not False for row in document["files"]) else 3


def measure(settings: DecodeArgs) -> dict[str, Any]:
    """Compare and time all files; write the document and return it.

    Raises:
        FlowlessError: A named video is not there, or the document cannot be written.
    """
    from flowless.bench.lib.reversal_films import videos_of
    from flowless.bench.lib.system_load import busy_share
    from flowless.bench.speed.decode_videos import write_videos
    from flowless.machine import environment

    refuse_unwritable(settings.out)
    busy = busy_share()
    named = videos_of(settings.videos)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="flowless-decode-") as work, progress() as bar:
        made = list(write_videos(Path(work))) if settings.generated or not named else []
        task = bar.add_task("decoding", total=len(named) + len(made))
        for path in (*named, *made):
            rows.append({"file": path.name, "made": path in made, **examined(path, runs=settings.runs)})
            bar.advance(task)
    document = {
        "environment": environment(),
        "busy_share": busy,
        "runs": settings.runs,
        "clip": _CLIP,
        "files": rows,
        "ratios": _ratios(rows),
        "ratios_of_named": _ratios([row for row in rows if not row["made"]]),
        "peers": _verdicts(rows),
    }
    write_json(settings.out, document)
    return document


def tables(document: dict[str, Any]) -> list[Table]:
    """Return the table for people."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("file", "codec", "frames", "exact", "how", "clips/s", "known", "PyAV", title="Frames beside a full decode")
    for row in document["files"]:
        rates = row.get("clips_per_s", {})
        mark = {True: "yes", False: "[red]no[/]", None: "refused"}[row["exact"]]
        how = row.get("reason") or ("jumps" if row.get("jumps") else "in order")
        shown = [str(rates.get(name, "")) for name in ("flowless", "flowless, known", "pyav in order")]
        table.add_row(escape(row["file"]), row.get("codec", ""), str(row.get("frames", "")), mark, escape(how), *shown)
    return [table]


def examined(path: Path, *, runs: int) -> dict[str, Any]:
    """Return one file's row: whether all ways of asking give the frames of its full decode, and clips a second of each reader."""
    import numpy as np

    from flowless.pipeline.video.reader import VideoReader
    from flowless.timing import time_interleaved

    try:
        with VideoReader(path) as video:
            info = video.prove()
    except FlowlessError as error:
        return {"exact": None, "reason": getattr(error, "reason", str(error))}
    full, small = _plain(path)
    patterns: dict[str, bool] = {}
    count = len(full)
    rng = np.random.default_rng(count)
    asked = {
        "jumping": rng.integers(count, size=8).tolist(),
        "sparse": np.linspace(0, count - 1, _CLIP).astype(int).tolist(),
        "dense": list(range(count)),
        "last": [count - 1],
    }
    for name, ordinals in asked.items():
        for known in (None, info):
            with VideoReader(path, known=known) as video:
                same = {ordinal: _digest(frame) == full[ordinal] for ordinal, frame in video.frames(ordinals)}
            patterns[name + (", known" if known else "")] = set(same) == set(ordinals) and all(same.values())
    with VideoReader(path) as video:
        patterns["all in order"] = [_digest(frame) for frame in video] == full
    peers = {name: _right(read, path, asked["sparse"], small) for name, read in _peers().items()}
    working = [name for name, right in peers.items() if right is not None]
    timings = time_interleaved(_readers(path, info, asked["sparse"], working), runs=runs)
    return {
        "codec": info.codec,
        "width": info.width,
        "height": info.height,
        "frames": count,
        "jumps": info.seekable,
        "packets_missing_after": list(info.missing),
        "exact": info.frames == count and all(patterns.values()),
        "patterns": patterns,
        "as_ffmpegs_command": _as_the_command(path, full),
        "peers_right": peers,
        "clips_per_s": {name: round(1e3 / timing.p50_ms, 2) for name, timing in timings.items()},
    }


def _plain(path: Path) -> tuple[list[bytes], np.ndarray]:
    """Return each frame's digest, and all frames made small, from PyAV's plain loop."""
    import av
    import numpy as np

    from flowless.pipeline.video.rgb_conversion import Converter, upright_size

    found: list[bytes] = []
    small: list[np.ndarray] = []
    convert = None
    with av.open("file:" + str(path), metadata_errors="replace") as container:
        for frame in container.decode(video=_best(container)):
            convert = convert or Converter(upright_size(frame))
            picture = convert(frame)
            found.append(_digest(picture))
            small.append(_small(picture))
    return found, np.stack(small)


def _small(picture: np.ndarray) -> np.ndarray:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BOX), np.float32)


def _as_the_command(path: Path, full: list[bytes]) -> bool | None:
    """Return whether FFmpeg's command, which may be of another version, gives the same frames; None where it is not installed."""
    import av

    from flowless.pipeline.video.reader import VideoReader

    command = shutil.which("ffmpeg")
    if command is None:
        return None
    with av.open("file:" + str(path), metadata_errors="replace") as container:
        stream = _best(container)
    with VideoReader(path) as video:
        size = 3 * video.info.height * video.info.width
    options = ["-map", f"0:v:{stream}", "-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
    run = [command, "-v", "quiet", "-nostdin", "-i", f"file:{path}", *options]
    with subprocess.Popen(run, stdout=subprocess.PIPE, bufsize=size) as running:
        pipe = running.stdout
        assert pipe is not None
        found = [hashlib.blake2b(data, digest_size=16).digest() for data in iter(lambda: pipe.read(size), b"")]
    return found == full


def _best(container: InputContainer) -> int:
    """Return the number, among the video streams, of the one that FFmpeg takes."""
    best = container.streams.best("video")
    return next(place for place, stream in enumerate(container.streams.video) if best is not None and stream.index == best.index)


def _digest(frame: np.ndarray) -> bytes:
    return hashlib.blake2b(frame.tobytes(), digest_size=16).digest()


def _peers() -> dict[str, Callable[[Path, list[int]], object]]:
    """Return the other readers that are installed."""
    found = {"torchcodec": _by_torchcodec, "decord": _by_decord}
    return {name: read for name, read in found.items() if importlib.util.find_spec(name) is not None}


def _readers(path: Path, info: VideoInfo, ordinals: list[int], peers: Sequence[str]) -> dict[str, Callable[[], object]]:
    """Return what reads the clip: by what is known, by the file alone, by PyAV in order up to the last frame, by peers."""
    from flowless.pipeline.video.reader import VideoReader

    def ours(known: VideoInfo | None) -> np.ndarray:
        with VideoReader(path, known=known) as video:
            return video.stack(ordinals)

    return {
        "flowless": lambda: ours(None),
        "flowless, known": lambda: ours(info),
        "pyav in order": lambda: _in_order(path, ordinals),
        **{name: lambda read=read: read(path, ordinals) for name, read in _peers().items() if name in peers},
    }


def _right(read: Callable[[Path, list[int]], object], path: Path, ordinals: list[int], small: np.ndarray) -> bool | None:
    """Return whether each frame that a peer gives is as near to the one asked for as to any other; None where it gives none."""
    import numpy as np

    try:
        frames = np.asarray(read(path, ordinals))
    except Exception:  # a peer refuses a file in its own way
        return None
    for ordinal, frame in zip(ordinals, frames, strict=True):
        far = np.abs(small - _small(frame)).mean(axis=(1, 2, 3))
        # Frames that hardly differ are one; readers convert colours differently.
        alike = np.abs(small - small[ordinal]).mean(axis=(1, 2, 3)) < 1
        if not alike[far.argmin()]:
            return False
    return True


def _in_order(path: Path, ordinals: list[int]) -> int:
    import av

    wanted, last = set(ordinals), max(ordinals)
    with av.open("file:" + str(path), metadata_errors="replace") as container:
        for number, frame in enumerate(container.decode(video=_best(container))):
            if number in wanted:
                frame.to_ndarray(format="rgb24")
            if number == last:
                break
    return last


def _by_torchcodec(path: Path, ordinals: list[int]) -> object:
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    return VideoDecoder(str(path), num_ffmpeg_threads=1, dimension_order="NHWC").get_frames_at(ordinals).data.numpy()


def _by_decord(path: Path, ordinals: list[int]) -> object:
    import decord  # pyright: ignore[reportMissingImports]

    return decord.VideoReader(str(path), num_threads=1).get_batch(ordinals).asnumpy()


def _ratios(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return each reader's clips a second over those of PyAV in order on the same files: the median, and of how many files."""
    from statistics import median

    ratios: dict[str, list[float]] = {}
    for row in rows:
        rates = row.get("clips_per_s", {})
        for name, rate in rates.items():
            ratios.setdefault(name, []).append(rate / rates["pyav in order"])
    return {name: {"median": round(median(values), 3), "files": len(values)} for name, values in ratios.items() if name != "pyav in order"}


def _verdicts(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Return of how many of the files that flowless reads each peer, and FFmpeg's command, gives the right frames, others, or none."""
    found: dict[str, dict[str, int]] = {}
    for row in (row for row in rows if row["exact"] is not None):
        for name, right in {**row["peers_right"], "FFmpeg's command": row["as_ffmpegs_command"]}.items():
            counts = found.setdefault(name, {"right": 0, "others": 0, "none": 0})
            counts[{True: "right", False: "others", None: "none"}[right]] += 1
    return found
