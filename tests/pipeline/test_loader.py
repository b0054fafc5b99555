"""ClipLoader: epochs, reproducible samples, unreadable videos, choice of decoder, and bounded prefetching."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.clip.protocols import protocol_spec
from flowless.pipeline.clip.spec import CLIPS, ClipSpec, Rule
from flowless.pipeline.dataset.index import DatasetIndex, stamp_of
from flowless.pipeline.dataset.scan import scan
from flowless.pipeline.loading.augment import Augmentation, LoaderOptions
from flowless.pipeline.synthetic.moving_shapes import TWIN, ShapesOptions, generate
from flowless.pipeline.video.encode import write_video

torch = pytest.importorskip("torch")
pytest.importorskip("nvidia.dali")

from flowless.pipeline.loading.dali_graph import TOLERANCE_EDGE, TOLERANCE_MAX, TOLERANCE_MEAN  # noqa: E402
from flowless.pipeline.loading.loader import Batch, ClipLoader  # noqa: E402

SPEC = ClipSpec(segments=4, frames_per_segment=2, height=32, width=28, short_side=36)
SQUARE = replace(SPEC, width=32)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    """26 videos of 20 frames, 36 x 36."""
    options = ShapesOptions(train_videos=26, val_videos=0, frames=20, size=36)
    folder = generate(tmp_path_factory.mktemp("loader") / "shapes", options=options, workers=1)
    return DatasetIndex.load(folder / "train.index.jsonl")


@pytest.fixture
def damaged(index: DatasetIndex, tmp_path: Path) -> Callable[..., DatasetIndex]:
    """Return a function that copies the videos and damages those at the given positions in the index."""

    def damage(*places: int) -> DatasetIndex:
        for number, video in enumerate(index.videos):
            copy = tmp_path / video.path
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(b"not a video" if number in places else index.path_of(video).read_bytes())
        return replace(index, root=tmp_path)

    return damage


def loader(index: DatasetIndex, *, rule: Rule | None = None, batch_size: int = 4, spec: ClipSpec = SPEC, **options) -> ClipLoader:
    return ClipLoader(index, spec, rule=rule, batch_size=batch_size, options=LoaderOptions(**options))


def clips_by_id(batches: list[Batch]) -> dict[str, np.ndarray]:
    return {name: clip.numpy() for batch in batches for name, clip in zip(batch.ids, batch.clips, strict=True)}


def ids(batches: list[Batch]) -> list[str]:
    return [name for batch in batches for name in batch.ids]


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


@pytest.mark.parametrize(("rule", "views"), [*CLIPS.items()])
def test_evaluation_gives_every_video_once_with_the_runtimes_pixels(index: DatasetIndex, rule: Rule, views: int) -> None:
    made = loader(index, rule=rule, batch_size=8)
    batches = list(made)
    assert len(batches) == len(made) == 4
    assert [len(batch.ids) for batch in batches] == [8, 8, 8, 2]
    assert ids(batches) == [video.id for video in index.videos]
    assert [label for batch in batches for label in batch.labels.tolist()] == [video.label for video in index.videos]
    assert batches[0].clips.shape == (8, views, 4, 2, 32, 28, 3)
    assert batches[0].clips.dtype == torch.uint8
    assert batches[0].labels.dtype == torch.int64
    spec = replace(SPEC, sampling=rule)
    for video in index.videos[:5]:
        expected = load_clip(index.path_of(video), spec)
        assert np.abs(clips_by_id(batches)[video.id].astype(int) - expected).max() <= TOLERANCE_MAX


@pytest.mark.parametrize(
    ("name", "views"),
    [("three-crop", 3), ("full-resolution", 2), ("thirty-view", 30), ("thirty-draw", 30), ("six-view", 6), ("thirty-consecutive", 30)],
)
def test_protocols_match_the_runtime(name: str, views: int, tmp_path: Path) -> None:
    """Portrait, landscape and square, of odd sizes."""
    rng, spec = np.random.default_rng(1), protocol_spec(SQUARE if name == "thirty-draw" else SPEC, name)
    for number, (height, width) in enumerate(((60, 46), (46, 62), (50, 50))):
        (tmp_path / f"kind {number}").mkdir()
        coarse = rng.integers(0, 256, (20, 9, 11, 3)).astype(np.uint8).repeat(8, 1).repeat(8, 2)
        write_video(tmp_path / f"kind {number}" / "film.mp4", coarse[:, :height, :width])
    dataset = scan(tmp_path, out=tmp_path / "index.jsonl", workers=1)
    (batch,) = loader(dataset, spec=spec, batch_size=3)
    assert batch.clips.shape == (3, views, *spec.shape)
    for video, clip in zip(dataset.videos, batch.clips.numpy(), strict=True):
        difference = np.abs(clip.astype(int) - load_clip(dataset.path_of(video), spec))
        assert difference[..., 1:-1, 1:-1, :].max() <= TOLERANCE_MAX
        assert difference.max() <= TOLERANCE_EDGE
        assert difference.mean() <= TOLERANCE_MEAN


def test_thirty_draws_by_dali_match_pillow(tmp_path: Path) -> None:
    """VP9, which DALI decodes on the CPU: the same draws, crops and second resize; only the colour conversion differs."""
    rng, spec = np.random.default_rng(1), protocol_spec(SQUARE, "thirty-draw")
    (tmp_path / "kind").mkdir()
    coarse = rng.integers(0, 256, (20, 9, 11, 3)).astype(np.uint8).repeat(8, 1).repeat(8, 2)
    options = {"crf": "10", "deadline": "realtime", "cpu-used": "8"}
    write_video(tmp_path / "kind" / "film.webm", coarse[:, :46, :62], codec="libvpx-vp9", options=options)
    dataset = scan(tmp_path, out=tmp_path / "index.jsonl", workers=1)
    by_dali = loader(dataset, spec=spec, batch_size=1, decoder="dali")
    (clip,) = (batch.clips.numpy().astype(int) for batch in by_dali)
    assert by_dali.decoded_by == {"dali": 1}
    expected = load_clip(dataset.path_of(dataset.videos[0]), spec)
    assert clip[0].shape == expected.shape == (30, *spec.shape)
    assert np.abs(clip[0] - expected).mean() < 4
    assert min(np.abs(clip[0][view] - expected[(view + 1) % 30]).mean() for view in range(30)) > 12, "views must differ"


def test_training_ignores_the_evaluations_crops(index: DatasetIndex) -> None:
    made = {side: next(iter(loader(index, rule="train", spec=replace(SQUARE, crop="three", crop_side=side)))) for side in (None, 36)}
    assert made[None].clips.shape == (4, 1, *SQUARE.shape)
    assert torch.equal(made[None].clips, made[36].clips)


def test_the_default_rule_is_the_specs(index: DatasetIndex) -> None:
    assert next(iter(loader(index, spec=replace(SPEC, sampling="two-clip")))).clips.shape[1] == 2


def test_clips_of_a_part_use_only_its_frames(index: DatasetIndex) -> None:
    video = index.videos[3]
    parts = tuple(replace(video, id=f"{video.path}#{a}-{b}", first_frame=a, frames=b - a) for a, b in ((0, 9), (9, 20)))
    batch = next(iter(loader(replace(index, videos=parts), rule="centre")))
    for clip, part in zip(batch.clips.numpy(), parts, strict=True):
        expected = load_clip(index.path_of(video), SPEC, first_frame=part.first_frame, num_frames=part.frames)
        assert np.abs(clip.astype(int) - expected).max() <= TOLERANCE_MAX


def test_training_shuffles_by_seed_and_epoch_and_drops_the_last(index: DatasetIndex) -> None:
    made = loader(index, rule="train", seed=5)
    assert len(made) == 6
    orders = []
    for epoch in (0, 1, 0):
        made.set_epoch(epoch)
        orders.append(ids(list(made)))
    assert all(len(set(order)) == 24 for order in orders)
    assert orders[0] == orders[2] != orders[1]
    assert orders[0] != ids(list(loader(index, rule="train", seed=6)))
    assert len(loader(index, rule="train", drop_last=False)) == 7
    assert loader(index, rule="train", shuffle=False).plan() == [list(range(at, at + 4)) for at in range(0, 24, 4)]


def test_a_sample_depends_only_on_seed_epoch_and_video(index: DatasetIndex) -> None:
    """Not on threads, batch size, rank, order or earlier iterations."""
    jitter = Augmentation(flip=True, brightness=0.3)
    common = {"rule": "train", "augmentation": jitter, "seed": 3, "drop_last": False}
    reference = clips_by_id(list(loader(index, threads=1, **common)))
    assert len(reference) == 26
    again = loader(index, threads=3, batch_size=5, **common)
    again.set_epoch(7)
    other = clips_by_id(list(again))
    again.set_epoch(0)
    assert same(clips_by_id(list(again)), reference)
    assert not any((other[name] == reference[name]).all() for name in reference)
    assert not same(clips_by_id(list(loader(index, **{**common, "seed": 4}))), reference)
    ranks = [clips_by_id(list(loader(index, rank=rank, world=2, **common))) for rank in range(2)]
    assert same({**ranks[0], **ranks[1]}, reference)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_processes_share_an_epoch(index: DatasetIndex, world: int) -> None:
    """26 videos: evaluation gives each exactly once; in training all processes have the same number of batches."""
    shown = [ids(list(loader(index, rule="centre", rank=rank, world=world))) for rank in range(world)]
    assert sorted(name for part in shown for name in part) == sorted(video.id for video in index.videos)
    training = [loader(index, rule="train", rank=rank, world=world) for rank in range(world)]
    assert {len(made) for made in training} == {26 // world // 4}
    taken = [number for made in training for batch in made.plan() for number in batch]
    assert len(set(taken)) == len(taken) == 26 // world // 4 * 4 * world
    assert {sum(map(len, loader(index, rule="train", drop_last=False, rank=rank, world=world).plan())) for rank in range(world)} == {
        26 // world
    }


def test_resuming_within_an_epoch(index: DatasetIndex) -> None:
    made = loader(index, rule="train", augmentation=Augmentation(flip=True))
    made.set_epoch(2)
    whole = list(made)
    made.set_epoch(2, first_batch=4)
    rest = list(made)
    assert ids(rest) == ids(whole[4:])
    assert same(clips_by_id(rest), clips_by_id(whole[4:]))
    assert len(list(made)) == 6, "only the next iteration starts within the epoch"


def test_a_flip_may_change_the_label(index: DatasetIndex) -> None:
    sides = {name: TWIN[name] for name in ("left", "clockwise")}
    plain = loader(index, rule="train", shuffle=False, drop_last=False)
    aware = loader(index, rule="train", shuffle=False, drop_last=False, augmentation=Augmentation(flip=True, flip_labels=sides))
    names, mirrored = index.labels, {**sides, **{b: a for a, b in sides.items()}}
    changed = 0
    for one, other in zip(plain, aware, strict=True):
        for was, now in zip(one.labels.tolist(), other.labels.tolist(), strict=True):
            assert names[now] in {names[was], mirrored.get(names[was], names[was])}
            changed += was != now
    assert 0 < changed < sum(index.labels[video.label] in mirrored for video in index.videos)
    with pytest.raises(FlowlessError, match="flip_labels names 'east'"):
        loader(index, rule="train", augmentation=Augmentation(flip=True, flip_labels={"left": "east"}))


@pytest.mark.parametrize("rule", ["dense", "consecutive"])
def test_dense_training_takes_one_random_view(index: DatasetIndex, rule: Rule) -> None:
    made = loader(index, rule=rule, training=True)
    epochs = []
    for epoch in range(3):
        made.set_epoch(epoch)
        epochs.append(clips_by_id(list(made)))
    assert {clip.shape[0] for clips in epochs for clip in clips.values()} == {1}


def test_consecutive_training_shows_consecutive_frames(tmp_path: Path) -> None:
    """Frame k is grey of level 4 k, which identifies it; in training, the start differs between epochs."""
    (tmp_path / "kind").mkdir()
    frames = np.broadcast_to((4 * np.arange(50, dtype=np.uint8))[:, None, None, None], (50, 36, 36, 3))
    for number in range(4):
        write_video(tmp_path / "kind" / f"{number}.mp4", frames, options={"crf": "1"})
    dataset = scan(tmp_path, out=tmp_path / "index.jsonl", workers=1)

    def shown(made: ClipLoader) -> np.ndarray:
        (batch,) = made
        return np.rint(batch.clips.numpy().mean((-3, -2, -1)) / 4).astype(int).reshape(len(batch.ids), -1)

    training, starts = loader(dataset, rule="consecutive", training=True), set()
    for epoch in range(6):
        training.set_epoch(epoch)
        numbers = shown(training)
        assert (np.diff(numbers, axis=1) == 1).all()
        starts |= set(numbers[:, 0].tolist())
    assert len(starts) > 10
    assert shown(loader(dataset, rule="consecutive")).tolist() == [list(range(21, 29))] * 4, "the middle: (50 - 8) / 2"


def test_an_unreadable_video_is_replaced_in_training(index: DatasetIndex, damaged: Callable[..., DatasetIndex]) -> None:
    with_damage = damaged(2, 11)
    made = loader(with_damage, rule="train", drop_last=False, max_bad_share=0.2, threads=3)
    first = list(made)
    assert [item.path for item in made.bad_videos] == sorted(with_damage.videos[number].path for number in (2, 11))
    assert all(item.path in item.reason for item in made.bad_videos)
    shown = ids(first)
    assert len(shown) == 26, "batches stay full"
    bad = {with_damage.videos[number].id for number in (2, 11)}
    assert not bad & set(shown)
    planned = [with_damage.videos[number] for batch in made.plan() for number in batch]
    moved = [(video.id, name) for video, name in zip(planned, shown, strict=True) if video.id != name]
    assert {was for was, _ in moved} == bad
    label_of = {video.id: video.label for video in index.videos}
    assert [label_of[name] for name in shown] == [label for batch in first for label in batch.labels.tolist()]
    again = list(loader(with_damage, rule="train", drop_last=False, max_bad_share=0.2, threads=1))
    assert ids(again) == shown
    made.set_epoch(1)
    other = dict(zip((with_damage.videos[n].id for batch in made.plan() for n in batch), ids(list(made)), strict=True))
    assert [other[was] for was, _ in moved] != [now for _, now in moved], "replacements differ between epochs"
    assert len(made.bad_videos) == 2


def test_evaluation_leaves_unreadable_videos_out(damaged: Callable[..., DatasetIndex]) -> None:
    with_damage = damaged(0, 5)
    made = loader(with_damage, rule="centre", max_bad_share=0.1)
    batches = list(made)
    assert [len(batch.ids) for batch in batches] == [3, 3, 4, 4, 4, 4, 2]
    assert ids(batches) == [video.id for number, video in enumerate(with_damage.videos) if number not in {0, 5}]
    assert [item.path for item in made.bad_videos] == [with_damage.videos[number].path for number in (0, 5)]


def test_too_many_unreadable_videos_stop_the_epoch(damaged: Callable[..., DatasetIndex]) -> None:
    with_damage = damaged(1, 3, 5)
    for rule in ("train", "centre"):
        with pytest.raises(FlowlessError, match=r"of 26 videos cannot be read, more than the fraction 0\.05.*flowless scan"):
            list(loader(with_damage, rule=rule))
    with pytest.raises(FlowlessError, match="8 videos in a row cannot be read"):
        list(loader(damaged(*range(26)), rule="train", max_bad_share=1))
    assert list(loader(damaged(*range(26)), rule="centre", max_bad_share=1)) == []


def test_dali_and_pyav_share_the_videos(tmp_path: Path, index: DatasetIndex, capsys: pytest.CaptureFixture[str]) -> None:
    """VP9 by DALI's CPU decoder beside H.264 by PyAV; then with a VP9 file that is cut off."""
    frames = np.stack([np.roll(np.kron(np.eye(6), np.ones((8, 8)))[..., None] * [200, 120, 60], 2 * i, 1) for i in range(20)]).astype(
        np.uint8
    )
    for label in ("down", "up"):
        (tmp_path / label).mkdir()
        for number in range(2):
            ordered = frames[:: 1 if label == "down" else -1]
            write_video(tmp_path / label / f"{number}.webm", ordered, codec="libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"})
        write_video(tmp_path / label / "h264.mp4", frames)
    mixed = scan(tmp_path, out=tmp_path / "index.jsonl", workers=1)
    assert len(mixed.videos) == 6
    assert {video.info.pixel_format for video in mixed.videos} == {"yuv420p"}
    by_dali, by_pyav = (clips_by_id(list(loader(mixed, rule="centre", decoder=name))) for name in ("dali", "pyav"))
    for name, clip in by_dali.items():
        difference = np.abs(clip.astype(int) - by_pyav[name])
        assert difference.mean() < 3
        assert difference.any() == name.endswith("webm"), "PyAV decodes H.264 in both"
    both = loader(mixed, rule="centre", decoder="dali")
    for _ in range(2):
        assert sum(len(batch.ids) for batch in both) == 6
        assert both.decoded_by == {"dali": 4, "pyav": 2}, "counted per iteration"
    cut = tmp_path / "up" / "1.webm"
    whole = cut.read_bytes()
    cut.write_bytes(whole[: len(whole) // 3])
    # Update the stamps, so that the damage is found only by decoding.
    mixed = replace(mixed, videos=tuple(replace(video, stamp=stamp_of(mixed.path_of(video))) for video in mixed.videos))
    alone = replace(mixed, videos=tuple(video for video in mixed.videos if video.info.codec == "vp9"))
    for some in (mixed, alone):
        made = loader(some, rule="centre", decoder="dali", max_bad_share=0.5, batch_size=6)
        for _ in range(2):
            assert sorted(ids(list(made))) == sorted({video.id for video in some.videos} - {"up/1.webm"})
            assert [item.path for item in made.bad_videos] == ["up/1.webm"]
            # PyAV decodes the batch on which DALI failed, in this and later epochs.
            assert made.decoded_by == {"pyav": len(some.videos) - 1}
        assert capsys.readouterr().err.count("DALI cannot decode") == 1, "the second epoch does not try DALI again"
    with pytest.raises(FlowlessError, match=r"can decode no video of the index: h264: on the CPU, DALI decodes mjpeg, vp8, vp9"):
        loader(index, decoder="dali")


def test_a_changed_file_is_not_decoded_by_dali(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    frames = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3), np.uint8)
    options = {"deadline": "realtime", "cpu-used": "8"}
    write_video(tmp_path / "a" / "film.webm", frames, codec="libvpx-vp9", options=options)
    old = scan(tmp_path, out=tmp_path / "index.jsonl", workers=1)
    write_video(tmp_path / "a" / "film.webm", frames[:, ::2, ::2], codec="libvpx-vp9", options=options)
    made = loader(old, rule="centre", decoder="dali", batch_size=1)
    (batch,) = made
    assert made.decoded_by == {"pyav": 1}
    assert np.array_equal(batch.clips[0].numpy(), load_clip(old.path_of(old.videos[0]), made.spec))


def test_an_abandoned_iteration_ends_its_threads(index: DatasetIndex) -> None:
    made = loader(index, rule="train", batch_size=2)
    loop = iter(made)
    next(loop)
    loop.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("flowless-loader")]
    older = iter(made)
    next(older)
    assert len(list(made)) == 13, "a new iteration starts at the first batch"
    with pytest.raises(RuntimeError, match="another iteration"):
        list(older)


