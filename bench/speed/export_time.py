"""Minutes from a checkpoint to a verified INT8 bundle, stage by stage, in a process that starts cold."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from flowless.console import emit, log
from flowless.errors import FlowlessError
from flowless.files import refuse_unwritable, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from flowless.engines.bundle.manifest import Artefact
    from flowless.engines.targets import Target
    from flowless.export.precision.calibration import Calibration
    from flowless.export.precision.graph_cache import PreciseGraph
    from flowless.export.verify.checks import Checks

#: Minutes that it may take for PAN-Lite ResNet-50 at 224 x 224 on two cores.
_WANTED = 2.0
#: Stage -> what it does, for people.
STAGES = {
    "start": "a new Python, and its libraries as far as the other stages do not load them",
    "export": "checkpoint to ONNX, compared with PyTorch on videos and made clips",
    "fp32 engine": "the engine that the int8 one is measured against, through its own gates",
    "calibrate, quantise": "run the graph on the calibration videos, write the scales into it",
    "int8 engine": "build, inspect its layers, compare with PyTorch on fresh videos, race against fp32",
}


@dataclass(frozen=True, kw_only=True)
class ExportTime:
    """Measure what a user waits for between a checkpoint and a verified INT8 bundle.

    Everything runs in a new process with an empty cache, as a first `flowless export` and `flowless build --precision int8` do.
    Without --checkpoint a network with random weights is made, which takes as long as a trained one, and generated videos
    to calibrate on; making them is not counted.
    """

    model: str = "pan-lite-r50"
    """Network to export; ignored with --checkpoint."""
    checkpoint: Path | None = None
    """Your own model; needs --calibrate."""
    calibrate: Path | None = None
    """Index of videos to calibrate on, from flowless scan."""
    calibration_videos: int = 32
    """Videos to calibrate on, one clip each."""
    target: Literal["openvino", "onnxruntime", "tensorrt"] = "openvino"
    """Target of the engine, one that runs here: an engine that cannot run cannot be verified."""
    size: int = 224
    """Side of the square that the network sees, in pixels; ignored with --checkpoint."""
    width: float = 1.0
    """Factor on the backbone's channels; ignored with --checkpoint."""
    blocks: int = 0
    """Residual blocks of each stage, as in flowless train; ignored with --checkpoint."""
    classes: int = 174
    """Scores; ignored with --checkpoint."""
    out: Path = Path("runs/bench/export.json")
    """JSON to write."""
    json: bool = False
    """Print one JSON document instead of the tables."""

    def __post_init__(self) -> None:
        """Refuse a model without videos of its kind, and counts that measure nothing."""
        if self.checkpoint is not None and self.calibrate is None:
            raise FlowlessError(
                f"--checkpoint {self.checkpoint}: its int8 needs videos of its kind. Give an index of them with --calibrate INDEX "
                "(flowless scan makes one), or leave --checkpoint out to measure a random network."
            )
        wrong = [f"{name} is {getattr(self, name)}" for name in ("calibration_videos", "classes", "size") if getattr(self, name) < 1]
        if wrong:
            raise FlowlessError(f"bench export: {', '.join(wrong)}; each must be at least 1.")


def main(words: Sequence[str]) -> None:
    """`flowless bench export`."""
    settings = tyro.cli(ExportTime, prog="flowless bench export", description=ExportTime.__doc__, args=words)
    refuse_unwritable(settings.out)
    document = measure(settings)
    write_json(settings.out, document)
    emit(document, *tables(document), as_json=settings.json)


def measure(settings: ExportTime) -> dict[str, Any]:
    """Make what is missing, walk from checkpoint to bundle in a new process, and return the document.

    Raises:
        FlowlessError: The checkpoint or the index cannot be used, or the target's library is missing.
        CheckFailed: The bundle or an engine failed a gate: there is nothing verified whose time could be told.
    """
    from flowless.bench.lib.system_load import busy_share, judged
    from flowless.export.targets.builders import refuse_missing_library
    from flowless.machine import environment

    refuse_missing_library(settings.target)  # now, and not after the export
    busy = busy_share()
    with tempfile.TemporaryDirectory(prefix="flowless-export-") as name:
        work = Path(name)
        checkpoint, index = _made(settings, work)
        log.print("from checkpoint to bundle …", style="dim")
        # Spawned: a forked child would have the libraries loaded already.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            found = pool.submit(_walk, checkpoint, index, work, settings.target, settings.calibration_videos, began=time.time()).result()
    seconds = found["seconds"]
    total = sum(seconds.values())
    return {
        "benchmark": "export",
        "environment": environment(),
        "settings": {
            "model": found["model"],
            "weights": "random" if settings.checkpoint is None else "a checkpoint's",
            "spec": found["spec"],
            "target": settings.target,
            "calibration_videos": found["calibrated_on"],
            "videos": "made: see bench/speed/precision_builds.py" if settings.calibrate is None else "given",
            "cache": "empty",
            "busy_before": busy,
        },
        "stages": [{"stage": stage, "what": what, "seconds": seconds[stage]} for stage, what in STAGES.items()],
        "int8_gates_seconds": found["gates"],
        "minutes": round(total / 60, 3),
        "engine": found["engine"],
        "goals": judged(_goals(found, total / 60), busy),
    }


