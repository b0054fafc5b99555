"""Data loaders of a recipe for training and validation, and their iteration epoch by epoch over several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from flowless.errors import FlowlessError
from flowless.pipeline.dataset.index import DatasetIndex

if TYPE_CHECKING:
    from flowless.pipeline.clip.spec import ClipSpec, Rule
    from flowless.pipeline.loading.augment import Augmentation
    from flowless.pipeline.loading.loader import Batch, ClipLoader
    from flowless.train.loop.processes import Processes
    from flowless.train.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class LoaderPlacement:
    """The process that a loader works for, and the device that its batches go to."""

    rank: int = 0
    """Number of the process among those that share an epoch."""
    world: int = 1
    """Number of processes."""
    gpu: int | None = None
    """Number of the GPU that batches go to; None for the CPU."""

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments of `LoaderOptions` for this placement."""
        device = {"device": "cpu"} if self.gpu is None else {"device": "gpu", "device_id": self.gpu}
        return {"rank": self.rank, "world": self.world, **device}


def training_loader(index: DatasetIndex, recipe: Recipe, *, placement: LoaderPlacement) -> ClipLoader:
    """Return a recipe's shuffled loader of augmented clips, for one of the processes that share an epoch."""
    from flowless.pipeline.loading.augment import LoaderOptions
    from flowless.pipeline.loading.loader import ClipLoader

    options = LoaderOptions(
        seed=recipe.seed,
        threads=recipe.threads,
        augmentation=augmentation_of(recipe),
        max_bad_share=recipe.max_bad_share,
        training=True,
        **placement.options(),
    )
    return ClipLoader(index, recipe.spec, rule=recipe.training_rule, batch_size=device_batch(recipe, placement.world), options=options)


def augmentation_of(recipe: Recipe) -> Augmentation:
    """Return the augmentation that a recipe's fields describe."""
    from flowless.pipeline.loading.augment import Augmentation

    return Augmentation(
        scales=recipe.scales,
        flip=recipe.flip,
        flip_labels=recipe.flip_labels,
        brightness=recipe.colour_jitter,
        contrast=recipe.colour_jitter,
        saturation=recipe.colour_jitter,
        grey=recipe.grey,
        draws=recipe.draws,
    )


def evaluation_loader(
    index: DatasetIndex,
    spec: ClipSpec,
    *,
    rule: Rule,
    batch_size: int,
    threads: int | None,
    placement: LoaderPlacement,
    decoder: Literal["auto", "pyav"] = "auto",
) -> ClipLoader:
    """Return a loader that yields every video once, in order, without augmentation."""
    from flowless.pipeline.loading.augment import LoaderOptions
    from flowless.pipeline.loading.loader import ClipLoader

    options = LoaderOptions(threads=threads, decoder=decoder, **placement.options())
    return ClipLoader(index, spec, rule=rule, batch_size=batch_size, options=options)


def device_batch(recipe: Recipe, world: int) -> int:
    """Return the number of clips in one batch on one device: batch_size divided by devices and by accumulated batches."""
    parts = world * recipe.accumulate
    if recipe.batch_size % parts:
        raise FlowlessError(
            f"recipe {recipe.name}: batch_size is {recipe.batch_size}; with {world} devices and {recipe.accumulate} accumulated batches "
            f"it must be a multiple of {parts}."
        )
    return recipe.batch_size // parts


class EpochBatches:
    """Iterates over a loader's batches epoch by epoch, and stops every process when loading fails in one.

    An epoch's batches depend on (seed, epoch) alone, so a resumed run continues with the batch after the last one that its saved state
    includes; the batches before it are not decoded.

    Args:
        source: The loader of this process.
        processes: The processes that train together.
        start: Called when an epoch begins; returns the epoch and its first batch, which is above 0 only after a resume.
        request: In training only: called before every batch; returns this process's request (see `Processes.agree`).
        on_agreed: In training only: called before every batch with the largest request of all processes.
    """

    def __init__(
        self,
        source: ClipLoader,
        *,
        processes: Processes,
        start: Callable[[], tuple[int, int]],
        request: Callable[[], int] | None = None,
        on_agreed: Callable[[int], None] | None = None,
    ) -> None:
        self.source = source
        self.failed: Exception | None = None
        """In validation: the error after the first batch, if any; the module passes it to `Processes.agree` at the end of validation."""
        self._processes = processes
        self._start = start
        self._request = request
        self._on_agreed = on_agreed

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self._start()
        self.source.set_epoch(epoch, first_batch=first)
        # In training all processes have equally many batches, so they agree before each. In validation the numbers may differ by one, so
        # they agree before the first batch only.
        agree_again, self.failed = True, None
        with closing(iter(self.source)) as batches:
            while True:
                batch, error = None, None
                try:
                    batch = next(batches, None)
                except Exception as caught:
                    error = caught
                if agree_again:
                    agreed = self._processes.agree(error, request=self._request() if self._request else 0)
                    if self._on_agreed:
                        self._on_agreed(agreed)
                    agree_again = self._request is not None
                elif error is not None:
                    self.failed = error
                    return
                if batch is None:
                    return
                yield batch
