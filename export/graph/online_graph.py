"""The online form of a model, as a module to export; its inputs and outputs are described in `engines/streaming/memory.py`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowless.engines.streaming.memory import refuse_several_frames
from flowless.errors import FlowlessError
from flowless.train.models.recognizer import Recognizer


class OnlineForm(nn.Module):
    """A recogniser over a stream of frames: maps a frame and a memory to scores and the next memory.

    It calls methods of the networks, not the networks as modules, so that the exported nodes name the same modules as those of the
    recogniser.

    Args:
        model: The recogniser.

    Raises:
        FlowlessError: Its segments have several frames, it has one segment only, or its branches share layers.
    """

    def __init__(self, model: Recognizer, *, name: str) -> None:
        super().__init__()
        refuse_several_frames(name, model.spec)
        if model.spec.segments < 2:
            raise FlowlessError(f"{name}: it has one segment of one frame, so there is no memory to keep. Export it without --online.")
        if not model.networks:
            raise FlowlessError(f"{name}: its branches share layers over several frames; --online is for stm, tsm, tsn and pan-rgb.")
        self.model = model

    @property
    def heads(self) -> tuple[nn.Module, ...]:
        """The recogniser's heads."""
        return self.model.heads

    def forward(self, frame: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 `[B, H, W, 3]` and `[B, N - 1, H, W, 3]` to scores `[B, classes]` and the next memory, uint8 as memory."""
        # Concatenate and slice as float32, which holds uint8 exactly: TensorRT does neither on uint8.
        pixels = torch.cat([memory.float(), frame.float()[:, None]], dim=1)
        scores = [network.scores_of_pixels(pixels[:, :, None]) for network in self.model.networks]
        return scores[0] if len(scores) == 1 else self.model.fused(torch.stack(scores)), pixels[:, 1:].to(torch.uint8)
