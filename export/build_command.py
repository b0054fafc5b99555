"""The command line of `flowless build`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from flowless.console import emit, log
from flowless.engines.bundle.manifest import Manifest, read_manifest
from flowless.engines.loading import recommendation
from flowless.engines.targets import Target
from flowless.errors import FlowlessError
from flowless.export.precision.calibration import Calibration
from flowless.export.targets.build_options import BuildOptions
from flowless.export.verify.checks import Checks


@dataclass(frozen=True, kw_only=True)
class BuildArgs:
    """Build an engine into a bundle, and verify it before it is kept.

    An engine that this machine can run must pass four gates; otherwise it is not kept and the exit code is 3: its layers compute in the
    precision of the graph; its scores on clips of videos are PyTorch's; with --data, its top-1 falls by at most --max-drop points; a
    lower precision is faster than the higher ones. An engine for a GPU that is not here is kept as "built, not run here".

    --precision auto tries all of them, keeps what passes, and recommends one.
    """

    bundle: tyro.conf.Positional[Path]
    """The bundle's folder, which flowless export wrote."""
    target: Literal["all", Target]
    """openvino: any CPU. onnxruntime: CPU or CUDA. tensorrt-rtx: RTX GPUs, built anywhere. tensorrt: the GPU here. all: every one that
    can be built here."""
    precision: Literal["fp32", "bf16", "fp16", "int8", "auto"] = "fp32"
    """Precision of the network's backbone. PA, normalisation, VAP and the classifier stay in fp32. auto: try all, recommend one."""
    calibrate: Path | None = None
    """int8: index of videos to measure the scales on, from flowless scan; training videos are best."""
    calibration_videos: int = 32
    """int8: number of videos to measure on, one clip each, alternating between the classes."""
    calibration_method: Literal["max", "entropy"] = "max"
    """int8: max keeps the largest values seen, entropy clips rare large ones."""
    data: Path | None = None
    """Index of labelled videos, other than those of --calibrate: top-1 on them may fall by at most --max-drop."""
    max_drop: float = 0.5
    """Points of top-1, of 100, that a lower precision may lose."""
    keep_slower: bool = False
    """Keep a lower precision even if it is no faster here."""
    batch: tuple[int, int, int] = (1, 1, 8)
    """MIN OPT MAX: smallest and largest batch that a TensorRT or TensorRT-RTX engine takes, and the one that it is tuned for."""
    compute_capability: tuple[int, ...] = field(default=())
    """tensorrt-rtx: GPUs to build for, such as 86 89 (75, 80, 86, 89, 120, 121); none: any since Ampere."""
    portable: bool = False
    """tensorrt: an engine that runs on every GPU since Ampere and in later versions of the same major version, slower than others."""
    strip_weights: bool = False
    """tensorrt (tensorrt-rtx where there is a GPU): leave the weights out of the engine; loading takes them from the graph."""
    pa: Literal["function", "plugin"] = "function"
    """tensorrt: Persistence of Appearance as standard operators; plugin: as the C++ plugin's one fused kernel."""
    workspace: int | None = None
    """tensorrt, tensorrt-rtx: MiB of GPU memory that a layer may use while it runs; by default all there is."""
    optimization_level: int | None = None
    """tensorrt, tensorrt-rtx: 0 builds fastest, 5 searches longest."""
    threads: int | None = None
    """CPU threads for the gates; by default the library chooses."""
    force: bool = False
    """Build again what is there already."""
    json: bool = False
    """Print one JSON document instead of a table."""

    def options(self) -> BuildOptions:
        """Return how to build."""
        names = ("batch", "portable", "strip_weights", "pa", "workspace", "optimization_level", "threads", "force")
        return BuildOptions(compute_capabilities=self.compute_capability, **{name: getattr(self, name) for name in names})

    def checks(self) -> Checks:
        """Return the limits of the gates."""
        return Checks(data=self.data, max_drop=self.max_drop, slower=self.keep_slower)

    def calibration(self, manifest: Manifest) -> Calibration | None:
        """Return the videos that int8 is calibrated on; None without --calibrate."""
        if self.calibrate is None:
            return None
        if not self.calibrate.is_file():
            raise FlowlessError(f"--calibrate {self.calibrate}: no such index. Make one with: flowless scan VIDEOS --out {self.calibrate}")
        return Calibration(index=self.calibrate, spec=manifest.spec, videos=self.calibration_videos, method=self.calibration_method)


def main(arguments: Sequence[str]) -> int:
    """Run `flowless build`."""
    args = tyro.cli(BuildArgs, args=list(arguments), prog="flowless build", description=inspect.getdoc(BuildArgs))
    from flowless.export.auto_precision import row_of, try_all
    from flowless.export.build_engine import build, build_all
    from flowless.export.targets.builders import buildable

    options, checks = args.options(), args.checks()
    calibration = args.calibration(read_manifest(args.bundle))
    shared: dict[str, Any] = {"options": options, "checks": checks, "calibration": calibration}
    left_out: dict[str, str] = {}
    targets: list[Target]
    if args.precision == "auto":
        if args.target == "all":
            targets, left_out = buildable()
        else:
            options.check(args.target)
            targets = [args.target]
        rows = try_all(args.bundle, targets, **shared)
    else:
        if args.target == "all":
            built, left_out = build_all(args.bundle, precision=args.precision, **shared)
        else:
            built = [build(args.bundle, target=args.target, precision=args.precision, **shared)]
        rows = [{**asdict(item), **row_of(item), "recommended": False} for item in built]
    manifest = read_manifest(args.bundle)
    rows = [{**row, "bytes": _bytes(manifest, row)} for row in rows]
    emit({"bundle": str(args.bundle), "engines": rows, "left_out": left_out}, _table(rows, left_out), as_json=args.json)
    if args.precision == "auto" and (best := recommendation(manifest)):
        log.print(f"recommended: {best[0]} {best[1]}", markup=False)
    return 0


def _bytes(manifest: Manifest, row: dict[str, Any]) -> int | None:
    artefact = manifest.artefact(row["target"], row["precision"]) if row["kept"] else None
    return sum(manifest.files[name].bytes for name in artefact.files) if artefact else None


def _table(rows: list[dict[str, Any]], left_out: dict[str, str]):
    from rich.markup import escape
    from rich.table import Table

    table = Table("target", "precision", "status", "largest difference", "dB", "top-1", "ms a clip", "MB", title="engines")
    for row in rows:
        style = "bold green" if row["recommended"] else None if row["kept"] else "dim"
        forms = {"max_abs_diff": "%.2g", "snr_db": "%.0f", "top1": "%.3f", "latency_ms_p50": "%.3g"}
        figures = ["" if row.get(key) is None else form % row[key] for key, form in forms.items()]
        megabytes = "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f}"
        table.add_row(row["target"], row["precision"], escape(row["status"]), *figures, megabytes, style=style)
    for target, reason in left_out.items():
        table.add_row(target, "", f"left out: {escape(reason)}", *[""] * 5, style="dim")
    return table
