"""The base class of all recognisers, from uint8 pixels to scores, and the recognisers over 2D networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec

if TYPE_CHECKING:
    from flowless.train.models.model_config import PAModule

#: Smallest height and width of a frame: a ResNet's stages reduce both 32-fold.
LEAST_SIDE = 32


class Recognizer(nn.Module):
    """Maps clips to scores, by one network or by several whose scores are fused.

    Attributes:
        spec: The model's clip. Convolutional networks take other heights and widths too.
        config: The arguments of `build_model`, for the checkpoint.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, spec: ClipSpec) -> None:
        super().__init__()
        self.spec = spec
        self.config: dict[str, Any] = {}
        # Constants from the ClipSpec, not weights, so they are not saved with the weights.
        self.register_buffer("mean", 255 * torch.tensor(spec.mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(spec.std), persistent=False)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks whose scores are fused, each a complete recogniser; empty where branches share layers."""
        return ()

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """Disjoint modules with all parameters of the model, each of which learns by one loss: the networks, or branches that share layers.

        Training treats every part as a network; for example, partial batch norm leaves the first batch norm of each part trainable.
        """
        return self.networks

    @property
    def heads(self) -> tuple[nn.Module, ...]:
        """The head of each network or branch, in the order of `branch_scores`."""
        return tuple(network.head for network in self.networks)

    def forward(self, clip: Tensor) -> Tensor:
        """Recognise pixels: uint8 `[B, N, m, H, W, 3]` to scores `[B, classes]`."""
        return self.fused(self.branch_scores(clip))

    def fused(self, scores: Tensor) -> Tensor:
        """Fuse the scores from `branch_scores`, `[networks, B, classes]`: their mean, `[B, classes]`."""
        return scores.mean(0)

    def branch_scores(self, clip: Tensor) -> Tensor:
        """Return every network's scores of pixels separately: uint8 `[B, N, m, H, W, 3]` to `[networks, B, classes]`."""
        self._check(clip)
        pixels = pixels_of(clip)
        return torch.stack([network.scores_of_pixels(pixels) for network in self.networks])

    def forward_frames(self, x: Tensor) -> Tensor:
        """Recognise normalised frames `[B, N, m, 3, H, W]`: scores `[B, classes]`."""
        scores = [network.head(network.features(x)) for network in self.networks]
        return scores[0] if len(scores) == 1 else self.fused(torch.stack(scores))

    def features(self, x: Tensor) -> Tensor:
        """Encode normalised frames `[B, N, m, 3, H, W]`: one vector per segment, `[B, N, D]`, the networks' vectors concatenated."""
        return torch.cat([network.features(x) for network in self.networks], dim=2)

    def as_frames(self, clip: Tensor) -> Tensor:
        """Turn uint8 `[..., H, W, 3]` into float32 `[..., 3, H, W]`, values 0 to 255."""
        return clip.float().movedim(-1, -3)

    def normalise(self, frames: Tensor) -> Tensor:
        """Normalise frames `[..., 3, H, W]` of values 0 to 255 by the ClipSpec's mean and standard deviation."""
        return (frames - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)

    def _check(self, clip: Tensor) -> None:
        segments, frames, height, width, _ = self.spec.shape
        least = min(LEAST_SIDE, height, width)
        fits = clip.dtype == torch.uint8 and clip.dim() == 6
        fits = fits and tuple(clip.shape[1:3]) == (segments, frames) and clip.shape[5] == 3
        if not fits or clip.shape[3] < least or clip.shape[4] < least:
            raise FlowlessError(
                f"the clip is {str(clip.dtype).removeprefix('torch.')} {list(clip.shape)}; this model takes uint8 "
                f"[B, {segments}, {frames}, H, W, 3] (clip, segments, frames, rows, columns, RGB), H and W at least {least}; "
                f"it was made for {height} x {width}."
            )


def pixels_of(clip: Tensor) -> Tensor:
    """Return a uint8 clip in the type that networks read: uint8, a quarter of float32's memory, but float32 in an exported graph.

    On a GPU the PA op is two to three times as fast on uint8 (`bench/results/gpu-h200.json`, `pa-forms`). In a graph the cast comes first,
    because TensorRT neither slices nor transposes uint8.
    """
    return clip.float() if torch.compiler.is_exporting() else clip


class Network(Recognizer):
    """A 2D network over the first frame of each segment, or over the last if it is causal, and a head over the segments.

    Attributes:
        causal: No segment's features depend on a later segment, so a stream can be recognised segment by segment.
        backbone: Frame encoder, `[K, 3, H, W]` to `[K, D]`; or, where its attribute `whole_clips` is True, an encoder of all segments
            of a clip together, `[B, N, 3, H, W]` to `[B, n, D]`.
        head: `[B, n, D]` to scores `[B, classes]`.
    """

    def __init__(self, *, spec: ClipSpec, backbone: nn.Module, head: nn.Module, causal: bool = False) -> None:
        super().__init__(spec=spec)
        self.backbone = backbone
        self.head = head
        self.causal = causal

    @property
    def networks(self) -> tuple[Network, ...]:
        """This network."""
        return (self,)

    def forward(self, clip: Tensor) -> Tensor:
        """Recognise pixels: uint8 `[B, N, m, H, W, 3]` to scores `[B, classes]`."""
        self._check(clip)
        return self.scores_of_pixels(pixels_of(clip))

    def scores_of_pixels(self, pixels: Tensor) -> Tensor:
        """Recognise pixels `[B, N, m, H, W, 3]`, uint8 or float of values 0 to 255: scores `[B, classes]`."""
        return self.head(self.features_of_pixels(pixels))

    def features_of_pixels(self, pixels: Tensor) -> Tensor:
        """Encode pixels `[B, N, m, H, W, 3]`, uint8 or float of values 0 to 255: one vector per segment, `[B, N, D]`."""
        return self._encode(self._input_of_pixels(pixels))

    @property
    def _shown(self) -> int:
        """Position of a segment's frame that is seen in RGB: the first, as in the papers; in a causal network the newest."""
        return self.spec.frames_per_segment - 1 if self.causal else 0

    def features(self, x: Tensor) -> Tensor:
        """Encode normalised frames `[B, N, m, 3, H, W]`: one vector per segment, `[B, N, D]`."""
        return self._encode(self._input(x))

    def _input(self, x: Tensor) -> Tensor:
        """Return the backbone's input for normalised frames `[B, N, m, 3, H, W]`: `[B, N, C, H, W]`."""
        return x[:, :, self._shown]

    def _input_of_pixels(self, pixels: Tensor) -> Tensor:
        """Return the backbone's input for pixels `[B, N, m, H, W, 3]`, uint8 or float of values 0 to 255: `[B, N, C, H, W]`."""
        # Sliced before transposing, so that an engine transposes one frame of each segment and not all.
        return self.normalise(pixels[:, :, self._shown].movedim(-1, -3))

    def _encode(self, images: Tensor) -> Tensor:
        if getattr(self.backbone, "whole_clips", False):
            return self.backbone(images)
        return self.backbone(images.flatten(0, 1)).unflatten(0, (-1, images.shape[1]))


class MotionRecognizer(Network):
    """A network whose backbone also sees the PA maps of each segment, as further channels after RGB."""

    def __init__(self, *, spec: ClipSpec, backbone: nn.Module, head: nn.Module, persistence: PAModule, causal: bool = False) -> None:
        super().__init__(spec=spec, backbone=backbone, head=head, causal=causal)
        self.persistence = persistence

    def motion(self, clip: Tensor) -> Tensor:
        """Return the PA maps of pixels: uint8 `[B, N, m, H, W, 3]` to `[B, N, m-1, H, W]`."""
        self._check(clip)
        return self._motion_in_pixels(pixels_of(clip).movedim(-1, -3))

    def _motion_in_pixels(self, frames: Tensor) -> Tensor:
        # The mean cancels in the difference, so only the scale is applied, and to the 1,176 weights instead of every frame.
        return self.persistence.motion(frames, scale=self.std.reciprocal())

    def _maps(self, x: Tensor) -> Tensor:
        """Return the encoded PA maps of normalised frames `[B, N, m, 3, H, W]`: `[B, N, m-1, H, W]`."""
        return self.persistence(x, self.persistence.motion(x)).to(x.dtype)

    def _maps_of_pixels(self, pixels: Tensor) -> Tensor:
        frames = pixels.movedim(-1, -3)
        return self._maps(self.normalise(frames)) if self.persistence.encoding == "e2" else self._motion_in_pixels(frames)

    def _input(self, x: Tensor) -> Tensor:
        return torch.cat([super()._input(x), self._maps(x)], dim=2)

    def _input_of_pixels(self, pixels: Tensor) -> Tensor:
        return torch.cat([super()._input_of_pixels(pixels), self._maps_of_pixels(pixels)], dim=2)


class MotionOnlyRecognizer(MotionRecognizer):
    """A network whose backbone sees only the PA maps of each segment."""

    def _input(self, x: Tensor) -> Tensor:
        return self._maps(x)

    def _input_of_pixels(self, pixels: Tensor) -> Tensor:
        return self._maps_of_pixels(pixels)


class FusedRecognizer(Recognizer):
    """Several networks that see the same clip; the weighted mean of their scores is the fused score.

    In joint training each network has its own loss, computed from `branch_scores`, and learns as if trained alone.

    Args:
        weights: Weight of each branch, at least 0, in the order of `branches`; empty: equal weights. They are divided by their sum, which
            gives the weighted average of the paper (PAN, section IV-A). The official code's `--coeff` divides by the number of branches
            instead: its scores differ by a constant factor, and their order is the same.

    Attributes:
        branches: Name -> network.
    """

    weights: Tensor | None

    def __init__(self, *, spec: ClipSpec, branches: dict[str, Network], weights: Sequence[float] = ()) -> None:
        super().__init__(spec=spec)
        self.branches = nn.ModuleDict(branches)
        shares = torch.tensor(weights, dtype=torch.float64) / math.fsum(weights) if weights else None
        # An option of the model, not a learnt weight: a checkpoint stores it in its config.
        self.register_buffer("weights", None if shares is None else shares.float(), persistent=False)

    def fused(self, scores: Tensor) -> Tensor:
        """Return the weighted mean of `[networks, B, classes]`: `[B, classes]`."""
        if self.weights is None:
            return super().fused(scores)
        return (self.weights.to(scores.dtype)[:, None, None] * scores).sum(0)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The branches' networks."""
        return tuple(self.branches.values())  # type: ignore[arg-type]

    def motion(self, clip: Tensor) -> Tensor:
        """Return the PA branch's maps of pixels: uint8 `[B, N, m, H, W, 3]` to `[B, N, m-1, H, W]`."""
        branch = self.branches["pa"]
        assert isinstance(branch, MotionRecognizer)
        return branch.motion(clip)
