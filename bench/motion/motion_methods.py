"""The ways to compute motion: the four systems' cues alone, and optical flow, each with what runs it and what it costs."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flowless.bench.lib.networks import Eager
from flowless.bench.lib.runners import Run, Runner
from flowless.bench.motion.motion_maps import ENGINES, CueOf, cue_runners, graph_runner, maps_per_clip, motion_model
from flowless.export.graph.export_graph import OPSET
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models import (
    AppearanceRecognizer,
    Recognizer,
    build_model,
    flops,  # noqa: F401 - registers how PA is counted
)
from flowless.train.models.backbones.bn_inception import STEM, Unit
from flowless.train.models.layers.displacement import Displacement
from flowless.train.models.layers.stm_block import ChannelwiseMotion
from flowless.train.models.layers.temporal_projection import PixelwiseTemporalProjection

REMEDY = "pip install 'flowless[bench]'"
#: RAFT's flow updates, torchvision's default, and the smallest frame that it takes.
_UPDATES, _RAFT_LEAST = 12, 128


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to compute motion, and what it costs for one clip."""

    name: str
    about: str
    maps: int
    """Motion maps of one clip."""
    runners: list[Runner]
    given: np.ndarray
    """Input of the runners: pixels uint8 `[1, N, m, H, W, 3]`, stacks of them `[N, 1, m, H, W, 3]`, grey frames, or features."""
    gmacs: float | None = None
    """Multiplications with additions for one clip, in 10^9; None where the number of iterations depends on the frames."""
    parameters: int | None = None


class FirstLayers(nn.Module):
    """A network's first layers: uint8 `[B, N, m, H, W, 3]` to features `[B, N * m, C, h, w]`."""

    def __init__(self, *layers: nn.Module, spec: ClipSpec) -> None:
        super().__init__()
        self.pixels = Recognizer(spec=spec)
        self.layers = nn.Sequential(*layers)

    def forward(self, clip: Tensor) -> Tensor:
        """Return each frame's features."""
        spec = self.pixels.spec
        frames = self.pixels.normalise(self.pixels.as_frames(clip)).flatten(0, 2)
        return self.layers(frames).unflatten(0, (-1, spec.segments * spec.frames_per_segment))


class CueOfFeatures(nn.Module):
    """Displacement maps or CMM of a stack's features `[B, m, C, h, w]`, between each frame and the next.

    Displacement maps are `[B, m - 1, 2, h, w]`; CMM is `[B, m, C, h, w]`, the last map zero. STM has one frame a segment and CMM
    compares segments: here a stack's m frames take their place, so that all cues compare the same pairs of frames.
    """

    def __init__(self, cue: Displacement | ChannelwiseMotion, *, frames: int) -> None:
        super().__init__()
        self.cue = cue
        self.frames = frames
        if isinstance(cue, ChannelwiseMotion):
            cue.segments = frames

    def forward(self, features: Tensor) -> Tensor:
        """Return the motion."""
        if isinstance(self.cue, ChannelwiseMotion):
            return self.cue(features.flatten(0, 1)).unflatten(0, (-1, self.frames))
        return self.cue(features[:, :-1].flatten(0, 1), features[:, 1:].flatten(0, 1)).unflatten(0, (-1, self.frames - 1))


@dataclass(frozen=True, kw_only=True)
class _Cue:
    """A cue's module, and what it is measured on."""

    name: str
    about: str
    module: nn.Module
    given: np.ndarray
    spec: ClipSpec
    engines: Sequence[tuple[str, str | None]] = ENGINES[:2]
    """PWTP and displacement maps stay in fp32 in every engine."""

    def method(self, runners: list[Runner], *, maps: int) -> Method:
        """Return the method: parts of the input run one after another."""
        given = self.given
        split = [replace(runner, run=runner.run and _one_by_one(runner.run)) for runner in runners]
        size = {"gmacs": _gmacs(self.module, given[:1]) * len(given), "parameters": _parameters(self.module)}
        return Method(name=self.name, about=self.about, maps=maps, given=given, runners=split, **size)


