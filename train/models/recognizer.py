"""What every recogniser shares: pixels in, normalisation inside, scores out; and the networks that see one view of a clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec

if TYPE_CHECKING:
    from flowless.train.models.plan import PAModule

#: Fewest rows and columns of a frame: the last stage of a ResNet sees one pixel of 32.
LEAST_SIDE = 32


class Recognizer(nn.Module):
    """Clips to scores, by one network or by several whose scores are fused.

    Attributes:
        spec: What a clip is. A model takes other heights and widths too: its networks are convolutional.
        config: The arguments that `build_model` made it with, for the checkpoint.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, spec: ClipSpec) -> None:
        super().__init__()
        self.spec = spec
        self.config: dict[str, Any] = {}
        # Constants, not weights: they come from the ClipSpec, so no file of weights stores them.
        self.register_buffer("mean", 255 * torch.tensor(spec.mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(spec.std), persistent=False)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks whose scores are fused, each a recogniser by itself; none where branches share layers."""
        return ()

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """What learns by one loss each, all parameters between them and none twice: the networks, where nothing is shared.

        Branches over shared layers are no networks by themselves, but training treats them alike: partial batch norm keeps
        the first of each.
        """
        return self.networks

    @property
    def heads(self) -> tuple[nn.Module, ...]:
        """What gives each network's or branch's scores, in the order of `branch_scores`."""
        return tuple(network.head for network in self.networks)

    def forward(self, clip: Tensor) -> Tensor:
        """Recognise pixels: uint8 `[B, N, m, H, W, 3]` to scores `[B, classes]`."""
        return self.fused(self.branch_scores(clip))

    def fused(self, scores: Tensor) -> Tensor:
        """Return the answer of `branch_scores`, `[networks, B, classes]`: their mean, `[B, classes]`."""
        return scores.mean(0)

    def branch_scores(self, clip: Tensor) -> Tensor:
        """Return every network's own scores of pixels: uint8 `[B, N, m, H, W, 3]` to `[networks, B, classes]`."""
        self._check(clip)
        pixels = pixels_of(clip)
        return torch.stack([network.scores_of_pixels(pixels) for network in self.networks])

    def forward_frames(self, x: Tensor) -> Tensor:
        """Recognise normalised frames `[B, N, m, 3, H, W]`: scores `[B, classes]`."""
        scores = [network.head(network.features(x)) for network in self.networks]
        return scores[0] if len(scores) == 1 else self.fused(torch.stack(scores))

    def features(self, x: Tensor) -> Tensor:
        """Encode normalised frames `[B, N, m, 3, H, W]`: one vector a segment, `[B, N, D]`, the networks' one after another."""
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
    """Return a uint8 clip as networks read it: as it is, a quarter of float32's memory; float32 while a graph is exported.

    On a GPU the PA op is two to three times as fast on uint8 (`bench/results/gpu-h200.json`, `pa-forms`). TensorRT neither cuts nor
    transposes bytes, so the cast comes first in a graph.
    """
    return clip.float() if torch.compiler.is_exporting() else clip


class Network(Recognizer):
    """A 2D network over the first frame of each segment, and a head over the segments.

    Attributes:
        backbone: Frame encoder, `[K, 3, H, W]` to `[K, D]`; or, where it says `whole_clips`, an encoder of a clip's segments
            together, `[B, N, 3, H, W]` to `[B, n, D]`.
        head: `[B, n, D]` to scores `[B, classes]`.
    """

    def __init__(self, *, spec: ClipSpec, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__(spec=spec)
        self.backbone = backbone
        self.head = head

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
        return self.head(self._encode(self._seen_in_pixels(pixels)))

    def features(self, x: Tensor) -> Tensor:
        """Encode normalised frames `[B, N, m, 3, H, W]`: one vector a segment, `[B, N, D]`."""
        return self._encode(self._seen(x))

    def _seen(self, x: Tensor) -> Tensor:
        """What the backbone sees of normalised frames: `[B, N, C, H, W]`."""
        return x[:, :, 0]

    def _seen_in_pixels(self, pixels: Tensor) -> Tensor:
        """What the backbone sees of pixels `[B, N, m, H, W, 3]`, uint8 or float of values 0 to 255: `[B, N, C, H, W]`."""
        # Cut before transposing, so that an engine moves one frame of a segment and not all of them.
        return self.normalise(pixels[:, :, 0].movedim(-1, -3))

    def _encode(self, seen: Tensor) -> Tensor:
        if getattr(self.backbone, "whole_clips", False):
            return self.backbone(seen)
        return self.backbone(seen.flatten(0, 1)).unflatten(0, (-1, self.spec.segments))


class MotionRecognizer(Network):
    """A network whose backbone also sees the PA maps of each segment, as further channels behind RGB."""

    def __init__(self, *, spec: ClipSpec, backbone: nn.Module, head: nn.Module, persistence: PAModule) -> None:
        super().__init__(spec=spec, backbone=backbone, head=head)
        self.persistence = persistence

    def motion(self, clip: Tensor) -> Tensor:
        """Return the PA maps of pixels: uint8 `[B, N, m, H, W, 3]` to `[B, N, m-1, H, W]`."""
        self._check(clip)
        return self._motion_in_pixels(pixels_of(clip).movedim(-1, -3))

    def _motion_in_pixels(self, frames: Tensor) -> Tensor:
        # The mean cancels in the difference, so only the scale is applied, to 1,176 weights instead of every frame.
        return self.persistence.motion(frames, scale=self.std.reciprocal())

    def _maps(self, x: Tensor) -> Tensor:
        """Encode the motion of normalised frames `[B, N, m, 3, H, W]`: `[B, N, m-1, H, W]`."""
        return self.persistence(x, self.persistence.motion(x)).to(x.dtype)

    def _maps_of_pixels(self, pixels: Tensor) -> Tensor:
        frames = pixels.movedim(-1, -3)
        return self._maps(self.normalise(frames)) if self.persistence.encoding == "e2" else self._motion_in_pixels(frames)

    def _seen(self, x: Tensor) -> Tensor:
        return torch.cat([super()._seen(x), self._maps(x)], dim=2)

    def _seen_in_pixels(self, pixels: Tensor) -> Tensor:
        return torch.cat([super()._seen_in_pixels(pixels), self._maps_of_pixels(pixels)], dim=2)


class MotionOnlyRecognizer(MotionRecognizer):
    """A network whose backbone sees the PA maps of each segment and nothing else."""

    def _seen(self, x: Tensor) -> Tensor:
        return self._maps(x)

    def _seen_in_pixels(self, pixels: Tensor) -> Tensor:
        return self._maps_of_pixels(pixels)


class FusedRecognizer(Recognizer):
    """Several networks that see the same clip; the weighted mean of their scores is the fused score.

    Trained together, each network learns as if alone: `branch_scores` gives each its own loss.

    Args:
        weights: How much each branch counts, at least 0, in the order of `branches`; none are equal weights. Divided by their sum, they
            give the weighted average of the paper (PAN, section IV-A). The official code's `--coeff` divides by the number of branches
            instead: the scores differ by a factor, their order does not.

    Attributes:
        branches: Name -> network.
    """

    weights: Tensor | None

    def __init__(self, *, spec: ClipSpec, branches: dict[str, Network], weights: Sequence[float] = ()) -> None:
        super().__init__(spec=spec)
        self.branches = nn.ModuleDict(branches)
        shares = torch.tensor(weights, dtype=torch.float64) / math.fsum(weights) if weights else None
        # An option of the model, not a weight that learns: a checkpoint keeps it in its config.
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
        """Return the PA maps of pixels, by the PA branch: uint8 `[B, N, m, H, W, 3]` to `[B, N, m-1, H, W]`."""
        branch = self.branches["pa"]
        assert isinstance(branch, MotionRecognizer)
        return branch.motion(clip)
