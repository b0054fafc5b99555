"""What a graph is fed where its inner tensors are measured: a clip, a frame with its memory, or a step at a time with a stream's state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx

from flowless.engines.streaming.memory import feeds_of
from flowless.engines.streaming.state import STARTED, StateTensor
from flowless.engines.streaming.streaming_backend import Arrays, clip_steps


def state_of(proto: onnx.ModelProto) -> tuple[StateTensor, ...]:
    """Return the state of a streaming graph; empty for other graphs."""
    others = proto.graph.input[1:]
    if STARTED not in [item.name for item in others]:
        return ()
    return tuple(
        StateTensor(
            name=item.name,
            shape=tuple(part.dim_value for part in item.type.tensor_type.shape.dim[1:]),
            dtype="uint8" if item.type.tensor_type.elem_type == onnx.TensorProto.UINT8 else "float32",
        )
        for item in others
    )


class GraphFeeds:
    """Returns a graph's inputs for clips.

    A streaming graph is fed one step for each segment; its state is computed by the graph itself, in ONNX Runtime on the CPU.

    Args:
        proto: The graph, in float32.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.state = state_of(proto)
        self._inputs = [item.name for item in proto.graph.input]
        self._outputs = [item.name for item in proto.graph.output]
        self._proto = proto
        self._session: Any = None

    def __call__(self, clips: np.ndarray) -> Iterator[Arrays]:
        """Yield the inputs by name for clips uint8 `[B, N, m, H, W, 3]`; of the last one the graph computes the clips' scores."""
        if not self.state:
            yield feeds_of(clips, self._inputs)
            return
        for feeds, _ in clip_steps(clips, self.state, self._run):
            yield feeds

    def _run(self, feeds: Arrays) -> Arrays:
        import onnxruntime

        from flowless.engines.backends.onnxruntime_backend import onnxruntime_options

        if self._session is None:
            providers = ["CPUExecutionProvider"]
            self._session = onnxruntime.InferenceSession(self._proto.SerializeToString(), onnxruntime_options(), providers=providers)
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))