def methods_of(clip: np.ndarray, *, spec: ClipSpec, threads: int, folder: Path) -> list[Method]:
    """Return all cues and optical flows for a clip uint8 `[1, N, m, H, W, 3]` of `spec`, the cues full size, with random weights.

    Time does not depend on the weights. The cues' graphs are written into `folder`.
    """
    methods, maps = [], maps_per_clip(spec)
    for cue in _cues(clip, spec):
        graph = folder / f"{cue.name.replace(' ', '-')}.onnx"
        runners = cue_runners(cue.module, spec=cue.spec, threads=threads, graph=graph, engines=cue.engines)
        methods.append(cue.method(runners, maps=spec.segments if cue.name == "dynamic appearance" else maps))
        if isinstance(cue.module, nn.Sequential):
            layers, alone = cue.module
            features = _one_by_one(Eager(layers))(cue.given)
            about = "features given: the same without the layers before it, which the network runs anyway"
            bare = replace(cue, name=f"{cue.name} alone", about=about, module=alone, given=features)
            runners = [Runner("pytorch eager", "pytorch", "fp32", "runs", Eager(alone))]
            methods.append(bare.method([*runners, _feature_runner(alone, features[:1], threads, graph)], maps=maps))
    return [*methods, *opencv_flows(clip, threads=threads), raft(clip)]


def _cues(clip: np.ndarray, spec: ClipSpec) -> list[_Cue]:
    torch.manual_seed(0)
    frames, stack, stacks = spec.frames_per_segment, replace(spec, segments=1), clip.reshape(-1, 1, *clip.shape[2:])
    projection = PixelwiseTemporalProjection(frames)
    appearance = AppearanceRecognizer(spec=spec, backbone=nn.Identity(), head=nn.Identity(), projection=projection)
    conv1 = FirstLayers(Unit(3, STEM, kernel=7, stride=2), spec=stack)
    resnet = build_model("stm-r50", classes=2, spec=replace(spec, segments=2, frames_per_segment=1)).get_submodule("backbone")
    names = ("conv1", "bn1", "act1", "maxpool", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.act1")
    stem, motion = FirstLayers(*map(resnet.get_submodule, names), spec=stack), resnet.get_submodule("layer1.0.conv2.motion")
    assert isinstance(motion, ChannelwiseMotion)
    shared = "pixels to maps, with the layers that a network shares with it"
    # Features of a whole clip take gigabytes: cues of features get one stack after another.
    return [
        _Cue(
            name="PA",
            about="eight 7x7 filters on the difference of two frames (PAN); pixels to maps",
            module=CueOf(motion_model(spec)),
            given=clip,
            spec=spec,
            engines=ENGINES,
        ),
        _Cue(
            name="displacement map",
            about=f"conv1 of BN-Inception at half size, cost volume of 9 x 9 cells (Disentangling); {shared}",
            module=nn.Sequential(conv1, CueOfFeatures(Displacement(), frames=frames)).eval(),
            given=stacks,
            spec=stack,
        ),
        _Cue(
            name="dynamic appearance",
            about=f"PWTP: {frames} frames to one picture of what moved (Dynamic Appearance); pixels to pictures",
            module=CueOf(appearance.eval(), "appearance"),
            given=clip,
            spec=spec,
        ),
        _Cue(
            name="CMM",
            about=f"stem and first 1x1 convolution of ResNet-50, then the channel-wise motion module (STM); {shared}",
            module=nn.Sequential(stem, CueOfFeatures(motion, frames=frames)).eval(),
            given=stacks,
            spec=stack,
            engines=ENGINES,
        ),
    ]


def _gmacs(module: nn.Module, *inputs: np.ndarray) -> float:
    """Count the convolutions and matrix products of a module, in 10^9, without running it."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(module).to("meta")(*(torch.from_numpy(one).to("meta") for one in inputs))
    return counter.get_total_flops() / 2e9


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _one_by_one(run: Run) -> Run:
    return lambda stacks: np.concatenate([run(stacks[index : index + 1]) for index in range(len(stacks))])


def _feature_runner(cue: nn.Module, features: np.ndarray, threads: int, graph: Path) -> Runner:
    """Return OpenVINO of a module that takes features float32 `[1, K, C, h, w]`."""
    graph = graph.with_stem(f"{graph.stem}-alone")
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(cue, (torch.from_numpy(features),), dynamo=True, opset_version=OPSET, verbose=False)
    assert program is not None
    program.save(graph)
    return graph_runner(graph, "openvino", threads=threads)


def grey(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the luma of frames `[..., H, W, 3]`, as Pillow computes it: uint8 `[..., H, W]`."""
    flat = frames.reshape(-1, *frames.shape[-3:])
    return np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in flat]).reshape(frames.shape[:-1])


