"""The calls of the CUDA driver API that an engine and the loader need, through ctypes: no other package, no toolkit.

`libcuda` is part of the NVIDIA driver, so it is present wherever a GPU can be used.
Signatures: the CUDA Driver API reference (`cuInit`, `cuDevicePrimaryCtxRetain`, `cuMemAlloc`, `cuMemcpyHtoDAsync`, ...).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from flowless.errors import FlowlessError

_NO_GPU = "No NVIDIA GPU can be used here (no driver, or no device)."
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING


@functools.cache
def _library() -> ctypes.CDLL | None:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


@functools.cache
def compute_capability() -> tuple[int, int] | None:
    """Return the first GPU's compute capability, such as (8, 6); None where no GPU can be used."""
    cuda = _library()
    count = ctypes.c_int(0)
    if cuda is None or cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return None
    device, parts = ctypes.c_int(0), []
    if cuda.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int(0)
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
            return None
        parts.append(value.value)
    return parts[0], parts[1]


@functools.cache
def gpu_name() -> str | None:
    """Return the first GPU's name, such as `NVIDIA A10`; None where no GPU can be used or the driver does not report a name."""
    cuda, device, text = _library(), ctypes.c_int(0), ctypes.create_string_buffer(256)
    if cuda is None or compute_capability() is None or cuda.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    if cuda.cuDeviceGetName(text, ctypes.c_int(len(text)), device) != 0:
        return None
    return text.value.decode(errors="replace").strip() or None


@contextlib.contextmanager
def primary_context(number: int = 0) -> Iterator[None]:
    """Make the primary context of a GPU current in this thread within the block; the previous context is restored afterwards.

    Raises:
        FlowlessError: There is no GPU with that number.
    """
    if compute_capability() is None:
        raise FlowlessError(_NO_GPU)
    device, context = ctypes.c_int(0), ctypes.c_void_p()
    _call("cuDeviceGet", ctypes.byref(device), number)
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        _call("cuCtxPushCurrent_v2", context)
        try:
            yield
        finally:
            _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
    finally:
        _call("cuDevicePrimaryCtxRelease_v2", device)


