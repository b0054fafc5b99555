"""The precision of each layer of an OpenVINO or ONNX Runtime engine on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx

from flowless.engines.backends.onnxruntime_backend import onnxruntime_options
from flowless.engines.backends.openvino_core import one_at_a_time, openvino_core
from flowless.engines.bundle.manifest import Artefact
from flowless.export.verify.layer_record import Layer

_OPENVINO_KINDS = {"Convolution": "convolution", "FullyConnected": "matrix product", "MatMul": "matrix product"}
_OPENVINO_PRECISIONS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "u8": "int8", "i8": "int8"}
_ORT_INT8 = {"QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm"}
_ORT_KINDS = {"Conv": "convolution", "FusedConv": "convolution", "Gemm": "matrix product", "FusedGemm": "matrix product"}
_ORT_KINDS |= {"NhwcFusedConv": "convolution", "MatMul": "matrix product", "FusedMatMul": "matrix product"}
_ONNX_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "fp32",
    onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "int8",
}


def inspect_openvino(path: Path, *, artefact: Artefact) -> list[Layer]:
    """Return the layers of the compiled model, with the precision of the kernels that run them."""
    core = openvino_core()
    model = one_at_a_time(core.read_model(path))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": artefact.options.get("hint", "f32")})
    layers = []
    for node in compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        kind = facts["layerType"].astype(str)
        if kind in _OPENVINO_KINDS:
            names = facts["originalLayersNames"].astype(str) if "originalLayersNames" in facts else node.get_friendly_name()
            precision: str = facts["runtimePrecision"].astype(str)
            layers.append(Layer(" + ".join(names.split(",")), _OPENVINO_KINDS[kind], _OPENVINO_PRECISIONS.get(precision) or precision))
    return layers


def inspect_onnxruntime(path: Path) -> list[Layer]:
    """Return the layers of the graph that ONNX Runtime runs, on the GPU where it can, after its optimisation."""
    from flowless.engines.backends.onnxruntime_cuda import open_session

    with tempfile.TemporaryDirectory(prefix="flowless-inspect-") as folder:
        options = onnxruntime_options()
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        open_session(path, options)
        optimised = onnx.load(options.optimized_model_filepath)
    types = _types(optimised)
    layers = []
    for node in optimised.graph.node:
        if node.op_type in _ORT_INT8:
            kind = "convolution" if "Conv" in node.op_type else "matrix product"
            layers.append(Layer(_origin(node.name), kind, "int8"))
        elif node.op_type in _ORT_KINDS:
            precision = _ONNX_TYPES.get(types.get(node.input[1], types.get(node.input[0], 0)), "unknown")
            layers.append(Layer(_origin(node.name), _ORT_KINDS[node.op_type], precision))
    return layers


def _origin(name: str) -> str:
    """Return the name of the original node: ONNX Runtime appends a suffix for each of its rewrites."""
    for end in ("_quant", "_nchwc", "_fused", "_token"):
        name = name.split(end, maxsplit=1)[0]
    return name


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    known = {item.name: item.data_type for item in proto.graph.initializer}
    for item in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        known[item.name] = item.type.tensor_type.elem_type
    for node in proto.graph.node:
        target = next((item.i for item in node.attribute if item.name == "to"), None)
        if node.op_type == "Cast" and target is not None:
            known[node.output[0]] = target
        elif node.op_type == "DequantizeLinear":
            known[node.output[0]] = known.get(node.input[1], onnx.TensorProto.FLOAT)
    return known
