"""Measure the memory that reading takes: one batch of clips of 4K video, and ten thousand clips one after another."""

from __future__ import annotations

import gc
import resource
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowless.bench.lib.goals import goal
from flowless.bench.lib.run_bench import BenchArgs, run_bench
from flowless.bench.lib.sample_videos import sample_videos
from flowless.console import log
from flowless.pipeline import ClipSpec, DatasetIndex, scan

if TYPE_CHECKING:
    from flowless.pipeline.loading.loader import ClipLoader


@dataclass(frozen=True, kw_only=True)
class MemoryArgs(BenchArgs):
    """Measure resident memory: the peak of a training batch of 12 clips of 3840 x 2160, and the slope over many clips.

    Each is measured in a new process, PyTorch and DALI included. The videos are made.
    """

    clips: int = 10_000
    """Clips that are read one after another."""
    batch: int = 12
    """Clips of 4K video in the batch."""


def main(args: Sequence[str]) -> int:
    """`flowless bench memory`: 3 where a goal is not met."""
    document = run_bench("memory", MemoryArgs, args, measure=measure, tables=lambda _: [], judge_busy=True)
    return 0 if all(row["met"] for row in document["goals"]) else 3


def measure(settings: MemoryArgs) -> dict[str, Any]:
    """Measure both, each in a new process, and return the document's parts."""
    with tempfile.TemporaryDirectory(prefix="flowless-memory-") as folder:
        log.print("making videos …", style="dim")
        large = _indexed(Path(folder, "large"), sizes=((3840, 2160),), count=2, frames=24)
        small = _indexed(Path(folder, "small"), sizes=((320, 240),), count=20, frames=60)
        log.print("reading …", style="dim")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
            peak = round(pool.submit(_peak_of_a_batch, large, settings.batch).result(), 1)
            resident = pool.submit(_resident_over, small, settings.clips).result()
    clips, mb = np.array(list(resident)), np.array(list(resident.values()))
    late = clips >= 1000  # by then every pool of memory has its size
    slope = round(float(np.polyfit(clips[late], mb[late], 1)[0]) * 1000, 3)
    batch, more = ("MB of a batch of clips of 4K video", 2048, peak), ("MB more a thousand clips", 1, slope)
    goals = [goal(what, wanted, measured, at_most=True) for what, wanted, measured in (batch, more)]
    return {"batch_peak_mb": peak, "resident_mb": resident, "slope_mb_per_1000": slope, "goals": goals}


def _indexed(folder: Path, **options: Any) -> DatasetIndex:
    sample_videos(folder / "class", **options)
    return scan(folder, out=folder.with_suffix(".jsonl"))


def _peak_of_a_batch(index: DatasetIndex, batch: int) -> float:
    """Load one training batch; return the process's peak of resident MB."""
    next(iter(_loader(index, batch, clips=batch)))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _resident_over(index: DatasetIndex, clips: int) -> dict[int, float]:
    """Load clips batch after batch; return the resident MB after every 200 clips."""
    seen: dict[int, float] = {}
    done = 0
    for batch in _loader(index, 8, clips=clips):
        done += len(batch.ids)
        if done % 200 < 8:
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            seen[done] = pages * resource.getpagesize() / 2**20
    return seen


def _loader(index: DatasetIndex, batch: int, *, clips: int) -> ClipLoader:
    from flowless.pipeline.loading.augment import LoaderOptions
    from flowless.pipeline.loading.loader import ClipLoader

    turns = range(-(-clips // len(index.videos)))
    many = tuple(replace(video, id=f"{video.id}-{turn}") for turn in turns for video in index.videos)
    spec = ClipSpec(segments=8, frames_per_segment=2, height=112, width=112, short_side=128)
    return ClipLoader(replace(index, videos=many), spec, rule="train", batch_size=batch, options=LoaderOptions())
