"""Half precision by casts in the graph: ModelOpt's AutoCast on the backbone, everything else in float32."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import onnx

from flowless.engines.streaming.memory import feeds_of
from flowless.export.graph.pa_inline import gather, spread
from flowless.export.precision.modelopt_output import modelopt_quiet
from flowless.export.precision.regions import kept_exact


def cast(proto: onnx.ModelProto, kind: str, clips: np.ndarray) -> onnx.ModelProto:
    """Return the graph with its backbone in half precision; input and output keep their types.

    Args:
        proto: The float32 graph.
        kind: `fp16` or `bf16`.
        clips: uint8 `[1, N, m, H, W, 3]`: AutoCast runs it and leaves out what would overflow.

    Raises:
        FlowlessError: ModelOpt refuses the graph.
    """
    laid = spread(proto)
    with tempfile.TemporaryDirectory(prefix="flowless-cast-") as name, modelopt_quiet(kind):
        from modelopt.onnx.autocast import convert_to_mixed_precision

        folder = Path(name)
        onnx.save(laid, folder / "model.onnx")
        np.savez(folder / "clips.npz", allow_pickle=False, **feeds_of(clips, [item.name for item in proto.graph.input]))
        converted = convert_to_mixed_precision(
            str(folder / "model.onnx"),
            low_precision_type=kind,
            nodes_to_exclude=[f"^{re.escape(node)}$" for node in kept_exact(laid)],
            keep_io_types=True,
            calibration_data=str(folder / "clips.npz"),
        )
    result = gather(converted, proto)
    _keep_metadata(result, proto)
    onnx.checker.check_model(result, full_check=True)
    return result


def _keep_metadata(result: onnx.ModelProto, proto: onnx.ModelProto) -> None:
    del result.metadata_props[:]
    result.metadata_props.extend(proto.metadata_props)
    result.producer_name, result.producer_version = proto.producer_name, proto.producer_version
