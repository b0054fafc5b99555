"""What every recogniser shares: pixels in, normalisation inside, a frame encoder, a head over segments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowless.errors import FlowlessError
from flowless.pipeline.spec import ClipSpec
from flowless.train.persistence import PersistenceOfAppearance


class Recognizer(nn.Module):
    """A 2D network over the first frame of each segment, and a head over the segments.

    Attributes:
        spec: What a clip is.
        backbone: Frame encoder, `[K, 3, H, W]` to `[K, D]`.
        head: `[B, N, D]` to scores `[B, classes]`.
        config: The arguments that `build_model` made it with, for the checkpoint.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, spec: ClipSpec, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.head = head
        self.config: dict[str, Any] = {}
        # Constants, not weights: they come from the ClipSpec, so no file of weights stores them.
        self.register_buffer("mean", 255 * torch.tensor(spec.mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(spec.std), persistent=False)

    def forward(self, clip: Tensor) -> Tensor:
        """Recognise pixels: uint8 `[B, N, m, H, W, 3]` to scores `[B, classes]`."""
        self._check(clip, torch.uint8, self.spec.shape)
        # The cast comes first: TensorRT neither cuts nor transposes bytes.
        return self.head(self._encode(self._seen_in_pixels(clip.float())))

    def forward_frames(self, x: Tensor) -> Tensor:
        """Recognise normalised frames `[B, N, m, 3, H, W]`: scores `[B, classes]`."""
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Encode normalised frames `[B, N, m, 3, H, W]`: one vector a segment, `[B, N, D]`."""
        return self._encode(self._seen(x))

    def as_frames(self, clip: Tensor) -> Tensor:
        """Turn uint8 `[..., H, W, 3]` into float32 `[..., 3, H, W]`, values 0 to 255."""
        return clip.float().movedim(-1, -3)

    def normalise(self, frames: Tensor) -> Tensor:
        """Normalise frames `[..., 3, H, W]` of values 0 to 255 by the ClipSpec's mean and standard deviation."""
        return (frames - self.mean.view(3, 1, 1)) / self.std.view(3, 1, 1)

    def _seen(self, x: Tensor) -> Tensor:
        """What the backbone sees of normalised frames: `[B, N, C, H, W]`."""
        return x[:, :, 0]

    def _seen_in_pixels(self, pixels: Tensor) -> Tensor:
        """What the backbone sees of float pixels `[B, N, m, H, W, 3]` of values 0 to 255: `[B, N, C, H, W]`."""
        # Cut before transposing, so that an engine moves one frame of a segment and not all of them.
        return self.normalise(pixels[:, :, 0].movedim(-1, -3))

    def _encode(self, seen: Tensor) -> Tensor:
        return self.backbone(seen.flatten(0, 1)).unflatten(0, (-1, self.spec.segments))

    def _check(self, clip: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        if clip.dtype != dtype or tuple(clip.shape[1:]) != shape:
            raise FlowlessError(
                f"the clip is {str(clip.dtype).removeprefix('torch.')} {list(clip.shape)}; this model takes "
                f"{str(dtype).removeprefix('torch.')} [B, {', '.join(map(str, shape))}] (clip, segments, frames, rows, columns, RGB)."
            )


class MotionRecognizer(Recognizer):
    """A recogniser whose backbone also sees the PA maps of each segment, as further channels behind RGB."""

    def __init__(self, *, spec: ClipSpec, backbone: nn.Module, head: nn.Module, persistence: PersistenceOfAppearance) -> None:
        super().__init__(spec=spec, backbone=backbone, head=head)
        self.persistence = persistence

    def motion(self, clip: Tensor) -> Tensor:
        """Return the PA maps of pixels: uint8 `[B, N, m, H, W, 3]` to `[B, N, m-1, H, W]`."""
        self._check(clip, torch.uint8, self.spec.shape)
        return self._motion_in_pixels(self.as_frames(clip))

    def _motion_in_pixels(self, frames: Tensor) -> Tensor:
        # The mean cancels in the difference, so only the scale is applied, to 1,176 weights instead of every frame.
        return self.persistence.motion(frames, scale=self.std.reciprocal())

    def _seen(self, x: Tensor) -> Tensor:
        maps = self.persistence(x, self.persistence.motion(x))
        return torch.cat([x[:, :, 0], maps.to(x.dtype)], dim=2)

    def _seen_in_pixels(self, pixels: Tensor) -> Tensor:
        frames = pixels.movedim(-1, -3)
        if self.persistence.encoding == "e2":
            return self._seen(self.normalise(frames))
        return torch.cat([super()._seen_in_pixels(pixels), self._motion_in_pixels(frames)], dim=2)
