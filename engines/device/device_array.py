"""An array in the memory of an engine's device, which other libraries take without a copy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowless.cuda_driver import DeviceMemory, Event, Gpu
from flowless.engines.device import dlpack
from flowless.engines.device.dlpack import CPU, CUDA, CUDA_HOST, CUDA_MANAGED, Borrowed
from flowless.errors import FlowlessError

#: The legacy default stream of CUDA, as DLPack and `__cuda_array_interface__` name it.
_DEFAULT_STREAM = 1


class DeviceArray:
    """A C-contiguous array on the CPU or on a GPU. `torch.from_dlpack`, `cupy.from_dlpack` and others take it without a copy.

    An array on a GPU that was computed on a caller's stream may still be being computed: libraries that take it make their own stream
    wait, and `numpy()` waits.

    Attributes:
        address: Address of the first element.
        shape: Its shape.
        dtype: Its type.
        gpu: The GPU that it lies on; None where it lies in the host's memory.
    """

    def __init__(self, address: int, shape: Sequence[int], dtype: np.dtype, *, gpu: Gpu | None, owner: object) -> None:
        self.address, self.shape, self.dtype, self.gpu = address, tuple(shape), dtype, gpu
        self._owner = owner

    def __repr__(self) -> str:
        return f"<DeviceArray {self.dtype} {list(self.shape)} on the {'GPU' if self.gpu else 'CPU'}>"

    def __len__(self) -> int:
        """Length of the first axis."""
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def part(self, start: int, shape: Sequence[int]) -> DeviceArray:
        """Return the part of that shape that begins at element `start`; it shares the memory."""
        return DeviceArray(self.address + start * self.dtype.itemsize, shape, self.dtype, gpu=self.gpu, owner=self._owner)

    def rows(self, start: int, stop: int) -> DeviceArray:
        """Return rows `start` to `stop` of the first axis; they share the memory."""
        row, stop = math.prod(self.shape[1:]), min(stop, len(self))
        return self.part(start * row, (stop - start, *self.shape[1:]))

    def reshape(self, shape: Sequence[int]) -> DeviceArray:
        """Return the same elements in another shape; they share the memory."""
        return self.part(0, shape)

    def numpy(self) -> np.ndarray:
        """Return it as a NumPy array: on the CPU the same memory, from a GPU a copy, once it is computed."""
        if self.gpu is None:
            return np.asarray(_Addressed(self))
        result = np.empty(self.shape, self.dtype)
        with self.gpu.entered():
            if self._ready is not None:
                self._ready.wait()
            self.gpu.download(result, self.address)
        return result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return `numpy()` for NumPy's functions.

        Raises:
            FlowlessError: It lies on a GPU; nothing is copied from there implicitly.
        """
        if self.gpu is not None:
            raise FlowlessError("this array lies on the GPU and is not copied implicitly; use its numpy(), or torch.from_dlpack.")
        return np.array(self.numpy(), dtype=dtype, copy=bool(copy) or None)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's device type and number."""
        return (CPU, 0) if self.gpu is None else (CUDA, self.gpu.number)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Return a DLPack capsule; `stream` is the consumer's, which waits until the array is computed.

        Raises:
            BufferError: A copy or another device is wanted.
        """
        if copy or (dl_device is not None and tuple(map(int, dl_device)) != self.__dlpack_device__()):
            raise BufferError(f"a {self!r} is handed on where it is, without a copy")
        if self.gpu is not None and self._ready is not None and stream != -1:
            with self.gpu.entered():
                self._ready.wait_in(_DEFAULT_STREAM if stream is None else stream)
        versioned = max_version is not None and max_version[0] >= 1
        return dlpack.lend(self.address, self.shape, self.dtype, device=self.__dlpack_device__(), owner=self, versioned=versioned)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the interface, on a GPU only."""
        if self.gpu is None:
            raise AttributeError("it lies on the CPU")
        about = {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "strides": None, "version": 3}
        return {**about, "stream": None if self._ready is None else self._ready.stream or _DEFAULT_STREAM}

    def ready_after(self, event: Event) -> None:
        """Record that its memory is computed once a stream has come to an event."""
        if isinstance(self._owner, DeviceMemory):
            self._owner.ready = event

    @property
    def _ready(self) -> Event | None:
        """The event after which it is computed; None where it is."""
        return self._owner.ready if isinstance(self._owner, DeviceMemory) else None


class _Addressed:
    """Memory on the CPU as NumPy takes it; NumPy's array keeps this object, and with it the memory."""

    def __init__(self, array: DeviceArray) -> None:
        self._array = array
        typed = {"shape": array.shape, "typestr": array.dtype.str, "strides": None, "version": 3}
        self.__array_interface__ = {**typed, "data": (array.address, False)}


def of_numpy(array: np.ndarray) -> DeviceArray:
    """Return a C-contiguous NumPy array as a DeviceArray of the same memory."""
    return DeviceArray(array.ctypes.data, array.shape, array.dtype, gpu=None, owner=array)


def empty(shape: Sequence[int], dtype: Any, gpu: Gpu | None) -> DeviceArray:
    """Return an array of new memory on a GPU, or on the CPU; its values are undefined."""
    if gpu is None:
        return of_numpy(np.empty(shape, dtype))
    with gpu.entered():
        memory = gpu.allocate(math.prod(shape) * np.dtype(dtype).itemsize)
    return DeviceArray(memory.address, shape, np.dtype(dtype), gpu=gpu, owner=memory)


