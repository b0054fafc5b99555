"""The precision of each layer of a TensorRT or TensorRT-RTX engine.

On a GPU the engine itself is inspected (`EngineInspector`). Without a GPU an engine cannot be read, and the network that it is built from
is inspected instead: it is strongly typed, so the builder must use its precisions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from flowless import cuda_driver
from flowless.engines.backends.tensorrt_backend import open_engine
from flowless.engines.backends.tensorrt_process import TensorRtProcess, tensorrt_process
from flowless.engines.bundle.manifest import Artefact
from flowless.engines.targets import Target
from flowless.export.targets.tensorrt_network import parse_graph
from flowless.export.verify.layer_record import UNKNOWN, Inspection, Layer, differing_layers, inspection, wrong_layers

_PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8", "INT4": "int4", "FP4": "fp4"}
_KINDS = {"CONVOLUTION": "convolution", "DECONVOLUTION": "convolution", "MATRIX_MULTIPLY": "matrix product"}
#: Layers that only move data, past which TensorRT moves a DequantizeLinear.
_MOVES = {"SHUFFLE", "SLICE", "CONCATENATION", "PADDING", "SQUEEZE", "UNSQUEEZE", "IDENTITY"}
#: Marks of a precision in an inspector's "Format/Datatype" of 8.x to 11.x: "Int8", "Row major linear FP16 format", "Half", ...
_MARKS = (("int8", "int8"), ("bf16", "bf16"), ("bfloat16", "bf16"), ("half", "fp16"), ("fp16", "fp16"), ("fp8", "fp8"), ("fp32", "fp32"))
_ORIGIN = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


def inspect_build(
    proto: onnx.ModelProto, engine: Path, *, artefact: Artefact, kept: Sequence[str] = (), plugin_library: Path | None = None
) -> Inspection:
    """Inspect the network that an engine was built from, and on a GPU the engine itself.

    Args:
        proto: The graph that the engine was built from.
        engine: The engine's file, one folder below the bundle's.
        artefact: The engine's record.
        kept: Names of the graph's nodes that stay in float32.
        plugin_library: Library of the PA op's plugin, where the graph needs it.

    Returns:
        The engine's layers on a GPU, otherwise the network's, and what is wrong with either.

    Raises:
        FlowlessError: The graph or the engine cannot be read.
    """
    wanted = inspect_graph(proto, target=artefact.target, plugin_library=plugin_library)
    wrong = wrong_layers(wanted, artefact.precision, kept=kept)
    if cuda_driver.compute_capability() is None:
        return inspection(wanted, wrong)
    found = inspect_engine(engine, artefact=artefact)
    return inspection(found, dict.fromkeys([*wrong, *differing_layers(wanted, found)]))


def inspect_graph(proto: onnx.ModelProto, *, target: Target, plugin_library: Path | None = None) -> list[Layer]:
    """Return the layers of the network that TensorRT or TensorRT-RTX makes of a graph; needs no GPU."""
    process = tensorrt_process(target)
    if plugin_library is not None:
        from flowless.export.plugin.plugin_library import load_plugin

        load_plugin(process, plugin_library)
    graph = parse_graph(process, proto)
    return inspect_network(graph.network, process.trt)


def inspect_network(network: Any, trt: Any) -> list[Layer]:
    """Return the layers of a parsed network, in its order.

    A convolution or matrix product counts as int8 where both its inputs come from DequantizeLinear, directly or through layers
    that only move data: TensorRT fuses these into an int8 kernel. An addition of two activations counts as int8 where one of them does:
    it is fused with the convolution that computes the other (TensorRT's guide to quantised types, "Q/DQ Layer-Placement Recommendations").

    Args:
        network: An `INetworkDefinition`, strongly typed.
        trt: The module `tensorrt` or `tensorrt_rtx` that it is of.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}
    found = []
    for layer in layers:
        kind, precision = layer.type.name, _type_of(layer.get_output(0) if layer.num_outputs else None)
        if kind in _KINDS:
            found.append(Layer(_name(layer), _KINDS[kind], _multiplied_in(layer, makers)))
        elif kind == "ELEMENTWISE" and _is_residual(layer, makers, trt):
            quantised = any(_dequantised(layer.get_input(index), makers) for index in (0, 1))
            found.append(Layer(_name(layer), "residual add", "int8" if quantised else precision))
        else:
            found.append(Layer(_name(layer), kind.lower(), precision))
    return found


def inspect_engine(engine: Path, *, artefact: Artefact) -> list[Layer]:
    """Return the layers of an engine, in its order; needs a GPU that can run it.

    Args:
        engine: Its file, one folder below the bundle's.
        artefact: Its record in the manifest.

    Raises:
        FlowlessError: There is no GPU, or the library cannot read the engine on it.
    """
    process, gpu = tensorrt_process(artefact.target), cuda_driver.Gpu()
    with gpu.entered():  # also while the engine is freed, at the end of the call
        return read_engine_information(_engine_information(process, engine, artefact))


