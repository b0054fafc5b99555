"""OpenVINO: the graph with its functions inlined, as OpenVINO's own IR, which no ONNX library is needed to read."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx

from flowless.engines.manifest import Artefact
from flowless.errors import FlowlessError
from flowless.export.graph import inlined
from flowless.export.layout import differences_first
from flowless.export.target_options import BuildOptions


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
        import openvino

        try:
            flat = inlined(proto)
            differences_first(flat)
            model = openvino.Core().read_model(flat.SerializeToString())
        except RuntimeError as error:
            raise FlowlessError(
                f"openvino {openvino.__version__} does not take the graph: {_first_line(error)}. Build another target."
            ) from error
        try:
            # The weights stay as they are: IR would otherwise round them to fp16.
            openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
        except RuntimeError as error:
            # OpenVINO writes by itself and tells no reason.
            raise FlowlessError(
                f"{folder.parent}: OpenVINO could not write its model there ({_first_line(error)}). Most often the disk is full or a quota "
                "is reached. Nothing was kept; free some space and run again."
            ) from error
    return Artefact(
        target="openvino",
        precision=precision,
        status="built, not run here",
        files=("model.xml", "model.bin"),
        versions={"openvino": openvino.__version__},
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
