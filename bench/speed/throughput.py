"""Clips per second and latency, stage by stage and end to end, of every target beside PyTorch in the same run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from flowless.console import emit, log
from flowless.errors import FlowlessError
from flowless.files import refuse_unwritable, write_json
from flowless.machine import usable_cores

if TYPE_CHECKING:
    from flowless.bench.speed.video_stages import VideoStages
    from flowless.engines.bundle.manifest import Manifest
    from flowless.pipeline.clip.spec import ClipSpec


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Measure decode, preprocessing, every engine that runs here beside PyTorch, the PA op alone, and all end to end.

    Without --bundle a network with random weights is exported and built first; its speed is that of a trained one. Without
    --videos a few H.264 clips of ten seconds are made. Runners take turns, so that a slow minute of the machine hits all alike;
    all get the same number of threads.
    """

    model: str = "pan-lite-r50"
    """Network to measure; ignored with --bundle."""
    bundle: Path | None = None
    """Measure this bundle's engines instead."""
    videos: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FILE...")] = ()
    """Videos to measure with."""
    targets: tuple[str, ...] = ()
    """Only these targets; none: all that the bundle has."""
    precision: tuple[Literal["all", "fp32", "bf16", "fp16", "int8"], ...] = ()
    """Precisions to build, compare and measure, int8 calibrated on generated videos; of TensorRT-RTX size and build time. With --bundle:
    which of its engines to measure. None: fp32, and OpenVINO's fp32 engine computing in bf16."""
    batch: int = 1
    """Clips in one call."""
    runs: int = 15
    """Rounds, each of which every runner runs once."""
    threads: int = 0
    """CPU threads of every runner; 0: one a core."""
    size: int = 224
    """Side of the square that the network sees, in pixels; ignored with --bundle."""
    width: float = 1.0
    """Factor on the backbone's channels; ignored with --bundle."""
    blocks: int = 0
    """Residual blocks of each stage, as in flowless train; ignored with --bundle."""
    classes: int = 174
    """Scores; ignored with --bundle."""
    compiled: bool = True
    """Also measure torch.compile, which takes a minute or two to compile."""
    out: Path = Path("runs/bench/throughput.json")
    """JSON to write."""
    json: bool = field(default=False)
    """Print one JSON document instead of the tables."""

    def __post_init__(self) -> None:
        """Refuse counts that measure nothing."""
        wrong = [f"{name} is {getattr(self, name)}" for name in ("batch", "runs", "classes", "size") if getattr(self, name) < 1]
        if wrong:
            raise FlowlessError(f"bench throughput: {', '.join(wrong)}; each must be at least 1.")
        if self.threads < 0:
            raise FlowlessError(f"bench throughput: threads is {self.threads}; it must be at least 1, or 0 for one a core.")


def main(words: Sequence[str]) -> None:
    """`flowless bench throughput`."""
    settings = tyro.cli(Throughput, prog="flowless bench throughput", description=Throughput.__doc__, args=words)
    refuse_unwritable(settings.out)
    document = measure(settings)
    write_json(settings.out, document)
    from flowless.bench.lib.tables import tables

    emit(document, *tables(document), as_json=settings.json)


