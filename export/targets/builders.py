"""Which targets this machine can build, and the function that builds each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from flowless.engines.backends.backend import why_not
from flowless.engines.bundle.manifest import Artefact
from flowless.engines.targets import TARGETS, Target, find_target
from flowless.errors import FlowlessError


def builder_of(target: Target) -> Callable[..., Artefact]:
    """Return the function that builds a target's engine: `(proto, folder, *, precision, options) -> Artefact`."""
    if target == "openvino":
        from flowless.export.targets.build_openvino import build_openvino

        return build_openvino
    if target == "onnxruntime":
        from flowless.export.targets.build_onnxruntime import build_onnxruntime

        return build_onnxruntime
    from flowless.export.targets.build_tensorrt import build_tensorrt

    return partial(build_tensorrt, target=target)


def buildable() -> tuple[list[Target], dict[str, str]]:
    """Return the targets that this machine can build, and for each of the others the reason why not."""
    can: list[Target] = []
    left_out: dict[str, str] = {}
    for target, library in reversed(TARGETS.items()):
        reason = why_not(target) if library.gpu_to_build else library.why_missing()
        if reason:
            left_out[target] = reason
        else:
            can.append(target)
    return can, left_out


def refuse_missing_library(target: Target) -> None:
    """Raise `FlowlessError`, with the command that installs it, where the target's library is not installed."""
    library = find_target(target)
    if reason := library.why_missing():
        hint = ""
        if library.gpu_to_build:
            hint = " It comes from NVIDIA's own index and needs an NVIDIA GPU; without one, build --target tensorrt-rtx."
        raise FlowlessError(f"--target {target}: {reason}.{hint}")
