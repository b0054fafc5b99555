"""The PA op alone, on every target: motion maps per second, as PAN's paper counts them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from flowless.bench.networks import Eager, lively_model
from flowless.bench.rivals import Rival
from flowless.engines.backends import HINTS, open_backend, why_not
from flowless.engines.manifest import Artefact
from flowless.export.graph import export_onnx, inlined, read_graph
from flowless.export.layout import differences_first
from flowless.pipeline.spec import ClipSpec
from flowless.train.models import MotionRecognizer

#: The paper's clip for counting PA: 8 stacks of 6 frames of 224 x 224 give 40 maps.
PAPER_CLIP = ClipSpec(segments=8, frames_per_segment=6)
#: The motion op's engines: target and, for OpenVINO, the arithmetic it is asked for.
ENGINES = (("onnxruntime", None), ("openvino", None), ("openvino", "bf16"))


class Motion(nn.Module):
    """The motion branch of PAN-Lite by itself: uint8 `[B, N, m, H, W, 3]` to float32 `[B, N, m-1, H, W]`."""

    def __init__(self, model: MotionRecognizer) -> None:
        super().__init__()
        self.model = model

    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """Return the PA maps of pixels."""
        return self.model.motion(clip)


def motion_model(spec: ClipSpec) -> MotionRecognizer:
    """Return a small PAN-Lite whose PA op is the full one; its backbone is not used."""
    model = lively_model("pan-lite-r18", classes=2, spec=replace(spec, height=32, width=32, short_side=32), width=0.25)
    assert isinstance(model, MotionRecognizer)
    model.spec = spec
    return model


def maps_per_clip(spec: ClipSpec) -> int:
    """Return the motion maps of one clip: m - 1 a segment."""
    return spec.segments * (spec.frames_per_segment - 1)


def motion_rivals(spec: ClipSpec, *, threads: int, folder: Path) -> tuple[MotionRecognizer, list[Rival]]:
    """Export the PA op of a clip and open it on every target that runs here.

    Args:
        spec: What a clip is.
        threads: CPU threads of each.
        folder: Where the graphs are written.

    Returns:
        The model, for its weights, and the rivals; the first is PyTorch eager.
    """
    model = motion_model(spec)
    rivals = [Rival("pytorch eager", "pytorch", "fp32", "runs", Eager(Motion(model)))]
    graph = folder / "motion.onnx"
    export_onnx(Motion(model).eval(), graph, spec=spec, labels=["motion"], name="persistence", versions={})
    flat = folder / "motion-inlined.onnx"
    proto = inlined(read_graph(graph))
    differences_first(proto)
    flat.write_bytes(proto.SerializeToString())
    for target, hint in ENGINES:
        precision = HINTS[hint] if hint else "fp32"
        name, reason = f"{target} {precision}", why_not(target)
        if reason:
            rivals.append(Rival(name, target, precision, reason))
            continue
        path = flat if target == "openvino" else graph
        artefact = Artefact(target=target, precision="fp32", status="built, not run here", files=(path.name,))  # type: ignore[arg-type]
        run = open_backend(artefact, path, classes=1, threads=threads, hint=hint)
        rivals.append(Rival(name, target, precision, "runs", run))
    return model, rivals
