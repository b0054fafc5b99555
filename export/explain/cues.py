"""The motion cue of each system: what it computes from the frames in place of optical flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from flowless.errors import FlowlessError

if TYPE_CHECKING:
    from torch import Tensor

    from flowless.train.models import Recognizer

#: What a cue's values are: magnitudes, displacement vectors (row component first), or RGB centred at zero.
Kind = Literal["map", "flow", "colour"]
#: What one picture is computed from: a frame and the next one, all frames of a segment, or a segment and the next one.
Over = Literal["frames", "segment", "segments"]
#: Kind -> the axes of one picture before its height and width.
_CHANNELS: dict[Kind, tuple[int, ...]] = {"map": (), "flow": (2,), "colour": (3,)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Cue:
    """The motion cue of B clips: K pictures for each of N segments."""

    name: str
    """Its name, such as Persistence of Appearance."""
    kind: Kind
    """What the values are."""
    over: Over
    """What one picture is computed from. `frames`: K = m - 1 of a segment's m frames; `segment` and `segments`: K = 1."""
    values: NDArray[np.float32]
    """`map`: `[B, N, K, H, W]`, at least 0. `flow`: `[B, N, K, 2, h, w]`, rows first, in cells of the h x w grid. `colour`:
    `[B, N, K, 3, H, W]`, normalised RGB. H and W may be smaller than the clip's."""
    meaning: str
    """How to read it, in a sentence for the page."""

    def __post_init__(self) -> None:
        channels = _CHANNELS.get(self.kind)
        if channels is None or self.values.ndim != 5 + len(channels) or self.values.shape[3:-2] != channels:
            raise FlowlessError(f"cue {self.name}: values {list(self.values.shape)} do not fit kind {self.kind!r}.")
        if self.values.dtype != np.float32:
            raise FlowlessError(f"cue {self.name}: values are {self.values.dtype}; they must be float32.")

    @property
    def magnitudes(self) -> NDArray[np.float32]:
        """Absolute values; of a flow the vectors' lengths, `[B, N, K, h, w]`."""
        if self.kind == "flow":
            return np.hypot(self.values[..., 0, :, :], self.values[..., 1, :, :])
        return np.abs(self.values)


#: System, as an exported graph names it -> its cue's name, kind, over and meaning.
_CUES: dict[str, dict[str, Any]] = {
    # PAN, Eq. 4 and 5
    "persistence": {
        "name": "Persistence of Appearance",
        "kind": "map",
        "over": "frames",
        "meaning": "How much the learnt shallow features change from one frame to the next. Static areas are dark, moving edges bright.",
    },
    # Disentangling, Eq. 1 and 2
    "displacement": {
        "name": "Displacement map",
        "kind": "flow",
        "over": "frames",
        "meaning": (
            "Where the features of each place are found in the next frame. The hue is the direction, the saturation the length. Static "
            "areas are white, except where their surroundings look alike: there the estimate is pulled towards similar neighbours."
        ),
    },
    # Dynamic Appearance, Eq. 6
    "appearance": {
        "name": "Dynamic appearance",
        "kind": "colour",
        "over": "segment",
        "meaning": "What is left of a segment's frames without each pixel's static component. Static areas are grey, motion is coloured.",
    },
    # STM, Eq. 2: the length over the channels of CMM's feature differences
    "channelwise-motion": {
        "name": "Channel-wise motion",
        "kind": "map",
        "over": "segments",
        "meaning": (
            "How much the reduced features in the network's first STM block differ from the next segment's. The last segment has no next "
            "one: it is dark."
        ),
    },
}


def make_cue(system: str, values: NDArray[np.float32], *, clips: int, segments: int) -> Cue:
    """Return the cue of a system's tensor.

    Args:
        system: `persistence`, `displacement`, `appearance` or `channelwise-motion`.
        values: PA maps `[..., H, W]`, displacement maps `[..., 2, h, w]`, dynamic appearance `[..., 3, H, W]`, or CMM's feature
            differences `[..., C, h, w]`. The leading axes are clips, segments and pictures in this order, flattened or not.
        clips: B.
        segments: N.
    """
    height, width = values.shape[-2:]
    if system == "channelwise-motion":
        differences = values.reshape(clips, segments, -1, height, width).astype(np.float64)
        values = np.sqrt(np.square(differences).sum(2)).astype(np.float32)
    channels = _CHANNELS[_CUES[system]["kind"]]
    return Cue(**_CUES[system], values=values.reshape(clips, segments, -1, *channels, height, width))


def cue_of(model: Recognizer, clip: Tensor) -> Cue | None:
    """Compute a model's motion cue without the layers after it.

    Of several branches it is the PA branch's. TSN, TSM and PAN's RGB branch process single frames and have none; nor have Disentangling
    without displacement maps, and Dynamic Appearance's models with another input.

    Args:
        model: Any model, in evaluation mode.
        clip: uint8 `[B, N, m, H, W, 3]`, on the model's device.

    Raises:
        FlowlessError: The clip is not what the model takes.
    """
    import torch

    from flowless.train.models import AppearanceRecognizer, DisentanglingRecognizer, FusedRecognizer, MotionRecognizer
    from flowless.train.models.layers.stm_block import ChannelwiseMotion

    with torch.inference_mode():
        if isinstance(model, MotionRecognizer | FusedRecognizer):
            system, values = "persistence", model.motion(clip)
        elif isinstance(model, DisentanglingRecognizer) and model.has_displacement:
            system, values = "displacement", model.displacement(clip)
        elif isinstance(model, AppearanceRecognizer):
            system, values = "appearance", model.appearance(clip)
        else:
            block = next((module for module in model.modules() if isinstance(module, ChannelwiseMotion)), None)
            if block is None:
                return None
            system, values = "channelwise-motion", _input_of(block.restore, model, clip)
    return make_cue(system, values.float().cpu().numpy(), clips=len(clip), segments=model.spec.segments)


def timescales(segments: int) -> list[tuple[int, int]]:
    """Return `(scale, first segment)` of each vector that VAP pools of N segments: from `first` on, every `scale`-th."""
    return [(2**level, first) for level in range(segments.bit_length() - 1) for first in range(2**level)]


def timescale_names(segments: int) -> tuple[str, ...]:
    """Return the name of each vector that VAP pools of N segments: its timescale and, of several, its first segment from 1."""
    return tuple(f"s = {scale}" + (f", from {first + 1}" if scale > 1 else "") for scale, first in timescales(segments))


def _input_of(module: Any, model: Recognizer, clip: Tensor) -> Tensor:
    """Return a module's input for a clip. The forward pass ends there: most of its time is spent in the layers after it."""

    def stop(_: Any, inputs: tuple[Tensor]) -> None:
        raise _StopForward(inputs[0])

    hook = module.register_forward_pre_hook(stop)
    try:
        model(clip)
    except _StopForward as reached:
        return reached.tensor
    finally:
        hook.remove()
    raise AssertionError(f"the network does not run {module}")


class _StopForward(Exception):
    """Ends a forward pass where a tensor was reached."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor
