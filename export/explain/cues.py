"""A model's own motion cue of a clip: what each system reads from the frames where others would compute optical flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from flowless.errors import FlowlessError

if TYPE_CHECKING:
    from torch import Tensor

    from flowless.train.models import Recognizer

#: What a cue's values are: strengths, displacements (rows first), or colours around zero.
Kind = Literal["map", "flow", "colour"]
#: What one value is of: a frame and the next one, all frames of a segment, or a segment and the next one.
Over = Literal["frames", "segment", "segments"]
#: Axes of one picture of a kind.
_AXES: dict[Kind, tuple[int | None, ...]] = {"map": (None, None), "flow": (2, None, None), "colour": (3, None, None)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Cue:
    """The motion cue of some clips, a picture or several for each segment."""

    name: str
    """Its name, such as Persistence of Appearance."""
    kind: Kind
    """What the values are."""
    over: Over
    """What one picture is of. `frames`: K = m - 1 of a segment's m frames; `segment` and `segments`: K = 1."""
    values: NDArray[np.float32]
    """`map`: `[B, N, K, H, W]`, at least 0. `flow`: `[B, N, K, 2, h, w]`, rows first, in cells of the h x w grid. `colour`:
    `[B, N, K, 3, H, W]`, red, green and blue in normalised colours. H and W may be smaller than the clip's."""
    meaning: str
    """What is seen in it, in a sentence for people."""

    def __post_init__(self) -> None:
        axes = _AXES.get(self.kind)
        shape = self.values.shape[3:]
        if axes is None or len(shape) != len(axes) or any(want not in {None, got} for want, got in zip(axes, shape, strict=True)):
            raise FlowlessError(f"cue {self.name}: kind {self.kind!r} with values {list(self.values.shape)}; they do not fit each other.")
        if self.values.dtype != np.float32:
            raise FlowlessError(f"cue {self.name}: values are {self.values.dtype}; they must be float32.")


def persistence_cue(maps: NDArray[np.float32]) -> Cue:
    """Return the cue of PA maps `[B, N, m-1, H, W]` (PAN, Eq. 4 and 5)."""
    meaning = (
        "How much the learnt shallow features of each place change from one frame to the next. What stands still is dark; edges that "
        "move are bright."
    )
    return Cue(name="Persistence of Appearance", kind="map", over="frames", values=maps, meaning=meaning)


def displacement_cue(maps: NDArray[np.float32]) -> Cue:
    """Return the cue of displacement maps `[B, N, m-1, 2, h, w]` (Disentangling, Eq. 1 and 2)."""
    meaning = (
        "Where the features of each place are found in the next frame. The hue is the direction, the saturation the length; what "
        "stands still is white, unless its neighbours look like it: the map is drawn towards them."
    )
    return Cue(name="Displacement map", kind="flow", over="frames", values=maps, meaning=meaning)


def appearance_cue(pictures: NDArray[np.float32]) -> Cue:
    """Return the cue of dynamic appearance `[B, N, 3, H, W]` (Dynamic Appearance, Eq. 6)."""
    meaning = (
        "What remains of a segment's frames when each pixel's static part has been projected out. What stands still is grey; colours "
        "stand for what moved."
    )
    return Cue(name="Dynamic appearance", kind="colour", over="segment", values=pictures[:, :, None], meaning=meaning)


def channelwise_motion_cue(differences: NDArray[np.float32]) -> Cue:
    """Return the cue of CMM's feature differences `[B, N, C, h, w]` (STM, Eq. 2): their length over the channels."""
    meaning = (
        "How much the reduced features of each place in the network's first STM block differ from the next segment's. The last segment "
        "has no next one: it is dark."
    )
    length = np.sqrt(np.square(differences.astype(np.float64)).sum(2)).astype(np.float32)
    return Cue(name="Channel-wise motion", kind="map", over="segments", values=length[:, :, None], meaning=meaning)


def cue_of(model: Recognizer, clip: Tensor) -> Cue | None:
    """Ask a model for its own motion cue.

    A model of several branches gives the PA branch's. TSN, TSM and PAN's RGB branch see single frames and have none; nor have
    Disentangling without displacement maps, and Dynamic Appearance's models with another input.

    Args:
        model: Any model, in evaluation mode.
        clip: uint8 `[B, N, m, H, W, 3]`, on the model's device.

    Returns:
        The cue, None where the model has none.

    Raises:
        FlowlessError: The clip is not what the model takes.
    """
    import torch

    from flowless.train.models import AppearanceRecognizer, DisentanglingRecognizer, FusedRecognizer, MotionRecognizer

    with torch.inference_mode():
        if isinstance(model, MotionRecognizer | FusedRecognizer):
            return persistence_cue(_array(model.motion(clip)))
        if isinstance(model, DisentanglingRecognizer) and model.has_displacement:
            return displacement_cue(_array(model.displacement(clip)))
        if isinstance(model, AppearanceRecognizer):
            return appearance_cue(_array(model.appearance(clip)))
        block = first_stm_block(model)
        return None if block is None else channelwise_motion_cue(_stm_differences(model, clip, block))


def first_stm_block(model: Recognizer) -> str | None:
    """Return the path of the first STM block's CMM, such as `backbone.layer1.0.conv2.motion`; None where there is none."""
    from flowless.train.models.layers.stm_block import ChannelwiseMotion

    return next((path for path, module in model.named_modules() if isinstance(module, ChannelwiseMotion)), None)


def timescales(segments: int) -> list[tuple[int, int]]:
    """Return the timescale and the first segment of each vector that VAP pools of N segments: those that lie the timescale apart."""
    return [(2**level, first) for level in range(segments.bit_length() - 1) for first in range(2**level)]


def timescale_names(segments: int) -> tuple[str, ...]:
    """Return the name of each vector that VAP pools of N segments: the timescale and, where it has several, the first segment."""
    return tuple(f"s = {scale}" + (f", from {first + 1}" if scale > 1 else "") for scale, first in timescales(segments))


def _stm_differences(model: Recognizer, clip: Tensor, path: str) -> NDArray[np.float32]:
    """Return what the CMM at `path` sees between segments, `[B, N, C, h, w]`: what its last convolution reads."""

    def leave(_: Any, inputs: tuple[Tensor]) -> None:
        raise _Reached(inputs[0])

    hook = model.get_submodule(f"{path}.restore").register_forward_pre_hook(leave)
    try:
        model(clip)
    except _Reached as reached:
        return _array(reached.tensor.unflatten(0, (len(clip), -1)))
    finally:
        hook.remove()
    raise AssertionError(f"{path}: the network does not run it")


class _Reached(Exception):
    """Ends a forward pass where what was looked for is seen: the rest of the network is most of its time."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.float().cpu().numpy()
