"""OpenVINO: the graph with its functions inlined, as OpenVINO's IR, which can be read without an ONNX library."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx

from flowless.engines.backends.openvino_core import HINTS, import_openvino, openvino_core, openvino_reason
from flowless.engines.bundle.manifest import Artefact
from flowless.errors import FlowlessError
from flowless.export.graph.export_graph import inlined
from flowless.export.targets.build_options import BuildOptions
from flowless.export.targets.openvino_layout import differences_first

#: Precision -> the hint that the engine is compiled with; in an int8 graph it applies to what is not quantised.
_HINTS = {**{precision: hint for hint, precision in HINTS.items()}, "int8": "f32"}


def build_openvino(proto: onnx.ModelProto, folder: Path, *, precision: str, options: BuildOptions) -> Artefact:
    """Write `model.xml` and `model.bin` into `folder`.

    Args:
        proto: The graph, in its precision.
        folder: Where to write.
        precision: The graph's precision, for the record.
        options: Unused: the IR's batch stays dynamic, and the runtime compiles it when it is loaded.

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
            # compress_to_fp16 is on by default and would round the weights.
            openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
        except RuntimeError as error:
            # OpenVINO writes the files itself and gives no reason.
            raise FlowlessError(
                f"{folder.parent}: OpenVINO could not write its model there ({openvino_reason(error)}). Most often the disk is full or a "
                "quota is reached. The new engine was not kept; free some space and run again."
            ) from error
    return Artefact(
        target="openvino",
        precision=precision,
        status="built, not run here",
        files=("model.xml", "model.bin"),
        versions={"openvino": openvino.__version__},
        # The CPU plugin computes in the hint's precision, whatever the graph's types.
        options={"hint": _HINTS[precision]},
    )
