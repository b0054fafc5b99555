"""A loaded engine: clips in and scores out, or video files in and predictions out."""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import numpy as np

from flowless.cuda_driver import Gpu
from flowless.engines.backends.backend import DeviceBackend
from flowless.engines.backends.openvino_core import openvino_reason
from flowless.engines.bundle.manifest import Manifest
from flowless.engines.decoded_scores import Decode, decodes_on_gpu, score_decoded
from flowless.engines.device.device_array import DeviceArray, place
from flowless.engines.device.take_input import check_stream, take_input
from flowless.engines.streaming.step import step
from flowless.engines.video import TimedClip, timed_clip
from flowless.errors import FlowlessError, first_line
from flowless.interrupts import raise_lost_ctrl_c
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
    decoder: str = "pyav"
    """Library that decoded it: `pyav`, or `dali` (`decode="gpu"`)."""
    fallback: str = ""
    """Why PyAV decoded it where DALI was to; empty otherwise."""
    error: str | None = None
    """Why the video could not be read; None where it could."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of `flowless predict --json`."""
        if self.error is not None:
            return {"video": self.video, "error": self.error}
        top = [{"label": item.label, "index": item.index, "score": item.score} for item in self.top]
        document = {"video": self.video, "top": top, "target": self.target, "precision": self.precision, "seconds": self.seconds}
        document |= {"decoder": self.decoder, "fallback": self.fallback, "warning": self.warning}
        return {name: value for name, value in document.items() if value != ""}


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

    def __init__(self, backend: DeviceBackend, *, manifest: Manifest, target: str, precision: str, why: str) -> None:
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

    @overload
    def __call__(self, clip: Any, *, on_device: Literal[False] = False, stream: int | None = None) -> np.ndarray: ...

    @overload
    def __call__(self, clip: Any, *, on_device: Literal[True], stream: int | None = None) -> DeviceArray: ...

    def __call__(self, clip: Any, *, on_device: bool = False, stream: int | None = None) -> np.ndarray | DeviceArray:
        """Score clips.

        Args:
            clip: uint8 `[B, N, m, H, W, 3]`, RGB, as `ClipSpec` says; B at least 1. A NumPy array, or an array of another library that has
                `__dlpack__` or `__cuda_array_interface__` (PyTorch's, CuPy's, DALI's); that one must be C-contiguous and is not copied.
            on_device: Return the scores where the engine runs, as a `DeviceArray`, which `torch.from_dlpack` and others take.
            stream: Address of the CUDA stream in whose order a clip on the GPU is read and scored. TensorRT then only enqueues its work
                there; ONNX Runtime waits for the stream, and the scores are complete on return. None: another library's array is
                ready by its own account, and the scores are complete on return.

        Returns:
            float32 `[B, classes]`: the network's scores, before any softmax.

        Raises:
            FlowlessError: The clip has another type or shape, or lies where this engine cannot read it; or the engine's library fails.
        """
        check_stream(stream, self.device)
        taken = take_input("clip", clip, self._backend, stream=stream, runs_on=self.target)
        shape = tuple(taken.shape)
        if len(shape) != 6 or shape[1:] != self.spec.shape or shape[0] == 0:
            wanted = ", ".join(map(str, self.spec.shape))
            raise FlowlessError(
                f"the clip has shape {list(shape)}; this engine takes [B, {wanted}] with B of at least 1: "
                "clip, segments, frames per segment, rows, columns, RGB."
            )
        with self._lock, self._failures():
            if isinstance(taken, np.ndarray) and not on_device:
                scores = self._backend(np.ascontiguousarray(taken))
            else:
                scores = self._backend.on_device(place(taken, self._backend.gpu), stream)
            self._check_scores(scores.shape)
            return scores if on_device or isinstance(scores, np.ndarray) else scores.numpy()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Raise FlowlessError where the engine's library fails, as at a graph that is not the manifest's."""
        try:
            with raise_lost_ctrl_c():  # a library may report an interrupt as an error of its own
                yield
        except (FlowlessError, MemoryError):
            raise
        except Exception as error:  # the libraries' own exception types, among them plain RuntimeError
            reason = openvino_reason(error) if self.target == "openvino" else first_line(error)
            raise FlowlessError(
                f"{self.manifest.folder}: its {self.target} engine failed ({reason}). Copy the bundle again, or build it again with: "
                f"flowless build BUNDLE --target {self.target} --precision {self.precision} --force."
            ) from error

    def _check_scores(self, shape: Sequence[int]) -> None:
        """Raise FlowlessError where an engine's scores are not one for each label."""
        if shape[-1] != len(self.labels):
            raise FlowlessError(
                f"{self.manifest.folder}: its {self.target} engine gives {shape[-1]} scores, and its manifest has "
                f"{len(self.labels)} labels. Copy the bundle again, or export and build the model again."
            )

    @property
    def gpu(self) -> Gpu | None:
        """The GPU whose memory it takes; None where it runs on the CPU."""
        return self._backend.gpu

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
        if not isinstance(clips, int) or clips < 1:
            raise FlowlessError(f"clips is {clips!r}; a warm-up takes a whole number of at least 1.")
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

    @property
    def streaming(self) -> bool:
        """Whether the graph takes a frame and the state of a causal network (`flowless export --streaming`), as above."""
        return bool(self.manifest.state)

    def step(self, frame: Any, memory: Any = None, *, on_device: bool = False, stream: int | None = None) -> tuple[Any, Any]:
        """Score the newest frame of a stream, or of several streams as a batch, with the memory of the frames before it.

        Args:
            frame: uint8 `[B, H, W, 3]`, resized and cropped as `ClipSpec` says; as `__call__` takes a clip.
            memory: What `step` returned for the frame before; None at the start of a stream. Of a streaming engine it is a dictionary of
                arrays, `[B, *shape]` by the names of `manifest.state`. Of another engine it is uint8 `[B, N - 1, H, W, 3]`, the frames
                before this one, the oldest first; None is this frame N - 1 times.
            on_device: As in `__call__`. Arrays of other libraries, and this, need an online or streaming graph.
            stream: As in `__call__`.

        Returns:
            float32 `[B, classes]`, and the memory for the next frame.

        Raises:
            FlowlessError: They have another type or shape, the engine is not streaming and its segments have more than one frame, or the
                engine's library fails.
        """
        check_stream(stream, self.device)
        with self._lock, self._failures():
            scores, memory = step(
                self._backend, frame, memory, manifest=self.manifest, runs_on=self.target, on_device=on_device, stream=stream
            )
        self._check_scores(scores.shape)
        return scores, memory

    def watch(self, sources: Sequence[str | os.PathLike[str]], **options: Any) -> Any:
        """Return a `Watcher` of cameras, network streams and files; see `flowless.engines.live.watcher` and `WatchOptions`."""
        watcher, settings = (importlib.import_module(f"flowless.engines.live.{name}") for name in ("watcher", "options"))
        return watcher.Watcher(self, sources, settings.WatchOptions(**options))

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

    def predict_many(
        self, paths: Iterable[str | os.PathLike[str]], top: int = 5, *, workers: int | None = None, decode: Decode = "auto"
    ) -> Iterator[Prediction]:
        """Predict videos in their order; the next ones are decoded while the engine runs.

        A video that cannot be read gives a `Prediction` with its `error`; the others are still predicted.

        Args:
            paths: The videos.
            top: Number of classes to name.
            workers: Decoding threads; by default one per core, at most four. At most one clip more than that is held ready.
            decode: `cpu`: PyAV decodes and Pillow resizes, as in `predict`. `gpu`: DALI decodes (NVDEC), resizes and crops, two batches
                are held ready, and PyAV decodes what DALI cannot (`Prediction.fallback`). `auto`: `gpu` where the engine runs on an
                NVIDIA GPU, and DALI and NVDEC are there.

        Raises:
            FlowlessError: `decode` is `gpu`, and something that it needs is missing.
        """
        if isinstance(paths, str | os.PathLike):
            raise FlowlessError(f"paths is {os.fspath(paths)!r}; predict_many takes a list of videos, predict a single one.")
        if decodes_on_gpu(decode, self):
            yield from self._predict_decoded(paths, top, threads=workers, device_id=0)
            return
        # Imported in the calling thread: a Ctrl-C within an import in a worker would leave the import lock held.
        _import_reading()
        if workers is not None and workers < 1:
            raise FlowlessError(f"workers is {workers}; it must be at least 1.")
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

    def _predict_decoded(
        self, paths: Iterable[str | os.PathLike[str]], top: int, *, threads: int | None, device_id: int | None
    ) -> Generator[Prediction, None, None]:
        """Predict videos that DALI decodes on a GPU or, where `device_id` is None, on the CPU."""
        if top < 1:
            raise FlowlessError(f"top is {top}; it must be at least 1.")
        scored = score_decoded(
            self, (os.fspath(path) for path in paths), self.spec, views_at_once=_VIEWS_AT_ONCE, threads=threads, device_id=device_id
        )
        with closing(scored):
            for video in scored:
                name, made = video.decoded.part.path, video.decoded
                if video.scores is None:
                    yield Prediction(video=name, error=str(made.error))
                    continue
                yield Prediction(
                    video=name,
                    top=likeliest(video.scores, self.labels, top),
                    scores=video.scores,
                    target=self.target,
                    precision=self.precision,
                    seconds={**made.seconds, "engine": video.seconds},
                    warning=made.gaps,
                    decoder=video.decoder,
                    fallback=made.fallback,
                )

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
