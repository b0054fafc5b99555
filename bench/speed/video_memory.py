"""Memory that reading takes: one batch of clips of 4K video, and ten thousand clips one after another."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from flowless.bench.lib.goals import goal, goals_table
from flowless.console import emit, log
from flowless.errors import FlowlessError
from flowless.files import refuse_unwritable, write_json

#: Goals: MB of a batch of 4K clips, and MB more a thousand clips.
BATCH_MB, SLOPE_MB = 2048, 1.0

_BATCH = """
import resource, sys
from flowless.bench.speed.video_memory import one_batch
one_batch(sys.argv[1], int(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
_MANY = """
import json, sys
from flowless.bench.speed.video_memory import many_clips
print(json.dumps(many_clips(sys.argv[1], int(sys.argv[2]))))
"""


@dataclass(frozen=True, kw_only=True)
class MemoryArgs:
    """Measure resident memory: the peak of a training batch of 12 clips of 3840 x 2160, and its slope over many clips.

    Each is measured in a process of its own, PyTorch and DALI included. The videos are made.
    """

    clips: int = 10_000
    """Clips that are read one after another."""
    batch: int = 12
    """Clips of 4K video in the batch."""
    out: Path = Path("runs/bench/memory.json")
    """JSON to write."""
    json: bool = False
    """Print one JSON document instead of the table."""

    def __post_init__(self) -> None:
        """Refuse counts that measure nothing."""
        if self.clips < 2000 or self.batch < 1:
            raise FlowlessError(f"bench memory: clips is {self.clips} and batch {self.batch}; at least 2000 and 1.")


def main(words: Sequence[str]) -> int:
    """`flowless bench memory`: 3 where a goal is not met."""
    settings = tyro.cli(MemoryArgs, prog="flowless bench memory", description=inspect.getdoc(MemoryArgs), args=words)
    document = measure(settings)
    emit(document, goals_table(document["goals"]), as_json=settings.json)
    return 0 if all(row["met"] for row in document["goals"]) else 3


def measure(settings: MemoryArgs) -> dict[str, Any]:
    """Measure both; write the document and return it.

    Raises:
        FlowlessError: The document cannot be written.
    """
    import numpy as np

    from flowless.bench.speed.decode_videos import moving
    from flowless.machine import environment
    from flowless.pipeline.dataset.scan import scan
    from flowless.pipeline.video.encode import write_video

    refuse_unwritable(settings.out)
    with tempfile.TemporaryDirectory(prefix="flowless-memory-") as work:
        indexes = {}
        for name, size, count, frames in (("large", (2160, 3840), 4, 24), ("small", (240, 320), 20, 60)):
            log.print(f"making {name} videos …", style="dim")
            (Path(work) / name / "a").mkdir(parents=True)
            for number in range(count):
                write_video(Path(work) / name / "a" / f"{number}.mp4", moving(frames, *size), options={"preset": "ultrafast", "g": "12"})
            indexes[name] = Path(work) / f"{name}.jsonl"
            scan(Path(work) / name, out=indexes[name])
        log.print("reading …", style="dim")
        peak = float(_child(_BATCH, indexes["large"], settings.batch))
        seen = json.loads(_child(_MANY, indexes["small"], settings.clips))
    clips, resident = np.array(seen["clips"]), np.array(seen["mb"])
    late = clips >= 1000  # by then every pool of memory has its size
    slope = float(np.polyfit(clips[late], resident[late], 1)[0]) * 1000
    document = {
        "environment": environment(),
        "batch": settings.batch,
        "batch_peak_mb": round(peak, 1),
        "clips": settings.clips,
        "resident_mb": dict(zip(seen["clips"], seen["mb"], strict=True)),
        "slope_mb_per_1000": round(slope, 3),
        "goals": [
            goal("MB of a batch of clips of 4K video", BATCH_MB, round(peak, 1), at_most=True),
            goal("MB more a thousand clips", SLOPE_MB, round(slope, 3), at_most=True),
        ],
    }
    write_json(settings.out, document)
    return document


def one_batch(index: str, batch: int) -> None:
    """Load one training batch, its videos repeated as often as it takes."""
    next(iter(_loader(index, batch, repeat=batch)))


def many_clips(index: str, clips: int) -> dict[str, list[float]]:
    """Load clips of training one batch after another; return resident MB now and then."""
    import gc

    seen: dict[str, list[float]] = {"clips": [], "mb": []}
    loader = _loader(index, 8, repeat=-(-clips // 20))
    done = 0
    for batch in loader:
        done += len(batch.ids)
        if done % 200 < 8:
            gc.collect()
            seen["clips"].append(done)
            seen["mb"].append(_resident_mb())
    return seen


def _loader(index: str, batch: int, *, repeat: int) -> Any:
    from dataclasses import replace

    from flowless.pipeline.clip.spec import ClipSpec
    from flowless.pipeline.dataset.index import DatasetIndex
    from flowless.pipeline.loading.augment import LoaderOptions
    from flowless.pipeline.loading.loader import ClipLoader

    found = DatasetIndex.load(index)
    many = tuple(replace(video, id=f"{video.id}-{turn}") for turn in range(repeat) for video in found.videos)
    spec = ClipSpec(segments=8, frames_per_segment=2, height=112, width=112, short_side=128)
    return ClipLoader(replace(found, videos=many), spec, rule="train", batch_size=batch, options=LoaderOptions())


def _resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _child(code: str, *words: object) -> str:
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise FlowlessError(f"bench memory: a process that reads ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    return done.stdout.splitlines()[-1]
