"""Streams: the frames of one camera as an engine scores them, and the step that scores many streams in one batch.

They are the Python form of `flowless_stream_*` and `flowless_step` of the C interface, with the same rules and the same scores.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flowless.engines.engine import Engine
from flowless.engines.streaming.memory import refuse_several_frames
from flowless.errors import FlowlessError
from flowless.pipeline.clip.sampling import clip_indices
from flowless.pipeline.clip.spec import CLIPS, CROPS
from flowless.pipeline.clip.view_scores import average_views

#: Which frames of a stream are scored. `rolling`: a clip sampled from the frames of a window, as a video of these frames would be.
#: `online`: the newest frame and those that were scored before it. `default`: online for an engine that carries a memory or a state.
Mode = Literal["default", "rolling", "online"]

#: Views that are scored at once: 64 of 8 x 4 frames of 224 x 224 take 308 MB.
VIEWS_AT_ONCE = 64
_DEFAULT_WINDOW, _LARGEST_WINDOW = 64, 4096


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How a stream is read.

    Raises:
        FlowlessError: A value is out of range; in mode online, a window was given.
    """

    mode: Mode = "default"
    """Which frames are scored."""
    window_frames: int = 0
    """rolling: at most so many frames, 1 to 4096; 0: 64. Each takes the memory of its crops, 150 kB for 224 x 224."""
    window_ns: int = 0
    """rolling: frames older than this beside the newest leave the window, nanoseconds; 0: no limit."""
    max_gap_ns: int = 0
    """A frame that comes later than this after the one before, or earlier than it, resets the stream, nanoseconds; 0: never."""

    def __post_init__(self) -> None:
        """Validate all fields."""
        if self.mode not in ("default", "rolling", "online"):
            raise FlowlessError(f"mode is {self.mode!r}; it must be default, rolling or online.")
        numbers = {"window_frames": self.window_frames, "window_ns": self.window_ns, "max_gap_ns": self.max_gap_ns}
        for name, value in numbers.items():
            most = _LARGEST_WINDOW if name == "window_frames" else 2**63 - 1
            if type(value) is not int or not 0 <= value <= most:
                raise FlowlessError(f"{name} is {value!r}; it must be an integer from 0 to {most}.")
        if self.mode == "online":
            self.refuse_window()

    def refuse_window(self) -> None:
        """Raise FlowlessError where a window is given, which an online stream does not have."""
        if self.window_frames or self.window_ns:
            raise FlowlessError(
                f"window_frames is {self.window_frames} and window_ns {self.window_ns}; they are for rolling streams, and this one is "
                "online. Leave both out, or choose mode rolling."
            )


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """What happened in a stream so far."""

    pushed: int
    """Frames pushed."""
    replaced: int
    """Frames that no step found as the newest: another came before it."""
    scored: int
    """Steps that scored this stream."""
    resets: int
    """Resets, by call or by a gap."""
    ready: bool
    """Whether a frame was pushed that no step has scored."""
    frames: int
    """Frames in the window, or pictures in the memory."""
    pts_ns: int
    """Time stamp of the newest frame that was scored; 0 before the first."""


@dataclass(frozen=True)
class _Taken:
    """What a step takes from a stream: pictures `[crops, H, W, 3]`, the oldest first, and for a streaming graph its state."""

    pictures: list[NDArray[np.uint8]]
    state: dict[str, NDArray] | None
    pts_ns: int
    tag: Any
    resets: int


@dataclass(frozen=True)
class Scored:
    """The scores of a stream's newest frame."""

    scores: NDArray[np.float32]
    """float32 `[classes]`: the network's scores, averaged over the views by the ClipSpec."""
    tag: Any
    """What was put with the frame."""


