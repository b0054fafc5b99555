"""The inputs of an engine: taken as they are, or without a copy from another library, and refused where they have another type."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from flowless.cuda_driver import Gpu
from flowless.engines.device.device_array import DeviceArray, borrow, is_foreign
from flowless.errors import FlowlessError


class Taker(Protocol):
    """What takes the inputs."""

    @property
    def gpu(self) -> Gpu | None:
        """The GPU whose memory it takes; None where it runs on the CPU."""
        ...


def take_input(
    name: str, value: Any, backend: Taker, *, stream: int | None, runs_on: str, dtype: str = "uint8"
) -> np.ndarray | DeviceArray:
    """Return an input as it is or, from another library, without a copy.

    Args:
        name: What it is, for messages.
        value: A NumPy array, or an array with `__dlpack__` or `__cuda_array_interface__`.
        backend: The engine's backend, which takes it.
        stream: The stream on which the engine will read it; None: its own.
        runs_on: The engine, for messages.
        dtype: The type that it must have.

    Raises:
        FlowlessError: It is no array, has another type, or lies where the engine cannot read it.
    """
    if not isinstance(value, np.ndarray) and is_foreign(value):
        value = borrow(value, name=name, gpu=backend.gpu, stream=stream, runs_on=runs_on)
    if isinstance(value, np.ndarray | DeviceArray) and value.dtype == dtype:
        return value
    kind = value.dtype if isinstance(value, np.ndarray | DeviceArray) else type(value).__name__
    if dtype != "uint8":
        raise FlowlessError(f"the {name} is {kind}; it must be {dtype}, in an array as Engine.step returns it.")
    raise FlowlessError(
        f"the {name} is {kind}; an engine takes uint8, pixels from 0 to 255, in a numpy array or in one of another library "
        "(with __dlpack__ or __cuda_array_interface__). It normalises them itself."
    )


def check_stream(stream: int | None, device: str) -> None:
    """Raise FlowlessError where `stream` is not the address of a CUDA stream, or the engine's device has none."""
    if stream is None:
        return
    if not isinstance(stream, int) or isinstance(stream, bool) or stream < 0:
        raise FlowlessError(
            f"stream is {stream!r}; it must be the address of a CUDA stream (PyTorch: torch.cuda.current_stream().cuda_stream)."
        )
    if device != "GPU":
        raise FlowlessError(f"stream is {stream:#x}, and this engine runs on the CPU, which has no CUDA streams. Leave it out.")
