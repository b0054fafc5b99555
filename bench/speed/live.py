"""Measure live recognition: latency from a frame to its scores, dropped frames, and how many streams a core carries."""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from flowless.bench.lib.goals import goal
from flowless.bench.lib.run_bench import BenchArgs, run_bench
from flowless.bench.lib.sample_videos import sample_frames
from flowless.bench.lib.tables import rows_table
from flowless.bench.speed.random_network import NetworkArgs
from flowless.console import log
from flowless.machine import usable_cores
from flowless.pipeline import ClipSpec, VideoReader
from flowless.pipeline.video.encode import write_video
from flowless.timing import Timing, time_interleaved

if TYPE_CHECKING:
    from flowless.engines.engine import Engine

#: Shares of the capacity that streams deliver together.
_LOADS = (0.8, 2.0)
#: Seconds at the beginning of a run that are not counted: sources open one after another, and the first batches warm up.
_WARM_UP = 3.0
#: Columns and rows of the streams' pictures.
_SIZE = (320, 240)


@dataclass(frozen=True, kw_only=True)
class Live(NetworkArgs, BenchArgs):
    """Measure streams that are watched together: latency p50 and p99 at 80 % of the capacity and at twice the capacity, and dropped frames.

    A causal network with random weights is exported with its state in the graph and built for OpenVINO. The streams are files that are read
    at their own pace; the frame rate sets the load. Beside it in the same run: a thread per stream, a queue, and one frame after another
    (the baseline), and the same network over whole clips.
    """

    model: str = "tsm-r18"
    """Network to measure, of a family with --causal."""
    streams: int = 16
    """Streams that are watched together."""
    seconds: int = 20
    """Length of each run."""
    fps: int = 5
    """Frames per second of a stream, for the number of streams that a core carries."""
    runs: int = 15
    """Rounds in which the engine alone is timed."""
    threads: int = 0
    """CPU threads of the engine; 0: the library chooses."""

    def spec(self) -> ClipSpec:
        """Return the network's clip: one frame a segment, of PAN-Lite four."""
        return replace(super().spec(), frames_per_segment=4 if self.model.startswith("pan-lite") else 1)


def main(args: Sequence[str]) -> None:
    """`flowless bench live`."""
    run_bench("live", Live, args, measure=measure, tables=tables)


def measure(settings: Live) -> dict[str, Any]:
    """Export, build and measure; return the document's parts."""
    import flowless
    from flowless.bench.lib.networks import random_model
    from flowless.export.build_engine import build
    from flowless.export.export_bundle import export_bundle
    from flowless.export.verify.checks import Checks
    from flowless.train.checkpoints import save_checkpoint

    with tempfile.TemporaryDirectory(prefix="flowless-bench-") as folder:
        work, spec = Path(folder), settings.spec()
        labels = [f"class {number}" for number in range(settings.classes)]
        network = {"classes": settings.classes, "width": settings.width, "blocks": settings.blocks}
        model = random_model(settings.model, spec=spec, causal=True, **network)
        about = {"model_name": settings.model, "recipe": {}, "spec": spec, "labels": labels, "metrics": {}}
        checkpoint = save_checkpoint(work / "model.safetensors", model, **about)
        engines: dict[str, Engine] = {}
        for form in ("streaming", "clip"):
            log.print(f"exporting {settings.model}, {form} …", style="dim", markup=False)
            bundle = export_bundle(checkpoint, work / form, form=form).folder
            build(bundle, target="openvino", checks=Checks(parity=False))
            engines[form] = flowless.load(bundle, "openvino", threads=settings.threads or None, warm_up=True)
        return _measured(settings, engines, work)


