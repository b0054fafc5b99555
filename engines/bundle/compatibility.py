"""Whether an engine of TensorRT or TensorRT-RTX can run on this machine, decided from its record before it is loaded."""

from __future__ import annotations

import importlib
import platform
from dataclasses import dataclass
from typing import Any

from flowless import cuda_driver
from flowless.engines.bundle.manifest import Artefact
from flowless.engines.targets import TARGETS

#: The oldest GPUs that run what was built for no GPU in particular: Ampere.
_AMPERE = 80
#: Major versions of TensorRT that also run portable engines of the one before (TensorRT 11's support matrix, "Engine Portability").
_ALSO_RUNS = {11: 10, 10: 8}


@dataclass(frozen=True, kw_only=True)
class Here:
    """The library, GPU and system of this machine."""

    version: str
    """Version of the library, `10.13.3.9`."""
    capability: int
    """The GPU's compute capability, 86 for 8.6."""
    gpu: str | None
    """The GPU's name; None where the driver does not report one."""
    platform: str
    """System and processor, `linux-x86_64`."""
    known: tuple[int, ...] = ()
    """Compute capabilities that the library lists (TensorRT-RTX's `ComputeCapability`); empty for TensorRT, which lists none."""


def this_platform() -> str:
    """Return system and processor of this machine, such as `linux-x86_64`."""
    return f"{platform.system()}-{platform.machine()}".lower()


def what_is_here(module: str, capability: tuple[int, int]) -> Here:
    """Return what this machine has to run an engine of `module`, `tensorrt` or `tensorrt_rtx`."""
    library = importlib.import_module(module)
    return Here(
        version=str(library.__version__),
        capability=capability[0] * 10 + capability[1],
        gpu=cuda_driver.gpu_name(),
        platform=this_platform(),
        known=known_capabilities(library),
    )


def known_capabilities(library: Any) -> tuple[int, ...]:
    """Return the compute capabilities that TensorRT-RTX supports, such as 86 for 8.6; nothing for TensorRT, which lists none."""
    members = getattr(getattr(library, "ComputeCapability", None), "__members__", {})
    return tuple(sorted(int(name[2:]) for name in members if name.startswith("SM") and name[2:].isdigit()))


def rebuild(artefact: Artefact) -> str:
    """Return how to build an engine again on this machine, for the end of a message."""
    return f"build it again with: flowless build BUNDLE --target {artefact.target} --precision {artefact.precision} --force"


def mismatch(artefact: Artefact, here: Here) -> str | None:
    """Return in one line what an engine was built for, what this machine has, and how to build it again; None where it fits.

    Facts that the manifest does not record are not compared.

    Rules: NVIDIA, "Engine Compatibility" of TensorRT 11 and of TensorRT-RTX 1.7. TensorRT's engines are for one version, one
    kind of GPU and one platform; portable ones run on GPUs since Ampere and on later versions of the same major version, and a
    TensorRT 11 also runs those of TensorRT 10. TensorRT-RTX's are for one version, for the GPUs that were named or those since
    Ampere that this version lists ("CPU-Only AOT": 8.0, 8.6, 8.9, 12.0 and later; no 8.7, 9.0, 10.x, 11.0), on Linux and Windows alike.
    """
    options = artefact.options
    rtx = artefact.target == "tensorrt-rtx"
    if rtx and (never := unknown_gpu(here)):
        return never
    wrong = [_of_version(artefact, here), _of_gpu(options, here, rtx=rtx)]
    built_on = options.get("platform")
    if artefact.target == "tensorrt" and built_on and built_on != here.platform:
        wrong.append(f"it was built for {built_on} and this is {here.platform}")
    reasons = [reason for reason in wrong if reason]
    if not reasons:
        return None
    turing = rtx and here.capability < _AMPERE
    return f"{'; '.join(reasons)}; {rebuild(artefact)}{f' --compute-capability {here.capability}' if turing else ''}"


def unknown_gpu(here: Here) -> str | None:
    """Return in one line that the library does not support this machine's GPU; None where it does, or lists no GPUs."""
    if not here.known or here.capability in here.known:
        return None
    names = ", ".join(f"{item // 10}.{item % 10}" for item in here.known)
    which = f"{here.gpu or 'the GPU here'} has compute capability {here.capability // 10}.{here.capability % 10}"
    return f"tensorrt_rtx {here.version} runs on compute capability {names} alone, and {which}; build another target"


def _of_version(artefact: Artefact, here: Here) -> str | None:
    module = TARGETS[artefact.target].module
    built = artefact.versions.get(module)
    if built is None or built == here.version:
        return None
    if artefact.target == "tensorrt" and artefact.options.get("portable"):
        was, now = _numbers(built), _numbers(here.version)
        if (was[0] == now[0] and now >= was) or _ALSO_RUNS.get(now[0]) == was[0]:
            return None
        return f"it was built by {module} {built} for that version and later ones of {was[0]}.x, and {here.version} is here"
    return f"it was built by {module} {built} for that version alone, and {here.version} is here"


def _of_gpu(options: dict[str, Any], here: Here, *, rtx: bool) -> str | None:
    named = [int(item) for item in options.get("compute_capabilities") or []]
    if named:
        if here.capability in named:
            return None
        return f"it was built for compute capability {', '.join(map(str, named))} and the GPU here has {here.capability}"
    if rtx or options.get("portable"):
        if here.capability >= _AMPERE:
            return None
        return f"it was built for compute capability {_AMPERE} and later and the GPU here has {here.capability}"
    gpu, capability = options.get("gpu"), options.get("gpu_compute_capability")
    if capability and capability != here.capability:
        whose = f" ({gpu})" if gpu else ""
        mine = f" ({here.gpu})" if here.gpu else ""
        return f"it was built for compute capability {capability}{whose} and the GPU here has {here.capability}{mine}"
    if gpu and here.gpu and gpu != here.gpu:
        return f"it was built for {gpu} and the GPU here is {here.gpu}"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
