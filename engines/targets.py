"""The table of targets: every library that an engine can be built for, and what each needs."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

from flowless.errors import FlowlessError
from flowless.machine import installed_versions

#: The names of `TARGETS`, for type checkers and command lines.
Target = Literal["tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"]


@dataclass(frozen=True, kw_only=True)
class TargetLibrary:
    """A library that builds and runs engines."""

    module: str
    """Name under which Python imports it."""
    distributions: tuple[str, ...]
    """Distributions on PyPI that install it; their versions decide its engines."""
    licence: str
    """Its name and its licence, for the note in a packed bundle."""
    extra: str = ""
    """The extra of flowless that installs it; empty: the base install has it."""
    gpu_to_build: bool = False
    """Whether it builds engines only on an NVIDIA GPU."""
    gpu_to_run: bool = False
    """Whether it runs engines only on an NVIDIA GPU."""
    options: tuple[str, ...] = ()
    """Fields of `BuildOptions` that not every target has and this one has."""

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install 'flowless[{self.extra}]'" if self.extra else f"pip install {self.distributions[0]}"

    def why_missing(self) -> str | None:
        """Return why it cannot be imported, with the command that installs it; None where it is installed."""
        return None if importlib.util.find_spec(self.module) else f"{self.module} is not installed ({self.install})"

    def versions(self) -> dict[str, str]:
        """Return the versions of its installed distributions."""
        return installed_versions(self.distributions)


_TENSORRT_OPTIONS = ("portable", "strip_weights", "workspace", "optimization_level")

#: Target -> its library, in the order in which `flowless.load` tries them: the fastest where it runs first.
TARGETS: dict[Target, TargetLibrary] = {
    "tensorrt": TargetLibrary(
        module="tensorrt",
        distributions=("tensorrt",),
        licence="NVIDIA TensorRT: proprietary, under NVIDIA's licence agreement",
        extra="tensorrt",
        gpu_to_build=True,
        gpu_to_run=True,
        options=(*_TENSORRT_OPTIONS, "pa", "plugin_library"),
    ),
    "tensorrt-rtx": TargetLibrary(
        module="tensorrt_rtx",
        distributions=("tensorrt-rtx",),
        licence="NVIDIA TensorRT for RTX: proprietary, under NVIDIA's licence agreement",
        extra="rtx",
        gpu_to_run=True,
        options=(*_TENSORRT_OPTIONS, "compute_capabilities"),
    ),
    "openvino": TargetLibrary(module="openvino", distributions=("openvino",), licence="OpenVINO: Apache License 2.0"),
    "onnxruntime": TargetLibrary(
        module="onnxruntime",
        distributions=("onnxruntime-gpu", "onnxruntime"),
        licence="ONNX Runtime: MIT License (on an NVIDIA GPU it loads CUDA and cuDNN, which are under NVIDIA's licence agreements)",
        extra="onnxruntime",
    ),
}


def find_target(name: str) -> TargetLibrary:
    """Return the library of a target.

    Raises:
        FlowlessError: There is no target of this name.
    """
    for target, library in TARGETS.items():
        if target == name:
            return library
    raise FlowlessError(f"target is {name!r}; it must be one of {', '.join(TARGETS)}.")


def targets_with(option: str) -> tuple[Target, ...]:
    """Return the targets that have an option of `BuildOptions`; none where the option is not specific to a target."""
    return tuple(target for target, library in TARGETS.items() if option in library.options)
