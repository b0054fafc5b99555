"""Measure clips per second and latency, stage by stage and end to end, of every target beside PyTorch in the same run."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest.mock import patch

import numpy as np
from rich.table import Table

from flowless.bench.lib.goals import goal
from flowless.bench.lib.run_bench import TimingArgs, run_bench
from flowless.bench.lib.runners import Runner, engine_runners, time_runners, torch_runners
from flowless.bench.lib.sample_videos import sample_videos
from flowless.bench.lib.tables import rows_table
from flowless.bench.speed.random_network import NetworkArgs, save_random, varied_videos
from flowless.console import log
from flowless.engines.bundle.manifest import Target, read_manifest
from flowless.engines.engine import Engine
from flowless.errors import FlowlessError
from flowless.machine import instruction_sets
from flowless.pipeline import ClipSpec, load_clip
from flowless.timing import time_interleaved

if TYPE_CHECKING:
    from flowless.export.precision.calibration import Calibration


@dataclass(frozen=True, kw_only=True)
class Throughput(NetworkArgs, TimingArgs):
    """Measure decoding, preprocessing, every engine that runs here beside PyTorch, the PA op alone, and everything end to end.

    A network with random weights is exported and built first; it is as fast as a trained one. Timing is interleaved, so that a slow
    minute of the machine affects all runners; all get the same number of threads.
    """

    bundle: Path | None = None
    """Measure the engines of this bundle beside its network in PyTorch, instead of exporting and building one."""
    targets: tuple[Target, ...] = ()
    """Only these targets; none: all that this machine builds."""
    precision: tuple[Literal["all", "fp32", "bf16", "fp16", "int8"], ...] = ()
    """Precisions to build, compare and measure, int8 calibrated on generated videos; of TensorRT-RTX size and build time. None: fp32, and
    OpenVINO's fp32 engine computing in bf16."""
    compiled: bool = True
    """Also measure torch.compile, which takes a minute or two to compile."""


def main(args: Sequence[str]) -> None:
    """`flowless bench throughput`."""
    run_bench("throughput", Throughput, args, measure=measure, tables=tables)


