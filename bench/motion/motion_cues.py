"""The four systems' motion cues as modules by themselves, from pixels to maps, with what each costs."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from flowless.bench.lib.networks import Eager
from flowless.bench.lib.runners import Run, Runner
from flowless.bench.motion.motion_maps import ENGINES, EXACT_ENGINES, CueOf, cue_runners, maps_per_clip, motion_model
from flowless.engines.backends.backend import open_backend, why_not
from flowless.engines.bundle.manifest import Artefact
from flowless.errors import FlowlessError
from flowless.export.graph.export_graph import OPSET
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models import AppearanceRecognizer, DisentanglingRecognizer, FusedRecognizer, MotionRecognizer, Recognizer, build_model
from flowless.train.models.backbones.bn_inception import STEM, Unit
from flowless.train.models.flops import pa_macs, pa_parameters, projection_macs
from flowless.train.models.layers.displacement import Displacement
from flowless.train.models.layers.stm_block import ChannelwiseMotion
from flowless.train.models.layers.temporal_projection import PixelwiseTemporalProjection, enopr

#: Steps in which an untrained PWTP is fitted to the frames that are shown: its loss has fallen to a twentieth by then.
STEPS = 40


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to see motion, and what it costs for one clip."""

    name: str
    about: str
    maps: int
    """Motion maps of one clip."""
    runners: list[Runner]
    """What runs it."""
    given: np.ndarray
    """What the runners are given: pixels uint8 `[1, N, m, H, W, 3]`, stacks of them `[N, 1, m, H, W, 3]`, or features."""
    gmacs: float | None = None
    """Multiplications with additions for one clip, in 10^9; what papers call FLOPs."""
    parameters: int | None = None
    counted: str = ""
    """How `gmacs` was counted, or why it was not."""


class Features(nn.Module):
    """A network's first layers: uint8 `[B, N, m, H, W, 3]` to `[B, N * m, C, h, w]`."""

    def __init__(self, layers: nn.Module, *, spec: ClipSpec) -> None:
        super().__init__()
        self.pixels = Recognizer(spec=spec)
        self.layers = layers

    def forward(self, clip: Tensor) -> Tensor:
        """Return each frame's features."""
        spec = self.pixels.spec
        frames = self.pixels.normalise(self.pixels.as_frames(clip)).flatten(0, 2)
        return self.layers(frames).unflatten(0, (-1, spec.segments * spec.frames_per_segment))


class DisplacementOfFeatures(nn.Module):
    """Displacement maps of every frame and the next: `[B, N * m, C, h, w]` to `[B, N * (m - 1), 2, h, w]`."""

    def __init__(self, measure: Displacement, *, spec: ClipSpec) -> None:
        super().__init__()
        self.measure = measure
        self.spec = spec

    def forward(self, features: Tensor) -> Tensor:
        """Return the maps, rows first, in cells."""
        stacks = features.flatten(0, 1).unflatten(0, (-1, self.spec.frames_per_segment))
        maps = self.measure(stacks[:, :-1].flatten(0, 1), stacks[:, 1:].flatten(0, 1))
        return maps.unflatten(0, (-1, self.spec.segments * (self.spec.frames_per_segment - 1)))


class MotionOfFeatures(nn.Module):
    """CMM between a frame and the next: `[B, N * m, C, h, w]` to `[B, N * m, C, h, w]`, a stack's last map zero.

    STM has one frame a segment, and CMM compares segments. Here a stack's m frames stand for them: the same pairs of frames as
    for every other cue, and the same arithmetic.
    """

    def __init__(self, motion: ChannelwiseMotion, *, spec: ClipSpec) -> None:
        super().__init__()
        self.motion = copy.deepcopy(motion)
        self.motion.segments = spec.frames_per_segment
        self.spec = spec

    def forward(self, features: Tensor) -> Tensor:
        """Return the features' motion."""
        return self.motion(features.flatten(0, 1)).unflatten(0, (-1, self.spec.segments * self.spec.frames_per_segment))


