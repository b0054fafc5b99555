"""One step of a stream with an engine of any form: what `Engine.step` takes, refuses and returns."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import numpy as np

from flowless.engines.backends.backend import DeviceBackend
from flowless.engines.bundle.manifest import Manifest
from flowless.engines.device.device_array import DeviceArray, place
from flowless.engines.device.take_input import take_input
from flowless.engines.streaming.memory import OnlineBackend, first_memory, refuse_several_frames
from flowless.engines.streaming.streaming_backend import StreamingBackend, zero_state
from flowless.errors import FlowlessError

Array = np.ndarray | DeviceArray


def step(
    backend: DeviceBackend, frame: Any, memory: Any, *, manifest: Manifest, runs_on: str, on_device: bool, stream: int | None
) -> tuple[Any, Any]:
    """Score frames with the memory of their streams; see `Engine.step`.

    Args:
        backend: The engine's.
        frame: As `Engine.step` takes it.
        memory: As `Engine.step` takes it.
        manifest: The bundle's.
        runs_on: The engine's target, for messages.
        on_device: Whether to leave the results where the engine runs.
        stream: Address of a CUDA stream, or None.
    """
    if not isinstance(backend, StreamingBackend):
        refuse_several_frames(manifest.model, manifest.spec)
    take = partial(take_input, backend=backend, stream=stream, runs_on=runs_on)
    newest = take("frame", frame)
    batch = newest.shape[0] if newest.shape else 0
    _check_shape("frame", newest, batch, manifest.spec.shape[2:])
    if isinstance(backend, StreamingBackend):
        kept = _take_state(backend, memory, batch, take)
    else:
        kept = {"memory": _first(newest, manifest.spec.segments) if memory is None else take("memory", memory)}
        _check_shape("memory", kept["memory"], batch, (manifest.spec.segments - 1, *manifest.spec.shape[2:]))
    on_host = not on_device and all(isinstance(value, np.ndarray) for value in (newest, *kept.values()))
    if isinstance(backend, StreamingBackend):
        if on_host:
            return backend.step(np.ascontiguousarray(newest), {name: np.ascontiguousarray(value) for name, value in kept.items()})
        placed = {name: place(value, backend.gpu) for name, value in kept.items()}
        scores, following = backend.step_on_device(place(newest, backend.gpu), placed, stream)
        return (scores, following) if on_device else (scores.numpy(), {name: value.numpy() for name, value in following.items()})
    if isinstance(backend, OnlineBackend):
        if on_host:
            return backend.step(np.ascontiguousarray(newest), np.ascontiguousarray(kept["memory"]))
        results = backend.step_on_device(place(newest, backend.gpu), place(kept["memory"], backend.gpu), stream)
        return results if on_device else (results[0].numpy(), results[1].numpy())
    if not on_host:
        raise FlowlessError(
            "this engine has no memory of its own, so its clip is put together by numpy: give numpy arrays, without on_device, or "
            "load a bundle of flowless export --online."
        )
    clip = np.concatenate([cast(np.ndarray, kept["memory"]), cast(np.ndarray, newest)[:, None]], axis=1)
    return backend(np.ascontiguousarray(clip[:, :, None])), clip[:, 1:]


def _first(frame: Array, segments: int) -> np.ndarray:
    """Return the memory at the start of a stream."""
    if isinstance(frame, DeviceArray) and frame.gpu is not None:
        raise FlowlessError(f"the memory is None, and the frame lies on the GPU: give the memory as well, the frame {segments - 1} times.")
    return first_memory(frame.numpy() if isinstance(frame, DeviceArray) else frame, segments)


def _take_state(backend: StreamingBackend, memory: Any, batch: int, take: Any) -> dict[str, Array]:
    """Return the state as arrays by name, zeros at the start of a stream."""
    if memory is None:
        return {**zero_state(backend.state, batch)}
    if not isinstance(memory, Mapping):
        raise FlowlessError(
            f"the memory is {type(memory).__name__}; a streaming engine takes the dictionary that step returned for the frame before, "
            "None at the start of a stream."
        )
    names = [tensor.name for tensor in backend.state]
    if missing := [name for name in names if name not in memory] or [name for name in memory if name not in names]:
        raise FlowlessError(
            f"the memory's names are {', '.join(map(str, memory)) or 'none'}, and {missing[0]!r} is missing or unknown; this engine takes "
            f"{', '.join(names)}, as step returned them."
        )
    taken = {}
    for tensor in backend.state:
        taken[tensor.name] = take(f"memory's {tensor.name}", memory[tensor.name], dtype=tensor.dtype)
        _check_shape(f"memory's {tensor.name}", taken[tensor.name], batch, tensor.shape)
    return taken


def _check_shape(name: str, value: Array, batch: int, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != (batch, *shape) or not batch:
        raise FlowlessError(
            f"the {name} is {value.dtype} {list(value.shape)}; this engine takes {value.dtype} [B, {', '.join(map(str, shape))}], "
            "B of at least 1 and the same for frame and memory."
        )