def _engine_information(process: TensorRtProcess, engine: Path, artefact: Artefact) -> str:
    runtime = process.trt.Runtime(process.logger)
    opened = open_engine(process, runtime, engine, artefact=artefact)
    return opened.create_engine_inspector().get_engine_information(process.trt.LayerInformationFormat.JSON)


def read_engine_information(text: str) -> list[Layer]:
    """Return the layers in the JSON of `EngineInspector.get_engine_information`.

    A layer's precision is that of its first input. It is unknown for a layer that the inspector gives by name alone, in an engine that was
    not built with profiling verbosity DETAILED.
    """
    found = []
    for item in json.loads(text).get("Layers", []):
        if not isinstance(item, dict):
            found.append(Layer(str(item), UNKNOWN, UNKNOWN))
            continue
        nodes = [_of_origin(origin) for origin in _ORIGIN.findall(str(item.get("Metadata", "")))]
        name = " + ".join(dict.fromkeys(nodes)) or str(item.get("Name", ""))
        found.append(Layer(name, _engine_kind(item), _engine_precision(item)))
    return found


def _engine_kind(item: dict[str, Any]) -> str:
    text = f"{item.get('LayerType', '')} {item.get('ParameterType', '')}".lower()
    if "conv" in text:
        return "convolution"
    if any(mark in text for mark in ("gemm", "matmul", "matrix", "fully")):
        return "matrix product"
    return str(item.get("LayerType", UNKNOWN)).lower()


def _engine_precision(item: dict[str, Any]) -> str:
    inputs = [entry for entry in item.get("Inputs", []) if isinstance(entry, dict)]
    if not inputs:
        return UNKNOWN
    text = " ".join(str(inputs[0].get(key, "")) for key in ("Format/Datatype", "DataType", "Datatype", "Format")).lower()
    for mark, precision in _MARKS:
        if mark in text:
            return precision
    return "fp32" if "float" in text else UNKNOWN


def _multiplied_in(layer: Any, makers: dict[str, Any]) -> str:
    """Return the precision of a convolution or matrix product, by the layers that its two inputs come from."""
    precision = _type_of(layer.get_input(0))
    data = _dequantised(layer.get_input(0), makers)
    # A convolution whose weights are constants has one input only.
    weights = layer.num_inputs > 1 and _dequantised(layer.get_input(1), makers)
    if data and weights:
        return "int8"
    if data or weights:
        return f"{precision} (of its two inputs only the {'data are' if data else 'weights are'} quantised)"
    return precision


def _dequantised(tensor: Any, makers: dict[str, Any]) -> bool:
    """Whether a tensor comes from DequantizeLinear, directly or through layers that only move data."""
    maker = makers.get(tensor.name) if tensor is not None else None
    if maker is None:
        return False
    kind = maker.type.name
    if kind == "DEQUANTIZE":
        return True
    if kind == "CONCATENATION":
        return all(_dequantised(maker.get_input(index), makers) for index in range(maker.num_inputs))
    return kind in _MOVES and _dequantised(maker.get_input(0), makers)


def _is_residual(layer: Any, makers: dict[str, Any], trt: Any) -> bool:
    """Whether a layer adds two activations `[frames, channels, rows, columns]`, at least one of them a convolution's."""
    if len(layer.get_output(0).shape) != 4:
        return False
    layer.__class__ = trt.IElementWiseLayer  # the binding returns the base class, which has no `op`
    if layer.op != trt.ElementWiseOperation.SUM:
        return False
    kinds = [maker.type.name for index in (0, 1) if (maker := makers.get(layer.get_input(index).name)) is not None]
    shapes = [tuple(layer.get_input(index).shape)[1:] for index in (0, 1)]
    return len(kinds) == 2 and "CONVOLUTION" in kinds and shapes[0] == shapes[1]


def _type_of(tensor: Any) -> str:
    if tensor is None:
        return UNKNOWN
    kind = str(tensor.dtype.name)
    return _PRECISIONS.get(kind, kind.lower())


def _name(layer: Any) -> str:
    origin = _ORIGIN.search(layer.metadata or "")
    return _of_origin(str(origin[1])) if origin else str(layer.name)


def _of_origin(origin: str) -> str:
    """Turn `inner | outer (Function)` of TensorRT's metadata into `outer/inner`."""
    inner, _, outer = origin.partition(" | ")
    return f"{outer.rpartition(' (')[0] or outer}/{inner}" if outer else inner