class Gpu:
    """The first GPU's primary context, one stream, and named device buffers that grow on demand."""

    number = 0

    def __init__(self) -> None:
        if compute_capability() is None:
            raise FlowlessError(f"{_NO_GPU} Load another target: --target openvino.")
        self._buffers: dict[str, tuple[ctypes.c_uint64, int]] = {}
        self._device = ctypes.c_int(0)
        self._context = ctypes.c_void_p()
        self._stream = ctypes.c_void_p()
        _call("cuDeviceGet", ctypes.byref(self._device), 0)
        _call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        with self.entered():
            _call("cuStreamCreate", ctypes.byref(self._stream), 1)  # 1: does not wait for the default stream

    def __del__(self) -> None:
        # At interpreter exit the driver may be unloaded already; the memory is then freed with the process.
        with contextlib.suppress(Exception):
            with self.entered():
                for address, _ in self._buffers.values():
                    _call("cuMemFree_v2", address)
                _call("cuStreamDestroy_v2", self._stream)
            _call("cuDevicePrimaryCtxRelease_v2", self._device)

    @property
    def stream(self) -> int:
        """The stream's handle (`CUstream`)."""
        return int(self._stream.value or 0)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Make the context current in this thread within the block; the thread's own context, if any, is restored afterwards."""
        _call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def buffer(self, name: str, size: int) -> int:
        """Return the device address of the buffer `name`, which has at least `size` bytes."""
        address, have = self._buffers.get(name, (ctypes.c_uint64(0), 0))
        if have < size:
            if have:
                _call("cuMemFree_v2", address)
            address = ctypes.c_uint64(0)
            self._buffers.pop(name, None)
            _call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
            self._buffers[name] = (address, size)
        return int(address.value)

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy a C-contiguous array to the device on the stream; the array must stay until `synchronize`."""
        pointer = array.ctypes.data_as(ctypes.c_void_p)
        _call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), pointer, ctypes.c_size_t(array.nbytes), self._stream)

    def download(self, array: np.ndarray, address: int) -> None:
        """Fill a C-contiguous array from the device and synchronise the stream."""
        pointer = array.ctypes.data_as(ctypes.c_void_p)
        _call("cuMemcpyDtoHAsync_v2", pointer, ctypes.c_uint64(address), ctypes.c_size_t(array.nbytes), self._stream)
        _call("cuStreamSynchronize", self._stream)

    def copy(self, address: int, source: int, size: int, stream: int) -> None:
        """Copy so many bytes from one device address to another, asynchronously on a stream."""
        _call("cuMemcpyDtoDAsync_v2", ctypes.c_uint64(address), ctypes.c_uint64(source), ctypes.c_size_t(size), ctypes.c_void_p(stream))

    def synchronize(self, stream: int | None = None) -> None:
        """Wait until a stream, by default the own one, has done all its work."""
        _call("cuStreamSynchronize", self._stream if stream is None else ctypes.c_void_p(stream))

    def allocate(self, size: int) -> DeviceMemory:
        """Return new device memory of so many bytes."""
        return DeviceMemory(self, size)

    def record(self, stream: int) -> Event:
        """Return an event after everything that a stream has been given so far."""
        return Event(self, stream)

    def device_of(self, address: int) -> int:
        """Return the number of the GPU that an address belongs to.

        Raises:
            FlowlessError: It is no address of device memory.
        """
        number = ctypes.c_int(0)
        _call("cuPointerGetAttribute", ctypes.byref(number), _DEVICE_ORDINAL, ctypes.c_uint64(address))
        return number.value


class DeviceMemory:
    """Device memory of one array, freed with this object. `cuMemFree` waits until no work on the GPU can use it.

    Attributes:
        address: Its device address.
        ready: The event after which its content is computed; None where it is.
    """

    def __init__(self, gpu: Gpu, size: int) -> None:
        self._gpu = gpu
        self.ready: Event | None = None
        self._address = ctypes.c_uint64(0)
        _call("cuMemAlloc_v2", ctypes.byref(self._address), ctypes.c_size_t(max(size, 1)))
        self.address = int(self._address.value)

    def __del__(self) -> None:
        with contextlib.suppress(Exception), self._gpu.entered():
            if self._address.value:
                _call("cuMemFree_v2", self._address)


class Event:
    """A place in a stream's work, after what the stream had been given when this object was made.

    Attributes:
        stream: The stream's handle.
    """

    def __init__(self, gpu: Gpu, stream: int) -> None:
        self._gpu, self.stream, self._event = gpu, stream, ctypes.c_void_p()
        _call("cuEventCreate", ctypes.byref(self._event), _DISABLE_TIMING)
        _call("cuEventRecord", self._event, ctypes.c_void_p(stream))

    def __del__(self) -> None:
        with contextlib.suppress(Exception), self._gpu.entered():
            if self._event.value:
                _call("cuEventDestroy_v2", self._event)

    @property
    def reached(self) -> bool:
        """Whether the stream has come there."""
        return _status("cuEventQuery", self._event) == 0

    def wait(self) -> None:
        """Wait until the stream has come there."""
        _call("cuEventSynchronize", self._event)

    def wait_in(self, stream: int) -> None:
        """Make another stream wait for it; the host does not wait."""
        _call("cuStreamWaitEvent", ctypes.c_void_p(stream), self._event, 0)


def _status(name: str, *arguments: Any) -> int:
    return getattr(_library(), name)(*arguments)


def _call(name: str, *arguments: Any) -> None:
    cuda: Any = _library()
    status = _status(name, *arguments)
    if status == 0:
        return
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(status, ctypes.byref(text))
    reason = (text.value or b"unknown error").decode()
    hint = " Use a smaller batch, or free memory on the GPU." if status == 2 else ""
    raise FlowlessError(f"The GPU refused {name}: {reason} (CUDA error {status}).{hint}")
