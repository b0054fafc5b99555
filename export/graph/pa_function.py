"""The PA op in ONNX: a node of domain `flowless`, and the model-local function that defines it in standard operators.

ONNX Runtime and the parsers of TensorRT and TensorRT-RTX inline the function; for OpenVINO we inline it. Without the function TensorRT's
parser looks for a plugin, by the node's attributes `plugin_version` and `plugin_namespace`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import FunctionProto, NodeProto, helper, numpy_helper

DOMAIN = "flowless"
OP = "PersistenceOfAppearance"
#: Version of the operator set `flowless`, and of the plugin.
OP_VERSION = 1
OPSET = 20
_END = np.iinfo(np.int64).max


def pa_function(*, filters: int = 8, kernel: int = 7, eps_inside: bool = False) -> FunctionProto:
    """Return the function `motion[..., i, y, x] = sqrt(sum_f (conv_f(clip[i+1] - clip[i]))^2 + eps)`, by phases.

    The pixels (2i+a, 2j+b) of a map, for the four phases (a, b), read the same window: one row and column larger than the filter, with the
    filter at offset (a, b). So one convolution of stride 2 with four times the filters computes all four phases at once. That is exact, and
    several times faster on matrix units, which prefer 32 output channels to 8. A second, 1x1 convolution sums the squares of each phase's
    filters, and DepthToSpace interleaves the phases.

    Args:
        filters: Filters of the op's weight.
        kernel: Rows and columns of a filter, an odd number.
        eps_inside: Add eps to each filter's difference (earlier minus later frame), as the official code does, instead of under the root.

    Returns:
        Function of `clip [B, N, m, C, H, W]` and `weight [filters, C, kernel, kernel]` (one floating type) to
        `motion [B, N, m-1, H, W]`, with attributes `eps`, `eps_inside`, `plugin_version`, `plugin_namespace`. H and W may be odd.
    """
    low = kernel // 2
    sums = np.kron(np.eye(4, dtype=np.float32), np.ones((1, filters), np.float32))[:, :, None, None]
    nodes = [
        *_differences(),
        # the filter padded for the four phases: [4 filters, C, kernel + 1, kernel + 1]
        *(node for row in (0, 1) for column in (0, 1) for node in _placed(row, column)),
        _node("Concat", "phase_00 phase_01 phase_10 phase_11", "phases", axis=0),
        # For an odd size the extra pad adds one row or column, which the last Slice removes.
        _node("Conv", "images phases", "features", kernel_shape=[kernel + 1] * 2, strides=[2, 2], pads=[low, low, low + 1, low + 1]),
        *_lengths(sums, eps_inside=eps_inside),
        _node("DepthToSpace", "length", "woven", blocksize=2, mode="DCR"),
        _node("Shape", "difference", "map_shape", start=-2),
        _constant("origin", [0, 0]),
        _constant("map_axes", [-2, -1]),
        _node("Slice", "woven origin map_shape map_axes", "maps"),
        _node("Concat", "lead_shape map_shape", "motion_shape", axis=0),
        _node("Reshape", "maps motion_shape", "motion"),
    ]
    function = helper.make_function(
        DOMAIN,
        OP,
        inputs=["clip", "weight"],
        outputs=["motion"],
        nodes=nodes,
        opset_imports=[helper.make_opsetid("", OPSET)],
        attributes=["eps"],
        attribute_protos=[
            helper.make_attribute("eps_inside", int(eps_inside)),
            helper.make_attribute("plugin_version", "1"),
            helper.make_attribute("plugin_namespace", DOMAIN),
        ],
    )
    function.doc_string = "Persistence of Appearance: how much each pixel changed from one frame to the next."
    return function


def pa_nodes(model: onnx.ModelProto) -> list[NodeProto]:
    """Return the graph's PA nodes."""
    return [node for node in model.graph.node if node.domain == DOMAIN and node.op_type == OP]


def _differences() -> list[NodeProto]:
    """Return the nodes that subtract neighbouring frames and reshape the differences to one batch of images."""
    return [
        *(
            _constant(name, value)
            for name, value in (("zero", [0]), ("one", [1]), ("end", [_END]), ("minus_one", [-1]), ("frame_axis", [-4]))
        ),
        _node("Slice", "clip one end frame_axis", "later"),
        _node("Slice", "clip zero minus_one frame_axis", "earlier"),
        _node("Sub", "later earlier", "difference"),
        _node("Shape", "difference", "image_shape", start=-3),
        _node("Shape", "difference", "lead_shape", end=-3),
        _node("Concat", "minus_one image_shape", "images_shape", axis=0),
        _node("Reshape", "difference images_shape", "images"),
    ]


def _lengths(sums: np.ndarray, *, eps_inside: bool) -> list[NodeProto]:
    eps = helper.make_node("Constant", [], ["eps_value"])
    reference = onnx.AttributeProto(name="value_float", type=onnx.AttributeProto.FLOAT, ref_attr_name="eps")
    eps.attribute.append(reference)
    nodes = [
        eps,
        _node("CastLike", "eps_value clip", "eps_like"),
        _constant("sums_value", sums),
        _node("CastLike", "sums_value clip", "sums"),
    ]
    if eps_inside:
        nodes += [
            # The official difference is earlier minus later frame; ours is its negative.
            _node("Sub", "features eps_like", "shifted"),
            _node("Mul", "shifted shifted", "squares"),
            _node("Conv", "squares sums", "energy", kernel_shape=[1, 1]),
        ]
    else:
        nodes += [
            _node("Mul", "features features", "squares"),
            _node("Conv", "squares sums", "square_sum", kernel_shape=[1, 1]),
            _node("Add", "square_sum eps_like", "energy"),
        ]
    return [*nodes, _node("Sqrt", "energy", "length")]


def _placed(row: int, column: int) -> list[NodeProto]:
    name = f"{row}{column}"
    pads = [0, 0, row, column, 0, 0, 1 - row, 1 - column]
    return [_constant(f"pads_{name}", pads), _node("Pad", f"weight pads_{name}", f"phase_{name}")]


def _constant(name: str, value: list[int] | np.ndarray) -> NodeProto:
    # As a tensor: the attribute `value_ints` is lost on ONNX Runtime's shape inference inside functions.
    array = np.asarray(value, np.int64) if isinstance(value, list) else value
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))


def _node(op: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=f"PA_{output}", **attributes)
