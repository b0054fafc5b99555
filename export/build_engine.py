"""`flowless build`, or `python export/build_engine.py`: an engine for a bundle, verified before it is kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flowless import cuda_driver
from flowless.console import log
from flowless.engines.backends.backend import LIBRARIES, why_not
from flowless.engines.bundle.compatibility import this_platform
from flowless.engines.bundle.manifest import TARGETS, Artefact, Manifest, Target, read_manifest
from flowless.errors import FlowlessError
from flowless.export.precision.calibration import Calibration
from flowless.export.precision.precisions import check_precision
from flowless.export.targets.build_options import BuildOptions
from flowless.export.verify.checks import Checks
from flowless.files import sha256_of
from flowless.machine import installed_versions

if TYPE_CHECKING:
    import onnx

#: Target -> the distributions whose versions decide its engines.
_DISTRIBUTIONS = {
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "tensorrt-rtx": ("tensorrt-rtx",),
    "tensorrt": ("tensorrt",),
}
#: Raised whenever this code makes another engine of the same graph.
_MAKER = 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be built, and what it must pass."""

    target: Target
    precision: str
    options: BuildOptions
    checks: Checks
    calibration: Calibration | None
    key: str


def build(
    bundle: str | os.PathLike[str],
    *,
    target: Target,
    precision: str = "fp32",
    options: BuildOptions | None = None,
    checks: Checks | None = None,
    calibration: Calibration | None = None,
) -> Artefact:
    """Build one engine into a bundle.

    What this machine can run goes through the gates of `verify.py` before it is kept: layers, parity with PyTorch, top-1 on
    `checks.data`, speed against the higher precision. An engine for a GPU that is not here is kept as `built, not run here`.
    For a lower precision the target's fp32 engine is built first, to be the yardstick.

    Args:
        bundle: The bundle's folder.
        target: `openvino`, `onnxruntime`, `tensorrt-rtx` or `tensorrt`.
        precision: `fp32`, `bf16`, `fp16` or `int8`.
        options: How to build.
        checks: What it must pass.
        calibration: int8: the videos that its scales are measured on.

    Returns:
        The engine's record in the manifest. One that is there already, of the same graph, options and versions, is returned
        as it is, unless `options.force`.

    Raises:
        FlowlessError: The bundle is damaged, the target's library is missing, or it refuses the graph.
        EngineRefused: The engine failed a gate; nothing was kept.
    """
    options, checks = options or BuildOptions(), checks or Checks()
    if target not in TARGETS:
        raise FlowlessError(f"target is {target!r}; it must be one of {', '.join(TARGETS)}.")
    check_precision(precision)
    options.check(target)
    manifest = read_manifest(bundle)
    refuse_missing_library(target)
    request = Request(
        target=target,
        precision=precision,
        options=options,
        checks=checks,
        calibration=calibration,
        key=engine_key(manifest, target, precision, options, calibration),
    )
    there = manifest.artefact(target, precision)
    if there and not options.force and there.key == request.key and passed(there, checks):
        manifest.check(there.files)
        already = f"{target} {precision} is there already ({there.status}); --force builds it again"
        log.print(f"{manifest.folder}: {already}", markup=False, soft_wrap=True)
        return there
    if precision != "fp32" and manifest.artefact(target, "fp32") is None and not why_not(target):
        build(bundle, target=target, options=options, checks=checks)
        manifest = read_manifest(bundle)
    manifest.check([manifest.graph, manifest.reference])
    record = _make(manifest, request)
    log.print(f"{manifest.folder}: {_told(record)}", markup=False, soft_wrap=True)
    return record


def build_all(
    bundle: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    options: BuildOptions | None = None,
    checks: Checks | None = None,
    calibration: Calibration | None = None,
) -> tuple[list[Artefact], dict[str, str]]:
    """Build every target that this machine can build.

    Returns:
        The engines' records, and for each target left out the reason.

    Raises:
        EngineRefused: One engine failed a gate.
    """
    built: list[Artefact] = []
    targets, left_out = buildable()
    for target, reason in left_out.items():
        log.print(f"{bundle}: {target} left out: {reason}", markup=False, soft_wrap=True)
    for target in targets:
        suited = (options or BuildOptions()).for_target(target)
        built.append(build(bundle, target=target, precision=precision, options=suited, checks=checks, calibration=calibration))
    return built, left_out


def buildable() -> tuple[list[Target], dict[str, str]]:
    """Return the targets that this machine can build, and for each of the others the reason why not."""
    can: list[Target] = []
    left_out: dict[str, str] = {}
    for target in reversed(TARGETS):
        reason = why_not(target) if target != "tensorrt-rtx" else _missing_library(target)
        if reason:
            left_out[target] = reason
        else:
            can.append(target)
    return can, left_out


def engine_key(manifest: Manifest, target: Target, precision: str, options: BuildOptions, calibration: Calibration | None) -> str:
    """Return the SHA-256 over everything that decides an engine: graph, precision, calibration, target, options, versions.

    A TensorRT engine is also of one kind of GPU on one platform, unless it is portable, and of the plugin that lies beside it.
    """
    from flowless.export.precision.graph_cache import digest, graph_key

    settings = {
        name: getattr(options, name)
        for name in ("batch", "compute_capabilities", "portable", "strip_weights", "workspace", "optimization_level", "pa")
    }
    if not target.startswith("tensorrt"):
        settings = {}
    if target == "tensorrt":
        settings["plugin"] = _plugin_digest(options)
        if not options.portable:
            settings["gpu"] = [cuda_driver.gpu_name(), cuda_driver.compute_capability(), this_platform()]
    versions = installed_versions(_DISTRIBUTIONS[target])
    return digest([_MAKER, graph_key(manifest, precision, calibration), target, settings, versions])


