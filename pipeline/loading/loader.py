"""Batches for PyTorch: an epoch's order, its part for each process, and the thread that keeps the graph ahead of the model.

An epoch is planned here, not in DALI: which videos, in which order, in which batch. Frames are decoded by a pool of threads
(libav leaves Python's lock while it decodes), one batch ahead of the graph; finished batches wait in a short queue.
They are made small as they are decoded, so at full size there is one frame a thread, beside the decoder's own; of small pictures there
are two batches, and `prefetch` + 1 finished ones, whatever the data set's size.

Bad videos. In training, another video stands in, the same one in every run with that seed. In an evaluation a bad
video is left out: its batch is smaller, its score does not count, and whoever reports the accuracy says how many were left
out. Either way it is listed in `bad_videos`, and above `max_bad_share` of the videos the epoch stops.
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
from flowless.pipeline.loading.dali_graph import ClipGraph, Frames
from flowless.pipeline.loading.frame_source import Drawn, FrameSource, Sample, decoders_for


@dataclass(kw_only=True, eq=False, repr=False)
class Batch:
    """What the model gets."""

    clips: torch.Tensor
    """uint8 `[B, views, N, m, H, W, 3]`, RGB; memory that DALI wrote, not copied."""
    labels: torch.Tensor
    """int64 `[B]`, positions in the index's labels, on the CPU; `[B, views]` where training draws each clip more than once, since
    a flip may change the label of one view and not of the other."""
    ids: list[str]
    """The videos' ids; where one stands in for a bad one, the id of the one shown."""

    def __repr__(self) -> str:
        return f"Batch(clips={self.clips.dtype} {list(self.clips.shape)} on {self.clips.device}, labels={self.labels.tolist()})"


