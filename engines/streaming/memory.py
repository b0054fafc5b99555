"""The online form of a graph: the newest frame and the frames before it in, scores and the next call's memory out.

Its inputs are `frame`, uint8 `[B, H, W, 3]`, and `memory`, uint8 `[B, N - 1, H, W, 3]`, the oldest first; its outputs `scores`,
float32 `[B, classes]`, and `next_memory`, of memory's shape and type, without the oldest frame and with the newest. B is 1 for a
film, more for several crops or cameras side by side. A graph that keeps nothing has one input, `clip`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec

FRAME, MEMORY = "frame", "memory"
SCORES, NEXT_MEMORY = "scores", "next_memory"


class Graph(Protocol):
    """A loaded graph, by the names of what goes in and comes out."""

    device: str
    """Where it runs, for people."""
    inputs: tuple[str, ...]
    """Names of its inputs, in the graph's order."""

    @property
    def fallback(self) -> str | None:
        """Why it is not on the GPU that is here; None where it is, and where there is none or the library has no use for it."""
        ...

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name, arrays of their own; each input's first axis is the batch B, the same for all."""
        ...


def feeds_of(clips: np.ndarray, inputs: Sequence[str]) -> dict[str, np.ndarray]:
    """Return clips uint8 `[B, N, m, H, W, 3]` as a graph's inputs: of an online graph, the last frame and those before it."""
    if MEMORY not in inputs:
        return {inputs[0]: clips}
    return {FRAME: np.ascontiguousarray(clips[:, -1, 0]), MEMORY: np.ascontiguousarray(clips[:, :-1, 0])}


def first_memory(frame: np.ndarray, segments: int) -> np.ndarray:
    """Return the memory before the first frame of a film, uint8 `[B, H, W, 3]`: as if it had stood still until then."""
    return np.repeat(frame[:, None], segments - 1, axis=1)


def refuse_several_frames(model: str, spec: ClipSpec) -> None:
    """Refuse a model that does not see a film one frame at a time."""
    if spec.frames_per_segment != 1:
        raise FlowlessError(
            f"{model}: its segments have {spec.frames_per_segment} frames; online recognition sees one new frame at a time, so it takes a "
            f"model whose segments have 1, such as stm, tsm, tsn or pan-rgb."
        )


class OnlineBackend:
    """A backend over an online graph. It keeps nothing itself: whoever shows the film holds its memory."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.device, self.fallback = graph.device, graph.fallback

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        """Return float32 scores `[B, classes]` of uint8 clips `[B, N, 1, H, W, 3]`: of their last frame, after the others."""
        return self._graph.run(feeds_of(clip, (FRAME, MEMORY)))[SCORES].astype(np.float32, copy=False)

    def step(self, frame: np.ndarray, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return float32 scores `[B, classes]` and the next memory, of a frame and a memory as the graph takes them."""
        answer = self._graph.run({FRAME: frame, MEMORY: memory})
        return answer[SCORES].astype(np.float32, copy=False), answer[NEXT_MEMORY]

    def frame_by_frame(self, clip: np.ndarray) -> np.ndarray:
        """Return what `__call__` does, by showing each clip as a film of N frames: every memory is the graph's own."""
        frames = np.ascontiguousarray(clip[:, :, 0].swapaxes(0, 1))
        memory, scores = first_memory(frames[0], len(frames)), np.empty(0, np.float32)
        for frame in frames:
            scores, memory = self.step(frame, memory)
        return scores