def measure(settings: Throughput) -> dict[str, Any]:
    """Export, build and measure; return the document's parts."""
    from flowless.bench.lib.networks import random_clips, torch_threads
    from flowless.bench.motion.motion_methods import PAPER_CLIP, maps_per_clip, motion_runners
    from flowless.bench.speed.video_stages import stage_rows

    if settings.bundle:
        network = {field.name: field.default for field in fields(NetworkArgs)} | {"precision": (), "targets": ()}
        if given := [name for name, default in network.items() if getattr(settings, name) != default]:
            raise FlowlessError(f"bench throughput: --bundle has its network and its engines; leave --{' --'.join(given)} out.")
    with torch_threads(settings.threads or None) as threads, tempfile.TemporaryDirectory(prefix="flowless-bench-") as folder:
        work = Path(folder)
        builds = [] if settings.bundle else _builds(settings, work)
        manifest = read_manifest(settings.bundle or work / "bundle")
        if settings.bundle:
            save_random(manifest, work / "model.safetensors")
        videos = settings.videos or sample_videos(work / "videos")
        log.print("measuring decoding and preprocessing …", style="dim")
        stages = stage_rows(videos, manifest.spec, runs=settings.runs)
        log.print("measuring the engines beside PyTorch …", style="dim")
        runners = torch_runners(work / "model.safetensors", compiled=settings.compiled)
        runners += engine_runners(manifest, threads=threads, bf16_too=not (settings.precision or settings.bundle))
        refused = [row for row in builds if row["megabytes"] is None]
        runners += [Runner(f"{row['target']} {row['precision']}", row["target"], row["precision"], row["status"]) for row in refused]
        engines = _forward(runners, settings, manifest.spec, work)
        log.print("measuring the PA op alone …", style="dim")
        stacks = replace(settings.spec(), frames_per_segment=PAPER_CLIP.frames_per_segment)
        _, cues = motion_runners(stacks, threads=threads, folder=work)
        clip, items = random_clips(1, stacks, seed=2), maps_per_clip(stacks)
        maps = time_runners(cues, clip, runs=settings.runs, rate="maps_per_s", items=items)
        engine_of = {runner.name: runner.run for runner in runners if isinstance(runner.run, Engine)}
        whole = [_end_to_end(name, engine, videos, rounds=max(2, settings.runs // 5)) for name, engine in engine_of.items()]
    times = {row["stage"]: row["p50_ms"] for row in stages}
    ratio = round(times["decode"] / times["libav"], 3)
    return {
        "stages": stages,
        "libav_ratio": ratio,
        "builds": builds if settings.precision else [],
        "engines": engines,
        "motion_maps": maps,
        "end_to_end": whole,
        "goals": goals(engines, maps, whole, libav_ratio=ratio),
    }


def goals(engines: list[dict], maps: list[dict], whole: list[dict], *, libav_ratio: float) -> list[dict[str, Any]]:
    """Return which of the project's goals this run met."""
    times = [row["times_eager"] for row in engines if row["target"] not in {"pytorch", "torch.compile"} and row.get("times_eager")]
    rates = [row["maps_per_s"] for row in maps if row["target"] != "pytorch" and row.get("maps_per_s")]
    found = [
        goal("best CPU target's forward over PyTorch eager", 6.0, max(times, default=None)),
        goal("decoding over what libav alone needs", 1.3, libav_ratio, at_most=True),
        goal("PA alone, maps per second", 2000, max(rates, default=None)),
        goal("end to end over the slower of decode and engine, worst engine", 0.8, min((row["share"] for row in whole), default=None)),
    ]
    return [*found, _int8_goal(engines)] if any(row["precision"] == "int8" for row in engines) else found


def _int8_goal(engines: list[dict]) -> dict[str, Any]:
    """INT8 over BF16 is a goal on processors that multiply 8-bit integers faster; on others the goal's name says so."""
    here = sorted(name for name in instruction_sets() if "vnni" in name or name == "amx_int8")
    times = {row["precision"]: row.get("p50_ms") for row in engines if row["target"] == "openvino"}
    bf16, int8 = times.get("bf16"), times.get("int8")
    name = f"INT8 on OpenVINO over BF16 where the processor has AMX or VNNI: this one has {', '.join(here) or 'neither, so it is no goal'}"
    return goal(name, 1.3, round(bf16 / int8, 2) if bf16 and int8 else None)


def _builds(settings: Throughput, work: Path) -> list[dict[str, Any]]:
    """Export into `work / "bundle"` and build; videos to compare scores on are in `work / "val"`."""
    from flowless.export.build_engine import buildable
    from flowless.export.precision.calibration import Calibration
    from flowless.export.precision.precisions import PRECISIONS

    wanted = settings.precision or ("fp32",)
    precisions = [name for name in PRECISIONS if name in wanted or "all" in wanted]
    spec = settings.spec()
    varied_videos(work / "val", spec, count=8, seed=2)
    bundle = settings.export(work, videos=sorted((work / "val").rglob("*.mp4"))[:3]).folder
    calibration = Calibration(index=varied_videos(work / "train", spec, count=40, seed=1), spec=spec) if "int8" in precisions else None
    targets, left_out = buildable()
    log.print("\n".join(f"{target} left out: {reason}" for target, reason in left_out.items()), style="dim", markup=False, soft_wrap=True)
    # A cache for this run alone: the user's is not filled with random networks.
    with patch.dict(os.environ, FLOWLESS_CACHE=str(work / "cache")):
        return build_precisions(bundle, targets=settings.targets or targets, precisions=precisions, calibration=calibration)


def build_precisions(
    bundle: Path, *, targets: Sequence[Target], precisions: Sequence[str], calibration: Calibration | None
) -> list[dict[str, Any]]:
    """Build into a bundle; return one JSON row each, whose `build_s` is the seconds of build and gates without making the graph."""
    # fp32, which the others are compared with, is built first, so that no other build includes its time.
    order = ("fp32", *(name for name in precisions if name != "fp32"))
    rows = [_build_one(bundle, target, precision, calibration) for target in targets for precision in order]
    return [row for row in rows if row["precision"] in precisions]


def _build_one(bundle: Path, target: Target, precision: str, calibration: Calibration | None) -> dict[str, Any]:
    from flowless.export.build_engine import build
    from flowless.export.precision.graph_cache import precise_graph
    from flowless.export.verify.checks import Checks, EngineRefused

    row: dict[str, Any] = {"target": target, "precision": precision, "status": "", "gate": "", "megabytes": None, "build_s": None}
    # Slower engines are measured too. Parity is not a gate: noise and edges of full contrast are foreign to random weights.
    checks = Checks(parity=False, slower=True)
    try:
        precise_graph(read_manifest(bundle), precision, calibration)
        start = time.perf_counter()
        record = build(bundle, target=target, precision=precision, checks=checks, calibration=calibration)
        seconds = time.perf_counter() - start
    except EngineRefused as error:
        return {**row, "status": f"not kept: {error.short}", "gate": error.gate}
    except FlowlessError as error:
        return {**row, "status": f"not built: {str(error).replace(f'{bundle.parent}{os.sep}', '').split('. ')[0]}"}
    files = read_manifest(bundle).files
    megabytes = round(sum(files[name].bytes for name in record.files) / 1e6, 3)
    return {**row, "status": record.status, "megabytes": megabytes, "build_s": round(seconds, 2)}


def _forward(runners: list[Runner], settings: Throughput, spec: ClipSpec, work: Path) -> list[dict[str, Any]]:
    from flowless.bench.lib.networks import random_clips

    clip = random_clips(1, spec, seed=1)
    if settings.bundle:  # PyTorch has other weights
        return time_runners(runners, clip, runs=settings.runs, rate="clips_per_s", compare=False)
    probe = np.concatenate([load_clip(path, spec)[:1] for path in sorted((work / "val").rglob("*.mp4"))])
    return time_runners(runners, clip, runs=settings.runs, rate="clips_per_s", probe=probe)


def _end_to_end(name: str, engine: Any, videos: Sequence[Path], *, rounds: int) -> dict[str, Any]:
    """Predict several videos, decoding overlapped, beside the slower of loading and engine alone in the same rounds."""
    log.print(f"measuring {name} end to end …", style="dim", markup=False)
    queue = (list(videos) * 8)[: max(8, len(videos))]
    clips = [load_clip(path, engine.spec) for path in queue]

    def whole() -> None:
        if failed := [prediction.error for prediction in engine.predict_many(queue) if prediction.error]:
            raise FlowlessError(failed[0])

    load, run = lambda: [load_clip(path, engine.spec) for path in queue], lambda: [engine(clip) for clip in clips]
    timings = time_interleaved({"clips_per_s": whole, "load_clips_per_s": load, "engine_clips_per_s": run}, runs=rounds)
    rates = {stage: round(timing.per_second(len(queue)), 3) for stage, timing in timings.items()}
    share = rates["clips_per_s"] / min(rates["load_clips_per_s"], rates["engine_clips_per_s"])
    return {"name": name, "videos": len(queue), **rates, "share": round(share, 3)}


def tables(document: dict[str, Any]) -> list[Table]:
    """Return the tables of stages, engines, builds, PA and end to end."""
    columns = {
        "stages": "stage p50_ms what",
        "engines": "name p50_ms p99_ms clips_per_s times_eager max_abs_diff snr_db status",
        "builds": "target precision megabytes build_s status",
        "motion_maps": "name p50_ms p99_ms maps_per_s max_abs_diff status",
        "end_to_end": "name clips_per_s load_clips_per_s engine_clips_per_s share",
    }
    return [rows_table(part.replace("_", " "), document[part], names) for part, names in columns.items() if document[part]]
