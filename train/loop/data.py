"""Between an index and a training loop: labels that fit, and batches epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from flowless.console import log
from flowless.errors import FlowlessError
from flowless.pipeline.clip.sampling import frames_spanned
from flowless.pipeline.dataset.index import DatasetIndex

if TYPE_CHECKING:
    from flowless.pipeline.clip.spec import ClipSpec, Rule
    from flowless.pipeline.loading.augment import Augmentation
    from flowless.pipeline.loading.loader import Batch, ClipLoader
    from flowless.train.loop.processes import Processes
    from flowless.train.recipes import Recipe


def relabel(index: DatasetIndex, labels: Sequence[str]) -> DatasetIndex:
    """Give an index the label order of a model, by name; an index may lack some of the model's labels.

    Args:
        index: Labelled videos.
        labels: The model's labels, in the order of its scores.

    Raises:
        FlowlessError: The index has labels that the model does not know, or no videos.
    """
    if not index.videos:
        raise FlowlessError(f"{index.name}: holds no videos. The index's first line lists the files that its scan refused, and why.")
    position = {label: number for number, label in enumerate(labels)}
    unknown = sorted({index.labels[video.label] for video in index.videos} - set(position))
    if unknown:
        shown = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise FlowlessError(
            f"{index.name}: has labels that the model was not trained on: {shown}. The model knows {len(labels)}: "
            f"{', '.join(map(repr, labels[:5]))}{' …' if len(labels) > 5 else ''}. Index videos of the same labels."
        )
    videos = tuple(replace(video, label=position[index.labels[video.label]]) for video in index.videos)
    return replace(index, labels=tuple(labels), videos=videos)


def check_training_index(index: DatasetIndex, *, batch_size: int) -> None:
    """Refuse an index that nothing can be learnt from."""
    seen = len({video.label for video in index.videos})
    if seen < 2:
        raise FlowlessError(
            f"{index.name}: has videos of {seen} label{'' if seen == 1 else 's'}; training needs at least 2. A folder-per-class data set "
            f"has one folder a label: flowless scan FOLDER."
        )
    if len(index.videos) < batch_size:
        raise FlowlessError(
            f"{index.name}: has {len(index.videos)} videos, fewer than batch_size, {batch_size}. Lower --batch-size, or index more videos."
        )


def warn_of_short_videos(index: DatasetIndex, spec: ClipSpec, *, rule: Rule) -> None:
    """Say how many videos are shorter than the clips that a rule takes of them."""
    span = frames_spanned(rule, segments=spec.segments, frames_per_segment=spec.frames_per_segment)
    short = sum(video.frames < span for video in index.videos)
    if short:
        log.print(
            f"flowless: {short} of the {len(index.videos)} videos of {index.name} have fewer than the {span} frames that a clip spans here "
            f"({rule}): their clips wrap around, and what comes last is followed by what comes first.",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def check_shares(index: DatasetIndex, world: int) -> None:
    """Refuse validation videos that are fewer than the processes that share them."""
    if len(index.videos) < world:
        raise FlowlessError(
            f"{index.name}: has {len(index.videos)} validation videos for {world} processes. Index more of them, or take fewer --devices."
        )


def check_views(index: DatasetIndex, recipe: Recipe) -> None:
    """Refuse Twins Training where both views of every clip would be the same pixels: it compares a clip with itself then."""
    from flowless.pipeline.loading.augment import view_is_deterministic

    sizes = {(video.info.width, video.info.height) for video in index.videos}
    augmentation = _augmentation(recipe)
    if recipe.objective == "twins" and all(view_is_deterministic(*size, spec=recipe.spec, augmentation=augmentation) for size in sizes):
        raise FlowlessError(
            f"recipe {recipe.name}: objective is twins, but both views of every clip would be the same pixels: scales is "
            f"{', '.join(map(str, recipe.scales))} of square frames, flip is off, colour_jitter and grey are 0. Change one, such as "
            f"--scales 1.0 0.875, --colour-jitter 0.4, --grey 0.2, or --flip where left and right are no different actions."
        )


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a loader works: its process among those that share an epoch, and its device."""

    rank: int = 0
    world: int = 1
    gpu: int | None = None
    """Number of the GPU that batches go to; None for the CPU."""

    def options(self) -> dict[str, Any]:
        """Return the loader's options for this place."""
        device = {"device": "cpu"} if self.gpu is None else {"device": "gpu", "device_id": self.gpu}
        return {"rank": self.rank, "world": self.world, **device}


