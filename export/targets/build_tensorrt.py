"""Building engines of TensorRT-RTX, which needs no GPU, and of TensorRT, which builds on the GPU that the engine is for."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from flowless import cuda_driver
from flowless.engines.backends.tensorrt_backend import PLUGIN_VARIABLE
from flowless.engines.backends.tensorrt_process import TensorRtProcess, tensorrt_process
from flowless.engines.bundle.compatibility import this_platform
from flowless.engines.bundle.manifest import Artefact
from flowless.engines.streaming.memory import FRAME, MEMORY
from flowless.engines.streaming.state import STARTED
from flowless.engines.targets import TARGETS, Target
from flowless.errors import FlowlessError
from flowless.export.targets.build_options import BuildOptions
from flowless.export.targets.stop_build import Stop, progress_monitor, stop_on_ctrl_c
from flowless.export.targets.tensorrt_config import make_config, merge_timing_cache
from flowless.export.targets.tensorrt_network import parse_graph

_AMPERE = (8, 0)


def build_tensorrt(proto: onnx.ModelProto, folder: Path, *, target: Target, precision: str, options: BuildOptions) -> Artefact:
    """Write `model.engine` into `folder`.

    The network is strongly typed: its precisions are the graph's, no flag chooses them. The engine keeps the layer information that
    `inspect_tensorrt` reads (profiling verbosity DETAILED).

    Args:
        proto: The graph, in its precision; the parser inlines its functions.
        folder: Where to write.
        target: `tensorrt-rtx` or `tensorrt`.
        precision: The graph's precision, for the record.
        options: Batch profile, and the other options of these targets.

    Returns:
        The engine's record; its options say what it was built for, which `engines/bundle/compatibility.py` compares with the machine.

    Raises:
        FlowlessError: The library refuses the graph, the target lacks an option, or it needs a GPU and there is none.
        KeyboardInterrupt: Ctrl-C was pressed; the builder stopped and nothing was written.
    """
    options.check(target)
    _refuse_without_gpu(target, options)
    files = ["model.engine"]
    if options.pa == "plugin":
        proto, options = _for_plugin(proto, options)
        # The engine cannot run without the plugin's library, so the library is kept beside it.
        files.append(Path(shutil.copy(str(options.plugin_library), folder)).name)
    process = tensorrt_process(target)
    with stop_on_ctrl_c() as stop:
        engine = _build(process, proto, options, stop)
        if engine is not None:
            (folder / "model.engine").write_bytes(bytes(engine))
    return Artefact(
        target=target,
        precision=precision,
        status="built, not run here",
        files=tuple(files),
        versions={TARGETS[target].module: process.trt.__version__},
        options=_record(target, options),
    )


def _for_plugin(proto: onnx.ModelProto, options: BuildOptions) -> tuple[onnx.ModelProto, BuildOptions]:
    """Return the graph whose PA nodes have no body, and the options with the plugin's library."""
    from flowless.export.plugin.plugin_library import find_library, without_function

    library = options.plugin_library or find_library()
    if library is None:
        raise FlowlessError(
            "--pa plugin: the plugin's library is not there. Compile it once with: python -m flowless.export.plugin.plugin_library "
            f"--tensorrt-root FOLDER (TensorRT's headers), or name it in {PLUGIN_VARIABLE}; or leave --pa plugin out."
        )
    return without_function(proto), replace(options, plugin_library=library)


def _with_pa(process: TensorRtProcess, proto: onnx.ModelProto, options: BuildOptions) -> onnx.ModelProto:
    """Register the PA plugin where it is used, and return the graph to parse."""
    from flowless.export.graph.export_graph import inlined
    from flowless.export.plugin.plugin_library import load_plugin

    if options.plugin_library is not None:
        load_plugin(process, options.plugin_library)
        return proto
    # A plugin that an earlier build of this process has registered would be taken even where the node has a body.
    return inlined(proto) if process.plugin_kind() is not None else proto


def _build(process: TensorRtProcess, proto: onnx.ModelProto, options: BuildOptions, stop: Stop) -> Any:
    """Return the serialised engine; None where the build was stopped."""
    graph = parse_graph(process, _with_pa(process, proto, options))
    names = [graph.network.get_input(place).name for place in range(graph.network.num_inputs)]
    if names not in (["clip"], [FRAME, MEMORY]) and not (names[0] == FRAME and STARTED in names):
        raise FlowlessError(
            f"The graph's inputs are {names}; an engine takes the clip, of an online graph {FRAME} and {MEMORY}, or of a streaming graph "
            f"{FRAME} and a state with {STARTED}. Export the model again."
        )
    config = make_config(process, graph, options, progress_monitor(process.trt, stop))
    with process.errors() as errors:
        engine = graph.builder.build_serialized_network(graph.network, config)
    if stop.requested:
        return None
    if engine is None:
        raise FlowlessError(f"{process.name} could not build the engine: {errors}.")
    if options.timing_cache is not None and process.target == "tensorrt":
        merge_timing_cache(config, options.timing_cache)
    return engine


def _refuse_without_gpu(target: Target, options: BuildOptions) -> None:
    capability = cuda_driver.compute_capability()
    if TARGETS[target].gpu_to_build:
        if capability is None:
            raise FlowlessError(
                f"{target} builds an engine on the GPU that it is for, and there is no NVIDIA GPU here. Build on that machine, or build "
                "--target tensorrt-rtx, which needs none."
            )
        if options.portable and capability < _AMPERE:
            raise FlowlessError(
                f"--portable builds on Ampere (compute capability 8.0) or later, and the GPU here has {capability[0]}.{capability[1]}. "
                "Build without it."
            )
    elif options.strip_weights and capability is None:
        # Measured with 1.7.1: with a flag that allows refitting, its builder needs a GPU, and fails without one.
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
