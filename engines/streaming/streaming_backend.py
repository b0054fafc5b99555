"""Running a streaming graph (`state.py`): one frame with the state of its stream, or whole clips segment by segment."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from flowless.cuda_driver import Gpu
from flowless.engines.device.device_array import DeviceArray, empty, place
from flowless.engines.streaming.memory import FRAME, SCORES, Graph
from flowless.engines.streaming.state import FRAMES, NEXT, STARTED, StateTensor
from flowless.errors import FlowlessError

#: Inputs or outputs of a graph by name.
Arrays = dict[str, np.ndarray]


def zero_state(state: Sequence[StateTensor], batch: int) -> Arrays:
    """Return the state at the start of `batch` streams, `[batch, *shape]` by name."""
    return {tensor.name: np.zeros((batch, *tensor.shape), tensor.dtype) for tensor in state}


def next_state(state: Sequence[StateTensor], outputs: Mapping[str, np.ndarray]) -> Arrays:
    """Return the state for the next frame from a graph's outputs."""
    return {tensor.name: outputs[NEXT + tensor.name] for tensor in state}


def clip_steps(
    clips: np.ndarray, state: Sequence[StateTensor], run: Callable[[Arrays], Mapping[str, np.ndarray]]
) -> Iterator[tuple[Arrays, Mapping[str, np.ndarray]]]:
    """Run a streaming graph over clips, one step for each segment: the scores of the last step are the clips'.

    A step's frame is its segment's last, and the state's `frames` are the segment's others: they replace what the step before returned,
    since a clip's segments lie apart.

    Args:
        clips: uint8 `[B, N, m, H, W, 3]`.
        state: The graph's state.
        run: Computes the graph's outputs from its inputs.

    Yields:
        The inputs and the outputs of each step, by name.
    """
    kept = zero_state(state, len(clips))
    for segment in range(clips.shape[1]):
        feeds = {FRAME: np.ascontiguousarray(clips[:, segment, -1]), **kept}
        if FRAMES in feeds:
            feeds[FRAMES] = np.ascontiguousarray(clips[:, segment, :-1])
        if not segment:
            feeds[STARTED] = np.tile(np.array([0, 1], np.float32), (len(clips), 1))  # no features yet, but the frames are there
        outputs = run(feeds)
        yield feeds, outputs
        kept = next_state(state, outputs)


class StreamingBackend:
    """A backend over a streaming graph. It keeps nothing between calls: the caller has the state.

    Args:
        graph: The graph.
        classes: Scores per frame.
        state: What the manifest says that the graph keeps.
        path: The engine's file, for messages.

    Raises:
        FlowlessError: The graph has other inputs.
    """

    def __init__(self, graph: Graph, *, classes: int, state: Sequence[StateTensor], path: Path) -> None:
        self._graph, self._classes, self.state = graph, classes, tuple(state)
        self.device, self.fallback = graph.device, graph.fallback
        wanted = sorted([FRAME, *(tensor.name for tensor in state)])
        if sorted(graph.inputs) != wanted:
            raise FlowlessError(
                f"{path}: its inputs are {', '.join(sorted(graph.inputs))}, and the bundle's manifest has {', '.join(wanted)}. "
                "Copy the bundle again, or export the model again."
            )

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        """Return float32 scores `[B, classes]` of uint8 clips `[B, N, m, H, W, 3]`, computed in N steps."""
        scores = np.empty(0, np.float32)
        for _, outputs in clip_steps(clip, self.state, self._graph.run):
            scores = outputs[SCORES]
        return scores.astype(np.float32, copy=False)

    def step(self, frame: np.ndarray, memory: Arrays) -> tuple[np.ndarray, Arrays]:
        """Return float32 scores `[B, classes]` and the next state, for a frame uint8 `[B, H, W, 3]` and a state."""
        outputs = self._graph.run({FRAME: frame, **memory})
        return outputs[SCORES].astype(np.float32, copy=False), next_state(self.state, outputs)

    def film(self, frames: np.ndarray) -> np.ndarray:
        """Return the scores at every frame of a stream, float32 `[T, classes]`, for frames uint8 `[T, H, W, 3]`."""
        memory, scores = zero_state(self.state, 1), []
        for frame in frames:
            now, memory = self.step(np.ascontiguousarray(frame[None]), memory)
            scores.append(now[0])
        return np.stack(scores)

    def on_device(self, clip: DeviceArray, stream: int | None) -> DeviceArray:
        """Return the scores of `__call__` where the graph runs; clips one after another, since their frames are not one array."""
        segments, several, *picture = clip.shape[1:]
        scores = empty((len(clip), self._classes), np.float32, self.gpu)
        pixels = math.prod(picture)
        for row in range(len(clip)):
            memory = self.zeros_on_device(1) | {STARTED: place(np.array([[0, 1]], np.float32), self.gpu)}
            for segment in range(segments):
                first = (row * segments + segment) * several * pixels
                if FRAMES in memory:
                    memory[FRAMES] = clip.part(first, (1, several - 1, *picture))
                frame = clip.part(first + (several - 1) * pixels, (1, *picture))
                memory = self._run_on_device(frame, memory, scores.rows(row, row + 1), stream)
        return scores

    def step_on_device(
        self, frame: DeviceArray, memory: dict[str, DeviceArray], stream: int | None
    ) -> tuple[DeviceArray, dict[str, DeviceArray]]:
        """Return the results of `step` where the graph runs."""
        scores = empty((len(frame), self._classes), np.float32, self.gpu)
        return scores, self._run_on_device(frame, memory, scores, stream)

    def zeros_on_device(self, batch: int) -> dict[str, DeviceArray]:
        """Return the state at the start of `batch` streams where the graph runs."""
        return {name: place(value, self.gpu) for name, value in zero_state(self.state, batch).items()}

    def _run_on_device(
        self, frame: DeviceArray, memory: dict[str, DeviceArray], scores: DeviceArray, stream: int | None
    ) -> dict[str, DeviceArray]:
        following = {tensor.name: empty((len(frame), *tensor.shape), tensor.dtype, self.gpu) for tensor in self.state}
        outputs = {SCORES: scores, **{NEXT + name: array for name, array in following.items()}}
        self._graph.run_on_device({FRAME: frame, **memory}, outputs, stream)
        return following

    @property
    def gpu(self) -> Gpu | None:
        """The GPU whose memory it takes; None where it runs on the CPU."""
        return self._graph.gpu
