"""The network inputs that Dynamic Appearance is compared with (its Table 6): RGB differences and dynamic images.

The table's other rows are optical flow: precomputed (TV-L1), from a network (FlowNet), or from TV-L1's steps as layers (TVNet). They are
left out, since flowless computes no optical flow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models.options import SegmentInput
from flowless.train.models.recognizer import Network, pixels_of

#: Factor on a dynamic image, which brings it into the range of frames. It is in the official code of Bilen et al. 2018, the paper that
#: Table 6 names, for RGB (`dicnn/cnn_init_resnext.m`); the code of their first paper normalises the length of each image instead, and for
#: display the values are stretched to 0 to 255. With a constant, a segment with little motion differs from one with much.
DYNAMIC_IMAGE_SCALE = 0.1


class StackRecognizer(Network, ABC):
    """A network whose backbone sees one image per segment, computed from the segment's T frames by `segment_images`."""

    @abstractmethod
    def segment_images(self, stacks: Tensor) -> Tensor:
        """Map the normalised frames of segments `[K, T, 3, H, W]` to the images that the backbone sees, `[K, C, H, W]`."""

    def images_of_pixels(self, clip: Tensor) -> Tensor:
        """Return the backbone's input for pixels: uint8 `[B, N, T, H, W, 3]` to `[B, N, C, H, W]`, in normalised colours."""
        self._check(clip)
        return self._input_of_pixels(pixels_of(clip))

    def _input(self, x: Tensor) -> Tensor:
        return self.segment_images(x.flatten(0, 1)).unflatten(0, (-1, self.spec.segments))

    def _input_of_pixels(self, pixels: Tensor) -> Tensor:
        return self.segment_images(self._stacks(pixels)).unflatten(0, (-1, self.spec.segments))

    def _stacks(self, pixels: Tensor) -> Tensor:
        """Normalise pixels `[B, N, T, H, W, 3]`, uint8 or float of values 0 to 255: `[B * N, T, 3, H, W]`."""
        # Flattened before transposing: some engines handle six axes badly.
        return self.normalise(pixels.flatten(0, 2).movedim(-1, 1)).unflatten(0, (-1, self.spec.frames_per_segment))


class DifferenceRecognizer(StackRecognizer):
    """RGB difference (Wang et al., TSN, 2016): the T - 1 differences of neighbouring frames side by side, 3 (T - 1) channels.

    TSN's code takes 6 frames per segment, which give 5 differences; Table 6's 48 frames are 8 segments of 6.
    """

    def segment_images(self, stacks: Tensor) -> Tensor:
        """Subtract each frame from the next: `[K, T, 3, H, W]` to `[K, 3 (T - 1), H, W]`, in the order of time."""
        return (stacks[:, 1:] - stacks[:, :-1]).flatten(1, 2)


class DynamicImageRecognizer(StackRecognizer):
    """Dynamic images (Bilen et al., 2018): approximate rank pooling of each segment's T frames into one image.

    Attributes:
        weights: `[T]`, the frames' coefficients times DYNAMIC_IMAGE_SCALE.
    """

    weights: Tensor

    def __init__(self, *, spec: ClipSpec, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__(spec=spec, backbone=backbone, head=head)
        scaled = [DYNAMIC_IMAGE_SCALE * value for value in rank_pooling(spec.frames_per_segment)]
        self.register_buffer("weights", torch.tensor(scaled), persistent=False)

    def segment_images(self, stacks: Tensor) -> Tensor:
        """Return the weighted sum of the frames: `[K, T, 3, H, W]` to `[K, 3, H, W]`. Static pixels become zero."""
        return (stacks * self.weights[:, None, None, None]).sum(1)


def rank_pooling(frames: int) -> list[float]:
    """Return approximate rank pooling's coefficients of frames 1 to T, which add up to zero.

    Rank pooling finds the image d whose inner product with the running mean V_t of frames 1 to t grows with t. Its first gradient
    step from zero is the sum over pairs q > t of V_q - V_t, in which V_t has the factor 2t - T - 1. In terms of the frames, frame i has
    the coefficient sum of (2t - T - 1) / t over t from i to T, which is 2 (T - i + 1) - (T + 1) (H_T - H_i-1), with harmonic numbers H.
    """
    return [sum((2 * t - frames - 1) / t for t in range(first, frames + 1)) for first in range(1, frames + 1)]


def input_channels(kind: SegmentInput, *, frames: int) -> int:
    """Return the number of channels of a backbone's input for segments of T frames.

    Raises:
        FlowlessError: The input needs more frames.
    """
    if kind in {"rgb-difference", "dynamic-image"} and frames < 2:
        raise FlowlessError(f"da_input is {kind} with segments of {frames} frame; it needs at least 2 frames (the paper: 6).")
    return 3 * (frames - 1) if kind == "rgb-difference" else 3
