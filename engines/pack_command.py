"""The command line of `flowless pack`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from flowless.console import emit
from flowless.engines.targets import Target


@dataclass(frozen=True, kw_only=True)
class PackArgs:
    """Cut a bundle down to the one engine that ships.

    The new folder has the manifest, the labels, the engine's files and a note on licences. It is loaded as the full bundle is; engines
    cannot be built into it. The full bundle stays as it is.
    """

    bundle: tyro.conf.Positional[Path]
    """The bundle's folder, which flowless export and build wrote."""
    target: Target | None = None
    """Library of the engine; by default, as of the precision, what flowless.load would choose on this machine."""
    precision: str | None = None
    """Precision of the engine, such as fp32."""
    out: Path | None = None
    """The new folder; by default BUNDLE-TARGET-PRECISION, beside the bundle. A packed bundle there is replaced, nothing else is."""
    json: bool = False
    """Print one JSON document instead of a table."""


def main(arguments: Sequence[str]) -> int:
    """Run `flowless pack`."""
    args = tyro.cli(PackArgs, args=list(arguments), prog="flowless pack", description=inspect.getdoc(PackArgs))
    from rich.markup import escape
    from rich.table import Table

    from flowless.engines.bundle.manifest import read_manifest
    from flowless.engines.bundle.pack import pack

    packed = pack(args.bundle, args.out, target=args.target, precision=args.precision)
    (engine,) = packed.artefacts
    before, after = (sum(record.bytes for record in item.files.values()) for item in (read_manifest(args.bundle), packed))
    document = {
        "bundle": str(packed.folder),
        "packed_from": str(args.bundle),
        "target": engine.target,
        "precision": engine.precision,
        "status": engine.status,
        "files": {name: asdict(record) for name, record in packed.files.items()},
        "bytes_before": before,
        "bytes": after,
    }
    table = Table("bundle", "engine", "status", "MB before", "MB")
    row = (str(packed.folder), f"{engine.target} {engine.precision}", engine.status, f"{before / 1e6:.1f}", f"{after / 1e6:.1f}")
    table.add_row(*map(escape, row))
    emit(document, table, as_json=args.json)
    return 0