def _plugin_digest(options: BuildOptions) -> str | None:
    """Return the SHA-256 of the plugin's library that a TensorRT engine gets; None for one without, or where it is not there."""
    from flowless.export.plugin.plugin_library import find_library

    library = options.plugin_library or (find_library() if options.pa == "plugin" else None)
    return sha256_of(library) if library is not None and library.is_file() else None


def _told(record: Artefact) -> str:
    """Return what was built, and what was found, in a line."""
    difference = "" if record.max_abs_diff is None else f"; differs from PyTorch by {record.max_abs_diff:.2g}"
    speed = f"; {record.figures['latency_ms_p50']:.3g} ms a clip" if "latency_ms_p50" in record.figures else ""
    return f"{record.target} {record.precision}: {record.status}{difference}{speed}"


def _make(manifest: Manifest, request: Request) -> Artefact:
    """Make the engine, take it through its gates, and keep it."""
    from flowless.export.bundle_writer import add_artefact, add_graph_artefact
    from flowless.export.precision.graph_cache import precise_graph
    from flowless.export.targets.target_graph import graph_for
    from flowless.export.verify.gates import Candidate, verified

    target, precision = request.target, request.precision
    graph = precise_graph(manifest, precision, request.calibration)
    proto = graph_for(graph.proto, target=target, precision=precision)

    def judged(record: Artefact, folder: Path) -> Artefact:
        candidate = Candidate(
            record=record,
            folder=folder,
            proto=proto,
            calibration=graph.calibration,
            index=request.calibration.index if request.calibration else None,
            threads=request.options.threads,
        )
        return replace(verified(manifest, candidate, request.checks), key=request.key)

    def make(folder: Path) -> Artefact:
        options, extra = _placed(request, proto, folder)
        record = _builder(target)(proto, folder, precision=precision, options=options)
        return judged(replace(record, files=(*record.files, *extra)), folder)

    if target == "onnxruntime" and precision == "fp32":
        versions = installed_versions(_DISTRIBUTIONS[target])
        record = Artefact(target=target, precision=precision, status="built, not run here", files=(manifest.graph,), versions=versions)
        record = judged(record, manifest.folder)
        add_graph_artefact(manifest.folder, record)
        return record
    done = add_artefact(manifest.folder, target, precision, make, calibration=graph.calibration)
    record = done.artefact(target, precision)
    assert record is not None
    return record


def _placed(request: Request, proto: onnx.ModelProto, folder: Path) -> tuple[BuildOptions, tuple[str, ...]]:
    """Return the options with the files that a build needs named, and those that were written beside the engine."""
    options, extra = request.options, ()
    if request.target == "tensorrt" and options.timing_cache is None:
        from flowless.export.cache import cache_folder

        options = replace(options, timing_cache=cache_folder() / "tensorrt" / "timing.cache")
    if options.strip_weights:
        options = replace(options, refit_from="../model.onnx" if request.precision == "fp32" else "weights.onnx")
        if request.precision != "fp32":
            (folder / "weights.onnx").write_bytes(proto.SerializeToString())
            extra = ("weights.onnx",)
    return options, extra


def passed(record: Artefact, checks: Checks) -> bool:
    """Whether an engine that was kept passed at least these gates; one that cannot run here has passed what it can."""
    if record.status == "built, not run here" or not checks.parity:
        return True
    drop = 100 * (record.figures.get("fp32_top1", 0.0) - record.figures.get("top1", 0.0))
    known = checks.data is None or (record.figures.get("data") == sha256_of(checks.data) and drop <= checks.max_drop + 1e-9)
    above = record.figures.get("above_latency_ms_p50")
    quick = checks.slower or above is None or record.figures["latency_ms_p50"] < above
    return record.status == "verified" and known and quick


def _builder(target: Target) -> Callable[..., Artefact]:
    if target == "openvino":
        from flowless.export.targets.build_openvino import build_openvino

        return build_openvino
    if target == "onnxruntime":
        from flowless.export.targets.build_onnxruntime import build_onnxruntime

        return build_onnxruntime
    from flowless.export.targets.build_tensorrt import build_tensorrt

    return partial(build_tensorrt, target=target)


def refuse_missing_library(target: Target) -> None:
    """Raise `FlowlessError`, with what to install, where the target's library is not here."""
    if reason := _missing_library(target):
        hint = (
            " It comes from NVIDIA's own index and needs an NVIDIA GPU; without one, build --target tensorrt-rtx."
            if target == "tensorrt"
            else ""
        )
        raise FlowlessError(f"--target {target}: {reason}.{hint}")


def _missing_library(target: Target) -> str | None:
    import importlib.util

    module, install = LIBRARIES[target]
    return None if importlib.util.find_spec(module) else f"{module} is not installed; add it with: {install}"


def main(words: list[str] | None = None) -> int:
    """Run `flowless build`."""
    from flowless.export.build_command import main as run

    return run(words)


if __name__ == "__main__":
    from flowless.cli import run_command

    sys.exit(run_command(main))
