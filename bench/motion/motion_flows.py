"""Optical flow to measure motion cues beside: OpenCV's TV-L1, Farneback and DIS, and torchvision's RAFT."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowless.bench.lib.networks import Eager
from flowless.bench.lib.runners import Runner
from flowless.bench.motion.motion_cues import Method

#: From two grey frames uint8 `[H, W]` to where each place of the first lies in the second: float32 `[H, W, 2]`, columns first.
FlowOfPair = Callable[[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]

REMEDY = "pip install 'flowless[bench]'"
#: What iterates until it is done has no count of operations that could be read off; the papers give none for TV-L1 either.
_ITERATES = (
    "not counted: it iterates until the flow changes by less than epsilon, up to {levels} levels x {warps} warps x {outer} x {inner} "
    "iterations, and does not tell how often it did"
)
_NOT_COUNTED = "not counted: OpenCV does not count, and its passes depend on the frame's size"
#: RAFT's flow updates, torchvision's own number.
_UPDATES = 12
#: RAFT refuses smaller frames: its coarsest level of features would have nothing to compare.
_RAFT_LEAST = 128


@dataclass(frozen=True, kw_only=True)
class FlowMethod:
    """One way to compute optical flow; `pair` is None where it is not here, and `status` says why."""

    name: str
    about: str
    status: str = "runs"
    pair: FlowOfPair | None = None
    counted: str = _NOT_COUNTED


def opencv_flows() -> list[FlowMethod]:
    """Return TV-L1, Farneback and DIS, each by OpenCV's own defaults."""
    names = ("TV-L1", "Farneback", "DIS medium", "DIS fast", "DIS ultrafast")
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError as error:
        status = f"not here: {REMEDY}" if isinstance(error, ModuleNotFoundError) else f"not here: OpenCV cannot be imported ({error})"
        return [FlowMethod(name=name, about="OpenCV", status=status) for name in names]
    dis = [_dis(cv2, preset) for preset in ("medium", "fast", "ultrafast")]
    farneback = cv2.FarnebackOpticalFlow_create()
    about = (
        f"OpenCV {cv2.__version__} Farneback, its defaults: {farneback.getNumLevels()} levels, window {farneback.getWinSize()}, "
        f"{farneback.getNumIters()} iterations"
    )
    return [_tv_l1(cv2), FlowMethod(name="Farneback", about=about, pair=_calc(farneback)), *dis]


def _tv_l1(cv2: Any) -> FlowMethod:
    if not hasattr(cv2, "optflow"):
        return FlowMethod(name="TV-L1", about="OpenCV", status=f"not here: this OpenCV has no contrib modules; {REMEDY} in its place")
    flow = cv2.optflow.DualTVL1OpticalFlow_create()
    limits = {
        "levels": flow.getScalesNumber(),
        "warps": flow.getWarpingsNumber(),
        "outer": flow.getOuterIterations(),
        "inner": flow.getInnerIterations(),
    }
    about = f"OpenCV {cv2.__version__} contrib DualTVL1, its defaults: epsilon {flow.getEpsilon():g}, lambda {flow.getLambda():g}"
    return FlowMethod(name="TV-L1", about=about, pair=_calc(flow), counted=_ITERATES.format(**limits))


def _dis(cv2: Any, preset: str) -> FlowMethod:
    flow = cv2.DISOpticalFlow_create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{preset.upper()}"))
    about = (
        f"OpenCV {cv2.__version__} DIS, preset {preset}: patches of {flow.getPatchSize()} every {flow.getPatchStride()} pixels, "
        f"finest scale {flow.getFinestScale()}"
    )
    return FlowMethod(name=f"DIS {preset}", about=about, pair=_calc(flow))


def _calc(flow: Any) -> FlowOfPair:
    return lambda before, after: flow.calc(before, after, None)


def grey(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the luma of frames `[..., H, W, 3]`, as Pillow computes it: uint8 `[..., H, W]`."""
    flat = frames.reshape(-1, *frames.shape[-3:])
    return np.stack([np.asarray(Image.fromarray(frame).convert("L")) for frame in flat]).reshape(frames.shape[:-1])


def flows_of(pair: FlowOfPair, stacks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the flow of every grey frame of stacks `[1, N, m, H, W]` and the next: `[1, N * (m - 1), 2, H, W]`, rows first."""
    pairs = [(stack[place], stack[place + 1]) for stack in stacks[0] for place in range(len(stack) - 1)]
    flow = np.stack([pair(before, after) for before, after in pairs])
    return np.moveaxis(flow, -1, 1)[None, :, ::-1]


def flow_methods(clip: np.ndarray) -> list[Method]:
    """Return OpenCV's flows and RAFT, ready for the pairs of frames of a clip uint8 `[1, N, m, H, W, 3]`."""
    stacks, pairs = grey(clip), clip.shape[1] * (clip.shape[2] - 1)
    methods = []
    for flow in opencv_flows():
        run = None if flow.pair is None else lambda stacks, pair=flow.pair: flows_of(pair, stacks)
        runner = Runner("opencv", "opencv", "fp32", flow.status, run)
        methods.append(Method(name=flow.name, about=flow.about, maps=pairs, given=stacks, runners=[runner], counted=flow.counted))
    return [*methods, _raft(clip, pairs)]


def _raft(clip: np.ndarray, pairs: int) -> Method:
    """Return RAFT-small, with random weights: for its speed alone."""
    about = f"torchvision RAFT-small, {_UPDATES} flow updates, random weights: for its speed alone"
    method: dict[str, Any] = {"name": "RAFT-small", "about": about, "maps": pairs, "given": clip}
    name = ("pytorch eager", "pytorch", "fp32")
    height, width = clip.shape[3:5]
    if min(height, width) < _RAFT_LEAST or height % 8 or width % 8:
        status = f"not measured: RAFT takes frames of at least {_RAFT_LEAST} x {_RAFT_LEAST}, in steps of 8; these are {height} x {width}"
        return Method(**method, runners=[Runner(*name, status)], counted="not counted: it does not run on these frames")
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    network = raft_small(weights=None, progress=False).eval()
    with torch.device("meta"):
        twin, frame = raft_small(weights=None, progress=False).eval(), torch.zeros(1, 3, height, width)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            twin(frame, frame, num_flow_updates=_UPDATES)

    def flow(stacks: torch.Tensor) -> torch.Tensor:
        # A stack at a time: the correlations of a whole clip would be gigabytes.
        frames = (stacks[0].float() / 127.5 - 1).movedim(-1, -3)
        found = [network(stack[:-1], stack[1:], num_flow_updates=_UPDATES)[-1] for stack in frames]
        return torch.cat(found).flip(1)[None]

    return Method(
        **method,
        runners=[Runner(*name, "runs", Eager(flow))],
        gmacs=pairs * counter.get_total_flops() / 2e9,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        counted="convolutions and matrix products, as PyTorch's FlopCounterMode sees them",
    )


@contextmanager
def opencv_threads(threads: int) -> Iterator[None]:
    """Give OpenCV `threads` threads for the block, where it is here."""
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError:
        yield
        return
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
