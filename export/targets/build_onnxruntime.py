"""ONNX Runtime: the graph itself."""

from __future__ import annotations

from pathlib import Path

import onnx

from flowless.engines.bundle.manifest import Artefact
from flowless.export.targets.build_options import BuildOptions
from flowless.machine import installed_versions


def build_onnxruntime(proto: onnx.ModelProto, folder: Path, *, precision: str, options: BuildOptions) -> Artefact:
    """Write `model.onnx` into `folder`.

    Args:
        proto: The graph, in its precision.
        folder: Where to write.
        precision: What the graph says, for the record.
        options: Nothing of them concerns ONNX Runtime, which keeps the batch free.
    """
    del options
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    return Artefact(
        target="onnxruntime",
        precision=precision,
        status="built, not run here",
        files=("model.onnx",),
        versions=installed_versions(("onnxruntime-gpu", "onnxruntime")),
    )
