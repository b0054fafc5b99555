"""Repeated augmentation (`Augmentation.draws`): several augmented views of one clip from one decode, each with its own label."""

from __future__ import annotations

import numpy as np
import pytest

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.loading.augment import Augmentation, LoaderOptions
from flowless.pipeline.synthetic.moving_shapes import TWIN, ShapesOptions, generate
from flowless.pipeline.video.reader import VideoReader

torch = pytest.importorskip("torch")
pytest.importorskip("nvidia.dali")

from flowless.pipeline.loading.loader import Batch, ClipLoader  # noqa: E402

SPEC = ClipSpec(segments=3, frames_per_segment=1, height=36, width=36, short_side=36)
SIDES = {name: TWIN[name] for name in ("left", "clockwise")}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    """24 videos of 12 frames of 36 x 36, the network's input size."""
    folder = tmp_path_factory.mktemp("draws") / "shapes"
    generate(folder, options=ShapesOptions(train_videos=24, val_videos=0, frames=12, size=36), workers=1)
    return DatasetIndex.load(folder / "train.index.jsonl")


def batches(
    index: DatasetIndex, *, draws: int = 2, batch_size: int = 4, threads: int = 1, epoch: int = 0, scales=(1.0,), **changes
) -> list[Batch]:
    augmentation = Augmentation(draws=draws, scales=scales, **changes)
    options = LoaderOptions(augmentation=augmentation, threads=threads, seed=2, drop_last=False)
    made = ClipLoader(index, SPEC, rule="train", batch_size=batch_size, options=options)
    made.set_epoch(epoch)
    return list(made)


def by_id(made: list[Batch]) -> dict[str, np.ndarray]:
    return {name: clip.numpy().astype(int) for batch in made for name, clip in zip(batch.ids, batch.clips, strict=True)}


def labels_by_id(made: list[Batch]) -> dict[str, list[int]]:
    return {name: row for batch in made for name, row in zip(batch.ids, batch.labels.tolist(), strict=True)}


def test_all_draws_use_one_decode(index: DatasetIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, frames = [], VideoReader.frames
    monkeypatch.setattr(VideoReader, "frames", lambda video, ordinals: (decoded.append(video.path), frames(video, ordinals))[1])
    made = batches(index)
    assert made[0].clips.shape == (4, 2, *SPEC.shape)
    assert made[0].labels.shape == (4, 2)
    assert len(decoded) == len(set(decoded)) == 24, "once per video, not once per draw"
    # Without random augmentation, all draws are identical.
    assert all((first == second).all() for first, second in by_id(made).values())


def test_draws_differ_and_the_first_equals_a_single_draw(index: DatasetIndex) -> None:
    chance = {"scales": (1.0, 0.7), "flip": True, "brightness": 0.3, "grey": 0.5}
    twins, alone = by_id(batches(index, **chance)), by_id(batches(index, draws=1, **chance))
    assert all((twins[name][0] == alone[name][0]).all() for name in alone)
    assert all(np.abs(first - second).max() > 10 for first, second in twins.values())


def test_draws_depend_only_on_seed_epoch_and_video(index: DatasetIndex) -> None:
    chance = {"scales": (1.0, 0.7), "flip": True, "brightness": 0.3, "grey": 0.5}
    first, again = by_id(batches(index, **chance)), by_id(batches(index, batch_size=5, threads=3, **chance))
    assert first.keys() == again.keys()
    assert all((first[name] == again[name]).all() for name in first)
    other = by_id(batches(index, epoch=1, **chance))
    assert all((other[name][draw] != first[name][draw]).any() for name in first for draw in range(2))


def test_each_draw_has_the_label_of_its_flip(index: DatasetIndex) -> None:
    plain, was = by_id(batches(index, draws=1)), labels_by_id(batches(index, draws=1))
    made = batches(index, flip=True, flip_labels=SIDES)
    mirrored = {**SIDES, **{b: a for a, b in SIDES.items()}}
    flips = set()
    for (name, clip), labels in zip(by_id(made).items(), labels_by_id(made).values(), strict=True):
        usual = index.labels[was[name]]  # type: ignore[call-overload]
        turned = tuple(bool((picture != plain[name][0]).any()) for picture in clip)
        for picture, is_turned, label in zip(clip, turned, labels, strict=True):
            upright = picture[..., ::-1, :] if is_turned else picture
            assert np.abs(upright - plain[name][0]).max() <= 1
            assert index.labels[label] == (mirrored.get(usual, usual) if is_turned else usual)
        flips.add(turned)
    assert len(flips) == 4, "the two draws are flipped independently"


def test_colours_differ_between_draws(index: DatasetIndex) -> None:
    ratios = []
    for first, second in by_id(batches(index, brightness=0.4)).values():
        ratios.append(first.mean() / second.mean())
    assert min(ratios) < 0.9
    assert max(ratios) > 1.1
    grey = by_id(batches(index, grey=1.0)).values()
    assert max(np.ptp(clip, axis=-1).max() for clip in grey) <= 1
    some = [np.ptp(picture, axis=-1).max() <= 1 for clip in by_id(batches(index, grey=0.5)).values() for picture in clip]
    assert 12 < sum(some) < 36


def test_one_draw_has_one_label(index: DatasetIndex) -> None:
    assert batches(index, draws=1)[0].labels.shape == (4,)
    with pytest.raises(FlowlessError, match=r"draws is 0.*|grey is 2"):
        Augmentation(draws=0, grey=2)
