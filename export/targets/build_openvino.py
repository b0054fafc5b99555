"""OpenVINO: the graph with its functions inlined, as OpenVINO's own IR, which no ONNX library is needed to read."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx

from flowless.engines.backends.openvino_core import import_openvino, openvino_core, openvino_reason
from flowless.engines.bundle.manifest import Artefact
from flowless.errors import FlowlessError
from flowless.export.graph.export_graph import inlined
from flowless.export.targets.build_options import BuildOptions
from flowless.export.targets.openvino_layout import differences_first

#: Precision -> what the runtime is asked to compute in; of int8, what is not quantised.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}


def build_openvino(proto: onnx.ModelProto, folder: Path, *, precision: str, options: BuildOptions) -> Artefact:
    """Write `model.xml` and `model.bin` into `folder`.

    Args:
        proto: The graph, in its precision.
        folder: Where to write.
        precision: What the graph says, for the record.
        options: Nothing of them concerns OpenVINO: its IR keeps the batch free, and the runtime compiles what it runs.

    Raises:
        FlowlessError: OpenVINO refuses the graph, or cannot write.
    """
    del options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        openvino = import_openvino()

        try:
            flat = inlined(proto)
            differences_first(flat)
            model = openvino_core().read_model(flat.SerializeToString())
        except RuntimeError as error:
            raise FlowlessError(
                f"openvino {openvino.__version__} does not take the graph: {openvino_reason(error)}. Build another target."
            ) from error
        try:
            # The weights stay as they are: IR would otherwise round them to fp16.
            openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
        except RuntimeError as error:
            # OpenVINO writes by itself and tells no reason.
            raise FlowlessError(
                f"{folder.parent}: OpenVINO could not write its model there ({openvino_reason(error)}). Most often the disk is full or a "
                "quota is reached. Nothing was kept; free some space and run again."
            ) from error
    return Artefact(
        target="openvino",
        precision=precision,
        status="built, not run here",
        files=("model.xml", "model.bin"),
        versions={"openvino": openvino.__version__},
        # The processor's plugin computes in what it is asked for, whatever the graph's types: the artefact asks for its own.
        options={"hint": _HINTS[precision]},
    )
