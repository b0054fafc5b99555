"""What Dynamic Appearance is compared with as a network's input (its Table 6): RGB difference and dynamic images.

The table's other rows are optical flow, computed before (TV-L1), by a network (FlowNet) or by TV-L1's own steps as layers (TVNet).
They are not here: flowless computes no optical flow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models.options import SegmentInput
from flowless.train.models.recognizer import Network, pixels_of

#: Factor on a dynamic image, which keeps it in the range of frames. The official code of Bilen et al. 2018, the paper that Table 6
#: names, has it for RGB (`dicnn/cnn_init_resnext.m`); the one of their first paper scales each image to one length instead, and what
#: they show is stretched from 0 to 255. A constant tells a segment that moves little from one that moves much.
DYNAMIC_IMAGE_SCALE = 0.1


class StackRecognizer(Network, ABC):
    """A network whose backbone sees one picture of each segment's T frames, as `picture` makes it."""

    @abstractmethod
    def picture(self, stacks: Tensor) -> Tensor:
        """Map the normalised frames of segments `[K, T, 3, H, W]` to what is seen of them, `[K, C, H, W]`."""

    def seen_of(self, clip: Tensor) -> Tensor:
        """Return the pictures of pixels: uint8 `[B, N, T, H, W, 3]` to `[B, N, C, H, W]`, in normalised colours."""
        self._check(clip)
        return self._seen_in_pixels(pixels_of(clip))

    def _seen(self, x: Tensor) -> Tensor:
        return self.picture(x.flatten(0, 1)).unflatten(0, (-1, self.spec.segments))

    def _seen_in_pixels(self, pixels: Tensor) -> Tensor:
        return self.picture(self._stacks(pixels)).unflatten(0, (-1, self.spec.segments))

    def _stacks(self, pixels: Tensor) -> Tensor:
        """Normalise pixels `[B, N, T, H, W, 3]`, uint8 or float of values 0 to 255: `[B * N, T, 3, H, W]`."""
        # Joined before transposing: engines do not like six axes.
        return self.normalise(pixels.flatten(0, 2).movedim(-1, 1)).unflatten(0, (-1, self.spec.frames_per_segment))


class DifferenceRecognizer(StackRecognizer):
    """RGB difference (Wang et al., TSN, 2016): the T - 1 differences of neighbouring frames side by side, 3 (T - 1) channels.

    TSN's code takes 6 frames a segment, 5 differences, and Table 6's 48 frames are 8 times 6.
    """

    def picture(self, stacks: Tensor) -> Tensor:
        """Subtract each frame from the next: `[K, T, 3, H, W]` to `[K, 3 (T - 1), H, W]`, in the order of time."""
        return (stacks[:, 1:] - stacks[:, :-1]).flatten(1, 2)


class DynamicImageRecognizer(StackRecognizer):
    """Dynamic images (Bilen et al., 2018): approximate rank pooling of each segment's T frames into one picture.

    Attributes:
        weights: `[T]`, the frames' coefficients times DYNAMIC_IMAGE_SCALE.
    """

    weights: Tensor

    def __init__(self, *, spec: ClipSpec, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__(spec=spec, backbone=backbone, head=head)
        scaled = [DYNAMIC_IMAGE_SCALE * value for value in rank_pooling(spec.frames_per_segment)]
        self.register_buffer("weights", torch.tensor(scaled), persistent=False)

    def picture(self, stacks: Tensor) -> Tensor:
        """Add the weighted frames up: `[K, T, 3, H, W]` to `[K, 3, H, W]`. What stands still becomes zero."""
        return (stacks * self.weights[:, None, None, None]).sum(1)


def rank_pooling(frames: int) -> list[float]:
    """Return approximate rank pooling's coefficients of frames 1 to T, which add up to zero.

    Rank pooling looks for the picture d whose product with the running mean V_t of frames 1 to t grows with t. Its first gradient
    step from zero is the sum over pairs q > t of V_q - V_t, in which V_t occurs 2t - T - 1 times. Written in the frames, frame i's
    coefficient is the sum of (2t - T - 1) / t over t from i to T: 2 (T - i + 1) - (T + 1) (H_T - H_i-1), with harmonic numbers H.
    """
    return [sum((2 * t - frames - 1) / t for t in range(first, frames + 1)) for first in range(1, frames + 1)]


def input_channels(kind: SegmentInput, *, frames: int) -> int:
    """Return the channels of what a backbone sees of T frames.

    Raises:
        FlowlessError: There are too few frames for such an input.
    """
    if kind in {"rgb-difference", "dynamic-image"} and frames < 2:
        raise FlowlessError(f"da_input is {kind} for segments of {frames} frame; it needs at least 2 frames (the paper: 6).")
    return 3 * (frames - 1) if kind == "rgb-difference" else 3
