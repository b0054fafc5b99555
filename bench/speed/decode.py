"""Check that every frame is the requested one, and measure how fast, beside PyAV's plain loop and other readers."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro
from PIL import Image
from rich.table import Table

from flowless.bench.lib.run_bench import BenchArgs, import_script, run_bench
from flowless.bench.lib.sample_videos import videos_of
from flowless.bench.lib.tables import rows_table
from flowless.console import progress
from flowless.errors import FlowlessError
from flowless.pipeline.video.reader import VideoReader
from flowless.timing import time_interleaved

if TYPE_CHECKING:
    from other_readers import Read


@dataclass(frozen=True, kw_only=True)
class DecodeArgs(BenchArgs):
    """Compare every file, frame by frame, with a full decode in order, and time a clip of 8 frames.

    Read are frames far apart (jumping), a clip (sparse), all frames (dense) and the last; from the file alone, and with what an index
    records of it (known). A full decode is PyAV's plain loop; where FFmpeg's command is installed, its frames are compared, too. Timed
    beside it are torchcodec and decord (or a successor: decord2, eva-decord) where they are installed, and each of their frames is
    checked: is it nearer to the requested one than to any other? A refused file is listed with the reason.
    """

    videos: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Videos, or folders of them. None: one of every codec that PyAV encodes is made, in every container that takes it."""
    generated: bool = False
    """Add the made ones to the videos that are named."""
    runs: int = 5
    """Rounds; each reader reads the clip once in each."""


def main(args: Sequence[str]) -> int:
    """`flowless bench decode`: 3 where a file's frames are not those of its full decode."""
    document = run_bench("decode", DecodeArgs, args, measure=measure, tables=tables)
    return 0 if all(row["exact"] is not False for row in document["files"]) else 3


def measure(settings: DecodeArgs) -> dict[str, Any]:
    """Compare and time all files; return the document's parts. Raises FlowlessError where a named video is not there."""
    named = videos_of(settings.videos)
    with tempfile.TemporaryDirectory(prefix="flowless-decode-") as work, progress() as bar:
        made = list(import_script("codec_videos").write_videos(Path(work))) if settings.generated or not named else []
        paths = bar.track([*named, *made], description="decoding")
        rows = [{"file": path.name, "made": path in made, **examined(path, runs=settings.runs)} for path in paths]
    ratios = {"ratios": _ratios(rows), "ratios_of_named": _ratios([row for row in rows if not row["made"]])}
    return {"clip": 8, "files": rows, **ratios, "peers": _verdicts(rows)}


def tables(document: dict[str, Any]) -> list[Table]:
    """Return the files as a table."""
    exact = {True: "yes", False: "NO", None: "refused"}
    rows = [{**row, **row.get("clips_per_s", {}), "exact": exact[row["exact"]]} for row in document["files"]]
    columns = {name: name for name in ("file", "codec", "frames", "exact", "reason", "flowless", "flowless, known", "pyav in order")}
    return [rows_table("frames beside a full decode, and clips a second", rows, columns)]


def examined(path: Path, *, runs: int) -> dict[str, Any]:
    """Return one file's row: whether all ways of reading give the frames of its full decode, and clips a second of each reader."""
    try:
        with VideoReader(path) as video:
            info = video.prove()
    except FlowlessError as error:
        return {"exact": None, "reason": getattr(error, "reason", str(error))}
    others = import_script("other_readers")
    both = [(_digest(frame), _small(frame)) for frame in others.full_decode(path)]
    full, small, count = [digest for digest, _ in both], np.stack([picture for _, picture in both]), len(both)
    clip = np.linspace(0, count - 1, 8).astype(int).tolist()
    jumping = np.random.default_rng(count).integers(count, size=8).tolist()
    patterns: dict[str, bool] = {}
    for name, ordinals in {"jumping": jumping, "sparse": clip, "dense": list(range(count)), "last": [count - 1]}.items():
        for known in (None, info):
            with VideoReader(path, known=known) as video:
                same = {ordinal: _digest(frame) == full[ordinal] for ordinal, frame in video.frames(ordinals)}
            patterns[name + (", known" if known else "")] = set(same) == set(ordinals) and all(same.values())
    with VideoReader(path) as video:
        patterns["all in order"] = [_digest(frame) for frame in video] == full
    command = others.frames_of_ffmpegs_command(path, frame_bytes=3 * info.width * info.height)
    peers = others.installed_readers()
    right = {name: gives_right_frames(read, path, clip, small) for name, read in peers.items()}
    readers = {"flowless": _by_flowless, "flowless, known": partial(_by_flowless, known=info), "pyav in order": others.decode_in_order}
    readers |= {name: read for name, read in peers.items() if right[name] is not None}
    timings = time_interleaved({name: partial(read, path, clip) for name, read in readers.items()}, runs=runs)
    return {
        **{fact: getattr(info, fact) for fact in ("codec", "width", "height", "frames")},
        "jumps": info.seekable,
        "packets_missing_after": list(info.missing),
        "exact": info.frames == count and all(patterns.values()),
        "patterns": patterns,
        "as_ffmpegs_command": None if command is None else [_digest(frame) for frame in command] == full,
        "peers_right": right,
        "clips_per_s": {name: round(timing.per_second(), 2) for name, timing in timings.items()},
    }


def gives_right_frames(read: Read, path: Path, ordinals: list[int], small: np.ndarray) -> bool | None:
    """Return whether each frame that a reader gives is as near to the requested one as to any other; None where it fails."""
    try:
        frames = np.asarray(read(path, ordinals))
    except Exception:  # each reader has its own errors
        return None
    for ordinal, frame in zip(ordinals, frames, strict=True):
        distance = np.abs(small - _small(frame)).mean(axis=(1, 2, 3))
        # Frames that hardly differ count as one: readers convert colours differently.
        alike = np.abs(small - small[ordinal]).mean(axis=(1, 2, 3)) < 1
        if not alike[distance.argmin()]:
            return False
    return True


def _digest(frame: np.ndarray | bytes) -> bytes:
    return hashlib.blake2b(frame if isinstance(frame, bytes) else frame.tobytes(), digest_size=16).digest()


def _small(picture: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BOX), np.float32)


def _by_flowless(path: Path, ordinals: list[int], known: Any = None) -> np.ndarray:
    with VideoReader(path, known=known) as video:
        return video.stack(ordinals)


def _ratios(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return each reader's clips a second over those of PyAV in order on the same files: the median, and of how many files."""
    ratios: dict[str, list[float]] = {}
    for rates in (row["clips_per_s"] for row in rows if row["exact"] is not None):
        for name in [name for name in rates if name != "pyav in order"]:
            ratios.setdefault(name, []).append(rates[name] / rates["pyav in order"])
    return {name: {"median": round(median(values), 3), "files": len(values)} for name, values in ratios.items()}


def _verdicts(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Return for each peer and FFmpeg's command the number of files that flowless reads with the right frames, with others, with none."""
    found: dict[str, dict[str, int]] = {}
    for row in (row for row in rows if row["exact"] is not None):
        for name, right in {**row["peers_right"], "FFmpeg's command": row["as_ffmpegs_command"]}.items():
            counts = found.setdefault(name, {"right": 0, "others": 0, "none": 0})
            counts[{True: "right", False: "others", None: "none"}[right]] += 1
    return found