def test_prefetching_is_bounded(index: DatasetIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """While no batches are taken, decoding stops after `prefetch` finished batches, one waiting for the queue, and one decoded ahead."""
    made = loader(index, rule="train", batch_size=2, prefetch=2, threads=2)
    drawn, draw = [], made._source.draw
    monkeypatch.setattr(made._source, "draw", lambda number, epoch: (drawn.append(number), draw(number, epoch))[1])
    loop = iter(made)
    next(loop)
    time.sleep(1.5)
    assert 2 * 2 <= len(drawn) <= 2 * (1 + 2 + 1 + 1)
    assert len(list(loop)) == 12


def test_invalid_arguments(index: DatasetIndex, tmp_path: Path) -> None:
    with pytest.raises(FlowlessError, match="no videos"):
        loader(replace(index, videos=()))
    with pytest.raises(FlowlessError, match=r"26 videos for batches of 1 x 40.*at most 26"):
        loader(index, rule="train", batch_size=40)
    with pytest.raises(FlowlessError, match="batch_size is 0"):
        loader(index, batch_size=0)
    with pytest.raises(FlowlessError, match="cannot be used for evaluation"):
        loader(index, rule="train", training=False)
    gone = replace(index, root=tmp_path / "elsewhere")
    with pytest.raises(FlowlessError, match=r"cannot be read.*elsewhere"):
        list(loader(gone, rule="centre"))


def test_a_batch_prints_shapes_not_pixels(index: DatasetIndex) -> None:
    text = repr(next(iter(loader(index, batch_size=2))))
    assert text == "Batch(clips=torch.uint8 [2, 1, 4, 2, 32, 28, 3] on cpu, labels=[0, 0])"
