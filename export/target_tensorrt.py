"""TensorRT-RTX, which builds anywhere, and TensorRT, which builds on its GPU: one API, strongly typed networks only."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import onnx

from flowless.engines import cuda_driver
from flowless.engines.backends import LIBRARIES
from flowless.engines.manifest import Artefact, Target
from flowless.errors import FlowlessError
from flowless.export.target_options import BuildOptions


def build_tensorrt(proto: onnx.ModelProto, folder: Path, *, target: Target, precision: str, options: BuildOptions) -> Artefact:
    """Write `model.engine` into `folder`.

    The network is strongly typed: its arithmetic is the graph's, nothing is chosen by flags.

    Args:
        proto: The graph, in its precision; its functions are inlined by the parser.
        folder: Where to write.
        target: `tensorrt-rtx` or `tensorrt`.
        precision: What the graph says, for the record.
        options: Batch profile and, for TensorRT-RTX, compute capabilities.

    Raises:
        FlowlessError: The library refuses the graph, or, for `tensorrt`, there is no GPU.
    """
    trt = importlib.import_module(LIBRARIES[target][0])
    if target == "tensorrt" and cuda_driver.compute_capability() is None:
        raise FlowlessError(
            "tensorrt builds an engine on the GPU that it is for, and there is no NVIDIA GPU here. Build on that machine, or build "
            "--target tensorrt-rtx, which needs none."
        )
    said: list[str] = []
    logger = _logger(trt, said)
    builder = trt.Builder(logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(proto.SerializeToString()):
        reasons = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise FlowlessError(f"{target} {trt.__version__} does not take the graph: {reasons or 'it says no more'}. Build another target.")
    config = builder.create_builder_config()
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means float32, not 10 bits of mantissa
    _add_profile(builder, network, config, options)
    chosen = _choose_gpus(trt, config, options) if target == "tensorrt-rtx" else []
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise FlowlessError(f"{target} {trt.__version__} could not build the engine: {'; '.join(said) or 'it says no more'}.")
    (folder / "model.engine").write_bytes(bytes(engine))
    return Artefact(
        target=target,
        precision=precision,
        status="built, not run here",
        files=("model.engine",),
        versions={LIBRARIES[target][0]: trt.__version__},
        options={"batch": list(options.batch), "compute_capabilities": chosen},
    )


def _strongly_typed(trt: Any) -> int:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _add_profile(builder: Any, network: Any, config: Any, options: BuildOptions) -> None:
    clip = network.get_input(0)
    rest = tuple(clip.shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(clip.name, *((batch, *rest) for batch in options.batch))
    config.add_optimization_profile(profile)


def _choose_gpus(trt: Any, config: Any, options: BuildOptions) -> list[int]:
    chosen = list(dict.fromkeys(options.compute_capabilities))
    if chosen:
        config.num_compute_capabilities = len(chosen)
        for index, item in enumerate(chosen):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{item}"), index)
    return chosen


def _logger(trt: Any, said: list[str]) -> Any:
    class Listener(trt.ILogger):
        """Keep errors for our message and print nothing."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                said.append(text)

    return Listener()
