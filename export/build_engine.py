"""Building an engine into a bundle: resolve -> graph for (target, precision) -> compile -> verify -> commit.

`build` is that line; each step is a function of the build's context. `python export/build_engine.py` runs `flowless build`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flowless.console import log
from flowless.engines.backends.backend import why_not
from flowless.engines.bundle.manifest import Artefact, Manifest, read_manifest
from flowless.engines.targets import TARGETS, Target, find_target
from flowless.export.bundle_changes import ArtefactDraft, commit_artefact, open_draft
from flowless.export.precision.calibration import Calibration
from flowless.export.precision.precisions import check_precision
from flowless.export.targets.build_options import BuildOptions
from flowless.export.targets.builders import buildable, builder_of, refuse_missing_library
from flowless.export.targets.engine_key import engine_key
from flowless.export.verify.checks import Checks, passed
from flowless.interrupts import raise_lost_ctrl_c

if TYPE_CHECKING:
    from flowless.export.precision.graph_cache import PreciseGraph
    from flowless.export.verify.gates import Candidate


@dataclass(frozen=True, kw_only=True)
class BuildContext:
    """What one build is to make, and what the bundle has."""

    manifest: Manifest
    """The bundle before the build."""
    target: Target
    precision: str
    options: BuildOptions
    checks: Checks
    calibration: Calibration | None
    key: str
    """The engine's key, see `engine_key`."""
    kept: Artefact | None
    """The engine, where the bundle has it already; it need not be built."""

    @property
    def bundle(self) -> Path:
        """The bundle's folder."""
        return self.manifest.folder

    @property
    def is_graph(self) -> bool:
        """Whether the engine is the bundle's graph itself, as ONNX Runtime's in fp32."""
        return (self.target, self.precision) == ("onnxruntime", "fp32")

    @property
    def lacks_baseline(self) -> bool:
        """Whether the target's fp32 engine, which lower precisions are compared with, must be built first."""
        return self.precision != "fp32" and self.manifest.artefact(self.target, "fp32") is None and not why_not(self.target)


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

    An engine that this machine can run must pass the gates of `verify/gates.py` before it is kept: layers, parity with PyTorch, top-1 on
    `checks.data`, speed against the higher precisions. An engine for a GPU that is not here is kept as `built, not run here`. For a lower
    precision the target's fp32 engine is built first, as the baseline.

    Args:
        bundle: The bundle's folder.
        target: `openvino`, `onnxruntime`, `tensorrt-rtx` or `tensorrt`.
        precision: `fp32`, `bf16`, `fp16` or `int8`.
        options: How to build.
        checks: The limits of the gates.
        calibration: int8: the videos that its scales are measured on.

    Returns:
        The engine's record in the manifest. An engine of the same graph, options and versions that the bundle has already is returned
        without building it, unless `options.force`.

    Raises:
        FlowlessError: The bundle is damaged, the target's library is missing, or it refuses the graph.
        EngineRefused: The new engine failed a gate and was not kept; an older one stays.
    """
    context = resolve(
        bundle, target=target, precision=precision, options=options or BuildOptions(), checks=checks or Checks(), calibration=calibration
    )
    if context.kept is not None:
        _print(context, f"{target} {precision} is there already ({context.kept.status}); --force builds it again")
        return context.kept
    if context.lacks_baseline:
        build(bundle, target=target, options=options, checks=checks)
    with raise_lost_ctrl_c():  # libraries catch it where they import others; nothing may be committed then
        graph = make_graph(context)
    with open_draft(context.bundle, target, precision, in_place=context.is_graph) as draft:
        with raise_lost_ctrl_c():
            candidate = compile_engine(context, graph, draft)
            record = verify_engine(context, candidate)
        record = commit_artefact(draft, record, calibration=graph.calibration)
    _print(context, _summary(record))
    return record


def resolve(
    bundle: str | os.PathLike[str],
    *,
    target: Target,
    precision: str,
    options: BuildOptions,
    checks: Checks,
    calibration: Calibration | None,
) -> BuildContext:
    """Check the arguments and the bundle's files, and find out whether the bundle has the engine already."""
    find_target(target)
    check_precision(precision)
    options.check(target)
    manifest = read_manifest(bundle)
    manifest.refuse_packed()
    refuse_missing_library(target)
    key = engine_key(manifest, target, precision, options, calibration)
    there = manifest.artefact(target, precision)
    kept = there if there and not options.force and there.key == key and passed(there, checks) else None
    manifest.check(kept.files if kept else (manifest.graph, manifest.reference))
    return BuildContext(
        manifest=manifest,
        target=target,
        precision=precision,
        options=options,
        checks=checks,
        calibration=calibration,
        key=key,
        kept=kept,
    )


