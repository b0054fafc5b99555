"""The streaming form of a causal network, as a module to export; its inputs and outputs are described in `engines/streaming/state.py`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowless.engines.streaming.state import FEATURES, FRAMES, STARTED, StateTensor
from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models.layers.temporal_shift import ShiftedConv, carry_between_steps
from flowless.train.models.options import OPTIONS, option_names
from flowless.train.models.recognizer import Network, Recognizer


class StreamingForm(nn.Module):
    """A causal network over a stream of frames: maps a frame and the state to scores and the next state.

    A step encodes one segment, the newest m frames, so it costs about an N-th of a clip. Its scores are the head's over the features of the
    last N steps. Zeros in all of the state start a stream.

    It calls methods of the network, not the network as a module, so that the exported nodes name the same modules as those of the network.

    Args:
        model: The recogniser.
        name: Its name, for messages.
        spec: What a clip is, where its frames are of another size than those that the model was trained on.

    Attributes:
        state: The state's tensors, in the order of the inputs after the frame: `frames`, uint8 `[m - 1, H, W, 3]`, the earlier frames of
            the newest segment, the oldest first (only where m > 1); `shift_00`, ..., the channels that each shifted convolution takes from
            the step before, in the order in which they run; `features`, `[N - 1, D]`, those of the steps before, the oldest first;
            `started`, two numbers that are 0 at the start of a stream and 1 afterwards. Where the first is 0, all earlier features are
            copies of this step's; where the second is 0, all earlier frames are copies of this step's.

    Raises:
        FlowlessError: The model is not causal, its family has no causal form, or it has one segment only.
    """

    def __init__(self, model: Recognizer, *, name: str, spec: ClipSpec | None = None) -> None:
        super().__init__()
        self.model = _causal_network(model, name)
        self._shifts: list[ShiftedConv] = []
        self.state = self._find_state(spec or model.spec)

    @property
    def heads(self) -> tuple[nn.Module, ...]:
        """The recogniser's heads."""
        return self.model.heads

    def forward(self, frame: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Map uint8 `[B, H, W, 3]` and the state, each tensor `[B, *shape]`, to scores `[B, classes]` and the next state, typed as it."""
        given = dict(zip((item.name for item in self.state), state, strict=True))
        started, features = given[STARTED], given[FEATURES]
        # Joined and sliced as float32, which holds uint8 exactly: TensorRT does neither on uint8.
        pixels = frame.float()[:, None]
        if FRAMES in given:
            earlier = torch.where(started[:, 1].view(-1, 1, 1, 1, 1) > 0, given[FRAMES].float(), pixels)
            pixels = torch.cat([earlier, pixels], dim=1)
        channels = [value for name, value in given.items() if name.startswith("shift_")]
        with carry_between_steps(self._shifts, channels):
            newest = self.model.features_of_pixels(pixels[:, None])
            carried = [shift.carried for shift in self._shifts]
        known = torch.cat([torch.where(started[:, :1, None] > 0, features, newest), newest], dim=1)
        frames = [pixels[:, 1:].to(torch.uint8)] if FRAMES in given else []
        return self.model.head(known), *frames, *carried, known[:, 1:], torch.ones_like(started)  # type: ignore[return-value]

    def _find_state(self, spec: ClipSpec) -> tuple[StateTensor, ...]:
        """Return the state's tensors, by running one segment on the meta device; note the shifted convolutions as they run."""
        segments, frames, *picture = spec.shape
        sizes: list[tuple[int, ...]] = []

        def note(shift: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert isinstance(shift, ShiftedConv)
            _, channels, height, width = inputs[0].shape
            self._shifts.append(shift)
            sizes.append((channels // shift.divisor, height, width))

        found = [module for module in self.model.modules() if isinstance(module, ShiftedConv)]
        hooks = [module.register_forward_pre_hook(note) for module in found]
        try:
            features = _features_on_meta(self.model, (2, 1, frames, *picture))
        finally:
            for hook in hooks:
                hook.remove()
        earlier = [StateTensor(name=FRAMES, shape=(frames - 1, *picture), dtype="uint8")] if frames > 1 else []
        shifts = [StateTensor(name=f"shift_{place:02}", shape=size, dtype="float32") for place, size in enumerate(sizes)]
        known = StateTensor(name=FEATURES, shape=(segments - 1, features.shape[2]), dtype="float32")
        return (*earlier, *shifts, known, StateTensor(name=STARTED, shape=(2,), dtype="float32"))


class _Features(nn.Module):
    """Calls `features_of_pixels`, since `torch.func.functional_call` calls a module."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network.features_of_pixels(pixels)


def _features_on_meta(network: Network, shape: tuple[int, ...]) -> Tensor:
    """Return the features of pixels of a shape, on the meta device: only shapes are computed, and the network is unchanged."""
    module = _Features(network)
    tensors = {name: value.to("meta") for name, value in (*module.named_parameters(), *module.named_buffers())}
    with torch.no_grad():
        return torch.func.functional_call(module, tensors, (torch.zeros(shape, device="meta"),))


def _causal_network(model: Recognizer, name: str) -> Network:
    """Return the model; raise FlowlessError if it has no streaming form."""
    families = ", ".join(family for family, kind in OPTIONS.items() if "causal" in option_names([kind]))
    without = f"without --streaming, or train one of {families} with --causal"
    if not isinstance(model, Network) or "causal" not in model.config:
        raise FlowlessError(f"{name}: its family has no causal form, which a stream's state needs. Export it {without}.")
    if not model.causal:
        raise FlowlessError(
            f"{name}: it is not causal: its features depend on later frames, which a stream does not have yet. Train it with "
            f"--causal (flowless train {name}/... --causal), or export it without --streaming."
        )
    if model.spec.segments < 2:
        raise FlowlessError(
            f"{name}: it has one segment, so its scores depend on no earlier one. Export it without --streaming, or train it with "
            f"more segments."
        )
    return model
