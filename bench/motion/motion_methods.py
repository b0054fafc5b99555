"""The motion cues of the four systems, each exported alone, and optical flow: what runs each, and what it costs."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import flowless.train.models.flops  # noqa: F401 - registers how PA is counted
from flowless.bench.lib.networks import Eager
from flowless.bench.lib.runners import Runner, why_not_in
from flowless.engines.backends.backend import open_backend, why_not
from flowless.engines.backends.openvino_core import HINTS
from flowless.engines.bundle.manifest import Artefact, Target
from flowless.export.graph.export_graph import OPSET, export_onnx, inlined
from flowless.export.targets.openvino_layout import differences_first
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models import AppearanceRecognizer, MotionRecognizer, Recognizer, build_model
from flowless.train.models.backbones.bn_inception import STEM, Unit
from flowless.train.models.layers.displacement import Displacement
from flowless.train.models.layers.stm_block import ChannelwiseMotion
from flowless.train.models.layers.temporal_projection import PixelwiseTemporalProjection
from flowless.train.models.model_config import SCRATCH_STD
from flowless.train.pa.persistence import PersistenceOfAppearance

#: The clip that PAN and Dynamic Appearance count: 8 stacks of 6 frames of 224 x 224, which give 40 PA maps.
PAPER_CLIP = ClipSpec(segments=8, frames_per_segment=6)
#: Name -> how OpenCV makes it, with its defaults.
_OPENCV: dict[str, Callable[[Any], Any]] = {
    "TV-L1": lambda cv2: cv2.optflow.DualTVL1OpticalFlow_create(),
    "Farneback": lambda cv2: cv2.FarnebackOpticalFlow_create(),
    "DIS medium": lambda cv2: cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM),
    "DIS fast": lambda cv2: cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST),
    "DIS ultrafast": lambda cv2: cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST),
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to compute motion, and what it costs for one clip."""

    name: str
    maps: int
    runners: list[Runner]
    given: list[np.ndarray]
    """The clip's inputs, which a runner processes one after another."""
    gmacs: float | None = None
    """Multiply-accumulate operations (the papers' FLOPs), in 10^9; None where their number depends on the frames."""
    parameters: int | None = None


class _PA(MotionRecognizer):
    forward = MotionRecognizer.motion


class _Appearance(AppearanceRecognizer):
    forward = AppearanceRecognizer.appearance


class _Frames(Recognizer):
    def forward(self, clip: Tensor) -> Tensor:
        """Normalise the frames of a clip: `[B * N * m, 3, H, W]`."""
        return self.normalise(self.as_frames(clip)).flatten(0, 2)


class _CueOfFeatures(nn.Module):
    """The cue between each frame and the next of one stack's features, `[m, C, h, w]` or `[1, m, C, h, w]`."""

    def __init__(self, cue: Displacement | ChannelwiseMotion) -> None:
        super().__init__()
        self.cue = cue

    def forward(self, features: Tensor) -> Tensor:
        """Return displacement maps `[m - 1, 2, h, w]`, or CMM `[m, C, h, w]`, whose last map is zero."""
        features = features.flatten(0, -4)
        return self.cue(features) if isinstance(self.cue, ChannelwiseMotion) else self.cue(features[:-1], features[1:])


def maps_per_clip(spec: ClipSpec) -> int:
    """Return the motion maps of one clip: m - 1 a segment."""
    return spec.segments * (spec.frames_per_segment - 1)


def motion_model(spec: ClipSpec) -> MotionRecognizer:
    """Return PA with random filters; it outputs its maps in place of scores."""
    torch.manual_seed(0)
    persistence = PersistenceOfAppearance(std=SCRATCH_STD)
    return _PA(spec=spec, backbone=nn.Identity(), head=nn.Identity(), persistence=persistence).eval()


def motion_runners(spec: ClipSpec, *, threads: int, folder: Path) -> tuple[MotionRecognizer, list[Runner]]:
    """Export PA for a clip into `folder`; return the model, for its weights, and its runners, the first of them PyTorch eager."""
    model = motion_model(spec)
    return model, _cue_runners(model, spec=spec, threads=threads, graph=folder / "motion.onnx")


def _cue_runners(cue: nn.Module, *, spec: ClipSpec, threads: int, graph: Path, bf16: bool = True) -> list[Runner]:
    """Export a cue and open it on every target; PWTP and displacement maps compute in fp32 in every engine: no `bf16`."""
    flat = graph.with_name(f"{graph.stem}-inlined.onnx")
    proto = inlined(export_onnx(cue, graph, spec=spec, labels=["motion"], name=graph.stem, versions={}))
    differences_first(proto)
    flat.write_bytes(proto.SerializeToString())
    runners = [_eager(cue), _engine(graph, "onnxruntime", threads), _engine(flat, "openvino", threads)]
    return [*runners, _engine(flat, "openvino", threads, hint="bf16")] if bf16 else runners


def _eager(network: Callable[[Tensor], Tensor]) -> Runner:
    return Runner("pytorch eager", "pytorch", "fp32", "runs", Eager(network))


def _engine(path: Path, target: Target, threads: int, *, hint: str = "f32") -> Runner:
    precision, reason = HINTS[hint], why_not(target) or why_not_in(hint)
    artefact = Artefact(target=target, precision="fp32", status="built, not run here", files=(path.name,))
    run = None if reason else open_backend(artefact, path, classes=1, threads=threads, hint=hint)
    return Runner(f"{target} {precision}", target, precision, reason or "runs", run)