class Stream:
    """One camera: the window of a rolling clip, the frames of an online clip, or the state of a streaming graph.

    Frames are resized and cropped when they are pushed, and only these pictures are kept, so that its memory is bounded. One thread
    pushes, and one thread (another one, or the same) steps.

    Args:
        engine: Scores it.
        options: How it is read.

    Raises:
        FlowlessError: The mode does not fit the engine.
    """

    def __init__(self, engine: Engine, options: StreamOptions | None = None) -> None:
        # Imported here because it needs PyAV, which arrays do not, and not in `push`, where it would slow down the first frame.
        from flowless.pipeline.clip.preprocess import resize_and_crop

        self._resize = resize_and_crop
        self.engine, self.options = engine, options or StreamOptions()
        self.spec = engine.spec
        tensors = engine.manifest.state
        self.online = self.options.mode == "online" or (self.options.mode == "default" and (engine.online or bool(tensors)))
        self._tensors = tensors if self.online else ()
        if self.online:
            self.options.refuse_window()
            if not tensors:
                refuse_several_frames(engine.model, engine.spec)
        self._capacity = self.options.window_frames or _DEFAULT_WINDOW
        if self.online:
            # The pictures that were scored; beside a state, those that were pushed, since a segment is the newest of them.
            self._capacity = self.spec.frames_per_segment if tensors else self.spec.segments
        self._lock = threading.Lock()  # of all that follows
        self._window: deque[tuple[int, NDArray[np.uint8]]] = deque()
        self._pending: tuple[int, NDArray[np.uint8], Any] | None = None
        self._newest: int | None = None
        self._state: dict[str, NDArray] | None = None
        self._pushed = self._replaced = self._scored = self._resets = self._scored_pts = 0

    @property
    def views(self) -> int:
        """Views that one step scores: crops, in mode rolling times the clips of the spec's sampling."""
        return CROPS[self.spec.crop] * (1 if self.online else CLIPS[self.spec.sampling])

    @property
    def state(self) -> StreamState:
        """What happened so far."""
        with self._lock:
            return StreamState(
                pushed=self._pushed,
                replaced=self._replaced,
                scored=self._scored,
                resets=self._resets,
                ready=self._pending is not None,
                frames=len(self._window),
                pts_ns=self._scored_pts,
            )

    def push(self, frame: NDArray[np.uint8], pts_ns: int = 0) -> None:
        """Push the newest frame; it waits for no engine.

        Args:
            frame: uint8 `[H, W, 3]`, RGB, upright, of any size, also a new one each.
            pts_ns: Its time stamp in nanoseconds.

        Raises:
            FlowlessError: The frame has another type or shape; the stream is unchanged.
        """
        self.put(self.prepare(frame), pts_ns)

    def prepare(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a frame resized and cropped, uint8 `[crops, height, width, 3]`, for `put`; raises as `push` does."""
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            kind = list(frame.shape) if isinstance(frame, np.ndarray) else type(frame).__name__
            raise FlowlessError(f"the frame is {kind}; it must be one image, uint8 [H, W, 3], RGB.")
        return self._resize(frame[None], self.spec)

    def put(self, picture: NDArray[np.uint8], pts_ns: int, tag: Any = None) -> None:
        """Push the newest frame, resized and cropped by `prepare`, with anything that `score` returns beside its scores."""
        with self._lock:
            gap, newest = self.options.max_gap_ns, self._newest
            if gap and newest is not None and not 0 <= pts_ns - newest <= gap:
                self._clear()
            self._pushed += 1
            self._replaced += self._pending is not None
            self._pending, self._newest = (pts_ns, picture, tag), pts_ns
            if not self.online or self._tensors:
                self._enter(pts_ns, picture)

    def reset(self) -> None:
        """Forget the frames so far, as after a reconnect."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        self._resets += 1
        self._window.clear()
        self._pending = self._newest = self._state = None

    def _enter(self, pts_ns: int, picture: NDArray[np.uint8]) -> None:
        """Append to the window; what is too old, or one too many, leaves it."""
        window, oldest_ns = self._window, self.options.window_ns
        window.append((pts_ns, picture))
        while len(window) > self._capacity or (len(window) > 1 and oldest_ns and pts_ns - window[0][0] > oldest_ns):
            window.popleft()

    def take(self) -> _Taken | None:
        """Return what a step scores, None where no frame has come since the last time; for `score`, like the methods below."""
        with self._lock:
            item, self._pending = self._pending, None
            if item is None:
                return None
            pts_ns, picture, tag = item
            if self.online and not self._tensors:
                self._enter(pts_ns, picture)
            state = self._state_at(self._state) if self._tensors else None
            return _Taken([picture for _, picture in self._window], state, pts_ns, tag, self._resets)

    def _state_at(self, state: dict[str, NDArray] | None) -> dict[str, NDArray]:
        """Return the state's tensors `[crops, *shape]` for the next step, with the earlier frames of the segment that ends now."""
        crops = CROPS[self.spec.crop]
        state = state or {item.name: np.zeros((crops, *item.shape), item.dtype) for item in self._tensors}
        pictures, started = [picture for _, picture in self._window], state["started"].copy()
        started[:, 1] = 1
        changed = {"started": started}
        if "frames" in state:
            missing = self._capacity - len(pictures)
            earlier = [pictures[0]] * missing + pictures[:-1]
            changed["frames"] = np.stack(earlier, axis=1)
        return {**state, **changed}

    def write_clips(self, taken: _Taken, clips: NDArray[np.uint8]) -> None:
        """Write the views, uint8 `[views, N, m, H, W, 3]`: all clips of the first crop, then of the next, as ClipSpec orders them."""
        spec, count = self.spec, len(taken.pictures)
        if self.online:
            # Before N frames were scored, the missing ones are copies of the first.
            indices = np.maximum(np.arange(count - spec.segments, count), 0)[None]
        else:
            indices = clip_indices(count, segments=spec.segments, frames_per_segment=spec.frames_per_segment, rule=spec.sampling)
        for view, clip in enumerate(clips):
            crop, number = divmod(view, len(indices))
            for target, index in zip(clip.reshape(-1, *clip.shape[2:]), indices[number].flat, strict=True):
                target[:] = taken.pictures[index][crop]

    def confirm(self, taken: _Taken, state: dict[str, NDArray] | None) -> None:
        """Note that a step has scored what was taken; keep the next state unless the stream was reset meanwhile."""
        with self._lock:
            self._scored += 1
            self._scored_pts = taken.pts_ns
            if state is not None and taken.resets == self._resets:
                self._state = state

    def put_back(self, taken: _Taken) -> None:
        """Undo `take` after a step that failed; what was taken is replaced by a frame that came meanwhile, and forgotten after a reset."""
        with self._lock:
            if taken.resets != self._resets:
                return
            if self.online and not self._tensors:
                self._window.pop()  # had it been full, its oldest picture would leave it at the next step anyway
            if self._pending is None:
                self._pending = (taken.pts_ns, taken.pictures[-1], taken.tag)
            else:
                self._replaced += 1


def step(engine: Engine, streams: Sequence[Stream]) -> list[NDArray[np.float32] | None]:
    """Score, in one batch, every stream that has a new frame. To be called by one thread at a time.

    Args:
        engine: The engine of all of them.
        streams: More than 64 views are scored in several batches, in this order.

    Returns:
        For each stream float32 `[classes]`, the network's scores averaged over its views by the ClipSpec; None where no frame is new.

    Raises:
        FlowlessError: A stream is another engine's.

    A step that fails leaves the streams as they were, so that the next one scores the same frames.
    """
    return [None if result is None else result.scores for result in score(engine, streams)]


def score(engine: Engine, streams: Sequence[Stream]) -> list[Scored | None]:
    """Do what `step` does; return the tags of the scored frames as well."""
    if any(stream.engine is not engine for stream in streams):
        raise FlowlessError("a stream is another engine's; step takes streams that were made with the engine that it is given.")
    taken: list[_Entry] = []
    done: list[tuple[_Entry, NDArray[np.float32], dict[str, NDArray] | None]] = []
    try:
        for batch in _batches(streams, taken):
            done += _score_clips(engine, [entry for entry in batch if entry.taken.state is None])
            done += _score_stateful(engine, [entry for entry in batch if entry.taken.state is not None])
    except BaseException:  # also Ctrl-C
        for entry in taken:
            entry.stream.put_back(entry.taken)
        raise
    results: list[Scored | None] = [None] * len(streams)
    for entry, scores, state in done:
        entry.stream.confirm(entry.taken, state)
        results[entry.index] = Scored(average_views(scores, engine.spec.average), entry.taken.tag)
    return results


@dataclass(frozen=True)
class _Entry:
    """A stream of a step, its place among the step's streams, and what was taken from it."""

    index: int
    stream: Stream
    taken: _Taken


def _batches(streams: Sequence[Stream], entries: list[_Entry]) -> Iterator[list[_Entry]]:
    """Take from every stream that has a new frame, append it to `entries`, and yield them in batches of at most 64 views."""
    batch: list[_Entry] = []
    views = 0
    for index, stream in enumerate(streams):
        if batch and views + stream.views > VIEWS_AT_ONCE:
            yield batch
            batch, views = [], 0
        if (taken := stream.take()) is not None:
            entries.append(_Entry(index, stream, taken))
            batch.append(entries[-1])
            views += stream.views
    yield batch


def _score_clips(engine: Engine, batch: Sequence[_Entry]) -> list[tuple[_Entry, NDArray[np.float32], None]]:
    """Return float32 `[views, classes]` for each stream, from one call of the engine."""
    if not batch:
        return []
    rows = _rows(batch)
    clips = np.empty((rows[-1].stop, *engine.spec.shape), np.uint8)
    for entry, part in zip(batch, rows, strict=True):
        entry.stream.write_clips(entry.taken, clips[part])
    scores = engine(clips)
    return [(entry, scores[part], None) for entry, part in zip(batch, rows, strict=True)]


def _score_stateful(engine: Engine, batch: Sequence[_Entry]) -> list[tuple[_Entry, NDArray[np.float32], dict[str, NDArray]]]:
    """Return float32 `[crops, classes]` and the next state for each stream, from one step of a streaming graph."""
    if not batch:
        return []
    rows, states = _rows(batch), [entry.taken.state for entry in batch if entry.taken.state is not None]
    frames = np.concatenate([entry.taken.pictures[-1] for entry in batch])
    scores, following = engine.step(frames, {name: np.concatenate([state[name] for state in states]) for name in states[0]})
    # Copies, so that a stream without new frames does not keep the arrays of the whole batch.
    nexts = [{name: tensor[part].copy() for name, tensor in following.items()} for part in rows]
    return [(entry, scores[part], state) for entry, part, state in zip(batch, rows, nexts, strict=True)]


def _rows(batch: Sequence[_Entry]) -> list[slice]:
    """Return each stream's rows of the batch."""
    ends = np.cumsum([entry.stream.views for entry in batch]).tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
