"""Moving Shapes: actions match their labels, twins are reversals, and the index equals that of a scan."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from video_files import all_frames

from flowless.errors import FlowlessError
from flowless.files import sha256_of
from flowless.pipeline.commands import shapes
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.dataset.scan import scan
from flowless.pipeline.synthetic import scene as shapes_scene
from flowless.pipeline.synthetic.moving_shapes import CLASSES, MARK, PAIRS, TWIN, ShapesOptions, generate
from flowless.pipeline.synthetic.scene import scene_frames

SMALL = ShapesOptions(train_videos=24, val_videos=12, frames=16, size=32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("shapes") / "data", options=SMALL, workers=1)


def fingerprints(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def movers(action: str, seed: int) -> list[shapes_scene.Shape]:
    rng = np.random.default_rng(seed)
    progress = shapes_scene._progress(32, rng)
    return shapes_scene._movers(action, size=100, progress=progress, mean_colour=np.full(3, 128, np.float32), rng=rng)


def test_twins_are_symmetric_and_cover_all_labels() -> None:
    assert len(PAIRS) == 6
    assert len(CLASSES) == 12
    assert list(CLASSES) == sorted(CLASSES)
    assert all(TWIN[TWIN[name]] == name != TWIN[name] for name in CLASSES)
    assert {TWIN[a] for a in ("left", "up", "clockwise", "grow", "approach", "unfold")} == {
        *("right", "down", "counter-clockwise", "shrink", "part", "fold")
    }


@pytest.mark.parametrize("seed", range(8))
def test_shapes_move_as_their_action_says(seed: int) -> None:
    """Rows are counted downwards, so an increasing angle is a clockwise rotation on the screen."""
    motions = {"right": ("x", 34), "down": ("y", 34), "clockwise": ("angle", 1.7), "grow": ("radius", 10), "unfold": ("spread", 1)}
    for action, (name, least) in motions.items():
        (shape,) = movers(action, seed)
        values = {key: getattr(shape, key) for key in ("x", "y", "angle", "radius", "spread")}
        moving = values.pop(name)
        assert (np.diff(moving) >= 0).all()
        assert moving[-1] - moving[0] > least
        assert all(np.ptp(still) == 0 for still in values.values()), action
    first, second = movers("part", seed)
    distance = np.hypot(first.x - second.x, first.y - second.y)
    assert (np.diff(distance) >= -1e-4).all()
    assert distance[-1] - distance[0] > 20


def test_pixels_move_in_the_direction_of_the_label() -> None:
    """The centre of the pixels that differ from the background moves in the direction of the label."""
    for action, axis, way in (("right", 1, 1), ("left", 1, -1), ("down", 0, 1), ("up", 0, -1)):
        for seed in range(4):
            film = scene_frames(action, size=64, frames=24, shake=False, seed=(seed,)).astype(int)
            # The median over time is the background where the shape is for less than half of the time.
            changed = np.abs(film - np.median(film, axis=0)).sum(-1) > 40
            centres = [np.argwhere(frame).mean(0)[axis] for frame in changed if frame.any()]
            assert (centres[-1] - centres[0]) * way > 5, (action, seed)


def test_the_second_of_a_pair_is_the_first_reversed() -> None:
    for first, second in PAIRS:
        ahead, back = (scene_frames(name, size=32, frames=12, shake=True, seed=(3, 1)) for name in (first, second))
        assert (ahead[::-1] == back).all()
        assert (ahead != back).any()


def test_camera_shake() -> None:
    still, shaken = (scene_frames("grow", size=64, frames=20, shake=shake, seed=(5,))[:, :6] for shake in (False, True))
    assert (still == still[0]).all()
    assert (shaken != shaken[0]).any()


def test_scenes_depend_on_the_seed() -> None:
    a, again, other = (scene_frames("left", size=32, frames=8, shake=False, seed=seed) for seed in ((0, 1), (0, 1), (0, 2)))
    assert (a == again).all()
    assert np.abs(a.astype(int) - other).mean() > 5


def test_twin_files_are_reversed(made: Path) -> None:
    for split in ("train", "val"):
        for first, second in PAIRS:
            names = {path.name for path in (made / split / first).iterdir()}
            assert names == {path.name for path in (made / split / second).iterdir()} != set()
            name = min(names)
            ahead, back = (np.stack(list(all_frames(made / split / label / name))).astype(int) for label in (first, second))
            assert ahead.shape == (16, 32, 32, 3)
            # Compression depends on the order of frames, so they are similar but not equal.
            assert np.abs(ahead[::-1] - back).mean() < 8
            assert np.abs(ahead - back).mean() > np.abs(ahead[::-1] - back).mean()


def test_labels_are_balanced_and_splits_disjoint(made: Path) -> None:
    for split, videos in (("train", 24), ("val", 12)):
        index = DatasetIndex.load(made / f"{split}.index.jsonl")
        assert index.root == made / split
        assert set(Counter(video.label for video in index.videos).values()) == {videos // 12}
    assert not set(fingerprints(made / "train").values()) & set(fingerprints(made / "val").values())


def test_index_equals_that_of_a_scan(made: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        known = DatasetIndex.load(made / f"{split}.index.jsonl")
        assert scan(made / split, out=tmp_path / "found.jsonl", workers=1) == known


def test_workers_do_not_change_the_videos(made: Path, tmp_path: Path) -> None:
    other = generate(tmp_path / "by-two", options=SMALL, workers=2)
    # An index contains modification times.
    ours, theirs = ({key: value for key, value in fingerprints(folder).items() if key.endswith("mp4")} for folder in (made, other))
    assert len(ours) == 36
    assert ours == theirs
    for split in ("train", "val"):
        one, two = (DatasetIndex.load(folder / f"{split}.index.jsonl") for folder in (made, other))
        assert [replace(video, stamp=(0, 0)) for video in one.videos] == [replace(video, stamp=(0, 0)) for video in two.videos]


def test_the_seed_changes_all_videos(made: Path, tmp_path: Path) -> None:
    options = ShapesOptions(train_videos=24, val_videos=12, frames=16, size=32, seed=1)
    other = fingerprints(generate(tmp_path / "seed", options=options, workers=1))
    assert not {value for key, value in other.items() if key.endswith(".mp4")} & set(fingerprints(made).values())


def test_without_twins_each_scene_is_written_once(tmp_path: Path) -> None:
    folder = generate(tmp_path / "single", options=ShapesOptions(train_videos=25, val_videos=0, frames=4, size=16, twins=False), workers=1)
    index = DatasetIndex.load(folder / "train.index.jsonl")
    assert len(index.videos) == 25
    assert len({Path(video.path).name for video in index.videos}) == 25
    assert set(Counter(video.label for video in index.videos).values()) == {2, 3}
    assert DatasetIndex.load(folder / "val.index.jsonl").videos == ()


def test_only_moving_shapes_are_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "holiday"
    mine.mkdir()
    (mine / "photo.jpg").write_bytes(b"dear")
    with pytest.raises(FlowlessError, match=r"holiday: exists and does not hold Moving Shapes"):
        generate(mine, options=SMALL)
    assert (mine / "photo.jpg").read_bytes() == b"dear"
    tiny = ShapesOptions(train_videos=2, val_videos=0, frames=4, size=16)
    for _ in range(2):
        assert (generate(tmp_path / "again", options=tiny, workers=1) / MARK).is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "holiday"]


def test_a_failed_run_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flowless.pipeline.video.encode.write_video", full)
    with pytest.raises(FlowlessError, match="disk is full"):
        generate(tmp_path / "full", options=SMALL, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_invalid_options_are_listed_in_one_error() -> None:
    with pytest.raises(FlowlessError, match=r"size is 33.*frames is 3.*train_videos is 7.*val_videos is -2.*seed is -1"):
        ShapesOptions(size=33, frames=3, train_videos=7, val_videos=-2, seed=-1)
    with pytest.raises(FlowlessError, match="workers is 0"):
        generate("nowhere", workers=0)


def test_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--train-videos", "12", "--val-videos", "0", "--size", "16", "--frames", "4", "--workers", "1", "--json"]
    args.insert(0, str(tmp_path / "out"))
    assert not shapes(args)
    document = json.loads(capsys.readouterr().out)
    assert document["labels"] == list(CLASSES)
    assert document["splits"]["train"] == {"videos": 12, "index": str(tmp_path / "out" / "train.index.jsonl")}
