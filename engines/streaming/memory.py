"""The online form of a graph: it takes the newest frame and a memory of earlier frames, and returns scores and the next memory.

Its inputs are `frame`, uint8 `[B, H, W, 3]`, and `memory`, uint8 `[B, N - 1, H, W, 3]`, the oldest first; its outputs `scores`,
float32 `[B, classes]`, and `next_memory`, of memory's shape and type, without the oldest frame and with the newest. B is 1 for one
stream, more for several crops or cameras. A graph without a memory has one input, `clip`. (Streaming graphs: `state.py`.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from flowless.cuda_driver import Gpu
from flowless.engines.device.device_array import DeviceArray, empty
from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec

FRAME, MEMORY = "frame", "memory"
SCORES, NEXT_MEMORY = "scores", "next_memory"


class Graph(Protocol):
    """A loaded graph with named inputs and outputs."""

    device: str
    """Where it runs: `CPU` or `GPU`."""
    inputs: tuple[str, ...]
    """Names of its inputs, in the graph's order."""
    outputs: tuple[str, ...]
    """Names of its outputs, in the graph's order."""

    @property
    def gpu(self) -> Gpu | None:
        """The GPU whose memory `run_on_device` takes; None where it runs on the CPU."""
        ...

    @property
    def fallback(self) -> str | None:
        """Why it does not run on the GPU of this machine; None where it does, where there is no GPU, or where the library uses none."""
        ...

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name, as new arrays; the first axis of every input is the batch B."""
        ...

    def run_on_device(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: int | None) -> None:
        """Compute outputs into arrays that lie where it runs, from inputs that do.

        Args:
            inputs: By name.
            outputs: By name; float32 scores and the next memories or states, of the inputs' batch B.
            stream: Address of the CUDA stream in whose order it runs; None: its own, and the outputs are complete on return.
        """
        ...


def feeds_of(clips: np.ndarray, inputs: Sequence[str]) -> dict[str, np.ndarray]:
    """Return clips uint8 `[B, N, m, H, W, 3]` as a graph's inputs: for an online graph the last frame and the frames before it."""
    if MEMORY not in inputs:
        return {inputs[0]: clips}
    return {FRAME: np.ascontiguousarray(clips[:, -1, 0]), MEMORY: np.ascontiguousarray(clips[:, :-1, 0])}


def first_memory(frame: np.ndarray, segments: int) -> np.ndarray:
    """Return the memory for the first frame of a stream, uint8 `[B, H, W, 3]`: that frame, repeated."""
    return np.repeat(frame[:, None], segments - 1, axis=1)


def refuse_several_frames(model: str, spec: ClipSpec) -> None:
    """Raise `FlowlessError` for a model with several frames per segment, which cannot take a stream one frame at a time."""
    if spec.frames_per_segment != 1:
        raise FlowlessError(
            f"{model}: its segments have {spec.frames_per_segment} frames; online recognition takes one new frame at a time, so it needs a "
            f"model whose segments have 1, such as stm, tsm, tsn or pan-rgb."
        )


class OnlineBackend:
    """A backend over an online graph. It has no state: the caller keeps the memory between calls."""

    def __init__(self, graph: Graph, *, classes: int) -> None:
        self._graph, self._classes = graph, classes
        self.device, self.fallback = graph.device, graph.fallback

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        """Return float32 scores `[B, classes]` of uint8 clips `[B, N, 1, H, W, 3]`: the scores at their last frame."""
        return self._graph.run(feeds_of(clip, (FRAME, MEMORY)))[SCORES].astype(np.float32, copy=False)

    def step(self, frame: np.ndarray, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return float32 scores `[B, classes]` and the next memory, for a frame and a memory."""
        outputs = self._graph.run({FRAME: frame, MEMORY: memory})
        return outputs[SCORES].astype(np.float32, copy=False), outputs[NEXT_MEMORY]

    def on_device(self, clip: DeviceArray, stream: int | None) -> DeviceArray:
        """Return the scores of `__call__` where the graph runs; clips one after another, since their frames are not one array."""
        segments, picture = clip.shape[1], clip.shape[3:]
        scores = empty((len(clip), self._classes), np.float32, self.gpu)
        memories = (1, segments - 1, *picture)
        unused = empty(memories, np.uint8, self.gpu)
        for row in range(len(clip)):
            first, last = row * segments, (row + 1) * segments - 1
            inputs = {
                FRAME: clip.part(last * math.prod(picture), (1, *picture)),
                MEMORY: clip.part(first * math.prod(picture), memories),
            }
            self._graph.run_on_device(inputs, {SCORES: scores.rows(row, row + 1), NEXT_MEMORY: unused}, stream)
        return scores

    def step_on_device(self, frame: DeviceArray, memory: DeviceArray, stream: int | None) -> tuple[DeviceArray, DeviceArray]:
        """Return the results of `step` where the graph runs."""
        scores = empty((len(frame), self._classes), np.float32, self.gpu)
        following = empty(memory.shape, np.uint8, self.gpu)
        self._graph.run_on_device({FRAME: frame, MEMORY: memory}, {SCORES: scores, NEXT_MEMORY: following}, stream)
        return scores, following

    @property
    def gpu(self) -> Gpu | None:
        """The GPU whose memory it takes; None where it runs on the CPU."""
        return self._graph.gpu

    def frame_by_frame(self, clip: np.ndarray) -> np.ndarray:
        """Return the scores of `__call__`, computed by feeding each clip's N frames one by one with the memories that the graph returns."""
        frames = np.ascontiguousarray(clip[:, :, 0].swapaxes(0, 1))
        memory, scores = first_memory(frames[0], len(frames)), np.empty(0, np.float32)
        for frame in frames:
            scores, memory = self.step(frame, memory)
        return scores