def make_graph(context: BuildContext) -> PreciseGraph:
    """Return the graph that the engine is built from: in its precision, and changed for its target."""
    from flowless.export.precision.graph_cache import precise_graph
    from flowless.export.targets.target_graph import graph_for

    graph = precise_graph(context.manifest, context.precision, context.calibration)
    return replace(graph, proto=graph_for(graph.proto, target=context.target, precision=context.precision))


def compile_engine(context: BuildContext, graph: PreciseGraph, draft: ArtefactDraft) -> Candidate:
    """Build the engine into the draft's folder."""
    from flowless.export.verify.gates import Candidate

    target, precision, options = context.target, context.precision, context.options
    if context.is_graph:
        files, versions = (context.manifest.graph,), TARGETS[target].versions()
        record = Artefact(target=target, precision=precision, status="built, not run here", files=files, versions=versions)
    else:
        record = builder_of(target)(graph.proto, draft.folder, precision=precision, options=_with_files(context))
        if options.strip_weights and precision != "fp32":
            (draft.folder / "weights.onnx").write_bytes(graph.proto.SerializeToString())
            record = replace(record, files=(*record.files, "weights.onnx"))
    return Candidate(
        record=replace(record, key=context.key),
        folder=draft.folder,
        proto=graph.proto,
        calibration=graph.calibration,
        index=context.calibration.index if context.calibration else None,
        threads=options.threads,
    )


def _with_files(context: BuildContext) -> BuildOptions:
    """Return the options with the files that a build of TensorRT uses."""
    options = context.options
    if context.target == "tensorrt" and options.timing_cache is None:
        from flowless.export.cache import cache_folder

        options = replace(options, timing_cache=cache_folder() / "tensorrt" / "timing.cache")
    if options.strip_weights:
        options = replace(options, refit_from="../model.onnx" if context.precision == "fp32" else "weights.onnx")
    return options


def verify_engine(context: BuildContext, candidate: Candidate) -> Artefact:
    """Put the engine through its gates; return its record with what was measured, or raise `EngineRefused`."""
    from flowless.export.verify.gates import run_gates

    return run_gates(read_manifest(context.bundle), candidate, context.checks)


def _print(context: BuildContext, line: str) -> None:
    log.print(f"{context.bundle}: {line}", markup=False, soft_wrap=True)


def _summary(record: Artefact) -> str:
    """Return what was built and measured, in one line."""
    difference = "" if record.max_abs_diff is None else f"; differs from PyTorch by {record.max_abs_diff:.2g}"
    speed = f"; {record.figures['latency_ms_p50']:.3g} ms a clip" if "latency_ms_p50" in record.figures else ""
    return f"{record.target} {record.precision}: {record.status}{difference}{speed}"


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
        own = (options or BuildOptions()).for_target(target)
        built.append(build(bundle, target=target, precision=precision, options=own, checks=checks, calibration=calibration))
    return built, left_out


if __name__ == "__main__":
    from flowless.cli import main

    sys.exit(main(["build", *sys.argv[1:]]))
