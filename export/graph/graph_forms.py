"""The forms that a model is exported in: over whole clips, over a frame and a memory of frames, or over a frame and a state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from flowless.engines.streaming.memory import FRAME, MEMORY, NEXT_MEMORY, SCORES
from flowless.engines.streaming.state import NEXT, StateTensor

if TYPE_CHECKING:
    import torch

    from flowless.pipeline.clip.spec import ClipSpec
    from flowless.train.models.recognizer import Recognizer

#: `clip`: whole clips in. `online`: `engines/streaming/memory.py`. `streaming`: `engines/streaming/state.py`.
Form = Literal["clip", "online", "streaming"]
INPUT = "clip"


@dataclass(frozen=True, kw_only=True)
class GraphNames:
    """A graph's inputs and outputs."""

    inputs: dict[str, tuple[tuple[int, ...], str]]
    """Shape without the batch and type of each input, in the graph's order."""
    outputs: tuple[str, ...]
    """Names of the outputs, in the graph's order."""


def in_form(model: Recognizer, form: Form, *, name: str, spec: ClipSpec) -> torch.nn.Module:
    """Return a recogniser in a form, as a module to export for clips of a spec.

    Raises:
        FlowlessError: The model has no such form.
    """
    if form == "online":
        from flowless.export.graph.online_graph import OnlineForm

        return OnlineForm(model, name=name).eval()
    if form == "streaming":
        from flowless.export.graph.streaming_graph import StreamingForm

        return StreamingForm(model, name=name, spec=spec).eval()
    return model


def state_of_form(module: torch.nn.Module) -> tuple[StateTensor, ...]:
    """Return the state of a module that `in_form` returned; empty where it is not the streaming form."""
    return cast("tuple[StateTensor, ...]", getattr(module, "state", ()))


def names_of(module: torch.nn.Module, spec: ClipSpec, form: Form) -> GraphNames:
    """Return the inputs and outputs of the graph of a module that `in_form` returned."""
    picture = spec.shape[2:]
    if form == "clip":
        return GraphNames(inputs={INPUT: (spec.shape, "uint8")}, outputs=(SCORES,))
    frame = {FRAME: (picture, "uint8")}
    if form == "online":
        return GraphNames(inputs={**frame, MEMORY: ((spec.segments - 1, *picture), "uint8")}, outputs=(SCORES, NEXT_MEMORY))
    state: Sequence[StateTensor] = state_of_form(module)
    inputs = {**frame, **{tensor.name: (tensor.shape, tensor.dtype) for tensor in state}}
    return GraphNames(inputs=inputs, outputs=(SCORES, *(NEXT + tensor.name for tensor in state)))
