"""The network that all engines run, and its engines in ONNX Runtime, TensorRT and TensorRT-RTX, built and compared as users build them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from flowless.bench.gpu.results import NotHere, Results, Settings
from flowless.engines.backends.backend import open_backend, why_not
from flowless.engines.bundle.manifest import Artefact, Manifest, Target, read_manifest
from flowless.export.precision.calibration import Calibration
from flowless.export.precision.precisions import PRECISIONS
from flowless.export.targets.build_options import BuildOptions
from flowless.export.targets.target_graph import graph_for
from flowless.pipeline.clip.spec import ClipSpec

#: Copies clips to the device, and returns a call that leaves everything there.
Place = Callable[[np.ndarray], Callable[[], object]]


def clip_spec(settings: Settings) -> ClipSpec:
    """Return what a clip is: 8 x 4 frames of 224 x 224; small ones for a rehearsal."""
    return ClipSpec(segments=4, frames_per_segment=2, height=48, width=48, short_side=56) if settings.rehearsal else ClipSpec()


def network(results: Results) -> None:
    """Export a network whose random weights behave like trained ones, with clips to compare and videos to calibrate its engines on."""
    from flowless.bench.lib.networks import random_clips, random_model
    from flowless.export.export_bundle import export_bundle, torch_scores
    from flowless.pipeline.dataset.scan import scan
    from flowless.pipeline.video.encode import write_video
    from flowless.train.checkpoints import save_checkpoint
    from flowless.train.models.flops import count

    settings, spec = results.settings, clip_spec(results.settings)
    clips = random_clips(16, spec, seed=1)
    for number, clip in enumerate(clips):
        write_video(settings.folder / "calibration" / "all" / f"{number:02}.mp4", clip.reshape(-1, *spec.shape[-3:]))
    scan(settings.folder / "calibration", out=settings.folder / "calibration.index.jsonl")
    name, smaller = ("pan-lite-r18", {"width": 0.5, "blocks": 1}) if settings.rehearsal else ("pan-lite-r50", {})
    model, labels = random_model(name, spec=spec, classes=174, **smaller), [f"class {number}" for number in range(174)]
    file = settings.folder / "model.safetensors"
    save_checkpoint(file, model, model_name=name, recipe={}, spec=spec, labels=labels, metrics={})
    export_bundle(file, settings.folder / "bundle", videos=[*settings.folder.glob("calibration/all/*")][:4])
    results.fact(model=name, weights="random", macs_per_clip=count(model).macs)
    # Clips that int8 is calibrated on: what is checked is a library's arithmetic, not the choice of clips.
    np.savez(settings.folder / "reference.npz", clips=clips[:8], scores=torch_scores(model, clips[:8]))


def load_bundle(settings: Settings) -> Manifest:
    """Read the bundle that `network` wrote; raise NotHere where it did not."""
    if not (settings.folder / "reference.npz").is_file():
        raise NotHere("the part network did not export the network; see there")
    return read_manifest(settings.folder / "bundle")


def graphs(results: Results) -> None:
    """Make the network's graph in each precision, which all engines then take from the cache."""
    for precision in PRECISIONS:
        results.attempt(precision, partial(_graph, results, precision))


def _graph(results: Results, precision: str) -> Any:
    from flowless.export.precision.graph_cache import precise_graph

    graph = precise_graph(load_bundle(results.settings), precision, _calibration(results.settings)).proto
    results.fact(**{f"{precision}_mb": graph.ByteSize() / 1e6})
    return graph


def _calibration(settings: Settings) -> Calibration:
    return Calibration(index=settings.folder / "calibration.index.jsonl", spec=clip_spec(settings))


def onnxruntime(results: Results) -> None:
    """Measure ONNX Runtime, where its CUDA provider starts."""
    import onnxruntime as ort

    from flowless.engines.backends.onnxruntime_cuda import open_session, why_not_cuda

    settings = results.settings
    if not settings.rehearsal and (reason := why_not_cuda()):
        raise NotHere(reason)

    def placed(session: Any, clips: np.ndarray) -> Callable[[], object]:
        binding = session.io_binding()
        binding.bind_ortvalue_input(session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(clips, settings.device))
        binding.bind_output(session.get_outputs()[0].name, settings.device)
        return lambda: session.run_with_iobinding(binding)

    def run(precision: str) -> None:
        # Not through `flowless build`, which keeps no int8 engine here: the CUDA provider computes its convolutions in fp32.
        path = settings.folder / f"{precision}.onnx"
        path.write_bytes(graph_for(_graph(results, precision), target="onnxruntime", precision=precision).SerializeToString())
        record = Artefact(target="onnxruntime", precision=precision, status="built, not compared", files=(path.name,))
        backend, (session, _) = (
            open_backend(record, path, classes=len(load_bundle(settings).labels)),
            open_session(path, ort.SessionOptions()),
        )
        for batch in settings.batches:
            measure(results, "onnxruntime", precision, batch, scores=backend, on_device=partial(placed, session))

    for precision in PRECISIONS:
        results.attempt(precision, partial(run, precision), may_refuse=precision != "fp32")


