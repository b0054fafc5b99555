"""The precision in which each library runs one bare convolution on this machine, and the verdict that must follow from it.

As a program, `verdicts.py BUNDLE INDEX`: build a bundle for OpenVINO and ONNX Runtime in every precision, and print the verdicts beside
what the libraries say. Run so, it obeys limits of the instruction set that the libraries read from the environment when they load.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from flowless.engines.backends.onnxruntime_cuda import open_session
from flowless.engines.backends.openvino_core import HINTS, computes_in, openvino_core
from flowless.engines.targets import Target
from flowless.export.precision.precisions import PRECISIONS

TARGETS: tuple[Target, ...] = ("onnxruntime", "openvino")
_TYPES = {"fp32": TensorProto.FLOAT, "bf16": TensorProto.BFLOAT16, "fp16": TensorProto.FLOAT16, "int8": TensorProto.FLOAT}
_SIDE = 8


def bare_convolution(precision: str) -> onnx.ModelProto:
    """Return a graph of one convolution, 8 channels of 8 x 8 to 8: of one type, or of int8 between Q/DQ pairs."""
    kind, shape = _TYPES[precision], [1, 8, _SIDE, _SIDE]
    weights = np.random.default_rng(0).integers(-99, 100, (8, 8, 3, 3)).astype(np.int8)
    if precision != "int8":
        floats = helper.make_tensor("weights", kind, weights.shape, (weights / 100).ravel().tolist())
        nodes, constants = [helper.make_node("Conv", ["x", "weights"], ["y"], "only", pads=[1] * 4)], [floats]
    else:
        numbers = {"scale": np.float32(0.01), "unsigned": np.uint8(0), "signed": np.int8(0), "weights": weights}
        constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in numbers.items()]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "unsigned"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "scale", "unsigned"], ["xd"]),
            helper.make_node("DequantizeLinear", ["weights", "scale", "signed"], ["wd"]),
            helper.make_node("Conv", ["xd", "wd"], ["yd"], "only", pads=[1] * 4),
            helper.make_node("QuantizeLinear", ["yd", "scale", "unsigned"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "scale", "unsigned"], ["y"]),
        ]
    ends = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    return helper.make_model(
        helper.make_graph(nodes, "bare", ends[:1], ends[1:], constants), opset_imports=[helper.make_opsetid("", 22)], ir_version=10
    )


def runs_in(target: str, precision: str) -> str:
    """Return the precision that a library computes a convolution of `precision` in here; empty where it has none."""
    if target == "openvino":
        if precision != "int8":
            hint = next(hint for hint, name in HINTS.items() if name == precision)
            return HINTS.get(computes_in(hint), "")
        return "int8" if openvino_kernel("int8")[0] in {"u8", "i8"} else "fp32"
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoImplementation

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        try:
            open_session(bare_convolution(precision).SerializeToString(), options)
        except NoImplementation:
            return ""
        graph = onnx.load(options.optimized_model_filepath).graph
    (convolution,) = [node for node in graph.node if "Conv" in node.op_type]
    if convolution.op_type in {"QLinearConv", "ConvInteger"}:
        return "int8"
    # What it multiplies with, folded or cast: other nodes, such as those that lay pixels out anew, may stand before its first input.
    weights = {item.name: item.data_type for item in graph.initializer}.get(convolution.input[1], TensorProto.FLOAT)
    return "fp32" if weights == TensorProto.FLOAT or precision == "int8" else precision


def openvino_kernel(precision: str) -> tuple[str, str]:
    """Return the type that OpenVINO's kernel of a bare convolution reads, and its name, which ends in the instruction set and type.

    Both are empty where OpenVINO refuses the precision.
    """
    hint = next((hint for hint, name in HINTS.items() if name == precision), "f32")
    model = openvino_core().read_model(bare_convolution("int8" if precision == "int8" else "fp32").SerializeToString())
    try:
        compiled = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    except RuntimeError:  # refused, see `computes_in`
        return "", ""
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    (found,) = [item for item in facts if item["layerType"].astype(str) == "Convolution"]
    return found["runtimePrecision"].astype(str), found["primitiveType"].astype(str)


def emulated(precision: str) -> bool:
    """Whether OpenVINO takes a precision that it does not list: it computes it with other instructions, and perhaps not everywhere."""
    listed = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return runs_in("openvino", precision) == precision and precision.upper() not in listed


def disagreement(row: dict[str, Any], computes: str, *, emulated: bool = False) -> str:
    """Return what is wrong with a row of trials, empty where it follows from what the library says.

    Args:
        row: A verdict of `try_all` on a target that runs on processors, speed left aside.
        computes: The precision that the library computes in (`runs_in`).
        emulated: The library has no instructions for it: some layers may run in another precision, which refuses the engine.
    """
    if row["kept"]:
        return "" if computes == row["precision"] and row["status"] == "verified" else f"kept, and the library says {computes or 'nothing'}"
    if not computes:
        reasons = ("Could not find an implementation for Conv", f"openvino cannot run a {row['precision']} graph on this machine")
        return "" if any(reason in row["status"] for reason in reasons) else "the reason is not that there is no implementation"
    if computes == row["precision"]:
        honest = emulated and row["gate"] == "layers"
        return "" if honest else f"not kept, and the library computes in {computes}"
    return "" if row["gate"] == "layers" and f"run in {computes}" in row["status"] else f"the reason is not that it runs in {computes}"


def main(bundle: Path, index: Path) -> None:
    """Print one JSON document: the rows of trials, and what the libraries say."""
    from flowless.engines.bundle.manifest import read_manifest
    from flowless.export.auto_precision import TrialSettings, try_precisions
    from flowless.export.precision.calibration import Calibration
    from flowless.export.verify.checks import Checks

    calibration = Calibration(index=index, spec=read_manifest(bundle).spec, videos=12)
    rows = try_precisions(TrialSettings(bundle=bundle, checks=Checks(slower=True), calibration=calibration), TARGETS)
    reported = {f"{target} {precision}": runs_in(target, precision) for target in TARGETS for precision in PRECISIONS}
    kernels = {precision: openvino_kernel(precision)[1] for precision in PRECISIONS}
    close = [precision for precision in PRECISIONS if emulated(precision)]
    sys.stdout.write("\n" + json.dumps({"rows": rows, "runs_in": reported, "kernels": kernels, "emulated": close}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