def methods_of(clip: np.ndarray, *, spec: ClipSpec, threads: int, folder: Path) -> list[Method]:
    """Return all cues and optical flows for a clip uint8 `[1, N, m, H, W, 3]` of `spec`; graphs are written into `folder`.

    The cues are full size, with random weights: time does not depend on them.
    """
    methods, stack, maps = [], replace(spec, segments=1), maps_per_clip(spec)
    projection = PixelwiseTemporalProjection(spec.frames_per_segment)
    appearance = _Appearance(spec=spec, backbone=nn.Identity(), head=nn.Identity(), projection=projection).eval()
    for name, cue, count in (("PA", motion_model(spec), maps), ("dynamic appearance", appearance, spec.segments)):
        runners = _cue_runners(cue, spec=spec, threads=threads, graph=folder / f"{name}.onnx", bf16=name == "PA")
        methods.append(_cue_method(name, cue, [clip], runners, maps=count))
    # The features of a whole clip take gigabytes: these cues get one stack after another.
    stacks = [one[None, None] for one in clip[0]]
    for name, (layers, cue) in _cues_of_features(stack).items():
        whole = nn.Sequential(layers, cue).eval()
        runners = _cue_runners(whole, spec=stack, threads=threads, graph=folder / f"{name}.onnx", bf16=name == "CMM")
        methods.append(_cue_method(name, whole, stacks, runners, maps=maps))
        features = [Eager(layers)(one)[None] for one in stacks]
        runners = [_eager(cue), _features_engine(cue, features[0], folder / f"{name} alone.onnx", threads)]
        methods.append(_cue_method(f"{name} alone", cue, features, runners, maps=maps))
    return [*methods, *opencv_flows(clip, threads=threads), raft(clip)]


def _cues_of_features(stack: ClipSpec) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Return the network's layers before each cue, and the cue. The m frames of a stack are what segments are to CMM."""
    conv1 = Unit(3, STEM, kernel=7, stride=2)
    resnet = build_model("stm-r50", classes=2, spec=replace(stack, segments=stack.frames_per_segment, frames_per_segment=1))
    names = ("conv1", "bn1", "act1", "maxpool", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.act1")
    stem, motion = [resnet.get_submodule(f"backbone.{name}") for name in names], resnet.get_submodule("backbone.layer1.0.conv2.motion")
    assert isinstance(motion, ChannelwiseMotion)
    return {
        "displacement map": (nn.Sequential(_Frames(spec=stack), conv1).eval(), _CueOfFeatures(Displacement())),
        "CMM": (nn.Sequential(_Frames(spec=stack), *stem).eval(), _CueOfFeatures(motion)),
    }


def _features_engine(cue: nn.Module, features: np.ndarray, graph: Path, threads: int) -> Runner:
    with warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(cue, (torch.from_numpy(features),), dynamo=True, opset_version=OPSET, verbose=False)
    assert program is not None
    program.save(graph)
    return _engine(graph, "openvino", threads)


def _cue_method(name: str, module: nn.Module, given: list[np.ndarray], runners: list[Runner], *, maps: int) -> Method:
    return Method(name=name, maps=maps, given=given, runners=runners, **_size(module, given[0], times=len(given)))


def _size(module: nn.Module, *inputs: np.ndarray, times: int) -> dict[str, Any]:
    """Count parameters, and the multiply-accumulate operations of convolutions and matrix products, without running the module."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(module).to("meta")(*(torch.from_numpy(one).to("meta") for one in inputs))
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return {"gmacs": counter.get_total_flops() / 2e9 * times, "parameters": parameters}


def opencv_flows(clip: np.ndarray, *, threads: int = 1) -> list[Method]:
    """Return OpenCV's TV-L1, Farneback and DIS for a clip uint8 `[1, N, m, H, W, 3]`; the status says why where OpenCV is missing.

    Each runner maps grey frames `[N, m, H, W]` to the flow of every frame to the next, float32 `[N * (m - 1), 2, H, W]`: where each
    place of the first lies in the second, rows first.
    """
    grey = np.array([[np.asarray(Image.fromarray(frame).convert("L")) for frame in stack] for stack in clip[0]])
    methods = []
    for name, make in _OPENCV.items():
        try:
            cv2: Any = importlib.import_module("cv2")
            cv2.setNumThreads(threads)
            status, run = "runs", partial(_flow_of, make(cv2))
        except (ImportError, AttributeError):
            status, run = "not here: needs OpenCV with its contrib modules, pip install 'flowless[bench]'", None
        runner = Runner("opencv", "opencv", "fp32", status, run)
        methods.append(Method(name=name, maps=clip.shape[1] * (clip.shape[2] - 1), given=[grey], runners=[runner]))
    return methods


def _flow_of(flow: Any, stacks: np.ndarray) -> np.ndarray:
    pairs = [pair for stack in stacks for pair in pairwise(stack)]
    return np.moveaxis(np.stack([flow.calc(before, after, None) for before, after in pairs]), -1, 1)[:, ::-1]


def raft(clip: np.ndarray) -> Method:
    """Return torchvision's RAFT-small with random weights, for its speed; its output is that of `opencv_flows`."""
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    network = raft_small(weights=None, progress=False).eval()
    frame = np.zeros((1, 3, *clip.shape[3:5]), np.float32)
    pairs = clip.shape[1] * (clip.shape[2] - 1)

    def run(stack: Tensor) -> Tensor:
        frames = (stack.float() / 127.5 - 1).movedim(-1, -3)
        return network(frames[:-1], frames[1:])[-1].flip(1)

    # A stack at a time: the correlations of a whole clip would take gigabytes.
    return Method(name="RAFT-small", maps=pairs, given=list(clip[0]), runners=[_eager(run)], **_size(network, frame, frame, times=pairs))
