"""ONNX Runtime's CUDA provider: sessions that use it where it starts, and the reason where it does not.

ONNX Runtime itself falls back to the CPU, writes the reason to its log and raises nothing.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from pathlib import Path
from typing import Any

import onnxruntime

from flowless import cuda_driver
from flowless.errors import first_line

PROVIDER = "CUDAExecutionProvider"
#: An ONNX model of one node, Identity of float32 (opset 17, IR 8): enough to find out whether the provider starts.
SMALLEST = (
    b'\x08\x08:+\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\t\n\x01x\x12\x04\n\x02\x08\x01'
    b"b\t\n\x01y\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
#: The part of a provider's error message that says what failed, without the C++ signatures and source files around it.
_FAILURE = re.compile(r"(?:CUDA|CUDNN|CUBLAS) failure -?\d+: [^;]+")


def why_not_cuda() -> str | None:
    """Return in one line why ONNX Runtime cannot use a GPU here; None where it can. Tried once per process."""
    if cuda_driver.compute_capability() is None:
        return "there is no NVIDIA GPU here"
    if PROVIDER not in onnxruntime.get_available_providers():
        return f"this onnxruntime {onnxruntime.__version__} has no CUDA provider (pip install 'flowless[onnxruntime]')"
    return _start()


def open_session(model: os.PathLike[str] | bytes, options: onnxruntime.SessionOptions) -> tuple[Any, str | None]:
    """Open a model on the GPU where the CUDA provider starts, else on the CPU.

    Args:
        model: The file, or the model's bytes.
        options: ONNX Runtime's options.

    Returns:
        The session, and why it is not on the GPU; None where it is.
    """
    reason = why_not_cuda()
    if reason is None:
        try:
            return open_on_cuda(model, options), None
        except Exception as error:  # a fault of the model itself is raised again on the CPU
            reason = f"the CUDA provider does not take this graph ({_failure(error)})"
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]), reason


def open_on_cuda(model: os.PathLike[str] | bytes, options: onnxruntime.SessionOptions, *, tf32: bool = False) -> Any:
    """Open a model on the GPU.

    Args:
        model: The file, or the model's bytes.
        options: ONNX Runtime's options.
        tf32: Whether fp32 may be computed in TF32 (10 bits of mantissa, ONNX Runtime's default): here fp32 means float32 by default.

    Raises:
        RuntimeError: The provider does not start; or whatever ONNX Runtime raises for this model.
    """
    providers = [(PROVIDER, {"use_tf32": str(int(tf32))}), "CPUExecutionProvider"]
    # Its fallback to the CPU is switched off because it prints on standard output.
    session = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
    if PROVIDER not in session.get_providers():
        raise RuntimeError(_loader_error())
    return session


@functools.cache
def _start() -> str | None:
    """Open the smallest session on the provider; return why it does not open, None where it does."""
    _preload()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        open_on_cuda(SMALLEST, options)
    except Exception as error:  # the library's own exception types, among them plain RuntimeError
        reason = _failure(error)
    else:
        return None
    version = f"onnxruntime {onnxruntime.__version__}"
    if cuda := getattr(onnxruntime, "cuda_version", ""):
        version += f", for CUDA {cuda},"
    return f"the CUDA provider of {version} does not start ({reason})"


def _preload() -> None:
    """Load the CUDA and cuDNN libraries that pip installed, so that the provider finds them."""
    if not hasattr(onnxruntime, "preload_dlls"):
        return
    # It prints what it does not find on standard output, where a JSON document may go: hide `print` from this module only.
    setattr(onnxruntime, "print", lambda *_, **__: None)  # noqa: B010  it has no such attribute
    try:
        onnxruntime.preload_dlls()
    finally:
        delattr(onnxruntime, "print")


def _loader_error() -> str:
    """Load the provider's library as ONNX Runtime did, and return the system's error message."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    pattern = "onnxruntime_providers_{}.dll" if sys.platform == "win32" else "libonnxruntime_providers_{}.so"
    try:
        ctypes.CDLL(str(folder / pattern.format("shared")), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / pattern.format("cuda")))
    except OSError as error:
        return first_line(error).replace(f"{folder}/", "")
    return "the reason is in its log, on standard error"


def _failure(error: Exception) -> str:
    found = _FAILURE.search(str(error))
    return found[0].strip() if found else first_line(error)