def opencv_flows(clip: np.ndarray, *, threads: int = 1) -> list[Method]:
    """Return OpenCV's TV-L1, Farneback and DIS, each with OpenCV's defaults, for a clip uint8 `[1, N, m, H, W, 3]`.

    Each runner maps grey frames `[1, N, m, H, W]` to the flow of every frame to the next, float32 `[1, N * (m - 1), 2, H, W]`: where each
    place of the first lies in the second, rows first. A flow that OpenCV lacks here has a status that says so.
    """
    names = ("TV-L1", "Farneback", "DIS medium", "DIS fast", "DIS ultrafast")
    given, maps = grey(clip), clip.shape[1] * (clip.shape[2] - 1)
    methods = []
    for name in names:
        about, status, run = "OpenCV", "runs", None
        try:
            cv2: Any = importlib.import_module("cv2")
            cv2.setNumThreads(threads)
            flow = _opencv_flow(cv2, name)
            numbers = {key[3:]: getattr(flow, key)() for key in dir(flow) if key.startswith("get") and key != "getDefaultName"}
            about = f"OpenCV {cv2.__version__}, its defaults: " + ", ".join(f"{key} {value:g}" for key, value in numbers.items())
            run = _flow_run(flow)
        except ModuleNotFoundError:
            status = f"not here: {REMEDY}"
        except ImportError as error:
            status = f"not here: OpenCV cannot be imported ({error})"
        except AttributeError:
            status = f"not here: this OpenCV has no contrib modules; {REMEDY} in its place"
        runner = Runner("opencv", "opencv", "fp32", status, run)
        methods.append(Method(name=name, about=about, maps=maps, given=given, runners=[runner]))
    return methods


def _opencv_flow(cv2: Any, name: str) -> Any:
    if name == "TV-L1":
        return cv2.optflow.DualTVL1OpticalFlow_create()
    if name == "Farneback":
        return cv2.FarnebackOpticalFlow_create()
    return cv2.DISOpticalFlow_create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{name.removeprefix('DIS ').upper()}"))


def _flow_run(flow: Any) -> Run:
    def run(stacks: np.ndarray) -> np.ndarray:
        pairs = [(stack[place], stack[place + 1]) for stack in stacks[0] for place in range(len(stack) - 1)]
        flows = np.stack([flow.calc(before, after, None) for before, after in pairs])
        return np.moveaxis(flows, -1, 1)[None, :, ::-1]

    return run


def raft(clip: np.ndarray) -> Method:
    """Return RAFT-small with random weights, for its speed alone; input and output as those of `opencv_flows`, but in colour."""
    about = f"torchvision RAFT-small, {_UPDATES} flow updates, random weights: for its speed alone"
    pairs, (height, width) = clip.shape[1] * (clip.shape[2] - 1), clip.shape[3:5]
    if min(height, width) < _RAFT_LEAST or height % 8 or width % 8:
        status = f"not measured: RAFT takes frames of at least {_RAFT_LEAST} x {_RAFT_LEAST}, in steps of 8; these are {height} x {width}"
        runners = [Runner("pytorch eager", "pytorch", "fp32", status)]
        return Method(name="RAFT-small", about=about, maps=pairs, given=clip, runners=runners)
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    network = raft_small(weights=None, progress=False).eval()
    frame = np.zeros((1, 3, height, width), np.float32)

    def run(stacks: Tensor) -> Tensor:
        # A stack at a time: the correlations of a whole clip would take gigabytes.
        frames = (stacks[0].float() / 127.5 - 1).movedim(-1, -3)
        return torch.cat([network(stack[:-1], stack[1:], num_flow_updates=_UPDATES)[-1] for stack in frames]).flip(1)[None]

    runners = [Runner("pytorch eager", "pytorch", "fp32", "runs", Eager(run))]
    size = {"gmacs": pairs * _gmacs(network, frame, frame), "parameters": _parameters(network)}
    return Method(name="RAFT-small", about=about, maps=pairs, given=clip, runners=runners, **size)
