"""`flowless build`, or `python export/build_engine.py`: an engine for a bundle, compared with PyTorch before it is kept."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from flowless.console import emit, log
from flowless.engines.backends import LIBRARIES, open_backend, why_not
from flowless.engines.manifest import TARGETS, Artefact, Manifest, Target, read_manifest
from flowless.errors import FlowlessError
from flowless.export.target_options import BuildOptions


def build(bundle: str | os.PathLike[str], *, target: Target, precision: str = "fp32", options: BuildOptions | None = None) -> Artefact:
    """Build one engine into a bundle.

    Whatever this machine can run is compared with PyTorch's scores of the bundle's reference clips before it is kept.
    An engine for a GPU that is not here is kept as `built, not run here`.

    Args:
        bundle: The bundle's folder.
        target: `openvino`, `onnxruntime`, `tensorrt-rtx` or `tensorrt`.
        precision: `fp32`.
        options: How to build.

    Returns:
        The engine's record in the manifest. One that is there already is returned as it is, unless `options.force`.

    Raises:
        FlowlessError: The bundle is damaged, the target's library is missing, or it refuses the graph.
        CheckFailed: The engine's scores are not PyTorch's; nothing was kept.
    """
    options = options or BuildOptions()
    if target not in TARGETS:
        raise FlowlessError(f"target is {target!r}; it must be one of {', '.join(TARGETS)}.")
    manifest = read_manifest(bundle)
    _refuse_missing_library(target)
    from flowless.export.bundle import add_artefact, add_graph_artefact
    from flowless.export.graph import read_graph
    from flowless.export.precision import with_precision

    there = manifest.artefact(target, precision)
    if there and not options.force and _same_options(there, options):
        manifest.check(there.files)
        already = f"{target} {precision} is there already ({there.status}); --force builds it again"
        log.print(f"{manifest.folder}: {already}", markup=False, soft_wrap=True)
        return there
    manifest.check([manifest.graph, manifest.reference])
    proto = with_precision(read_graph(manifest.path_of(manifest.graph)), precision)
    if target == "onnxruntime":
        record = Artefact(
            target=target, precision=precision, status="built, not run here", files=(manifest.graph,), versions=_ort_version()
        )
        record = _verified(manifest, record, manifest.folder, options)
        add_graph_artefact(manifest.folder, record)
    else:

        def make(folder: Path) -> Artefact:
            made = _builder(target)(proto, folder, precision=precision, options=options)
            return _verified(manifest, made, folder, options)

        record = add_artefact(manifest.folder, target, precision, make).artefact(target, precision)
        assert record is not None
    difference = "" if record.max_abs_diff is None else f"; differs from PyTorch by {record.max_abs_diff:.2g}"
    log.print(f"{manifest.folder}: {target} {precision}: {record.status}{difference}", markup=False, soft_wrap=True)
    return record


def build_all(
    bundle: str | os.PathLike[str], *, precision: str = "fp32", options: BuildOptions | None = None
) -> tuple[list[Artefact], dict[str, str]]:
    """Build every target that this machine can build.

    Returns:
        The engines' records, and for each target left out the reason.

    Raises:
        CheckFailed: One engine's scores are not PyTorch's.
    """
    built: list[Artefact] = []
    left_out: dict[str, str] = {}
    for target in reversed(TARGETS):
        reason = why_not(target) if target != "tensorrt-rtx" else _missing_library(target)
        if reason:
            left_out[target] = reason
            log.print(f"{bundle}: {target} left out: {reason}", markup=False, soft_wrap=True)
        else:
            built.append(build(bundle, target=target, precision=precision, options=options))
    return built, left_out


def main(words: Sequence[str] | None = None) -> int:
    """Run `flowless build`."""
    ask = tyro.cli(Build, args=list(sys.argv[1:] if words is None else words), prog="flowless build", description=inspect.getdoc(Build))
    options = BuildOptions(batch=ask.batch, compute_capabilities=ask.compute_capability, force=ask.force, threads=ask.threads)
    left_out: dict[str, str] = {}
    if ask.target == "all":
        built, left_out = build_all(ask.bundle, precision=ask.precision, options=options)
    else:
        built = [build(ask.bundle, target=ask.target, precision=ask.precision, options=options)]
    manifest = read_manifest(ask.bundle)
    rows = [{**asdict(item), "bytes": sum(manifest.files[name].bytes for name in item.files)} for item in built]
    emit({"bundle": str(ask.bundle), "engines": rows, "left_out": left_out}, _table(rows, left_out), as_json=ask.json)
    return 0


@dataclass(frozen=True, kw_only=True)
class Build:
    """Build an engine into a bundle, and compare it with PyTorch before it is kept.

    An engine that this machine can run is run on the bundle's reference clips; scores that are not PyTorch's end with exit
    code 3, and nothing is kept. An engine for a GPU that is not here is kept as "built, not run here".
    """

    bundle: tyro.conf.Positional[Path]
    """The bundle's folder, which flowless export wrote."""
    target: Annotated[Literal["all", "openvino", "onnxruntime", "tensorrt-rtx", "tensorrt"], tyro.conf.arg()]
    """openvino: any CPU. onnxruntime: CPU or CUDA. tensorrt-rtx: RTX GPUs, built anywhere. tensorrt: the GPU here. all: every one that
    can be built here."""
    precision: str = "fp32"
    """Arithmetic of the engine; this version builds fp32."""
    batch: tuple[int, int, int] = (1, 1, 8)
    """MIN OPT MAX: batches that a TensorRT or TensorRT-RTX engine takes, and the one it is tuned for."""
    compute_capability: tuple[int, ...] = field(default=())
    """tensorrt-rtx: GPUs to build for, such as 86 89 (75, 80, 86, 89, 120, 121); none: any."""
    threads: int | None = None
    """CPU threads for the comparison; by default the library chooses."""
    force: bool = False
    """Build again what is there already."""
    json: bool = False
    """Print one JSON document instead of a table."""


