"""Check that an index fits a model or a recipe before any video is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from flowless.console import log
from flowless.errors import FlowlessError
from flowless.pipeline.clip.sampling import frames_spanned
from flowless.pipeline.dataset.index import DatasetIndex

if TYPE_CHECKING:
    from flowless.pipeline.clip.spec import ClipSpec, Rule
    from flowless.train.recipes import Recipe


def relabel(index: DatasetIndex, labels: Sequence[str]) -> DatasetIndex:
    """Return the index with its class numbers in a model's label order, matched by name.

    Args:
        index: Labelled videos; it may lack some of the model's labels.
        labels: The model's labels, in the order of its scores.

    Raises:
        FlowlessError: The index has labels that the model does not have, or no videos.
    """
    if not index.videos:
        raise FlowlessError(f"{index.name}: holds no videos. The index's first line lists the files that its scan refused, and why.")
    position = {label: number for number, label in enumerate(labels)}
    unknown = sorted({index.labels[video.label] for video in index.videos} - set(position))
    if unknown:
        shown = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise FlowlessError(
            f"{index.name}: has labels that the model was not trained on: {shown}. The model has {len(labels)} labels: "
            f"{', '.join(map(repr, labels[:5]))}{' …' if len(labels) > 5 else ''}. Index videos of the same labels."
        )
    videos = tuple(replace(video, label=position[index.labels[video.label]]) for video in index.videos)
    return replace(index, labels=tuple(labels), videos=videos)


def check_training_index(index: DatasetIndex, *, batch_size: int) -> None:
    """Refuse an index with fewer than two labels, or with fewer videos than one batch."""
    seen = len({video.label for video in index.videos})
    if seen < 2:
        raise FlowlessError(
            f"{index.name}: has videos of {seen} label{'' if seen == 1 else 's'}; training needs at least 2. In a folder-per-class data "
            f"set every label is a folder: flowless scan FOLDER."
        )
    if len(index.videos) < batch_size:
        raise FlowlessError(
            f"{index.name}: has {len(index.videos)} videos, fewer than batch_size, {batch_size}. Lower --batch-size, or index more videos."
        )


def warn_of_short_videos(index: DatasetIndex, spec: ClipSpec, *, rule: Rule) -> None:
    """Warn how many videos are shorter than the clips that a sampling rule takes of them."""
    span = frames_spanned(rule, segments=spec.segments, frames_per_segment=spec.frames_per_segment)
    short = sum(video.frames < span for video in index.videos)
    if short:
        log.print(
            f"flowless: {short} of the {len(index.videos)} videos of {index.name} have fewer frames than a clip spans here, {span} "
            f"({rule}): their clips wrap around from the video's last frame to its first.",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def check_validation_shares(index: DatasetIndex, world: int) -> None:
    """Refuse a validation index with fewer videos than training processes: each process validates a share of them."""
    if len(index.videos) < world:
        raise FlowlessError(
            f"{index.name}: has {len(index.videos)} validation videos for {world} processes. Index more of them, or take fewer --devices."
        )


def check_twins_differ(index: DatasetIndex, recipe: Recipe) -> None:
    """Refuse Twins Training where both augmentations of every clip would give the same pixels: it would compare a clip with itself."""
    from flowless.pipeline.loading.augment import view_is_deterministic
    from flowless.train.loop.loaders import augmentation_of

    sizes = {(video.info.width, video.info.height) for video in index.videos}
    augmentation = augmentation_of(recipe)
    if recipe.objective == "twins" and all(view_is_deterministic(*size, spec=recipe.spec, augmentation=augmentation) for size in sizes):
        raise FlowlessError(
            f"recipe {recipe.name}: objective is twins, but both augmentations of every clip would give the same pixels: scales is "
            f"{', '.join(map(str, recipe.scales))} of square frames, flip is off, colour_jitter and grey are 0. Change one, such as "
            f"--scales 1.0 0.875, --colour-jitter 0.4, --grey 0.2, or --flip where a mirrored clip still shows the same action."
        )