def our_methods(clip: np.ndarray, *, spec: ClipSpec, threads: int, folder: Path) -> list[Method]:
    """Return PA, displacement maps, dynamic appearance and CMM, full size, with random weights: time does not depend on them.

    Args:
        clip: uint8 `[1, N, m, H, W, 3]`, the frames that all are given.
        spec: What that clip is.
        threads: CPU threads of each.
        folder: Where graphs are written.
    """
    pairs, stack = maps_per_clip(spec), replace(spec, segments=1)
    opened = partial(cue_runners, spec=spec, threads=threads)
    appearance = _appearance(spec)
    projection = appearance.model.get_submodule("projection")
    assert isinstance(projection, PixelwiseTemporalProjection)
    return [
        Method(
            name="PA",
            about="eight 7x7 filters on the difference of two frames (PAN); pixels to maps",
            maps=pairs,
            given=clip,
            runners=opened(CueOf(motion_model(spec)), graph=folder / "pa.onnx"),
            gmacs=pa_macs(spec) / 1e9,
            parameters=pa_parameters(),
            counted="by formula, as this code computes it: a stack's m - 1 differences are convolved; the paper convolves its m frames",
        ),
        *_staged(
            ("displacement map", "conv1 of BN-Inception at half size, cost volume of 9 x 9 cells (Disentangling)"),
            *_displacement(stack),
            (clip, threads, folder / "displacement.onnx"),
        ),
        Method(
            name="dynamic appearance",
            about=f"PWTP: {spec.frames_per_segment} frames to one picture of what moved (Dynamic Appearance); pixels to pictures",
            maps=spec.segments,
            given=clip,
            runners=opened(appearance, graph=folder / "appearance.onnx", engines=EXACT_ENGINES),
            gmacs=spec.segments * projection_macs(projection, height=spec.height, width=spec.width) / 1e9,
            parameters=sum(parameter.numel() for parameter in projection.parameters()),
            counted="by formula, as its paper counts: without the upsampling and the projection itself, a few products a pixel",
        ),
        *_staged(
            ("CMM", "stem and first 1x1 convolution of ResNet-50, then the channel-wise motion module (STM)"),
            *_channelwise_motion(stack),
            (clip, threads, folder / "cmm.onnx"),
        ),
    ]


def random_cues(spec: ClipSpec) -> dict[str, nn.Module]:
    """Return all four cues with random weights, each a module that takes clips of `spec`."""
    return {
        "PA": CueOf(motion_model(spec)),
        "displacement map": nn.Sequential(*_displacement(spec)),
        "dynamic appearance": _appearance(spec),
        "CMM": nn.Sequential(*_channelwise_motion(spec)),
    }


def fit_projection(cue: nn.Module, stacks: np.ndarray) -> None:
    """Teach a dynamic appearance with random weights what stands still, by PWTP's own loss (Eq. 8), which needs no labels.

    Args:
        cue: As `random_cues` makes it.
        stacks: uint8 `[K, T, H, W, 3]`, the frames to learn from.
    """
    assert isinstance(cue, CueOf)
    assert isinstance(cue.model, AppearanceRecognizer)
    model = cue.model
    # Every second pixel: what stands still does so at half the size.
    frames = model.normalise(model.as_frames(torch.from_numpy(stacks[:, : model.projection.frames, ::2, ::2])))
    optimiser = torch.optim.AdamW(model.projection.parameters(), lr=0.01)
    model.train()
    for _ in range(STEPS):
        optimiser.zero_grad()
        enopr(model.projection.residual(frames)).backward()
        optimiser.step()
    model.eval()


def _displacement(spec: ClipSpec) -> tuple[Features, DisplacementOfFeatures]:
    torch.manual_seed(0)
    return Features(Unit(3, STEM, kernel=7, stride=2), spec=spec).eval(), DisplacementOfFeatures(Displacement(), spec=spec).eval()


def _appearance(spec: ClipSpec) -> CueOf:
    torch.manual_seed(0)
    projection = PixelwiseTemporalProjection(spec.frames_per_segment)
    model = AppearanceRecognizer(spec=spec, backbone=nn.Identity(), head=nn.Identity(), projection=projection)
    return CueOf(model.eval(), "appearance")


def _channelwise_motion(spec: ClipSpec) -> tuple[Features, MotionOfFeatures]:
    torch.manual_seed(0)
    model = build_model("stm-r50", classes=2, spec=replace(spec, segments=2, frames_per_segment=1))
    return _stm_stages(model, spec=spec)


def cue_of_model(model: Recognizer, *, spec: ClipSpec) -> tuple[str, nn.Module]:
    """Return which of the four cues a trained model has, and that cue as a module for clips of `spec`.

    Raises:
        FlowlessError: The model has none, or its PWTP projects another number of frames.
    """
    if isinstance(model, MotionRecognizer | FusedRecognizer):
        return "PA", CueOf(_for_clips(model.branches["pa"] if isinstance(model, FusedRecognizer) else model, spec))
    if isinstance(model, DisentanglingRecognizer) and model.has_displacement:
        stages = Features(model.low, spec=spec), DisplacementOfFeatures(model.measure, spec=spec)
        return "displacement map", nn.Sequential(*stages)
    if isinstance(model, AppearanceRecognizer):
        return "dynamic appearance", CueOf(_for_clips(model, replace(spec, frames_per_segment=model.projection.frames)), "appearance")
    if any(isinstance(module, ChannelwiseMotion) for module in model.modules()):
        return "CMM", nn.Sequential(*_stm_stages(model, spec=spec))
    raise FlowlessError(
        "the model has no motion cue. Give a checkpoint of PAN, of STM, of Dynamic Appearance with da_input dynamic-appearance, or of "
        "Disentangling with motion or warped changes."
    )