def _measured(settings: Live, engines: dict[str, Engine], work: Path) -> dict[str, Any]:
    alone = _alone(settings, engines)
    full_ms = alone[f"{settings.streams} frames, streaming"].p50_ms
    # More than the engine can do, decoding beside it not counted: what is scored then is the capacity.
    capacity = {}
    for form, engine in engines.items():
        guess = settings.streams / full_ms * 1e3 if form == "streaming" else 1e3 / alone["a clip"].p50_ms
        log.print(f"measuring the capacity, {form} …", style="dim")
        videos = _videos(settings, work / f"capacity-{form}", rate=1.5 * guess)
        capacity[form] = _watched(engine, videos, settings)["scored_per_s"]
    rows = []
    for load in _LOADS:
        videos = _videos(settings, work / f"load-{load:g}", rate=load * capacity["streaming"])
        for name, run in (("flowless watch", _watched), ("baseline: a queue, frame by frame", _queued)):
            log.print(f"measuring {name} at {100 * load:.0f} % of the capacity …", style="dim", markup=False)
            rows.append({"way": name, "load": load, **run(engines["streaming"], videos, settings)})
    cores = usable_cores()
    forms = [
        {
            "form": form,
            "scored_per_s": value,
            "streams_per_core": round(0.8 * value / settings.fps / cores, 2),
            "times_clips": round(value / capacity["clip"], 2),
        }
        for form, value in capacity.items()
    ]
    step = {"step_ms": alone["a frame"].p50_ms, "clip_ms": alone["a clip"].p50_ms}
    step["share"] = round(step["step_ms"] / step["clip_ms"], 4)
    return {
        "engine": [{"what": name, **timing.to_dict()} for name, timing in alone.items()],
        "step": step,
        "capacity": forms,
        "loads": rows,
        "goals": _goals(settings, rows, full_ms, step["share"]),
        "settings": {"cores_used": cores, "picture": list(_SIZE)},
    }


def _alone(settings: Live, engines: dict[str, Engine]) -> dict[str, Timing]:
    """Time the engines alone, in turns: a frame, a frame of every stream, a whole clip."""
    streaming, clip = engines["streaming"], engines["clip"]
    pixels = np.random.default_rng(0).integers(0, 256, (settings.streams, *streaming.spec.shape), dtype=np.uint8)
    ways: dict[str, Callable[[], object]] = {}
    for name, frames in (("a frame", pixels[:1, -1, -1]), (f"{settings.streams} frames, streaming", pixels[:, -1, -1])):
        _, state = streaming.step(frames)
        ways[name] = lambda frames=frames, state=state: streaming.step(frames, state)
    ways["a clip"] = lambda: clip(pixels[:1])
    return time_interleaved(ways, runs=settings.runs, warmup_each=1)


def _videos(settings: Live, folder: Path, *, rate: float) -> list[Path]:
    """Write a video for each stream; together they have `rate` frames per second."""
    width, height = _SIZE
    fps = Fraction(max(rate / settings.streams, 0.2)).limit_denominator(1000)
    count = max(2, round(fps * (settings.seconds + _WARM_UP)))
    first = folder / "stream_0.mp4"
    frames = sample_frames(np.random.default_rng(0), width=width, height=height, frames=count)
    write_video(first, frames, fps=fps, options={"g": "25", "preset": "veryfast"})
    paths = [folder / f"stream_{number}.mp4" for number in range(settings.streams)]
    for path in paths[1:]:
        path.write_bytes(first.read_bytes())
    return paths


def _watched(engine: Engine, videos: Sequence[Path], settings: Live) -> dict[str, Any]:
    """Watch the videos at their own pace; return the row's figures."""
    from flowless.engines.live.records import Answer

    log_of: list[tuple[float, float]] = []  # arrival and latency of each scored frame
    started = time.time()
    with engine.watch(videos) as watcher:
        for record in watcher:
            if isinstance(record, Answer):
                log_of.append((record.arrived, record.latency))
        sources = watcher.sources
    ended = time.time()
    frames, dropped = sum(source.frames for source in sources), sum(source.dropped for source in sources)
    return _figures(log_of, started, ended, frames=frames, dropped=dropped, fps=_rate(videos))