def _builder(target: Target):
    if target == "openvino":
        from flowless.export.target_openvino import build_openvino

        return build_openvino
    from flowless.export.target_tensorrt import build_tensorrt

    return partial(build_tensorrt, target=target)


def _verified(manifest: Manifest, record: Artefact, folder: Path, options: BuildOptions) -> Artefact:
    """Run the engine on the reference clips where this machine can; return its record with what came out."""
    from flowless.export import parity
    from flowless.export.reference import Reference

    if why_not(record.target, record):
        return record
    reference = Reference.load(manifest.path_of(manifest.reference), manifest.spec)
    backend = open_backend(record, folder / record.files[0], classes=len(manifest.labels), threads=options.threads)
    what = f"{manifest.folder.name}: {record.target} {record.precision}"
    result = parity.check(backend, reference.clips, reference.scores, precision=record.precision, what=what)
    return replace(record, status="verified", max_abs_diff=result.max_abs_diff)


def _same_options(there: Artefact, options: BuildOptions) -> bool:
    """Whether an engine was built as it would be now."""
    wanted = {"batch": list(options.batch), "compute_capabilities": list(dict.fromkeys(options.compute_capabilities))}
    return all(there.options[name] == value for name, value in wanted.items() if name in there.options)


def _refuse_missing_library(target: Target) -> None:
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


def _ort_version() -> dict[str, str]:
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__}


def _table(rows: list[dict], left_out: dict[str, str]):
    from rich.markup import escape
    from rich.table import Table

    table = Table("target", "precision", "status", "largest difference", "MB", title="engines")
    for row in rows:
        difference = "" if row["max_abs_diff"] is None else f"{row['max_abs_diff']:.2g}"
        table.add_row(row["target"], row["precision"], row["status"], difference, f"{row['bytes'] / 1e6:.1f}")
    for target, reason in left_out.items():
        table.add_row(target, "", f"left out: {escape(reason)}", "", "")
    return table


if __name__ == "__main__":
    from flowless.cli import run_command

    sys.exit(run_command(main))