def measure(settings: Throughput) -> dict[str, Any]:
    """Make what is missing, measure, and return the document."""
    from flowless.bench.lib.networks import torch_threads
    from flowless.bench.lib.system_load import busy_share, judged
    from flowless.machine import environment

    threads = settings.threads or usable_cores()
    busy = busy_share()
    with ExitStack() as stack:
        stack.enter_context(torch_threads(threads))
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flowless-bench-")))
        manifest, checkpoint, builds, probe = _network(settings, work, threads)
        videos = settings.videos or _made_videos(work)
        stages = _stages(videos, manifest.spec, settings)
        engines = _engines(manifest, (checkpoint, builds, probe or videos), settings, threads)
        maps = _maps(settings, threads, manifest.spec, work)
        whole = _end_to_end(manifest, videos, (engines, stages), settings, threads)
        bounds = _bounds(manifest, settings, threads)
        shown = stages.videos()
    return {
        "benchmark": "throughput",
        "environment": environment(),
        "settings": {
            "model": manifest.model,
            "weights": "the bundle's" if settings.bundle else "random",
            "spec": manifest.spec.to_dict(),
            "classes": len(manifest.labels),
            "config": manifest.config,
            "precision": list(settings.precision),
            "batch": settings.batch,
            "runs": settings.runs,
            "threads": threads,
            "busy_before": busy,
            "videos": "given" if settings.videos else "made: see bench/lib/sample_videos.py",
        },
        "bound": bounds,
        "videos": shown,
        "stages": stages.rows(),
        "libav_ratio": round(stages.libav_ratio, 3),
        "builds": builds,
        "engines": engines,
        "motion_maps": maps,
        "end_to_end": whole,
        "goals": judged(goals(engines, maps, whole, libav_ratio=stages.libav_ratio), busy),
    }


def goals(engines: list[dict], maps: list[dict], whole: list[dict], *, libav_ratio: float) -> list[dict[str, Any]]:
    """Say which of the project's goals this run met; a goal that could not be measured is not met."""
    from flowless.bench.lib.goals import goal

    times = [row["times_eager"] for row in engines if row["target"] not in {"pytorch", "torch.compile"} and row.get("times_eager")]
    rates = [row["maps_per_s"] for row in maps if row["target"] != "pytorch" and row.get("maps_per_s")]
    shares = [row["share"] for row in whole]
    lower = [_int8_goal(engines)] if any(row.get("precision") == "int8" for row in engines) else []
    return [
        goal("best CPU target's forward over PyTorch eager", 6.0, max(times, default=None)),
        goal("decoding over what libav alone needs", 1.3, round(libav_ratio, 3), at_most=True),
        goal("PA alone, maps per second", 2000, max(rates, default=None)),
        goal("end to end over the slower of decode and engine, worst engine", 0.8, min(shares, default=None)),
        *lower,
    ]


def _int8_goal(engines: list[dict]) -> dict[str, Any]:
    """INT8 over BF16, asked of processors that multiply 8-bit integers faster; where there is neither, the goal says so."""
    from flowless.bench.lib.goals import goal
    from flowless.machine import instruction_sets

    here = sorted(name for name in instruction_sets() if "vnni" in name or name == "amx_int8")
    times = {row["precision"]: row.get("p50_ms") for row in engines if row["target"] == "openvino"}
    bf16, int8 = times.get("bf16"), times.get("int8")
    ratio = round(bf16 / int8, 2) if bf16 and int8 else None
    why = f"this one has {', '.join(here)}" if here else "this one has neither, so it is not asked for"
    return goal(f"INT8 on OpenVINO over BF16 where the processor has AMX or VNNI: {why}", 1.3, ratio)


