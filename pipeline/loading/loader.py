"""ClipLoader: batches for PyTorch, with shuffling, division among processes, and prefetching.

The loader, not DALI, plans an epoch: the order of the videos and the batches. A thread pool decodes one batch ahead of the graph (libav
releases the GIL); finished batches wait in a queue. Frames are resized as they are decoded: in memory are at most one full-size
frame per thread, beside the decoder's own, two batches of resized frames, and `prefetch` + 1 finished batches, for any data set size.

Unreadable videos: in training, another video replaces them, the same one in every run with that seed. In evaluation they are left out:
the batch is smaller, and reports of the accuracy state how many were left out. In both cases `bad_videos` lists them, and the epoch stops
with an error when they exceed `max_bad_share` of the videos.
"""

from __future__ import annotations

import math
import queue
import threading
from collections import Counter
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from flowless.console import log
from flowless.errors import FlowlessError
from flowless.machine import usable_cores
from flowless.pipeline.clip.spec import CLIPS, CROPS, ClipSpec, Rule
from flowless.pipeline.dataset.index import DatasetIndex, Refused
from flowless.pipeline.loading.augment import LoaderOptions
from flowless.pipeline.loading.dali_graph import ClipGraph, Frames, failure_reason
from flowless.pipeline.loading.frame_source import DrawResult, FrameSource, Sample, decoders_for


@dataclass(kw_only=True, eq=False, repr=False)
class Batch:
    """A batch of clips and labels."""

    clips: torch.Tensor
    """uint8 `[B, views, N, m, H, W, 3]`, RGB; shares DALI's memory."""
    labels: torch.Tensor
    """int64 label indices `[B]`, on the CPU; `[B, views]` with several augmented views per clip (`Augmentation.draws`), since a flip may
    change the label of each view."""
    ids: list[str]
    """Ids of the videos; for a replaced video, the replacement's id."""

    def __repr__(self) -> str:
        return f"Batch(clips={self.clips.dtype} {list(self.clips.shape)} on {self.clips.device}, labels={self.labels.tolist()})"