class ClipLoader:
    """Iterates over the batches of one epoch; `set_epoch` chooses which."""

    def __init__(
        self, index: DatasetIndex, spec: ClipSpec, *, rule: Rule | None = None, batch_size: int, options: LoaderOptions | None = None
    ) -> None:
        """Say what to load; nothing is read before the first batch.

        Args:
            index: the videos.
            spec: what a clip is.
            rule: which frames are taken; None takes the spec's own.
            batch_size: videos in a batch.
            options: how to load.

        Raises:
            FlowlessError: there are no videos, fewer than one batch of them, or the options do not fit them.
        """
        self.index, self.spec, self.batch_size = index, spec, batch_size
        self.rule: Rule = rule or spec.sampling
        self.options = options = options or LoaderOptions()
        self.training = self.rule == "train" if options.training is None else options.training
        self.epoch = 0
        self._first_batch = 0
        self._bad: dict[str, Refused] = {}
        self.decoded_by: Counter[Literal["pyav", "dali"]] = Counter()
        """How many videos of the newest loop each decoder has decoded so far; of folders, Pillow counts as PyAV."""
        self._graph: ClipGraph | None = None
        self._end_loop: Callable[[], None] = lambda: None
        if batch_size < 1:
            raise FlowlessError(f"batch_size is {batch_size}; it must be at least 1.")
        if not index.videos:
            raise FlowlessError(f"The index of {index.root} has no videos. Make one with: flowless scan")
        if self.rule == "train" and not self.training:
            raise FlowlessError(f"The rule 'train' places frames by chance and cannot evaluate; use {', '.join(CLIPS)}.")
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
                f"There are {len(index.videos)} videos for {options.world} x {batch_size} a batch, and a batch that is not full is "
                f"left out in training: no batch is left. Use a batch_size of at most {max(1, len(index.videos) // options.world)}."
            )

        if decoders.left and options.device == "gpu":
            count, why = sum(decoders.left.values()), "; ".join(f"{reason} ({many})" for reason, many in decoders.left.items())
            log.print(f"flowless: PyAV decodes {count} of {len(index.videos)} videos, not the GPU: {why}.", style="yellow", markup=False)

    @property
    def bad_videos(self) -> list[Refused]:
        """Videos that could not be read so far, with the reason, each once."""
        return sorted(self._bad.values(), key=lambda item: item.path)

    def set_epoch(self, epoch: int, *, first_batch: int = 0) -> None:
        """Choose the epoch that the next iteration gives, and where in it to begin (to go on after a stop)."""
        self.epoch, self._first_batch = epoch, first_batch

    def __len__(self) -> int:
        """Batches in an epoch of this process."""
        part = self._part_size()
        return part // self.batch_size if self._drop_last else math.ceil(part / self.batch_size)

    def __iter__(self) -> Generator[Batch, None, None]:
        """Give the epoch's batches, from its first (or, once, from the one that `set_epoch` named).

        One loop at a time: a new one ends an older one that was left in the middle.
        """
        self._end_loop()
        self.decoded_by = Counter()
        stop, ready = threading.Event(), queue.Queue[Any](maxsize=self.options.prefetch)
        plan, self._first_batch = self.plan()[self._first_batch :], 0
        producer = threading.Thread(target=self._produce, args=(plan, self.epoch, ready, stop), name="flowless-loader", daemon=True)

        def end() -> None:
            stop.set()
            if producer.is_alive():
                producer.join()

        self._end_loop = end
        producer.start()
        try:
            while (item := _take(ready, stop)) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            end()

    def plan(self) -> list[list[int]]:
        """Return the batches of this epoch and process, as places in the index."""
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
        # In training every process takes as many steps as the others, or they would wait for one another for ever.
        return videos // world if self.training else len(range(rank, videos, world))

    def _produce(self, plan: list[list[int]], epoch: int, ready: queue.Queue[Any], stop: threading.Event) -> None:
        """The loader's own thread: every batch of the plan into the queue, then None; or what went wrong."""
        try:
            with ThreadPoolExecutor(self._threads(), thread_name_prefix="flowless-decode") as decoders:
                ahead = self._ask(decoders, plan[0], epoch) if plan else []
                for place in range(len(plan)):
                    asked, ahead = ahead, self._ask(decoders, plan[place + 1], epoch) if place + 1 < len(plan) else []
                    batch = None if stop.is_set() else self._batch([future.result() for future in asked], decoders, epoch, plan[place])
                    if stop.is_set() or (batch is not None and not _put(ready, batch, stop)):
                        break
                for future in ahead:
                    future.cancel()
            _put(ready, None, stop)
        except BaseException as error:  # the consumer raises it; a thread's own traceback would reach nobody
            _put(ready, error, stop)

    def _ask(self, decoders: ThreadPoolExecutor, numbers: list[int], epoch: int) -> list[Future[Drawn]]:
        return [decoders.submit(self._source.draw, number, epoch) for number in numbers]

    def _batch(self, drawn: list[Drawn], decoders: ThreadPoolExecutor, epoch: int, numbers: list[int]) -> Batch | None:
        samples = self._accept(drawn)
        while samples:
            try:
                batch = self._finish(samples)
                self.decoded_by.update("dali" if sample.graph.by_dali else "pyav" for sample in samples)
                return batch
            except RuntimeError as error:
                if not any(sample.graph.by_dali for sample in samples):
                    raise
                # DALI gives up the whole batch and does not say for whose sake; PyAV finds out, or decodes it after all. It
                # keeps these videos, so that a file which only PyAV can decode costs one batch, not one in every epoch.
                log.print(
                    f"flowless: DALI cannot decode a video of a batch; PyAV takes the batch. ({_first_line(error)})",
                    style="yellow",
                    markup=False,
                )
                self._graph, self._frames = None, "both"
                self._source.leave_to_pyav([*numbers, *(sample.number for sample in samples)])
                samples = self._accept([future.result() for future in self._ask(decoders, numbers, epoch)])
        return None

    def _accept(self, drawn: list[Drawn]) -> list[Sample]:
        """Count the bad ones, and stop where they are too many."""
        for item in (refused for one in drawn for refused in one.refused):
            self._bad.setdefault(item.path, item)
        limit = self.options.max_bad_share * len(self.index.videos) / self.options.world
        if len(self._bad) > limit:
            shown = "; ".join(item.reason for item in self.bad_videos[:3])
            raise FlowlessError(
                f"{len(self._bad)} of {len(self.index.videos)} videos cannot be read, more than the share of "
                f"{self.options.max_bad_share:g} that max_bad_share allows. The first ones: {shown} "
                "Find them all with `flowless scan`, or raise max_bad_share."
            )
        return [one.sample for one in drawn if one.sample is not None]

    def _finish(self, samples: list[Sample]) -> Batch:
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
    """Put `item` as soon as there is room; return False where nobody waits any more."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False


def _take(ready: queue.Queue[Any], stop: threading.Event) -> Any:
    """Wait for the next item; raise RuntimeError where a newer loop has ended this one."""
    while True:
        try:
            return ready.get(timeout=0.1)
        except queue.Empty:
            if stop.is_set():
                raise RuntimeError("a newer loop over this ClipLoader has ended this one; use two loaders for two loops") from None


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("Critical error")]
    return next((line for line in lines if "failed" in line), lines[0] if lines else type(error).__name__)
