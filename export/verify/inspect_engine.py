"""The layers of a built engine of any target, and those that do not compute in the graph's precision."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx

from flowless.engines.backends.backend import why_not
from flowless.engines.backends.openvino_core import openvino_reason
from flowless.engines.bundle.manifest import Artefact
from flowless.engines.targets import TARGETS
from flowless.errors import FlowlessError, first_line
from flowless.export.precision.low_precision_nodes import backbone_nodes, float32_nodes, weight_matmuls
from flowless.export.verify.layer_record import UNKNOWN, Inspection, Layer, inspection


def inspect(record: Artefact, folder: Path, proto: onnx.ModelProto) -> Inspection:
    """Inspect an engine.

    Args:
        record: Its record, files relative to `folder`.
        folder: Where its files lie.
        proto: The graph that it was built from.

    Raises:
        FlowlessError: The library cannot read what it built.
    """
    if TARGETS[record.target].gpu_to_run:
        from flowless.export.plugin.plugin_library import without_function
        from flowless.export.verify.inspect_tensorrt import inspect_build

        kept, library = float32_nodes(proto, quantised=record.precision == "int8"), None
        if record.options.get("pa") == "plugin":
            proto, library = without_function(proto), folder / record.files[1]
        return inspect_build(proto, folder / record.files[0], artefact=record, kept=kept, plugin_library=library)
    if why_not(record.target, record):
        return inspection([])
    from flowless.export.verify.inspect_cpu import inspect_onnxruntime, inspect_openvino

    path = folder / record.files[0]
    try:
        layers = inspect_openvino(path, artefact=record) if record.target == "openvino" else inspect_onnxruntime(path)
    except Exception as error:  # the libraries' own exception types, among them plain RuntimeError
        reason = openvino_reason(error) if record.target == "openvino" else first_line(error)
        raise FlowlessError(
            f"{record.target} cannot run a {record.precision} graph on this machine ({reason}). Build another precision or target."
        ) from error
    return inspection(layers, _too_few(layers, record.precision, proto))


def _too_few(layers: list[Layer], precision: str, proto: onnx.ModelProto) -> list[str]:
    """Return what is wrong where fewer convolutions or matrix products run in a precision than the backbone has.

    They are counted, because the libraries rename the layers that they fuse. Attention's products of two activations are not counted: they
    are fused into one layer.
    """
    backbone = backbone_nodes(proto, quantised=precision == "int8")
    wanted = {
        "convolution": sum(node.op_type == "Conv" and node.name in backbone for node in proto.graph.node),
        "matrix product": len(backbone.intersection(weight_matmuls(proto))),
    }
    return [text for kind, count in wanted.items() for text in _too_few_of(kind, count, layers, precision)]


def _too_few_of(kind: str, wanted: int, layers: list[Layer], precision: str) -> list[str]:
    found = [layer for layer in layers if layer.kind == kind]
    right = sum(layer.precision == precision for layer in found)
    if right >= wanted:
        return []
    others = [layer for layer in found if layer.precision not in {precision, UNKNOWN} and not layer.name.startswith(("PA_", "_inlfunc_"))]
    counts = Counter(layer.precision for layer in others)
    examples = {layer.precision: layer.nodes[0] for layer in reversed(others)}
    # The layers that stay exact are among the others, under names that the libraries made.
    wrong = [
        f"{min(count, wanted - right)} of {wanted} {kind}s run in {other}, such as {examples[other]}" for other, count in counts.items()
    ]
    return wrong or [f"only {len(found)} of {wanted} {kind}s can be seen"]