def _network(settings: Throughput, work: Path, threads: int) -> tuple[Manifest, Path | None, list[dict[str, Any]], tuple[Path, ...]]:
    """Return the bundle, the checkpoint that it was made from if that is at hand, how its builds went, and videos to compare on."""
    from flowless.bench.lib.networks import config_of
    from flowless.bench.lib.runners import bundle_of, exported, known_targets
    from flowless.bench.speed.precision_builds import build_precisions, cold_cache, made_index, wanted_precisions
    from flowless.engines.bundle.manifest import read_manifest
    from flowless.export.precision.calibration import Calibration
    from flowless.export.verify.checks import Checks
    from flowless.pipeline.clip.spec import ClipSpec
    from flowless.pipeline.dataset.index import DatasetIndex

    precisions = wanted_precisions(settings.precision)
    if settings.bundle:
        manifest = read_manifest(settings.bundle)
        config_of(manifest)  # what does not say is refused before anything is measured
        return manifest, None, [row for row in manifest.trials if not row["kept"] and row["precision"] in precisions], ()
    log.print(f"exporting {settings.model} and building its engines …", style="dim", markup=False)
    spec = ClipSpec(height=settings.size, width=settings.size, short_side=settings.size * 8 // 7)
    size = {"classes": settings.classes, "width": settings.width, "blocks": settings.blocks}
    network: dict[str, Any] = {"spec": spec, "folder": work, **size}
    checkpoint = work / "model.safetensors"
    if not precisions:
        return bundle_of(settings.model, **network, targets=settings.targets or None), checkpoint, [], ()
    train, val = made_index(work / "varied", spec)
    index = DatasetIndex.load(val)
    probe = tuple(index.path_of(video) for video in index.videos)[:8]
    manifest = exported(settings.model, **network, videos=probe[:3])
    with cold_cache(work / "cache"):
        builds = build_precisions(
            manifest.folder,
            targets=known_targets(settings.targets),
            precisions=precisions,
            calibration=Calibration(index=train, spec=spec),
            # A slower engine is measured too: that it is slower is what the run shall tell. Noise and edges of full contrast, which the
            # gate compares on, are foreign to random weights; how far the scores lie off on videos is in every row (`snr_db`).
            checks=Checks(parity=False, slower=True),
            threads=threads,
        )
    return read_manifest(manifest.folder), checkpoint, builds, probe


def _made_videos(work: Path) -> tuple[Path, ...]:
    from flowless.bench.lib.sample_videos import sample_videos

    log.print("making videos …", style="dim")
    return tuple(sample_videos(work / "videos"))


def _stages(videos: Sequence[Path], spec: ClipSpec, settings: Throughput) -> VideoStages:
    from flowless.bench.speed.video_stages import measure_stages

    log.print("measuring decode and preprocessing …", style="dim")
    return measure_stages(videos, spec, runs=settings.runs)


def _engines(
    manifest: Manifest, made: tuple[Path | None, list[dict], Sequence[Path]], settings: Throughput, threads: int
) -> list[dict[str, Any]]:
    import numpy as np

    from flowless.bench.lib.networks import random_clips
    from flowless.bench.lib.runners import Runner, engine_runners, time_runners, torch_runners
    from flowless.bench.speed.precision_builds import wanted_precisions
    from flowless.pipeline.clip.preprocess import load_clip

    checkpoint, builds, videos = made
    log.print("measuring the engines beside PyTorch …", style="dim")
    # PyTorch first: it is what the others are compared with.
    runners = torch_runners(checkpoint, manifest, compiled=settings.compiled)
    runners += engine_runners(manifest, threads=threads, targets=settings.targets, precisions=wanted_precisions(settings.precision))
    missing = [row for row in builds if manifest.artefact(row["target"], row["precision"]) is None]
    missing = [row for row in missing if not settings.targets or row["target"] in settings.targets]
    runners += [Runner(f"{row['target']} {row['precision']}", row["target"], row["precision"], row["status"]) for row in missing]
    clip = random_clips(settings.batch, manifest.spec, seed=1)
    probe = np.concatenate([load_clip(path, manifest.spec)[:1] for path in videos[:8]])
    rows = time_runners(runners, clip, runs=settings.runs, compare=checkpoint is not None, probe=probe)
    eager = rows[0]["p50_ms"]
    for row in rows:
        if "p50_ms" in row:
            row |= {"clips_per_s": round(1e3 * settings.batch / row["p50_ms"], 3), "times_eager": round(eager / row["p50_ms"], 3)}
    return rows


def _maps(settings: Throughput, threads: int, spec: ClipSpec, work: Path) -> list[dict[str, Any]]:
    from dataclasses import replace

    from flowless.bench.lib.networks import random_clips
    from flowless.bench.lib.runners import time_runners
    from flowless.bench.motion.motion_maps import PAPER_CLIP, maps_per_clip, motion_runners

    log.print("measuring the PA op alone …", style="dim")
    clip_spec = replace(PAPER_CLIP, height=spec.height, width=spec.width, short_side=spec.short_side)
    _, runners = motion_runners(clip_spec, threads=threads, folder=work)
    rows = time_runners(runners, random_clips(1, clip_spec, seed=2), runs=settings.runs, compare=True)
    for row in rows:
        if "p50_ms" in row:
            row |= {"maps": maps_per_clip(clip_spec), "maps_per_s": round(1e3 * maps_per_clip(clip_spec) / row["p50_ms"], 1)}
    return rows


def _end_to_end(
    manifest: Manifest, videos: Sequence[Path], measured: tuple[list[dict], VideoStages], settings: Throughput, threads: int
) -> list[dict[str, Any]]:
    """Predict several videos with each engine, decoding overlapped, and compare with the slower stage alone.

    The slower stage is measured in the same rounds as the whole, since a machine that others use too changes its pace.
    """
    from flowless.bench.lib.runners import open_engine
    from flowless.pipeline.clip.preprocess import load_clip

    engines, stages = measured
    queue = (list(videos) * 8)[: max(8, len(videos))]
    clips = [load_clip(path, manifest.spec) for path in queue]
    rows = []
    for row in engines:
        if "p50_ms" not in row or row["target"] in {"pytorch", "torch.compile"}:
            continue
        log.print(f"measuring {row['name']} end to end …", style="dim", markup=False)
        engine = open_engine(manifest, row, threads=threads)
        # p50 of a few rounds: each is as long as eight clips.
        seconds = _rounds(engine, queue, clips, rounds=max(2, settings.runs // 5))
        rates = {stage: round(len(queue) / spent, 3) for stage, spent in seconds.items()}
        slower = min(rates["load"], rates["engine"])
        rows.append(
            {
                "name": row["name"],
                "target": row["target"],
                "precision": row["precision"],
                "videos": len(queue),
                "clips_per_s": rates["whole"],
                "load_clips_per_s": rates["load"],
                "engine_clips_per_s": rates["engine"],
                "slower": "load" if rates["load"] <= rates["engine"] else "engine",
                "share": round(rates["whole"] / slower, 3),
                "first_answer_ms": round(stages.mean_ms("load") + row["p50_ms"] / settings.batch, 1),
            }
        )
    return rows


def _rounds(engine: Any, queue: list[Path], clips: list[Any], *, rounds: int) -> dict[str, float]:
    from flowless.pipeline.clip.preprocess import load_clip
    from flowless.timing import time_interleaved

    def whole() -> None:
        failed = [answer.error for answer in engine.predict_many(queue) if answer.error]
        if failed:
            raise FlowlessError(failed[0])

    timings = time_interleaved(
        {
            "whole": whole,
            "load": lambda: [load_clip(path, engine.spec) for path in queue],
            "engine": lambda: [engine(clip) for clip in clips],
        },
        runs=rounds,
        clock=time.perf_counter,
    )
    return {name: timing.p50_ms / 1e3 for name, timing in timings.items()}


def _bounds(manifest: Manifest, settings: Throughput, threads: int) -> dict[str, Any]:
    """Return what the processor's peak allows at best: no engine of that arithmetic is faster."""
    from flowless.bench.lib.networks import config_of
    from flowless.bench.speed.machine_peak import bound, measure_peak
    from flowless.train.models import build_model
    from flowless.train.models.flops import count

    network = build_model(manifest.model, spec=manifest.spec, **config_of(manifest))
    gmac = count(network).macs / 1e9
    peak = measure_peak(threads=threads)
    return {"gmac_per_clip": round(gmac, 3), "peak_gmac_per_s": peak, "least_ms_per_clip": bound(gmac, peak)}