def place(array: DeviceArray | np.ndarray, gpu: Gpu | None) -> DeviceArray:
    """Return an array where an engine's graph takes it: on its GPU, to which memory of the host is copied, or on the CPU."""
    if isinstance(array, DeviceArray):
        if gpu is None or array.gpu is not None:
            return array
        array = array.numpy()
    array = np.ascontiguousarray(array)
    if gpu is None:
        return of_numpy(array)
    placed = empty(array.shape, array.dtype, gpu)
    with gpu.entered():
        gpu.upload(placed.address, array)
        gpu.synchronize()
    return placed


def is_foreign(value: object) -> bool:
    """Return whether a value is another library's array on a device: it has `__dlpack__` or `__cuda_array_interface__`."""
    return hasattr(value, "__dlpack_device__") or hasattr(value, "__cuda_array_interface__")


def borrow(value: Any, *, name: str, gpu: Gpu | None, stream: int | None, runs_on: str) -> DeviceArray:
    """Return another library's array without a copy; it is kept as long as what is returned.

    Args:
        value: An object with `__dlpack__` and `__dlpack_device__`, or with `__cuda_array_interface__`.
        name: What it is, for messages.
        gpu: The GPU of the engine that takes it; None: the engine runs on the CPU.
        stream: The stream on which the engine will read it; None: its own.
        runs_on: The engine, for messages.

    Raises:
        FlowlessError: It lies where the engine cannot read it, is not C-contiguous, or its library does not hand it out.
    """
    if isinstance(value, DeviceArray):
        _refuse_elsewhere(value.__dlpack_device__(), name=name, gpu=gpu, runs_on=runs_on)
        if gpu is not None and value._ready is not None:
            with gpu.entered():
                value._ready.wait_in(gpu.stream if stream is None else stream)
        return value
    try:
        if hasattr(value, "__dlpack_device__"):
            return _by_dlpack(value, name=name, gpu=gpu, stream=stream, runs_on=runs_on)
        return _by_interface(value, name=name, gpu=gpu, stream=stream, runs_on=runs_on)
    except (BufferError, RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise FlowlessError(f"the {name} is a {type(value).__name__} that its library does not hand out: {error}") from error


def _refuse_elsewhere(device: tuple[int, int], *, name: str, gpu: Gpu | None, runs_on: str) -> None:
    """Refuse memory that an engine cannot read where it is: nothing is copied between the CPU and a GPU, or two GPUs, implicitly."""
    kind, number = device
    if kind in {CPU, CUDA_HOST}:
        return
    if kind not in {CUDA, CUDA_MANAGED}:
        raise FlowlessError(f"the {name} lies on a device of DLPack's type {kind}; an engine takes arrays on the CPU or on a CUDA GPU.")
    if gpu is None:
        raise FlowlessError(
            f"the {name} lies on GPU {number}, and {runs_on} runs on the CPU; nothing is copied implicitly. Load an engine that runs on "
            "the GPU (flowless.load with target tensorrt, tensorrt-rtx, or onnxruntime where its CUDA provider starts), or copy the "
            f"{name} to the CPU first (with PyTorch: clip.cpu())."
        )
    if number != gpu.number:
        raise FlowlessError(f"the {name} lies on GPU {number}, and {runs_on} runs on GPU {gpu.number}; copy it there first.")


def _by_dlpack(value: Any, *, name: str, gpu: Gpu | None, stream: int | None, runs_on: str) -> DeviceArray:
    kind, number = (int(part) for part in value.__dlpack_device__())
    _refuse_elsewhere((kind, number), name=name, gpu=gpu, runs_on=runs_on)
    if kind in {CPU, CUDA_HOST} or gpu is None:
        borrowed, gpu = Borrowed(value.__dlpack__()), None
    else:
        with gpu.entered():
            # A library that does not know the legacy stream's number 0, which PyTorch uses, knows 1.
            borrowed = Borrowed(value.__dlpack__(stream=(gpu.stream if stream is None else stream) or _DEFAULT_STREAM))
    layout = borrowed.layout
    _refuse_strided(layout.contiguous, name)
    return DeviceArray(layout.address, layout.shape, _dtype(layout.dtype, name), gpu=gpu, owner=borrowed)


def _by_interface(value: Any, *, name: str, gpu: Gpu | None, stream: int | None, runs_on: str) -> DeviceArray:
    about = value.__cuda_array_interface__
    number = 0
    if gpu is not None:
        with gpu.entered():
            number = gpu.device_of(about["data"][0])
    _refuse_elsewhere((CUDA, number), name=name, gpu=gpu, runs_on=runs_on)
    dtype, shape, strides = np.dtype(about["typestr"]), tuple(about["shape"]), about.get("strides")
    dense = [dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    fits = strides is None or all(length == 1 or have == want for length, have, want in zip(shape, strides, dense, strict=True))
    _refuse_strided(fits, name)
    producer = about.get("stream")
    if gpu is not None and producer is not None:
        with gpu.entered():
            gpu.record(producer).wait_in(gpu.stream if stream is None else stream)
    return DeviceArray(about["data"][0] or 0, shape, dtype, gpu=gpu, owner=value)


def _refuse_strided(contiguous: bool, name: str) -> None:
    if not contiguous:
        raise FlowlessError(f"the {name} is not C-contiguous; an engine reads it where it is. Make it so first (PyTorch: .contiguous()).")


def _dtype(name: str, what: str) -> np.dtype:
    try:
        return np.dtype(name)
    except TypeError as error:
        raise FlowlessError(f"the {what} is {name}; an engine takes uint8, pixels from 0 to 255. It normalises them itself.") from error