def tensorrt(results: Results) -> None:
    """Measure TensorRT, the PA op as standard operators."""
    if reason := why_not("tensorrt"):
        raise NotHere(reason)
    _build_all(results, "tensorrt", PRECISIONS)


def plugin(results: Results) -> None:
    """Measure TensorRT with the PA op's C++ plugin: the library that FLOWLESS_PA_PLUGIN names, or one compiled here."""
    from flowless.export.plugin.plugin_library import build_library, find_library

    if reason := why_not("tensorrt"):
        raise NotHere(reason)
    library = find_library() or build_library(out=results.settings.folder / "libflowless_pa_plugin.so")
    _build_all(results, "tensorrt", ("fp32", "fp16"), pa="plugin", plugin_library=library)


def tensorrt_rtx(results: Results) -> None:
    """Measure TensorRT-RTX, which builds without a GPU, and which a data-centre GPU may refuse."""
    importlib.import_module("tensorrt_rtx")
    _build_all(results, "tensorrt-rtx", PRECISIONS)


def _build_all(results: Results, target: Target, precisions: tuple[str, ...], **options: Any) -> None:
    """Build an engine of each precision through the gates of `flowless build` (layers, parity with PyTorch), then measure it."""
    from flowless.export.build_engine import build
    from flowless.export.verify.checks import Checks, EngineRefused

    settings, name = results.settings, f"{target}, plugin" if options else target
    asked = BuildOptions(batch=(1, settings.batches[1], settings.batches[-1]), force=True, **options)

    def run(precision: str) -> None:
        bundle, calibration = load_bundle(settings).folder, _calibration(settings)
        try:
            record = build(bundle, target=target, precision=precision, options=asked, checks=Checks(slower=True), calibration=calibration)
        except EngineRefused as error:
            results.check(f"{name} {precision}", passed=False, gate=error.gate, reason=error.short, **error.figures)
            return
        results.check(f"{name} {precision}", passed=True if record.status == "verified" else None, **record.figures)
        if reason := why_not(target, record):
            raise NotHere(reason)
        manifest = read_manifest(bundle)
        backend = open_backend(record, manifest.path_of(record.files[0]), classes=len(manifest.labels))
        for batch in settings.batches:
            measure(results, name, precision, batch, scores=backend)

    for precision in precisions:
        results.attempt(precision, partial(run, precision), may_refuse=target == "tensorrt-rtx" or precision != "fp32")


def measure(
    results: Results, name: str, precision: str, batch: int, *, scores: Callable[[np.ndarray], np.ndarray], on_device: Place | None = None
) -> None:
    """Compare an engine with PyTorch's float32 on the CPU, in whole batches; time it from the host's memory and from the device's."""
    from flowless.bench.gpu.device import measure_speed
    from flowless.export.verify import parity

    settings = results.settings
    with np.load(settings.folder / "reference.npz") as stored:
        places = np.arange(-(-len(stored["clips"]) // batch) * batch) % len(stored["clips"])
        clips, expected = stored["clips"][places], stored["scores"][places]
    found = parity.run_in_batches(scores, clips, batch)
    result = parity.compare(found, expected, precision=precision, device="CPU" if settings.rehearsal else "GPU")
    results.check(f"{name} {precision}, batch {batch}", **asdict(result))
    host = measure_speed(lambda: scores(clips[:batch]), settings=settings, items=batch)
    speed = measure_speed(on_device(clips[:batch]), settings=settings, items=batch) if on_device else host
    row = {"name": name, "precision": precision, "batch": batch, "clips_in": "device" if on_device else "host"}
    results.row(**row, **speed, from_host_ms_p50=host["latency_ms_p50"])
