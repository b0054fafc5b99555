"""The PA op as a quickly deployable plugin of TensorRT: the Triton kernel's PTX goes into the engine, which then needs no library.

TensorRT 10.9 and newer take such plugins ahead of time (its release notes; 10.8 has quickly deployable plugins, but calls them
back in Python at run time). Triton is needed to build the engine, nothing to run it.

Written from NVIDIA's public documentation, samples and the source of `tensorrt.plugin`, and checked against the latter; no
TensorRT has built or run it yet. What TensorRT asks for:

- The ONNX parser finds the plugin by the node's type as its name and the attribute `plugin_namespace`, and takes the
  ahead-of-time implementation because of the node's attribute `aot`.
- A kernel's parameters are the inputs' pointers, then integers of 32 bits, then the outputs' pointers, and no more: eps is
  compiled in.
- Functions are checked by their annotations, which must be types and not text. Attributes are taken as arrays of one number:
  `tensorrt.plugin` makes a plain number by `float(array)`, which NumPy refuses since 2.4.
"""

from __future__ import annotations

import functools
import importlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from flowless import cuda_driver
from flowless.errors import FlowlessError
from flowless.export.pa_function import DOMAIN, OP, pa_nodes
from flowless.export.plugin_library import registered_kind, without_function

PLUGIN_ID = f"{DOMAIN}::{OP}"
#: PTX of this architecture runs on every later GPU; from 90 on, Triton's runs on its own architecture alone.
PORTABLE = 80


def register_quick_plugin(*, arch: int | None = None) -> None:
    """Register the plugin with TensorRT, in this process; does nothing where that was done before.

    Only building needs it: an engine that has the plugin is loaded and run without flowless, Triton or Python. From then on the
    process's parsers take the plugin for every PA node, even where the graph has the body.

    Args:
        arch: Compute capability that the kernel is compiled for, 86 for 8.6; None is the GPU's here. An engine that must run
            on other GPUs takes 80, `PORTABLE`.

    Raises:
        FlowlessError: TensorRT is missing or older than 10.9, or the C++ plugin library is loaded in this process.
    """
    trt, trtp = _tensorrt()
    kind = registered_kind(trt.get_plugin_registry())
    if kind is not None and "V3ONE" in kind:
        raise FlowlessError(
            f"{PLUGIN_ID} is registered in this process from the C++ library already, and TensorRT takes one plugin of a name. "
            "Use the Python plugin in a process of its own."
        )
    if kind is not None:
        return
    describe, tune, compiled = _functions(trt, trtp, _architecture() if arch is None else arch)
    trtp.register(PLUGIN_ID)(describe)
    trtp.autotune(PLUGIN_ID)(tune)
    trtp.aot_impl(PLUGIN_ID)(compiled)


def for_quick_plugin(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph whose PA nodes the parser takes for the Python plugin, ahead of time.

    Raises:
        FlowlessError: As `without_function`.
    """
    bare = without_function(proto)
    for node in pa_nodes(bare):
        node.attribute.append(onnx.helper.make_attribute("aot", 1))
    return bare


def motion_sizes(clip: Sequence[Any]) -> tuple[Any, ...]:
    """Return the sizes of `motion [..., m-1, H, W]` for those of `clip [..., m, C, H, W]`: numbers, or TensorRT's expressions."""
    return (*clip[:-4], clip[-4] - 1, *clip[-2:])


def launch_sizes(clip: Sequence[Any], tile: tuple[int, int], cdiv: Callable[[Any, int], Any]) -> tuple[Any, dict[str, Any]]:
    """Return what the kernel is launched with: the number of its programs, and its integers by name.

    Args:
        clip: Sizes of the dense `clip [..., m, C, H, W]`: numbers, or TensorRT's expressions.
        tile: Rows and columns of a map that a program makes.
        cdiv: Division rounded up, for such sizes.
    """
    *lead, frames, colours, height, width = clip
    pairs = frames - 1
    programs = functools.reduce(operator.mul, lead, pairs) * cdiv(height, tile[0]) * cdiv(width, tile[1])
    plane = height * width
    integers = {
        "pairs": pairs,
        "height": height,
        "width": width,
        "stride_stack": plane * colours * frames,
        "stride_frame": plane * colours,
        "stride_channel": plane,
        "stride_row": width,
        "stride_column": 1,
    }
    return programs, integers


def _functions(trt: Any, trtp: Any, arch: int) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Return the functions that TensorRT calls: to learn the output, the types, and the kernel with its launch."""
    from flowless.train.pa.ptx import compile_ahead

    # TensorRT asks again for every type and profile.
    compiled_once = functools.cache(compile_ahead)

    def describe(clip: Any, weight: Any, eps: Any, eps_inside: Any) -> Any:
        del weight, eps, eps_inside
        return trtp.from_shape_expr(motion_sizes(tuple(clip.shape_expr)), dtype=clip.dtype)

    def tune(clip: Any, weight: Any, outputs: Any) -> Any:
        del clip, weight, outputs
        return [trtp.AutoTuneCombination("FP32|FP16, FP32|FP16, FP32|FP16", "LINEAR")]

    def compiled(clip: Any, weight: Any, eps: Any, eps_inside: Any, outputs: Any, tactic: Any) -> Any:
        del weight, outputs, tactic
        kind = "float16" if clip.dtype == trt.float16 else "float32"
        kernel = compiled_once(arch, kind, eps=float(eps[0]), eps_inside=bool(eps_inside[0]))
        programs, integers = launch_sizes(tuple(clip.shape_expr), kernel.tile, trtp.cdiv)
        launch = trtp.KernelLaunchParams()
        launch.grid_x = programs
        launch.block_x = 32 * kernel.warps
        launch.shared_mem = kernel.shared_bytes
        passed = tuple(trtp.SymInt32(integers[name]) for name, kind in kernel.parameters if kind == "i32")
        return kernel.entry, kernel.ptx, launch, trtp.SymIntExprs.from_tuple(passed)

    tensor = trtp.TensorDesc
    inputs = {"clip": tensor, "weight": tensor}
    attributes = {"eps": npt.NDArray[np.float32], "eps_inside": npt.NDArray[np.int32]}
    describe.__annotations__ = {**inputs, **attributes, "return": tensor}
    tune.__annotations__ = {**inputs, "outputs": tuple[tensor], "return": list[trtp.AutoTuneCombination]}
    returned = tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]
    compiled.__annotations__ = {**inputs, **attributes, "outputs": tuple[tensor], "tactic": int, "return": returned}
    return describe, tune, compiled


def _tensorrt() -> tuple[Any, Any]:
    try:
        trt = importlib.import_module("tensorrt")
        trtp = importlib.import_module("tensorrt.plugin")
    except ModuleNotFoundError as error:
        raise FlowlessError(
            f"{error.name} is not installed; the Python plugin is for TensorRT 10.9 or newer, which comes from NVIDIA's own index."
        ) from error
    if not hasattr(trtp, "aot_impl") or not hasattr(trt, "QuickPluginCreationRequest"):
        raise FlowlessError(
            f"This is TensorRT {trt.__version__}; 10.9 and newer compile a Python plugin into the engine. Update it, or use the C++ plugin."
        )
    return trt, trtp


def _architecture() -> int:
    capability = cuda_driver.compute_capability()
    return PORTABLE if capability is None else 10 * capability[0] + capability[1]
