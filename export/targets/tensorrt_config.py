"""The builder configuration of TensorRT and TensorRT-RTX, and TensorRT's timing cache."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from flowless.engines.backends.tensorrt_process import TensorRtProcess
from flowless.errors import FlowlessError
from flowless.export.targets.build_options import BuildOptions
from flowless.export.targets.tensorrt_network import ParsedGraph
from flowless.files import whole_file

#: The flag with which weights can be put back. TensorRT 11.3 may lose a bias under REFIT but not under REFIT_IDENTICAL ("Refitting an
#: Engine", known issues), and the same weights are put back; TensorRT-RTX documents engines without weights with REFIT.
_REFIT = {"tensorrt": "REFIT_IDENTICAL", "tensorrt-rtx": "REFIT"}


def make_config(process: TensorRtProcess, graph: ParsedGraph, options: BuildOptions, monitor: Any) -> Any:
    """Return the `IBuilderConfig` of a build.

    Args:
        process: The library.
        graph: The network to build.
        options: How to build it.
        monitor: Progress monitor, which can stop the builder.

    Raises:
        FlowlessError: The network has other inputs than an engine takes.
    """
    trt = process.trt
    config = graph.builder.create_builder_config()
    config.progress_monitor = monitor
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means float32, not 10 bits of mantissa
    if config.add_optimization_profile(_profile(graph, options)) < 0:
        raise FlowlessError(f"{process.name} does not take batch {' '.join(map(str, options.batch))} for this graph.")
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(getattr(trt.BuilderFlag, _REFIT[process.target]))
    if process.target == "tensorrt-rtx":
        _set_compute_capabilities(trt, config, options.compute_capabilities)
    elif options.portable:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if process.target == "tensorrt":
        _set_timing_cache(config, options.timing_cache)
    return config


def _profile(graph: ParsedGraph, options: BuildOptions) -> Any:
    """Return the optimisation profile: the smallest, most common and largest shape of every input."""
    profile = graph.builder.create_optimization_profile()
    for place in range(graph.network.num_inputs):
        tensor = graph.network.get_input(place)
        profile.set_shape(tensor.name, *((batch, *tuple(tensor.shape)[1:]) for batch in options.batch))
    return profile


def _set_compute_capabilities(trt: Any, config: Any, capabilities: tuple[int, ...]) -> None:
    """Name the GPUs that TensorRT-RTX builds for; without any it builds for every GPU since Ampere."""
    named = list(dict.fromkeys(capabilities))
    if not named:
        return
    config.num_compute_capabilities = len(named)
    for place, capability in enumerate(named):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), place)


def _set_timing_cache(config: Any, path: Path | None) -> None:
    """Give the builder the timings in a file; without any, or with those of another version or GPU, an empty cache."""
    cache = None if path is None else _read_cache(config, path)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def merge_timing_cache(config: Any, path: Path) -> None:
    """Write a builder's timing cache to a file, together with what another build has written there meanwhile.

    Two builds that end at the same moment may lose one's timings, which costs time at the next build and nothing else.

    Args:
        config: The builder's configuration, after the build.
        path: The file; it appears whole or not at all. A damaged file, or one of another version or GPU, is replaced.
    """
    cache = config.get_timing_cache()
    if cache is None:
        return
    older = _read_cache(config, path)
    if older is not None:
        cache.combine(older, ignore_mismatch=False)
    with whole_file(path) as draft:
        draft.write_bytes(bytes(cache.serialize()))


def _read_cache(config: Any, path: Path) -> Any:
    """Return the timing cache in a file; None where it cannot be read."""
    with contextlib.suppress(OSError, RuntimeError):
        return config.create_timing_cache(path.read_bytes())
    return None
