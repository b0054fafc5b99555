"""`flowless export`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tyro

from flowless.console import emit
from flowless.errors import FlowlessError
from flowless.pipeline.clip.protocols import ViewsOption, paper_views, protocol_spec
from flowless.pipeline.clip.spec import Average


@dataclass(frozen=True, kw_only=True)
class Export:
    """Export a checkpoint to a bundle: a folder with the ONNX graph and all that a runtime must know.

    The graph is run in ONNX Runtime and compared with PyTorch on real clips; scores that differ end with exit code 3, and no
    bundle is written. Build engines into the bundle with: flowless build BUNDLE --target all
    """

    checkpoint: tyro.conf.Positional[Path]
    """The .safetensors file that flowless train wrote."""
    out: Path
    """The bundle's folder; an older bundle there is replaced."""
    clips: tuple[Path, ...] = ()
    """Videos to compare on. Without --clips and --data some are generated."""
    views: ViewsOption | None = None
    """Test protocol that the bundle is made for, where it is not the checkpoint's own; paper is the one that its recipe names. Those that
    take larger frames (see flowless evaluate) need a bundle of their own, because a graph fixes the size."""
    average: Average | None = None
    """What the bundle averages over a video's views: logits, or softmax. Default: as the protocol says, or else the checkpoint."""
    online: bool = False
    """Export the online form: the graph takes one frame and the memory of those before it, and gives scores and the next memory. For
    models that see one frame a segment (stm, tsm, tsn, pan-rgb). Such a bundle is built and used as any other."""
    data: Path | None = None
    """An index of flowless scan whose first videos, one of each of up to 8 classes, are compared on."""
    json: bool = False
    """Print one JSON document instead of a table."""


def export(words: Sequence[str]) -> int:
    """Run `flowless export`."""
    ask = tyro.cli(Export, args=list(words), prog="flowless export", description=inspect.getdoc(Export))
    if ask.clips and ask.data:
        raise FlowlessError("--clips and --data are both given; they say the same thing twice. Give one.")
    from rich.table import Table

    from flowless.export.bundle_writer import export_bundle
    from flowless.train.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(ask.checkpoint)
    spec = checkpoint.spec
    if ask.views is not None:
        spec = protocol_spec(spec, paper_views(checkpoint.recipe) if ask.views == "paper" else ask.views)
    checkpoint = replace(checkpoint, spec=replace(spec, average=ask.average or spec.average))
    manifest = export_bundle(checkpoint, ask.out, videos=ask.clips or _videos_of(ask.data), online=ask.online)
    document = {
        "bundle": str(ask.out),
        "model": manifest.model,
        "labels": list(manifest.labels),
        "clip": manifest.spec.to_dict(),
        "opset": manifest.opset,
        "memory": manifest.memory,
        "parity": manifest.parity,
        "files": {name: asdict(record) for name, record in manifest.files.items()},
    }
    table = Table("bundle", "model", "classes", "clip", "largest difference from PyTorch", "MB")
    megabytes = sum(record.bytes for record in manifest.files.values()) / 1e6
    clip = " × ".join(map(str, manifest.spec.shape))
    table.add_row(
        str(ask.out), manifest.model, str(len(manifest.labels)), clip, f"{manifest.parity['max_abs_diff']:.2g}", f"{megabytes:.1f}"
    )
    emit(document, table, as_json=ask.json)
    return 0


def _videos_of(data: Path | None) -> tuple[Path, ...]:
    if data is None:
        return ()
    from flowless.pipeline.dataset.index import DatasetIndex

    index = DatasetIndex.load(data)
    first = {record.label: index.path_of(record) for record in reversed(index.videos)}
    if not first:
        raise FlowlessError(f"{data}: this index holds no videos. Scan a data set that has some, or leave --data out.")
    return tuple(first[label] for label in sorted(first)[:8])
