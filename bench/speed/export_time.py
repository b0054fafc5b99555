"""Measure the minutes from a checkpoint to a verified INT8 bundle, stage by stage, in a process that starts cold."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from flowless.bench.lib.goals import goal
from flowless.bench.lib.run_bench import BenchArgs, run_bench
from flowless.bench.lib.tables import rows_table
from flowless.bench.speed.random_network import NetworkArgs, varied_videos
from flowless.console import log
from flowless.pipeline import DatasetIndex


@dataclass(frozen=True, kw_only=True)
class ExportTime(NetworkArgs, BenchArgs):
    """Measure what a user waits for between a checkpoint and a verified INT8 bundle.

    Everything runs in a new process with an empty cache, as a first `flowless export` and `flowless build --precision int8` do. The
    network has random weights, which take as long as trained ones; making it and the videos to calibrate on is not counted.
    """

    calibration_videos: int = 32
    """Videos to calibrate on, one clip each."""
    target: Literal["openvino", "onnxruntime", "tensorrt"] = "openvino"
    """Target of the engine, one that runs here: an engine that cannot run cannot be verified."""


def main(args: Sequence[str]) -> None:
    """`flowless bench export`."""
    run_bench("export", ExportTime, args, measure=measure, tables=tables)


def measure(settings: ExportTime) -> dict[str, Any]:
    """Make a checkpoint and videos, go from checkpoint to bundle in a new process; return the document's parts."""
    from flowless.export.build_engine import refuse_missing_library

    refuse_missing_library(settings.target)
    with tempfile.TemporaryDirectory(prefix="flowless-export-") as folder:
        log.print("making a checkpoint and videos …", style="dim")
        settings.checkpoint(Path(folder))
        # More than are calibrated on: the engine is compared on the others.
        varied_videos(Path(folder) / "videos", settings.spec(), count=settings.calibration_videos + 16, seed=1)
        log.print("from checkpoint to bundle …", style="dim")
        # Spawned: a forked child would have the libraries loaded already.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            seconds, engine = pool.submit(_checkpoint_to_bundle, settings, Path(folder), began=time.time()).result()
    minutes = sum(seconds.values()) / 60
    # Two minutes are for PAN-Lite ResNet-50 at 224 x 224 on two cores.
    wanted = goal(f"minutes from checkpoint to verified INT8 bundle, {settings.model}", 2, round(minutes, 2), at_most=True)
    stages = [{"stage": stage, "seconds": spent} for stage, spent in seconds.items()]
    return {"stages": stages, "minutes": round(minutes, 3), "engine": engine, "goals": [wanted]}


def tables(document: dict[str, Any]) -> list[Table]:
    """Return the stages as a table."""
    return [rows_table(f"checkpoint to INT8 in {document['minutes']:.2f} minutes", document["stages"], "stage seconds")]


def _checkpoint_to_bundle(settings: ExportTime, work: Path, *, began: float) -> tuple[dict[str, float], dict[str, Any]]:
    """Export and build as the commands do, in this new process, started at `began`; return stage -> seconds, and the engine's figures."""
    os.environ["FLOWLESS_CACHE"] = str(work / "cache")
    from flowless.export.build_engine import build
    from flowless.export.export_bundle import export_bundle
    from flowless.export.precision.calibration import Calibration
    from flowless.export.precision.graph_cache import precise_graph
    from flowless.export.verify.checks import Checks

    seconds = {"start": round(time.time() - began, 2)}

    def timed(stage: str, do: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        done = do()
        seconds[stage] = round(time.perf_counter() - start, 2)
        return done

    target, checks = settings.target, Checks(slower=True)  # a machine on which int8 gains nothing is measured too
    index = DatasetIndex.load(work / "videos.jsonl")
    few = [index.path_of(video) for video in index.videos[:2]]
    manifest = timed("export", lambda: export_bundle(work / "model.safetensors", work / "bundle", videos=few))
    timed("fp32 engine", lambda: build(manifest.folder, target=target, checks=checks))
    calibration = Calibration(index=work / "videos.jsonl", spec=manifest.spec, videos=settings.calibration_videos)
    timed("calibrate, quantise", lambda: precise_graph(manifest, "int8", calibration))
    int8 = timed("int8 engine", lambda: build(manifest.folder, target=target, precision="int8", checks=checks, calibration=calibration))
    return seconds, {"status": int8.status, "max_abs_diff": int8.max_abs_diff, **int8.figures}
