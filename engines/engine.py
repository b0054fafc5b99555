"""A loaded engine: clips in and scores out, or video files in and predictions out."""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowless.engines.backends.backend import Backend
from flowless.engines.bundle.manifest import Manifest
from flowless.engines.streaming.memory import OnlineBackend, refuse_several_frames
from flowless.engines.video import TimedClip, timed_clip
from flowless.errors import FlowlessError
from flowless.machine import usable_cores
from flowless.pipeline.clip.view_scores import ViewAverage

#: Views of a video that are cropped and scored together; thirty at once would take 190 MB.
_VIEWS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class Label:
    """A class with its score."""

    label: str
    """Name of the class."""
    index: int
    """Its index among the labels."""
    score: float
    """Probability: the softmax of the video's scores."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The prediction for one video, or why the video could not be read."""

    video: str
    """The file, as it was named."""
    top: tuple[Label, ...] = ()
    """Most likely classes first; empty where `error` is set."""
    scores: np.ndarray | None = field(default=None, repr=False, compare=False)
    """float32 `[classes]`: the network's scores, averaged over the views by `spec.average`; their softmax gives the probabilities."""
    target: str = ""
    """Library that ran it."""
    precision: str = ""
    """Precision that it computed in."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time of `decode`, `preprocess` and `engine`."""
    warning: str = ""
    """What is missing from the video, such as lost packets; empty where nothing is."""
    error: str | None = None
    """Why the video could not be read; None where it could."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of `flowless predict --json`."""
        if self.error is not None:
            return {"video": self.video, "error": self.error}
        top = [{"label": item.label, "index": item.index, "score": item.score} for item in self.top]
        document = {"video": self.video, "top": top, "target": self.target, "precision": self.precision, "seconds": self.seconds}
        return {**document, "warning": self.warning} if self.warning else document


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return the softmax of scores `[..., classes]` over the last axis, float64."""
    raised = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def likeliest(scores: np.ndarray, labels: Sequence[str], top: int) -> tuple[Label, ...]:
    """Return the `top` classes with the highest scores `[classes]`, the most likely first, with their softmax."""
    shares = softmax(scores)
    order: list[int] = np.argsort(-shares, kind="stable")[:top].tolist()
    return tuple(Label(label=labels[index], index=index, score=float(shares[index])) for index in order)


def _import_reading() -> None:
    importlib.import_module("flowless.pipeline.clip.preprocess")
    importlib.import_module("flowless.pipeline.video.open_reader")


class Engine:
    """A loaded engine. Safe to call from several threads; calls run one after another.

    Attributes:
        spec: What a clip is.
        labels: Class names in the order of the scores.
        model: The model's name.
        target: Library that runs it.
        precision: Precision that it computes in.
        device: `CPU` or `GPU`.
        why: Why this target was chosen, in one sentence.
        manifest: The bundle's manifest.
        warm_up_seconds: What `warm_up` took; None before it.
    """

    def __init__(self, backend: Backend, *, manifest: Manifest, target: str, precision: str, why: str) -> None:
        self._backend = backend
        self._lock = threading.Lock()
        self.manifest = manifest
        self.spec = manifest.spec
        self.labels = manifest.labels
        self.model = manifest.model
        self.target = target
        self.precision = precision
        self.device = backend.device
        self.why = why
        self.warm_up_seconds: float | None = None

    def __repr__(self) -> str:
        return f"<Engine {self.model}: {self.target} {self.precision} on the {self.device}, {len(self.labels)} classes>"

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        """Score clips.

        Args:
            clip: uint8 `[B, N, m, H, W, 3]`, RGB, as `ClipSpec` says; B at least 1.

        Returns:
            float32 `[B, classes]`: the network's scores, before any softmax.

        Raises:
            FlowlessError: The clip has another type or shape.
        """
        if not isinstance(clip, np.ndarray) or clip.dtype != np.uint8:
            kind = clip.dtype if isinstance(clip, np.ndarray) else type(clip).__name__
            raise FlowlessError(
                f"the clip is {kind}; an engine takes a numpy array of uint8, pixels from 0 to 255. It normalises them itself."
            )
        if clip.ndim != 6 or clip.shape[1:] != self.spec.shape or len(clip) == 0:
            wanted = ", ".join(map(str, self.spec.shape))
            raise FlowlessError(
                f"the clip has shape {list(clip.shape)}; this engine takes [B, {wanted}] with B of at least 1: "
                "clip, segments, frames per segment, rows, columns, RGB."
            )
        with self._lock:
            return self._backend(np.ascontiguousarray(clip))

    def warm_up(self, clips: int = 1) -> float:
        """Run the engine on blank clips, and import what reads videos, so that the first real call is not slower than the others.

        Libraries allocate memory, and some choose kernels, when they first see a batch of a size.

        Args:
            clips: Number of clips in the batch, at least 1; best the largest that will be scored.

        Returns:
            Seconds that it took, also kept as `warm_up_seconds`.

        Raises:
            FlowlessError: `clips` is less than 1.
        """
        if clips < 1:
            raise FlowlessError(f"clips is {clips}; a warm-up takes at least 1.")
        started = time.perf_counter()
        if importlib.util.find_spec("av"):  # who scores arrays alone needs no PyAV
            _import_reading()
        self(np.zeros((clips, *self.spec.shape), np.uint8))
        self.warm_up_seconds = time.perf_counter() - started
        return self.warm_up_seconds

    @property
    def online(self) -> bool:
        """Whether the graph takes a frame and a memory (`flowless export --online`). Such an engine scores whole clips as well."""
        return self.manifest.memory > 0

    def step(self, frame: np.ndarray, memory: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score the newest frame of a stream, or of several streams as a batch, with the frames before it.

        Args:
            frame: uint8 `[B, H, W, 3]`, resized and cropped as `ClipSpec` says.
            memory: uint8 `[B, N - 1, H, W, 3]`, the frames before it, the oldest first; of the first frame that frame N - 1 times.

        Returns:
            float32 `[B, classes]`, and the memory for the next frame.

        Raises:
            FlowlessError: They have another type or shape, or the engine's segments have more than one frame.
        """
        refuse_several_frames(self.model, self.spec)
        segments, _, *picture = self.spec.shape
        batch = len(frame) if isinstance(frame, np.ndarray) and frame.ndim else 0
        for name, value, shape in (("frame", frame, picture), ("memory", memory, [segments - 1, *picture])):
            if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.shape != (batch, *shape) or not batch:
                found = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
                raise FlowlessError(
                    f"the {name} is {found}; this engine takes uint8 [B, {', '.join(map(str, shape))}], "
                    "B of at least 1 and the same for frame and memory."
                )
        if isinstance(self._backend, OnlineBackend):
            with self._lock:
                return self._backend.step(np.ascontiguousarray(frame), np.ascontiguousarray(memory))
        clip = np.concatenate([memory, frame[:, None]], axis=1)
        return self(clip[:, :, None]), clip[:, 1:]

    def predict(self, path: str | os.PathLike[str], top: int = 5) -> Prediction:
        """Recognise the action in a video.

        The views of `spec.sampling` and `spec.crop` are scored; `spec.average` says whether they are averaged before or after the softmax.

        Args:
            path: The video.
            top: Number of classes to name.

        Raises:
            FlowlessError: The video cannot be read.
        """
        return self._predict(os.fspath(path), timed_clip(path, self.spec), top)

    def predict_many(self, paths: Iterable[str | os.PathLike[str]], top: int = 5, *, workers: int | None = None) -> Iterator[Prediction]:
        """Predict videos in their order; the next ones are decoded while the engine runs.

        A video that cannot be read gives a `Prediction` with its `error`; the others are still predicted.

        Args:
            paths: The videos.
            top: Number of classes to name.
            workers: Decoding threads; by default one per core, at most four. At most one clip more than that is held ready.
        """
        if isinstance(paths, str | os.PathLike):
            raise FlowlessError(f"paths is {os.fspath(paths)!r}; predict_many takes a list of videos, predict a single one.")
        # Imported in the calling thread: a Ctrl-C within an import in a worker would leave the import lock held.
        _import_reading()
        workers = workers or min(4, usable_cores())
        remaining = iter(paths)
        waiting: deque[tuple[str, Future[TimedClip]]] = deque()
        with ThreadPoolExecutor(workers, thread_name_prefix="flowless-decode") as pool:

            def refill() -> None:
                while len(waiting) <= workers:
                    path = next(remaining, None)
                    if path is None:
                        return
                    waiting.append((os.fspath(path), pool.submit(timed_clip, path, self.spec)))

            try:
                refill()
                while waiting:
                    name, clip = waiting.popleft()
                    try:
                        made = clip.result()
                    except FlowlessError as error:
                        refill()
                        yield Prediction(video=name, error=str(error))
                        continue
                    refill()
                    yield self._predict(name, made, top)
            finally:
                for _, clip in waiting:
                    clip.cancel()

    def _predict(self, name: str, made: TimedClip, top: int) -> Prediction:
        if top < 1:
            raise FlowlessError(f"top is {top}; it must be at least 1.")
        average, started, spent = ViewAverage(self.spec.average), time.perf_counter(), 0.0
        for clips in made.views.parts(_VIEWS_AT_ONCE):
            at = time.perf_counter()
            average.add(self(clips))
            spent += time.perf_counter() - at
        scores = average.scores
        cutting = time.perf_counter() - started - spent
        return Prediction(
            video=name,
            top=likeliest(scores, self.labels, top),
            scores=scores,
            target=self.target,
            precision=self.precision,
            seconds={"decode": made.decode, "preprocess": made.preprocess + cutting, "engine": spent},
            warning=made.gaps,
        )