def _queued(engine: Engine, videos: Sequence[Path], settings: Live) -> dict[str, Any]:
    """Score the videos at their own pace by the usual loop: no frame is dropped, so a queue grows where the engine is slower."""
    from flowless.engines.streaming.stream import Stream, step

    waiting: queue.Queue[tuple[int, np.ndarray, float] | None] = queue.Queue()
    streams = [Stream(engine) for _ in videos]
    started = time.time()

    def read(number: int, path: Path) -> None:
        with VideoReader(path) as video:
            interval = 1 / video.info.fps
            for position, frame in enumerate(video):
                time.sleep(max(0.0, started + position * interval - time.time()))
                waiting.put((number, frame, time.time()))
        waiting.put(None)

    threads = [threading.Thread(target=read, args=item, daemon=True) for item in enumerate(videos)]
    for thread in threads:
        thread.start()
    log_of: list[tuple[float, float]] = []
    over = frames = 0
    while over < len(videos):
        item = waiting.get()
        if item is None:
            over += 1
            continue
        number, frame, arrived = item
        streams[number].push(frame)
        step(engine, [streams[number]])
        log_of.append((arrived, time.time() - arrived))
        frames += 1
    for thread in threads:
        thread.join()
    return _figures(log_of, started, time.time(), frames=frames, dropped=0, fps=_rate(videos))


def _rate(videos: Sequence[Path]) -> float:
    with VideoReader(videos[0]) as video:
        return video.info.fps


def _figures(
    scored: Sequence[tuple[float, float]], started: float, ended: float, *, frames: int, dropped: int, fps: float
) -> dict[str, Any]:
    """Return a row's figures from arrivals (seconds since 1970) and latencies; the warm-up is left out of both."""
    kept = [item for item in scored if item[0] - started > _WARM_UP]
    seconds = max(ended - started - _WARM_UP, 1e-9)
    latency = np.array([late for _, late in sorted(kept)]) * 1e3
    half = len(latency) // 2
    p50, p99 = np.percentile(latency, [50, 99]).tolist() if len(latency) else (None, None)
    halves = [round(float(np.median(part)), 2) if len(part) else None for part in (latency[:half], latency[half:])]
    return {
        "fps": round(fps, 3),
        "frames": frames,
        "scored_per_s": round(len(kept) / seconds, 3),
        "latency_ms_p50": p50 and round(p50, 2),
        "latency_ms_p99": p99 and round(p99, 2),
        "latency_ms_first_half": halves[0],
        "latency_ms_second_half": halves[1],
        "dropped": dropped,
    }


def _goals(settings: Live, rows: list[dict[str, Any]], full_ms: float, share: float) -> list[dict[str, Any]]:
    below, above = (next(row for row in rows if row["load"] == load and row["way"] == "flowless watch") for load in _LOADS)
    allowed = 1.5 * full_ms + 1e3 / below["fps"]
    return [
        goal("a step's share of a clip's time", round(1 / 6, 4), share, at_most=True),
        goal(
            f"p99 at {100 * _LOADS[0]:.0f} %, ms; 1.5 times a batch of {settings.streams} and a frame's interval",
            round(allowed, 1),
            below["latency_ms_p99"],
            at_most=True,
        ),
        goal(f"p99 at {100 * _LOADS[1]:.0f} %, ms; the same", round(allowed, 1), above["latency_ms_p99"], at_most=True),
        goal("frames dropped of a stream's, at twice the capacity, %", 40, round(100 * above["dropped"] / max(above["frames"], 1), 1)),
    ]


def tables(document: dict[str, Any]) -> list[Table]:
    """Return the document as tables."""
    loads = {
        "way": "way",
        "load": "load",
        "scored_per_s": "scored / s",
        "latency_ms_p50": "ms, p50",
        "latency_ms_p99": "p99",
        "latency_ms_first_half": "first half",
        "latency_ms_second_half": "second half",
        "dropped": "dropped",
    }
    fps = document["settings"]["fps"]
    forms = {"form": "graph", "scored_per_s": "scored / s", "streams_per_core": f"streams of {fps} fps a core", "times_clips": "× clips"}
    return [
        rows_table("The engine alone", document["engine"], {"what": "what", "p50_ms": "ms, median", "p99_ms": "p99"}),
        rows_table("Capacity", document["capacity"], forms),
        rows_table("From a frame to its scores", document["loads"], loads),
    ]
