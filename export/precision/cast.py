"""Cast the backbone of a graph to half precision with ModelOpt's AutoCast; everything else stays in float32."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import onnx

from flowless.export.graph.graph_feeds import GraphFeeds
from flowless.export.graph.pa_inline import fold_pa, inline_pa
from flowless.export.precision.low_precision_nodes import float32_nodes
from flowless.export.precision.modelopt_output import without_modelopt_output


def cast_backbone(proto: onnx.ModelProto, kind: str, clips: np.ndarray) -> onnx.ModelProto:
    """Return the graph with its backbone in half precision; inputs and outputs keep their types.

    Args:
        proto: The float32 graph.
        kind: `fp16` or `bf16`.
        clips: uint8 `[1, N, m, H, W, 3]`: AutoCast runs the graph on it (a streaming graph on its last step) and skips nodes that would
            overflow.

    Raises:
        FlowlessError: ModelOpt refuses the graph.
    """
    laid = inline_pa(proto)
    with tempfile.TemporaryDirectory(prefix="flowless-cast-") as name, without_modelopt_output(kind):
        from modelopt.onnx.autocast import convert_to_mixed_precision

        folder = Path(name)
        onnx.save(laid, folder / "model.onnx")
        *_, feeds = GraphFeeds(proto)(clips)
        np.savez(folder / "clips.npz", allow_pickle=False, **feeds)
        converted = convert_to_mixed_precision(
            str(folder / "model.onnx"),
            low_precision_type=kind,
            nodes_to_exclude=[f"^{re.escape(node)}$" for node in float32_nodes(laid)],
            keep_io_types=True,
            calibration_data=str(folder / "clips.npz"),
        )
    result = fold_pa(converted, proto)
    _keep_metadata(result, proto)
    onnx.checker.check_model(result, full_check=True)
    return result


def _keep_metadata(result: onnx.ModelProto, proto: onnx.ModelProto) -> None:
    del result.metadata_props[:]
    result.metadata_props.extend(proto.metadata_props)
    result.producer_name, result.producer_version = proto.producer_name, proto.producer_version
