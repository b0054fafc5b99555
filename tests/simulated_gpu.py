"""A CUDA driver in Python: streams whose work is done as late as CUDA allows, and device memory that is host memory.

Work runs only when something waits for it, so whoever reads memory without waiting for what computes it reads old bytes.
"""

from __future__ import annotations

import ctypes
import re
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np


class SimulatedGpu:
    """What `cuda_driver` finds as `libcuda`, with one GPU."""

    def __init__(self) -> None:
        self.queues: dict[int, deque[tuple[str, Any]]] = {1: deque()}
        self.memory: dict[int, Any] = {}
        self.events: dict[int, tuple[int, int]] = {}
        self.done: dict[int, int] = {1: 0}
        self.given: dict[int, int] = {1: 0}
        self.contexts: list[int] = []
        self.retained = 0
        self._next = 0x1000

    # What tests use.

    def new_stream(self) -> int:
        """Return a new stream."""
        self._next += 16
        self.queues[self._next], self.done[self._next], self.given[self._next] = deque(), 0, 0
        return self._next

    def give(self, stream: int, work: Callable[[], object]) -> None:
        """Give a stream some work."""
        stream = stream or 1
        self.queues[stream].append(("work", work))
        self.given[stream] += 1

    def finish(self, stream: int, count: int | None = None) -> None:
        """Do the stream's first `count` pieces of work, all of them by default, and what they wait for."""
        stream = stream or 1
        count = self.given[stream] if count is None else count
        while self.done[stream] < count:
            kind, what = self.queues[stream].popleft()
            self.done[stream] += 1
            if kind == "work":
                what()
            else:
                self.finish(*what)

    def __getattr__(self, name: str) -> Callable[..., int]:
        """Return the method of a function of the driver, such as `mem_alloc` of `cuMemAlloc_v2`; each returns CUDA's status."""
        if not name.startswith("cu"):
            raise AttributeError(name)
        return getattr(self, re.sub("(?<=[a-z])(?=[A-Z])", "_", name.removeprefix("cu").removesuffix("_v2")).lower())

    def device_primary_ctx_retain(self, context: Any, device: Any) -> int:
        context._obj.value, self.retained = 0x10, self.retained + 1
        return 0

    def device_primary_ctx_release(self, device: Any) -> int:
        self.retained -= 1
        return 0

    def device_get(self, device: Any, number: int) -> int:
        return 0

    def ctx_push_current(self, context: Any) -> int:
        self.contexts.append(context.value)
        return 0

    def ctx_pop_current(self, context: Any) -> int:
        self.contexts.pop()
        return 0

    def stream_create(self, stream: Any, flags: int) -> int:
        stream._obj.value = self.new_stream()
        return self._here()

    def stream_destroy(self, stream: Any) -> int:
        self.finish(stream.value)
        del self.queues[stream.value]
        return self._here()

    def stream_synchronize(self, stream: Any) -> int:
        self.finish(stream.value or 0)
        return self._here()

    def stream_wait_event(self, stream: Any, event: Any, flags: int) -> int:
        handle = stream.value or 1
        self.queues[handle].append(("wait", self.events[event.value]))
        self.given[handle] += 1
        return self._here()

    def event_create(self, event: Any, flags: int) -> int:
        self._next += 16
        event._obj.value = self._next
        return self._here()

    def event_record(self, event: Any, stream: Any) -> int:
        handle = stream.value or 1
        self.events[event.value] = (handle, self.given[handle])
        return self._here()

    def event_query(self, event: Any) -> int:
        stream, count = self.events[event.value]
        return 0 if self.done[stream] >= count else 600

    def event_synchronize(self, event: Any) -> int:
        self.finish(*self.events[event.value])
        return self._here()

    def event_destroy(self, event: Any) -> int:
        del self.events[event.value]
        return self._here()

    def mem_alloc(self, address: Any, size: Any) -> int:
        block = (ctypes.c_uint8 * size.value)(*([0xAA] * min(size.value, 64)))
        address._obj.value = ctypes.addressof(block)
        self.memory[address._obj.value] = block
        return self._here()

    def mem_free(self, address: Any) -> int:
        for stream in self.queues:
            self.finish(stream)
        block = self.memory.pop(address.value)
        ctypes.memset(block, 0xEE, len(block))  # whoever still reads it reads nonsense
        return self._here()

    def memcpy_hto_dasync(self, target: Any, source: Any, size: Any, stream: Any) -> int:
        self.give(stream.value, lambda: ctypes.memmove(target.value, source, size.value))
        return self._here()

    def memcpy_dto_hasync(self, target: Any, source: Any, size: Any, stream: Any) -> int:
        self.give(stream.value, lambda: ctypes.memmove(target, source.value, size.value))
        return self._here()

    def memcpy_dto_dasync(self, target: Any, source: Any, size: Any, stream: Any) -> int:
        self.give(stream.value, lambda: ctypes.memmove(target.value, source.value, size.value))
        return self._here()

    def pointer_get_attribute(self, value: Any, attribute: int, address: Any) -> int:
        value._obj.value = 0
        return 0

    def get_error_string(self, status: int, text: Any) -> int:
        text._obj.value = b"invalid device context"
        return 0

    def _here(self) -> int:
        return 0 if self.contexts and self.contexts[-1] == 0x10 else 201


class SimulatedContext:
    """An execution context of TensorRT: its one graph weighs a clip's pixels, and its scratch memory is taken by one run at a time."""

    def __init__(self, gpu: SimulatedGpu, *, classes: int, largest: int = 2) -> None:
        self.gpu, self.classes, self.largest = gpu, classes, largest
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.streams: list[int] = []
        self.begun = self.ended = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return shape[0] <= self.largest

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        number, (shape, addresses) = self.begun, (self.shapes["clip"], dict(self.addresses))
        self.begun += 1
        self.streams.append(stream)

        def work() -> None:
            assert self.ended == number, "two runs have the scratch memory at once, or in the wrong order"
            self.ended += 1
            clips = at(addresses["clip"], shape, np.uint8)
            at(addresses["scores"], (shape[0], self.classes), np.float32)[:] = weighed(clips, self.classes)

        self.gpu.give(stream, work)
        return True


def at(address: int, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    """Return the array at an address."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    pixels = ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8))
    return np.ctypeslib.as_array(pixels, (size,)).view(kind).reshape(shape)


def weighed(clips: np.ndarray, classes: int) -> np.ndarray:
    """Return what the simulated engine computes, float32 `[B, classes]`."""
    flat = clips.reshape(len(clips), -1).astype(np.float64)
    return (flat @ np.random.default_rng(1).random((flat.shape[1], classes))).astype(np.float32)
