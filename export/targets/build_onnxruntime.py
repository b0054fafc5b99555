"""ONNX Runtime: the engine is the ONNX graph."""

from __future__ import annotations

from pathlib import Path

import onnx

from flowless.engines.bundle.manifest import Artefact
from flowless.engines.targets import TARGETS
from flowless.export.targets.build_options import BuildOptions


def build_onnxruntime(proto: onnx.ModelProto, folder: Path, *, precision: str, options: BuildOptions) -> Artefact:
    """Write `model.onnx` into `folder`.

    Args:
        proto: The graph, in its precision.
        folder: Where to write.
        precision: The graph's precision, for the record.
        options: Unused: the batch stays dynamic.
    """
    del options
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    return Artefact(
        target="onnxruntime",
        precision=precision,
        status="built, not run here",
        files=("model.onnx",),
        versions=TARGETS["onnxruntime"].versions(),
    )