def training_loader(index: DatasetIndex, recipe: Recipe, *, place: Place) -> ClipLoader:
    """Return the augmented, shuffled loader of a recipe for one of the processes that share it."""
    from flowless.pipeline.loading.augment import LoaderOptions
    from flowless.pipeline.loading.loader import ClipLoader

    options = LoaderOptions(
        seed=recipe.seed,
        threads=recipe.threads,
        augmentation=_augmentation(recipe),
        max_bad_share=recipe.max_bad_share,
        training=True,
        **place.options(),
    )
    return ClipLoader(index, recipe.spec, rule=recipe.training_rule, batch_size=device_batch(recipe, place.world), options=options)


def _augmentation(recipe: Recipe) -> Augmentation:
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
    threads: int | None = None,
    place: Place | None = None,
) -> ClipLoader:
    """Return a loader that gives every video once, in order, without augmentation."""
    from flowless.pipeline.loading.augment import LoaderOptions
    from flowless.pipeline.loading.loader import ClipLoader

    options = LoaderOptions(threads=threads, **(place or Place()).options())
    return ClipLoader(index, spec, rule=rule, batch_size=batch_size, options=options)


def device_batch(recipe: Recipe, world: int) -> int:
    """Return the clips of one batch on one device: batch_size over devices and accumulated batches."""
    parts = world * recipe.accumulate
    if recipe.batch_size % parts:
        raise FlowlessError(
            f"recipe {recipe.name}: batch_size is {recipe.batch_size}; over {world} devices and {recipe.accumulate} accumulated batches "
            f"it must be a multiple of {parts}."
        )
    return recipe.batch_size // parts


class EpochBatches:
    """A loader that asks for the epoch and its first batch each time it starts, and gives up in all processes where it does in one.

    An epoch's batches depend on (seed, epoch) alone, so a run that was killed goes on with the batch after the last one kept; what comes
    before it is not decoded.

    Args:
        source: The batches of this process.
        processes: Those that train together.
        start: Called at each start; returns the epoch and the batch in it to begin with.
        wish: In training: what this process asks of all (see `Processes.agree`), before every batch.
        granted: In training: called with the largest wish of all.
    """

    def __init__(
        self,
        source: ClipLoader,
        *,
        processes: Processes,
        start: Callable[[], tuple[int, int]],
        wish: Callable[[], int] | None = None,
        granted: Callable[[int], None] | None = None,
    ) -> None:
        self.source = source
        self.failed: Exception | None = None
        """In validation: what went wrong behind the first batch; the others know when all of them call `agree` with it."""
        self._processes = processes
        self._start = start
        self._wish = wish
        self._granted = granted

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self._start()
        self.source.set_epoch(epoch, first_batch=first)
        # Processes train on as many batches each, so they meet before every one; they validate on one more or less.
        together, self.failed = True, None
        with closing(iter(self.source)) as batches:
            while True:
                batch, error = None, None
                try:
                    batch = next(batches, None)
                except Exception as caught:
                    error = caught
                if together:
                    wish = self._processes.agree(error, wish=self._wish() if self._wish else 0)
                    if self._granted:
                        self._granted(wish)
                    together = self._wish is not None
                elif error is not None:
                    self.failed = error
                    return
                if batch is None:
                    return
                yield batch