def tables(document: dict[str, Any]) -> list[Table]:
    """Return the document as tables for people."""
    from flowless.bench.lib.goals import goals_table
    from flowless.bench.lib.tables import rows_table

    settings, engine = document["settings"], document["engine"]
    found = ", ".join(f"{engine[key]:.3g} {unit}" for key, unit in (("snr_db", "dB"), ("latency_ms_p50", "ms a clip")) if engine.get(key))
    title = (
        f"{settings['model']}: checkpoint to {settings['target']} int8 in {document['minutes']:.2f} minutes ({engine['status']}; {found})"
    )
    return [
        rows_table(title, document["stages"], {"stage": "", "seconds": "s", "what": ""}),
        goals_table(document["goals"]),
    ]


def _goals(found: dict[str, Any], minutes: float) -> list[dict[str, Any]]:
    from flowless.bench.lib.goals import goal

    return [goal(f"minutes from checkpoint to verified INT8 bundle, {found['model']}", _WANTED, round(minutes, 2), at_most=True)]


def _made(settings: ExportTime, work: Path) -> tuple[Path, Path]:
    """Return the checkpoint and the index to calibrate on, making what the user did not bring."""
    from flowless.bench.lib.runners import random_checkpoint
    from flowless.bench.speed.precision_builds import made_index
    from flowless.pipeline.clip.spec import ClipSpec
    from flowless.train.checkpoints import load_checkpoint

    checkpoint, index = settings.checkpoint, settings.calibrate
    if checkpoint is None:
        log.print(f"making {settings.model} with random weights …", style="dim", markup=False)
        spec = ClipSpec(height=settings.size, width=settings.size, short_side=settings.size * 8 // 7)
        checkpoint = random_checkpoint(
            settings.model, spec=spec, folder=work, classes=settings.classes, width=settings.width, blocks=settings.blocks
        )
    if index is None:
        log.print("making videos …", style="dim")
        # More than are calibrated on: the engine is compared on others.
        train = settings.calibration_videos + 16
        index, _ = made_index(work / "varied", load_checkpoint(checkpoint).spec, train=train, val=0)
    return checkpoint, index


def _walk(checkpoint: Path, index: Path, work: Path, target: Target, videos: int, *, began: float) -> dict[str, Any]:
    """Do what `flowless export` and `flowless build` do, in this process, which was asked for at `began`; time the stages."""
    from flowless.bench.speed.precision_builds import cold_cache
    from flowless.export.build_engine import build
    from flowless.export.bundle_writer import export_bundle
    from flowless.export.precision.calibration import Calibration
    from flowless.export.precision.graph_cache import precise_graph
    from flowless.export.verify.checks import Checks
    from flowless.pipeline.dataset.index import DatasetIndex

    seconds = {"start": round(time.time() - began, 2)}
    # A machine on which int8 gains nothing is measured too: the time is what is asked.
    checks = Checks(slower=True)

    def timed(stage: str, do: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        done = do()
        seconds[stage] = round(time.perf_counter() - start, 2)
        return done

    shown = DatasetIndex.load(index)
    few = [shown.path_of(video) for video in shown.videos[:2]]
    with cold_cache(work / "cache"):
        manifest = timed("export", lambda: export_bundle(checkpoint, work / "bundle", videos=few))
        bundle = manifest.folder
        timed("fp32 engine", lambda: build(bundle, target=target, checks=checks))
        calibration = Calibration(index=index, spec=manifest.spec, videos=videos)
        graph = timed("calibrate, quantise", lambda: precise_graph(manifest, "int8", calibration))
        record = timed("int8 engine", lambda: build(bundle, target=target, precision="int8", checks=checks, calibration=calibration))
        gates = _gates_alone(bundle, record, graph, (calibration, checks))
    return {
        "seconds": seconds,
        "gates": gates,
        "model": manifest.model,
        "spec": manifest.spec.to_dict(),
        "calibrated_on": len((graph.calibration or {})["used"]),
        "engine": {"status": record.status, "max_abs_diff": record.max_abs_diff, **record.figures},
    }


def _gates_alone(bundle: Path, record: Artefact, graph: PreciseGraph, how: tuple[Calibration, Checks]) -> float:
    """Take the finished engine through its gates once more: how much of the stage before was checking, in seconds."""
    from flowless.engines.bundle.manifest import read_manifest
    from flowless.export.targets.target_graph import graph_for
    from flowless.export.verify.gates import Candidate, verified

    calibration, checks = how
    proto = graph_for(graph.proto, target=record.target, precision=record.precision)
    candidate = Candidate(record=record, folder=bundle, proto=proto, calibration=graph.calibration, index=calibration.index)
    start = time.perf_counter()
    verified(read_manifest(bundle), candidate, checks)
    return round(time.perf_counter() - start, 2)
