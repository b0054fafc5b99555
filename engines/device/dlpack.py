"""DLPack capsules through ctypes: opening another library's, and making our own.

Structures and rules: `dlpack.h` 1.1, and "Python Specification for DLPack" of the array API standard. A capsule is consumed by renaming
it; from then on the consumer calls the `deleter` of the managed tensor once, when it no longer needs the memory.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13  # kDLCPU, kDLCUDA, kDLCUDAHost, kDLCUDAManaged
#: `DLDataTypeCode` and bits -> NumPy's name of the type.
_TYPES = {
    **{(code, bits): f"{kind}{bits}" for code, kind in ((0, "int"), (1, "uint")) for bits in (8, 16, 32, 64)},
    **{(2, bits): f"float{bits}" for bits in (16, 32, 64)},
    (4, 16): "bfloat16",
    (6, 8): "bool",
}
_CODES = {name: key for key, name in _TYPES.items()}
_NAMES = ((b"dltensor", b"used_dltensor"), (b"dltensor_versioned", b"used_dltensor_versioned"))
_VERSION = (1, 1)


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_New", ctypes.pythonapi))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a DLPack tensor says about its memory."""

    address: int
    """Address of the first element."""
    shape: tuple[int, ...]
    dtype: str
    """NumPy's name of the type, or DLPack's numbers where NumPy has none."""
    contiguous: bool
    """Whether it is C-contiguous."""
    device: tuple[int, int]
    """DLPack's device type and number."""


class Borrowed:
    """Another library's array, until this object is freed.

    Args:
        capsule: What its `__dlpack__` returned, not yet consumed.

    Raises:
        BufferError: It is no such capsule, or of a DLPack version that is not known here.
    """

    def __init__(self, capsule: object) -> None:
        self._deleter: int | None = None
        fresh = next((names for names in _NAMES if _is_valid(capsule, names[0])), None)
        if fresh is None:
            raise BufferError("__dlpack__ returned no capsule that can be consumed")
        kind: Any = _Managed if fresh is _NAMES[0] else _Versioned
        self._pointer = _pointer_of(capsule, fresh[0])
        managed = kind.from_address(self._pointer)
        if kind is _Versioned and managed.major != _VERSION[0]:
            raise BufferError(f"the capsule is of DLPack {managed.major}.{managed.minor}; version {_VERSION[0]} is known here")
        _rename(capsule, fresh[1])
        self._deleter = managed.deleter
        self.layout = _layout(managed.tensor)

    def __del__(self) -> None:
        # At the interpreter's exit ctypes may be gone; the memory is then freed with the process.
        with suppress(Exception):
            if self._deleter:
                _Deleter(self._deleter)(self._pointer)


def _layout(tensor: _Tensor) -> Layout:
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    dense, contiguous = 1, True
    for axis in reversed(range(tensor.ndim)):
        contiguous &= not tensor.strides or shape[axis] == 1 or tensor.strides[axis] == dense
        dense *= shape[axis]
    name = _TYPES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    return Layout(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=shape,
        dtype=name or f"DLPack type {tensor.code}, {tensor.bits} bits, {tensor.lanes} lanes",
        contiguous=contiguous or 0 in shape,
        device=(tensor.device_type, tensor.device_id),
    )


#: Address of a managed tensor -> it, its shape, and what owns the memory, until the consumer calls its deleter.
_lent: dict[int, tuple[Any, Any, object]] = {}
#: Capsules that no one may have consumed. A destructor of the capsule would run Python while another exception is being raised, which
#: Python forbids; so they are checked when the next one is made.
_open: list[tuple[Any, int, bytes]] = []
_lock = threading.Lock()


def _delete(pointer: int, lent: dict[int, tuple[Any, Any, object]] = _lent) -> None:
    lent.pop(pointer, None)


_deleter = _Deleter(_delete)
# A consumer may call it after this module is gone: it is never freed.
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_deleter))


def lend(address: int, shape: tuple[int, ...], dtype: np.dtype, *, device: tuple[int, int], owner: object, versioned: bool) -> Any:
    """Return a capsule for C-contiguous memory.

    Args:
        address: Address of the first element.
        shape: Its shape.
        dtype: Its type.
        device: DLPack's device type and number.
        owner: What keeps the memory; it is released when the consumer is done.
        versioned: Whether the consumer takes capsules of DLPack 1.
    """
    sizes = (ctypes.c_int64 * max(1, len(shape)))(*shape)
    dense = [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]
    strides = (ctypes.c_int64 * max(1, len(shape)))(*dense)
    code, bits = _CODES[dtype.name]
    tensor = _Tensor(address, *device, len(shape), code, bits, 1, sizes, strides, 0)
    at = ctypes.cast(_deleter, ctypes.c_void_p).value
    managed = _Versioned(*_VERSION, None, at, 0, tensor) if versioned else _Managed(tensor, None, at)
    pointer = ctypes.addressof(managed)
    name = _NAMES[int(versioned)][0]
    with _lock:
        _release_unused()
        _lent[pointer] = (managed, (sizes, strides), owner)
        capsule = _new(pointer, name, None)
        _open.append((capsule, pointer, name))
    return capsule


def _release_unused() -> None:
    """Forget capsules that were consumed, and release the memory of those that were dropped without that."""
    left, kept = [*_open, (object(), 0, b"")], []
    _open.clear()
    alone = 0  # references to an object that only the loop's variable has
    while left:
        capsule, pointer, name = left.pop()
        if not pointer:
            alone = sys.getrefcount(capsule)
        elif _is_valid(capsule, name):
            if sys.getrefcount(capsule) > alone:
                kept.append((capsule, pointer, name))
            else:
                _lent.pop(pointer, None)
    _open.extend(kept)
