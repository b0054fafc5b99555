"""The command line of `flowless export`."""

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
class ExportArgs:
    """Export a checkpoint to a bundle: a folder with the ONNX graph and everything that running it needs.

    The graph is run in ONNX Runtime and compared with PyTorch on clips of videos; where the scores differ, the exit code is 3 and no
    bundle is written. Build engines into the bundle with: flowless build BUNDLE --target all
    """

    checkpoint: tyro.conf.Positional[Path]
    """The .safetensors file that flowless train wrote."""
    out: Path
    """The bundle's folder; an existing bundle there is replaced."""
    clips: tuple[Path, ...] = ()
    """Videos to compare on. Without --clips and --data some are generated."""
    views: ViewsOption | None = None
    """Test protocol that the bundle is made for; by default the checkpoint's. paper is the one that its recipe names. Protocols with larger
    frames (see flowless evaluate) need a separate bundle, because the size of the frames is fixed in the graph."""
    average: Average | None = None
    """What the bundle averages over a video's views: logits or softmax; by default the protocol's, or else the checkpoint's."""
    online: bool = False
    """Export the online form: the graph takes one frame and a memory of the frames before it, and returns scores and the next memory.
    For models with one frame per segment (stm, tsm, tsn, pan-rgb). Such a bundle is built and used like any other."""
    streaming: bool = False
    """Export the streaming form of a causal network (tsm, pan-lite or pan-rgb, trained with --causal): the graph takes one frame and the
    state of the stream, and returns scores and the next state. A frame costs an N-th of a clip. Such a bundle is built and used like any
    other."""
    data: Path | None = None
    """An index of flowless scan: compare on the first video of each of up to 8 classes."""
    json: bool = False
    """Print one JSON document instead of a table."""


def export(arguments: Sequence[str]) -> int:
    """Run `flowless export`."""
    args = tyro.cli(ExportArgs, args=list(arguments), prog="flowless export", description=inspect.getdoc(ExportArgs))
    if args.clips and args.data:
        raise FlowlessError("--clips and --data both name the videos to compare on. Give one of them.")
    if args.online and args.streaming:
        raise FlowlessError("--online and --streaming are two forms of a graph: one keeps frames, the other features. Give one of them.")
    from rich.table import Table

    from flowless.export.export_bundle import export_bundle
    from flowless.train.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(args.checkpoint)
    spec = checkpoint.spec
    if args.views is not None:
        spec = protocol_spec(spec, paper_views(checkpoint.recipe) if args.views == "paper" else args.views)
    checkpoint = replace(checkpoint, spec=replace(spec, average=args.average or spec.average))
    form = "online" if args.online else "streaming" if args.streaming else "clip"
    manifest = export_bundle(checkpoint, args.out, videos=args.clips or _videos_of(args.data), form=form)
    document = {
        "bundle": str(args.out),
        "model": manifest.model,
        "labels": list(manifest.labels),
        "clip": manifest.spec.to_dict(),
        "opset": manifest.opset,
        "memory": manifest.memory,
        "state": [asdict(tensor) for tensor in manifest.state],
        "parity": manifest.parity,
        "files": {name: asdict(record) for name, record in manifest.files.items()},
    }
    table = Table("bundle", "model", "classes", "clip", "largest difference from PyTorch", "MB")
    megabytes = sum(record.bytes for record in manifest.files.values()) / 1e6
    clip = " × ".join(map(str, manifest.spec.shape))
    table.add_row(
        str(args.out), manifest.model, str(len(manifest.labels)), clip, f"{manifest.parity['max_abs_diff']:.2g}", f"{megabytes:.1f}"
    )
    emit(document, table, as_json=args.json)
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
