"""The state of a streaming graph: what a causal network keeps from one frame to the next, as named inputs and outputs.

The graph's inputs are `frame`, uint8 `[B, H, W, 3]`, and one tensor for each `StateTensor`, `[B, *shape]`; its outputs are `scores`,
float32 `[B, classes]`, and `next_NAME` of the same shape and type for each of them. A new stream starts with zeros everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Prefix of the output with a state's next value.
NEXT = "next_"


@dataclass(frozen=True, kw_only=True)
class StateTensor:
    """One tensor of the state."""

    name: str
    """Name of the graph's input."""
    shape: tuple[int, ...]
    """Its shape without the batch."""
    dtype: Literal["float32", "uint8"]
    """Its type, in every precision of the engine."""
