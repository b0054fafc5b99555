"""The state of a streaming graph: what a causal network keeps from one frame to the next, as named inputs and outputs.

The graph's inputs are `frame`, uint8 `[B, H, W, 3]`, and one tensor for each `StateTensor`, `[B, *shape]`; its outputs are `scores`,
float32 `[B, classes]`, and `next_NAME` of the same shape and type for each of them. A new stream starts with zeros everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Prefix of the output with a state's next value.
NEXT = "next_"
#: The earlier frames of the newest segment, uint8 `[m - 1, H, W, 3]`, the oldest first; there is none where m is 1.
FRAMES = "frames"
#: The backbone's features of the N - 1 steps before, float32 `[N - 1, D]`, the oldest first; there are none where N is 1.
FEATURES = "features"
#: Zeros at the start of a stream, then ones, float32 `[2]`. Where the first is 0, the missing features are copies of this step's; where
#: the second is 0, the missing frames are copies of this step's.
STARTED = "started"


@dataclass(frozen=True, kw_only=True)
class StateTensor:
    """One tensor of the state."""

    name: str
    """Name of the graph's input."""
    shape: tuple[int, ...]
    """Its shape without the batch."""
    dtype: Literal["float32", "uint8"]
    """Its type, in every precision of the engine."""

    def __str__(self) -> str:
        """Return name, type and shape, for messages."""
        return f"{self.name}: {self.dtype} {list(self.shape)}"
