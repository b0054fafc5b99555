"""Export a motion cue alone and run it on every target; PA with random filters, in a clip as its paper counts it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from flowless.bench.lib.networks import Eager
from flowless.bench.lib.runners import Runner, why_not_in
from flowless.engines.backends.backend import open_backend, why_not
from flowless.engines.backends.openvino_core import HINTS
from flowless.engines.bundle.manifest import Artefact
from flowless.export.graph.export_graph import export_onnx, inlined, read_graph
from flowless.export.targets.openvino_layout import differences_first
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models import MotionRecognizer
from flowless.train.models.model_config import SCRATCH_STD
from flowless.train.pa.persistence import PersistenceOfAppearance

#: The paper's clip for counting PA: 8 stacks of 6 frames of 224 x 224 give 40 maps.
PAPER_CLIP = ClipSpec(segments=8, frames_per_segment=6)
#: A cue's engines: target and, for OpenVINO, the precision hint.
ENGINES = (("onnxruntime", None), ("openvino", None), ("openvino", "bf16"))


class CueOf(nn.Module):
    """One of a recogniser's cues alone: uint8 `[B, N, m, H, W, 3]` to what its method `cue` returns."""

    def __init__(self, model: nn.Module, cue: str = "motion") -> None:
        super().__init__()
        self.model = model
        self.cue = cue

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Return the cue of pixels: of `motion` the PA maps, float32 `[B, N, m-1, H, W]`."""
        return getattr(self.model, self.cue)(clip)


def motion_model(spec: ClipSpec) -> MotionRecognizer:
    """Return PA with random filters, in a recogniser of nothing else."""
    torch.manual_seed(0)
    persistence = PersistenceOfAppearance(std=SCRATCH_STD)
    return MotionRecognizer(spec=spec, backbone=nn.Identity(), head=nn.Identity(), persistence=persistence).eval()


def maps_per_clip(spec: ClipSpec) -> int:
    """Return the motion maps of one clip: m - 1 a segment."""
    return spec.segments * (spec.frames_per_segment - 1)


def motion_runners(spec: ClipSpec, *, threads: int, folder: Path) -> tuple[MotionRecognizer, list[Runner]]:
    """Export PA for a clip into `folder`; return the model, for its weights, and the runners of `cue_runners`."""
    model = motion_model(spec)
    return model, cue_runners(CueOf(model), spec=spec, threads=threads, graph=folder / "motion.onnx")


def cue_runners(
    cue: nn.Module, *, spec: ClipSpec, threads: int, graph: Path, engines: Sequence[tuple[str, str | None]] = ENGINES
) -> list[Runner]:
    """Export a cue and open it on every target that runs here.

    Args:
        cue: From uint8 `[B, N, m, H, W, 3]` to a tensor whose first axis is B.
        spec: What a clip is.
        threads: CPU threads of each.
        graph: The `.onnx` file to write; beside it, one with its functions inlined.
        engines: Target and precision hint of each.

    Returns:
        The runners; the first is PyTorch eager.
    """
    runners = [Runner("pytorch eager", "pytorch", "fp32", "runs", Eager(cue))]
    export_onnx(cue.eval(), graph, spec=spec, labels=["motion"], name=graph.stem, versions={})
    flat = graph.with_name(f"{graph.stem}-inlined.onnx")
    proto = inlined(read_graph(graph))
    differences_first(proto)
    flat.write_bytes(proto.SerializeToString())
    for target, hint in engines:
        path = flat if target == "openvino" else graph
        runners.append(graph_runner(path, target, threads=threads, hint=hint))
    return runners


def graph_runner(path: Path, target: str, *, threads: int, hint: str | None = None) -> Runner:
    """Open an ONNX graph on a target; the runner's status says why where that does not run here."""
    precision = HINTS[hint] if hint else "fp32"
    name = f"{target} {precision}"
    if reason := why_not(target) or why_not_in(hint or "f32"):
        return Runner(name, target, precision, reason)
    artefact = Artefact(target=target, precision="fp32", status="built, not run here", files=(path.name,))  # type: ignore[arg-type]
    return Runner(name, target, precision, "runs", open_backend(artefact, path, classes=1, threads=threads, hint=hint))