def _for_clips(model: nn.Module, spec: ClipSpec) -> nn.Module:
    assert isinstance(model, Recognizer)
    model.spec = replace(spec, mean=model.spec.mean, std=model.spec.std)
    return model


def _stm_stages(model: Recognizer, *, spec: ClipSpec) -> tuple[Features, MotionOfFeatures]:
    """Cut what the first STM block's CMM needs, and CMM, out of an STM network."""
    backbone = model.eval().get_submodule("backbone")
    block = next(
        block for block in backbone.modules() if isinstance(getattr(getattr(block, "conv2", None), "motion", None), ChannelwiseMotion)
    )
    before: list[Any] = [backbone.get_submodule(name) for name in ("conv1", "bn1", "act1", "maxpool")]
    before += [block.get_submodule(name) for name in ("conv1", "bn1", "act1")]
    motion = block.get_submodule("conv2.motion")
    assert isinstance(motion, ChannelwiseMotion)
    return Features(nn.Sequential(*before), spec=spec).eval(), MotionOfFeatures(motion, spec=spec).eval()


def _staged(names: tuple[str, str], before: nn.Module, cue: nn.Module, how: tuple[np.ndarray, int, Path]) -> list[Method]:
    """Return a cue of features twice: from pixels, with the first layers that it needs, and alone, with the features at hand.

    Both are made for one stack, and given a clip's stacks one after another: features of a whole clip are gigabytes.
    """
    name, about = names
    clip, threads, graph = how
    stacks = clip.reshape(-1, 1, *clip.shape[2:])
    spec = ClipSpec(
        segments=1, frames_per_segment=clip.shape[2], height=clip.shape[3], width=clip.shape[4], short_side=max(clip.shape[3:5])
    )
    features = _one_by_one(Eager(before))(stacks)
    engines = ENGINES if name == "CMM" else EXACT_ENGINES
    whole = nn.Sequential(before, cue)
    parts = (
        (name, f"{about}; pixels to maps, with the layers that a network shares with it", whole, stacks),
        (f"{name} alone", "features given: the same without the layers before it, which the network runs anyway", cue, features),
    )
    runners = (
        cue_runners(whole, spec=spec, threads=threads, graph=graph, engines=engines),
        _feature_runners(cue, features[:1], threads=threads, graph=graph.with_stem(f"{graph.stem}-alone")),
    )
    return [
        Method(
            name=part,
            about=told,
            maps=len(stacks) * (spec.frames_per_segment - 1),
            runners=[replace(runner, run=runner.run and _one_by_one(runner.run)) for runner in opened],
            given=given,
            gmacs=_macs(module, given) / 1e9,
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            counted="convolutions and matrix products, as PyTorch's FlopCounterMode sees them",
        )
        for (part, told, module, given), opened in zip(parts, runners, strict=True)
    ]


def _one_by_one(run: Run) -> Run:
    return lambda stacks: np.concatenate([run(stacks[index : index + 1]) for index in range(len(stacks))])


def _feature_runners(cue: nn.Module, features: np.ndarray, *, threads: int, graph: Path) -> list[Runner]:
    """Return PyTorch eager and OpenVINO of a module that takes features float32 `[1, K, C, h, w]`."""
    runners = [Runner("pytorch eager", "pytorch", "fp32", "runs", Eager(cue))]
    if reason := why_not("openvino"):
        return [*runners, Runner("openvino fp32", "openvino", "fp32", reason)]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(cue, (torch.from_numpy(features),), dynamo=True, opset_version=OPSET, verbose=False)
    assert program is not None
    program.save(graph)
    artefact = Artefact(target="openvino", precision="fp32", status="built, not run here", files=(graph.name,))
    return [*runners, Runner("openvino fp32", "openvino", "fp32", "runs", open_backend(artefact, graph, classes=1, threads=threads))]


def _macs(module: nn.Module, given: np.ndarray) -> int:
    """Count a module's multiplications for all that it is given, without running it."""
    twin = copy.deepcopy(module).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(torch.from_numpy(given[:1]).to("meta"))
    return counter.get_total_flops() // 2 * len(given)