class ClipLoader:
    """Iterates over the batches of one epoch, which `set_epoch` selects."""

    def __init__(
        self, index: DatasetIndex, spec: ClipSpec, *, rule: Rule | None = None, batch_size: int, options: LoaderOptions | None = None
    ) -> None:
        """Configure the loader; nothing is read before the first batch.

        Args:
            index: the videos.
            spec: definition of a clip.
            rule: frame sampling rule; None: the spec's.
            batch_size: videos per batch.
            options: the loader's options.

        Raises:
            FlowlessError: the index has no videos or, in training, less than one batch of them; or the options do not match the index.
        """
        self.index, self.spec, self.batch_size = index, spec, batch_size
        self.rule: Rule = rule or spec.sampling
        self.options = options = options or LoaderOptions()
        self.training = self.rule == "train" if options.training is None else options.training
        self.epoch = 0
        self._first_batch = 0
        self._bad: dict[str, Refused] = {}
        self.decoded_by: Counter[Literal["pyav", "dali"]] = Counter()
        """Number of videos that each decoder has decoded in the current iteration; for folders, Pillow counts as PyAV."""
        self._graph: ClipGraph | None = None
        self._end_iteration: Callable[[], None] = lambda: None
        if batch_size < 1:
            raise FlowlessError(f"batch_size is {batch_size}; it must be at least 1.")
        if not index.videos:
            raise FlowlessError(f"The index of {index.root} has no videos. Create one with: flowless scan")
        if self.rule == "train" and not self.training:
            raise FlowlessError(f"The rule 'train' samples at random and cannot be used for evaluation; use {', '.join(CLIPS)}.")
        decoders = decoders_for(index, device=options.device, decoder=options.decoder, device_id=options.device_id, training=self.training)
        self._frames: Frames = decoders.frames
        self._source = FrameSource(
            index,
            spec,
            rule=self.rule,
            seed=options.seed,
            augmentation=options.augmentation if self.training else None,
            by_dali=decoders.by_dali,
        )
        if not len(self):
            raise FlowlessError(
                f"There are {len(index.videos)} videos for batches of {options.world} x {batch_size}, and training leaves out "
                f"incomplete batches: no batch is left. Use a batch_size of at most {max(1, len(index.videos) // options.world)}."
            )

        if decoders.reasons and options.device == "gpu":
            count, why = sum(decoders.reasons.values()), "; ".join(f"{reason} ({many})" for reason, many in decoders.reasons.items())
            log.print(f"flowless: PyAV decodes {count} of {len(index.videos)} videos, not the GPU: {why}.", style="yellow", markup=False)

    @property
    def bad_videos(self) -> list[Refused]:
        """Videos that could not be read so far, with the reasons."""
        return sorted(self._bad.values(), key=lambda item: item.path)

    def set_epoch(self, epoch: int, *, first_batch: int = 0) -> None:
        """Select the epoch of the next iteration, and its first batch (to resume within an epoch)."""
        self.epoch, self._first_batch = epoch, first_batch

    def __len__(self) -> int:
        """Number of batches per epoch in this process."""
        part = self._part_size()
        return part // self.batch_size if self._drop_last else math.ceil(part / self.batch_size)

    def __iter__(self) -> Generator[Batch, None, None]:
        """Yield the epoch's batches, from the first (or, once, from the one that `set_epoch` selected).

        Only one iteration may be active: starting another ends the first.
        """
        self._end_iteration()
        self.decoded_by = Counter()
        stop, ready = threading.Event(), queue.Queue[Any](maxsize=self.options.prefetch)
        plan, self._first_batch = self.plan()[self._first_batch :], 0
        producer = threading.Thread(target=self._produce, args=(plan, self.epoch, ready, stop), name="flowless-loader", daemon=True)

        def end() -> None:
            stop.set()
            if producer.is_alive():
                producer.join()

        self._end_iteration = end
        producer.start()
        try:
            while (item := _take(ready, stop)) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            end()

    def plan(self) -> list[list[int]]:
        """Return the batches of this epoch and process, as positions in the index."""
        order = np.arange(len(self.index.videos))
        if self.training if self.options.shuffle is None else self.options.shuffle:
            order = np.random.default_rng([self.options.seed % 2**64, self.epoch % 2**64]).permutation(order)
        part = order[self.options.rank :: self.options.world][: self._part_size()].tolist()
        return [part[at * self.batch_size : (at + 1) * self.batch_size] for at in range(len(self))]

    @property
    def _drop_last(self) -> bool:
        return self.training if self.options.drop_last is None else self.options.drop_last

    def _part_size(self) -> int:
        videos, rank, world = len(self.index.videos), self.options.rank, self.options.world
        # In training all processes need the same number of steps, or gradient synchronisation would deadlock.
        return videos // world if self.training else len(range(rank, videos, world))

    def _produce(self, plan: list[list[int]], epoch: int, ready: queue.Queue[Any], stop: threading.Event) -> None:
        """Put every batch of the plan into the queue, then None; or the exception that occurred. Runs in the loader's thread."""
        try:
            with ThreadPoolExecutor(self._threads(), thread_name_prefix="flowless-decode") as decoders:
                ahead = self._submit(decoders, plan[0], epoch) if plan else []
                for number in range(len(plan)):
                    current, ahead = ahead, self._submit(decoders, plan[number + 1], epoch) if number + 1 < len(plan) else []
                    batch = None if stop.is_set() else self._batch([future.result() for future in current], decoders, epoch, plan[number])
                    if stop.is_set() or (batch is not None and not _put(ready, batch, stop)):
                        break
                for future in ahead:
                    future.cancel()
            _put(ready, None, stop)
        except BaseException as error:  # raised again by the consumer
            _put(ready, error, stop)

    def _submit(self, decoders: ThreadPoolExecutor, numbers: list[int], epoch: int) -> list[Future[DrawResult]]:
        return [decoders.submit(self._source.draw, number, epoch) for number in numbers]

    def _batch(self, drawn: list[DrawResult], decoders: ThreadPoolExecutor, epoch: int, numbers: list[int]) -> Batch | None:
        samples = self._collect(drawn)
        while samples:
            try:
                batch = self._run_graph(samples)
                self.decoded_by.update("dali" if sample.graph.by_dali else "pyav" for sample in samples)
                return batch
            except RuntimeError as error:
                if not any(sample.graph.by_dali for sample in samples):
                    raise
                # DALI fails for the whole batch and does not report which video is the cause. PyAV decodes all of them from now on,
                # so that a video which DALI cannot decode costs one batch, not one in every epoch.
                log.print(
                    f"flowless: DALI cannot decode a video of a batch; PyAV decodes the batch. ({failure_reason(error)})",
                    style="yellow",
                    markup=False,
                )
                self._graph, self._frames = None, "both"
                self._source.assign_to_pyav([*numbers, *(sample.number for sample in samples)])
                samples = self._collect([future.result() for future in self._submit(decoders, numbers, epoch)])
        return None

    def _collect(self, drawn: list[DrawResult]) -> list[Sample]:
        """Record unreadable videos, raise FlowlessError where they are too many, and return the samples."""
        for item in (refused for one in drawn for refused in one.refused):
            self._bad.setdefault(item.path, item)
        limit = self.options.max_bad_share * len(self.index.videos) / self.options.world
        if len(self._bad) > limit:
            shown = "; ".join(item.reason for item in self.bad_videos[:3])
            raise FlowlessError(
                f"{len(self._bad)} of {len(self.index.videos)} videos cannot be read, more than the fraction "
                f"{self.options.max_bad_share:g} that max_bad_share allows. The first ones: {shown} "
                "Find all of them with `flowless scan`, or raise max_bad_share."
            )
        return [one.sample for one in drawn if one.sample is not None]

    def _run_graph(self, samples: list[Sample]) -> Batch:
        if self._frames == "dali" and any(sample.graph.encoded is None for sample in samples):
            self._graph, self._frames = None, "both"  # a file has changed since it was indexed
        if self._graph is None:
            self._graph = ClipGraph(
                batch_size=self.batch_size,
                threads=self._threads(),
                frames=self._frames,
                colour=self.training and self.options.augmentation.colour,
                device_id=self.options.device_id if self.options.device == "gpu" else None,
                crops=self.options.augmentation.draws if self.training else CROPS[self.spec.crop],
                side=None if self.training or self.spec.crop_side is None else self.spec.height,
            )
        labels = torch.tensor([sample.labels for sample in samples], dtype=torch.int64)
        pictures = torch.from_dlpack(self._graph.run([sample.graph for sample in samples]))
        return Batch(
            clips=pictures.view(len(samples), samples[0].views, *self.spec.shape),
            labels=labels if labels.shape[1] > 1 else labels[:, 0],
            ids=[self.index.videos[sample.number].id for sample in samples],
        )

    def _threads(self) -> int:
        if self.options.threads is not None:
            return self.options.threads
        return usable_cores()


def _put(ready: queue.Queue[Any], item: object, stop: threading.Event) -> bool:
    """Put `item` into the queue once it has space; return False if `stop` is set first."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False


def _take(ready: queue.Queue[Any], stop: threading.Event) -> Any:
    """Wait for the next item; raise RuntimeError if another iteration has ended this one."""
    while True:
        try:
            return ready.get(timeout=0.1)
        except queue.Empty:
            if stop.is_set():
                raise RuntimeError("another iteration over this ClipLoader has ended this one; use two loaders") from None
