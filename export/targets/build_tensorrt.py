"""TensorRT-RTX, which builds anywhere, and TensorRT, which builds on its GPU: through Polygraphy, strongly typed networks only."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from flowless import cuda_driver
from flowless.engines.backends.backend import LIBRARIES
from flowless.engines.bundle.compatibility import this_platform
from flowless.engines.bundle.manifest import Artefact, Target
from flowless.engines.streaming.memory import FRAME, MEMORY
from flowless.errors import FlowlessError
from flowless.export.targets.build_options import BuildOptions
from flowless.export.targets.polygraphy_front import Front, open_front, progress_monitor, stopping
from flowless.files import whole_file

_AMPERE = (8, 0)
#: What lets weights be put back. TensorRT 11.3 may lose a bias under REFIT, not under REFIT_IDENTICAL ("Refitting an Engine",
#: known issues), and we put the same weights back; TensorRT-RTX documents weightless engines with REFIT.
_REFIT = {"tensorrt": "REFIT_IDENTICAL", "tensorrt-rtx": "REFIT"}


def build_tensorrt(proto: onnx.ModelProto, folder: Path, *, target: Target, precision: str, options: BuildOptions) -> Artefact:
    """Write `model.engine` into `folder`.

    The network is strongly typed: its arithmetic is the graph's, nothing is chosen by flags. The engine keeps what
    `inspect_tensorrt` reads (profiling verbosity DETAILED).

    Args:
        proto: The graph, in its precision; its functions are inlined by the parser.
        folder: Where to write.
        target: `tensorrt-rtx` or `tensorrt`.
        precision: What the graph says, for the record.
        options: Batch profile, and what else `BuildOptions` has for these targets.

    Returns:
        The engine's record; its options say what it was built for, which `engines/bundle/compatibility.py`
        compares with what is there.

    Raises:
        FlowlessError: The library refuses the graph, the target lacks an option, or it needs a GPU and there is none.
        KeyboardInterrupt: Ctrl-C was pressed; the builder stopped and nothing was written.
    """
    options.check(target)
    _refuse_without_gpu(target, options)
    files = ["model.engine"]
    if options.pa == "plugin":
        proto, options = _for_plugin(proto, options)
        # The engine is nothing without the library, so it travels with it.
        files.append(Path(shutil.copy(str(options.plugin_library), folder)).name)
    with open_front(target) as front, stopping() as stop:
        engine = _built(front, proto, options, progress_monitor(front.trt, stop), lambda: stop.asked)
        if engine is not None:
            (folder / "model.engine").write_bytes(bytes(engine))
        version = front.trt.__version__
    return Artefact(
        target=target,
        precision=precision,
        status="built, not run here",
        files=tuple(files),
        versions={LIBRARIES[target][0]: version},
        options=_record(target, options),
    )


def _with_pa(front: Front, proto: onnx.ModelProto, options: BuildOptions) -> onnx.ModelProto:
    """Register what computes PA, and return the graph that asks for it."""
    from flowless.export.graph.export_graph import inlined
    from flowless.export.plugin.plugin_library import load_plugin, registered_kind

    if options.plugin_library is not None:
        load_plugin(front.trt, options.plugin_library)
        return proto
    # A plugin that was registered for an earlier build would be taken even where the node has its body.
    registered = registered_kind(front.trt.get_plugin_registry()) is not None
    return inlined(proto) if registered else proto


def _for_plugin(proto: onnx.ModelProto, options: BuildOptions) -> tuple[onnx.ModelProto, BuildOptions]:
    """Return the graph whose PA nodes have no body, and the options with the library that computes them."""
    from flowless.export.plugin.plugin_library import VARIABLE, find_library, without_function

    library = options.plugin_library or find_library()
    if library is None:
        raise FlowlessError(
            "--pa plugin: the plugin's library is not there. Compile it once with: python -m flowless.export.plugin.plugin_library "
            f"--tensorrt-root FOLDER (TensorRT's headers), or name it in {VARIABLE}; or leave --pa plugin out."
        )
    return without_function(proto), replace(options, plugin_library=library)


def merge_timing_cache(config: Any, path: Path) -> None:
    """Write a builder's timing cache to a file, together with what another build wrote there meanwhile.

    Two builds that end at the same moment may lose one's timings, which costs time at the next build and nothing else.

    Args:
        config: The builder's configuration, after the build.
        path: The file; it appears whole or not at all. One that is damaged, or of another version or GPU, is replaced.
    """
    cache = config.get_timing_cache()
    if cache is None:
        return
    older = _read_cache(config, path)
    if older is not None:
        cache.combine(older, ignore_mismatch=False)
    with whole_file(path) as draft:
        draft.write_bytes(bytes(cache.serialize()))


def _built(front: Front, proto: onnx.ModelProto, options: BuildOptions, monitor: Any, stopped: Any) -> Any:
    """Return the serialised engine, None where the build was stopped."""
    builder, network, parser = front.parse(_with_pa(front, proto, options))
    names = [network.get_input(place).name for place in range(network.num_inputs)]
    if names not in (["clip"], [FRAME, MEMORY]):
        raise FlowlessError(
            f"The graph's inputs are {names}; an engine takes the clip, or of an online graph {FRAME} and {MEMORY}. Export the model again."
        )
    kept: list[Any] = []
    config = _config(front, network, options, monitor, kept)
    try:
        engine = front.backend.EngineBytesFromNetwork((builder, network, parser), config)()
    except Exception as error:
        if stopped():
            return None
        if not type(error).__module__.startswith("polygraphy."):
            raise
        raise FlowlessError(f"{front.name} could not build the engine: {front.because()}.") from error
    if options.timing_cache is not None and front.target == "tensorrt":
        merge_timing_cache(kept[0], options.timing_cache)
    return None if stopped() else engine


def _config(front: Front, network: Any, options: BuildOptions, monitor: Any, kept: list[Any]) -> Any:
    """Return Polygraphy's recipe of the configuration; what comes of it is put into `kept`."""
    trt = front.trt
    settings: dict[str, Any] = {
        "profiles": [_profile(front, network, options)],
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
        "progress_monitor": monitor,
        "strip_plan": options.strip_weights,
        "builder_optimization_level": options.optimization_level,
    }
    if options.workspace is not None:
        settings["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: options.workspace << 20}
    if front.target == "tensorrt-rtx":
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        create = CreateConfigRTX

        named = list(dict.fromkeys(options.compute_capabilities))
        settings["compute_capabilities"] = [divmod(item, 10) for item in named] or None
    else:
        create = front.backend.CreateConfig
        if options.portable:
            settings["version_compatible"] = True
            settings["hardware_compatibility_level"] = trt.HardwareCompatibilityLevel.AMPERE_PLUS

    def finish(builder: Any, network: Any, config: Any) -> None:
        kept.append(config)
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means float32, not 10 bits of mantissa
        if options.strip_weights:
            config.set_flag(getattr(trt.BuilderFlag, _REFIT[front.target]))
        if options.timing_cache is not None and front.target == "tensorrt":
            cache = _read_cache(config, options.timing_cache)
            if cache is not None and not config.set_timing_cache(cache, ignore_mismatch=False):
                # Another version's, or another GPU's: begin a new one.
                config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
            front.said.clear()  # of an old or damaged cache TensorRT complains; we need not

    return front.backend.PostprocessConfig(create(**settings), finish)


def _profile(front: Front, network: Any, options: BuildOptions) -> Any:
    profile = front.backend.Profile()
    for taken in (network.get_input(place) for place in range(network.num_inputs)):
        profile.add(taken.name, *((batch, *tuple(taken.shape)[1:]) for batch in options.batch))
    return profile


def _read_cache(config: Any, path: Path) -> Any:
    """Return the timing cache in a file; None where there is none that can be read."""
    with contextlib.suppress(OSError, RuntimeError):
        return config.create_timing_cache(path.read_bytes())
    return None


def _refuse_without_gpu(target: Target, options: BuildOptions) -> None:
    capability = cuda_driver.compute_capability()
    if target == "tensorrt":
        if capability is None:
            raise FlowlessError(
                "tensorrt builds an engine on the GPU that it is for, and there is no NVIDIA GPU here. Build on that machine, or build "
                "--target tensorrt-rtx, which needs none."
            )
        if options.portable and capability < _AMPERE:
            raise FlowlessError(
                f"--portable builds on Ampere (compute capability 8.0) or later, and the GPU here has {capability[0]}.{capability[1]}. "
                "Build without it."
            )
    elif options.strip_weights and capability is None:
        # Measured with 1.7.1: as soon as weights may be put back, its builder wants to speak to a GPU, and fails.
        raise FlowlessError(
            "--strip-weights: TensorRT-RTX builds an engine without weights only where there is a GPU, and there is none here. Build "
            "without it, or on a machine with a GPU."
        )


def _record(target: Target, options: BuildOptions) -> dict[str, Any]:
    """Return what the manifest says about how an engine was built."""
    record: dict[str, Any] = {
        "batch": list(options.batch),
        "compute_capabilities": list(dict.fromkeys(options.compute_capabilities)),
        "platform": this_platform(),
        "portable": options.portable,
        "stripped": options.strip_weights,
    }
    if target == "tensorrt":
        capability = cuda_driver.compute_capability()
        record["gpu"] = cuda_driver.gpu_name()
        record["gpu_compute_capability"] = capability[0] * 10 + capability[1] if capability else None
    if options.strip_weights:
        record["refit_from"] = options.refit_from
    if options.plugin_library is not None or options.pa != "function":
        record["pa"] = "plugin" if options.plugin_library is not None else options.pa
    for name in ("workspace", "optimization_level"):
        if getattr(options, name) is not None:
            record[name] = getattr(options, name)
    if options.timing_cache is not None:
        record["timing_cache"] = "kept" if target == "tensorrt" else "TensorRT-RTX times nothing when it builds"
    return record
