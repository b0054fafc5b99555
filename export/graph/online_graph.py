"""The online form of a model, as a module to export: `flowless.engines.streaming.memory` says what goes in and what comes out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowless.engines.streaming.memory import refuse_several_frames
from flowless.errors import FlowlessError
from flowless.train.models.recognizer import Recognizer


class OnlineForm(nn.Module):
    """A recogniser of single frames that is shown a film: a frame and a memory in, scores and the next memory out.

    Its networks are called by their methods and not as modules, so that the exporter sees the same modules inside them, and the
    same arithmetic between, as of the recogniser itself.

    Args:
        model: The recogniser.

    Raises:
        FlowlessError: Its segments have several frames, it has one segment only, or it is no network over one frame a segment.
    """

    def __init__(self, model: Recognizer, *, name: str) -> None:
        super().__init__()
        refuse_several_frames(name, model.spec)
        if model.spec.segments < 2:
            raise FlowlessError(f"{name}: it sees one segment of one frame, so there is nothing to remember. Export it without --online.")
        if not model.networks:
            raise FlowlessError(f"{name}: its branches share layers over several frames; --online is for stm, tsm, tsn and pan-rgb.")
        self.model = model

    @property
    def heads(self) -> tuple[nn.Module, ...]:
        """The recogniser's heads."""
        return self.model.heads

    def forward(self, frame: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Map uint8 `[B, H, W, 3]` and `[B, N - 1, H, W, 3]` to scores `[B, classes]` and the next memory, uint8 as memory."""
        # The cast comes first, and last: TensorRT neither joins nor cuts bytes. Floats hold them exactly.
        pixels = torch.cat([memory.float(), frame.float()[:, None]], dim=1)
        scores = [network.scores_of_pixels(pixels[:, :, None]) for network in self.model.networks]
        return scores[0] if len(scores) == 1 else self.model.fused(torch.stack(scores)), pixels[:, 1:].to(torch.uint8)
