"""`flowless bench timeline`: average precision by hand and by a reference, videos with known borders, and a small run of all of it."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_files import all_frames

from flowless.bench.commands import bench
from flowless.bench.systems.settings import Real
from flowless.bench.timeline.average_precision import Part, average_precision, average_precisions
from flowless.bench.timeline.joined_videos import (
    BACKGROUND,
    moving_part,
    real_videos,
    shapes_videos,
    with_background,
    write_backgrounds,
)
from flowless.errors import FlowlessError
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.synthetic.moving_shapes import ShapesOptions

TRUTH = [Part("v", "a", 0, 10), Part("v", "a", 20, 30), Part("w", "a", 0, 10)]
OPTIONS = ShapesOptions(size=32, frames=16, train_videos=12, val_videos=12)


def test_average_precision_by_hand() -> None:
    found = [
        Part("v", "a", 0, 10, 0.9),  # right
        Part("v", "a", 1, 10, 0.8),  # a second time
        Part("w", "a", 0, 6, 0.7),  # right: IoU 0.6
        Part("w", "a", 50, 60, 0.6),
    ]
    # Precision 1, 1/2, 2/3, 1/2 at recall 1/3, 1/3, 2/3, 2/3.
    assert average_precision(found, TRUTH, iou=0.5) == pytest.approx((1 + 2 / 3) / 3)
    assert average_precision(found, TRUTH, iou=0.7) == pytest.approx(1 / 3)
    assert average_precision([], TRUTH, iou=0.5) == 0.0
    assert average_precision(TRUTH, TRUTH, iou=1.0) == 1.0
    # A later detection of higher precision lifts an earlier recall.
    late = [Part("v", "a", 40, 50, 0.9), *(replace_score(part, 0.5) for part in TRUTH)]
    assert average_precision(late, TRUTH, iou=0.5) == pytest.approx(3 / 4)


def replace_score(part: Part, score: float) -> Part:
    return part._replace(score=score)


def reference(found: list[Part], truth: list[Part], iou: float) -> float:
    """ActivityNet's evaluation, written as its description: a detection goes through the truths by overlap, past those that are taken."""

    def overlap(one: Part, other: Part) -> float:
        shared = max(0.0, min(one.end, other.end) - max(one.start, other.start))
        return shared / (one.end - one.start + other.end - other.start - shared) if one.video == other.video else 0.0

    taken: set[int] = set()
    points = [(0.0, 1.0)]
    right = 0
    for number, one in enumerate(sorted(found, key=lambda part: -part.score), start=1):
        for at in sorted(range(len(truth)), key=lambda at: -overlap(one, truth[at])):
            if overlap(one, truth[at]) < iou:
                break
            if at not in taken:
                taken.add(at)
                right += 1
                break
        points.append((right / len(truth), right / number))
    recalls = sorted({recall for recall, _ in points})
    area = 0.0
    for before, recall in itertools.pairwise(recalls):
        area += (recall - before) * max(precision for at, precision in points if at >= recall)
    return area


PARTS = st.tuples(st.sampled_from("vw"), st.integers(0, 20), st.integers(1, 8))


@given(
    st.lists(st.tuples(PARTS, st.integers(1, 1000)), max_size=12, unique_by=lambda item: item[1]), st.lists(PARTS, min_size=1, max_size=6)
)
def test_average_precision_is_that_of_the_reference(found: list, truth: list) -> None:
    detections = [Part(video, "a", start, start + length, score / 1000) for (video, start, length), score in found]
    parts = [Part(video, "a", start, start + length) for video, start, length in truth]
    for iou in (0.3, 0.5):
        assert average_precision(detections, parts, iou=iou) == pytest.approx(reference(detections, parts, iou))


def test_the_mean_is_over_the_classes_that_are_there() -> None:
    found = [Part("v", "a", 0, 10, 0.9), Part("v", "b", 0, 10, 0.9)]
    assert average_precisions(found, [Part("v", "a", 0, 10), Part("v", "c", 0, 10)], iou=0.5) == {"a": 1.0, "c": 0.0}


def test_joined_shapes_move_in_the_truth_and_nowhere_else(tmp_path: Path) -> None:
    videos = shapes_videos(tmp_path, OPTIONS, actions=3)
    assert [len(video.truth) for video in videos] == [3, 3]
    for video in videos:
        frames = np.stack(all_frames(video.path)).astype(int)
        assert len(frames) == video.frames
        changes = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
        inside = np.zeros(len(changes), bool)
        for part in video.truth:
            first, last = round(part.start * video.fps), round(part.end * video.fps)
            assert changes[first:last].mean() > 0.25
            inside[first:last] = True
        # Outside there are the cuts between the scenes, one in each pause, and what the encoder changes.
        assert np.sort(changes[~inside])[:-2].max() < changes[inside].mean()
    assert len({(video.path.name, part.start) for video in videos for part in video.truth}) == 6


def test_the_moving_part_of_a_clip() -> None:
    clip = np.zeros((8, 2, 2, 3), np.uint8)
    clip[3], clip[4], clip[5:] = 1, 2, 3
    assert moving_part(clip) == (2, 5)


def test_background_clips_stand_still_or_have_one_cut(tmp_path: Path) -> None:
    write_backgrounds(tmp_path, OPTIONS, count=4)
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        frames = np.stack(all_frames(path)).astype(int)
        assert len(frames) == 16
        changes = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
        assert (changes > 8).sum() == number % 2


def test_other_labels_become_background(train_index: DatasetIndex) -> None:
    made = with_background(train_index, ["left", "right"], others=1)
    assert made.labels == (BACKGROUND, "left", "right")
    counts = {name: sum(made.labels[video.label] == name for video in made.videos) for name in made.labels}
    assert counts == {BACKGROUND: 10, "left": 2, "right": 2}
    with pytest.raises(FlowlessError, match="no label 'jump'"):
        with_background(train_index, ["jump"], others=1)


def test_joined_real_clips_are_each_there_once(val_index: DatasetIndex, tmp_path: Path) -> None:
    actions = ["left", "right"]
    videos = real_videos(tmp_path, val_index, actions)
    wanted = [video for video in val_index.videos if val_index.labels[video.label] in actions]
    assert sorted(part.label for video in videos for part in video.truth) == sorted(val_index.labels[clip.label] for clip in wanted)
    (video,) = videos
    assert video.frames == 5 * 16 == len(all_frames(video.path))
    assert [(part.start, part.end) for part in video.truth] == [(16 / 25, 32 / 25), (48 / 25, 64 / 25)]


def test_half_of_the_indexes_is_refused(capsys: pytest.CaptureFixture[str], shapes: Path, tmp_path: Path) -> None:
    index = str(shapes / "train.index.jsonl")
    with pytest.raises(FlowlessError, match="--train and --test go together"):
        bench(["timeline", "--train", index, "--out", str(tmp_path / "a.json")])


def test_clips_of_both_indexes_are_refused(shapes: Path, tmp_path: Path) -> None:
    index = str(shapes / "train.index.jsonl")
    small = ["--train-videos", "12", "--val-videos", "12", "--actions", "6"]
    with pytest.raises(FlowlessError, match="bench timeline: 24 videos are in the training and in the test index"):
        bench(["timeline", *small, "--train", index, "--test", index, "--out", str(tmp_path / "a.json")])


@pytest.mark.slow
def test_a_small_run(train_index: DatasetIndex, val_index: DatasetIndex, tmp_path: Path) -> None:
    """Both sets with hardly any training: every part runs, and the document has what the tables need."""
    names = tuple(sorted([*"/".join(Real.opposites).split("/"), *(f"other {at}" for at in range(6))]))
    for name, index in (("train", train_index), ("test", val_index)):
        replace(index, labels=names).save(tmp_path / f"{name}.jsonl")
    small = ["--train-videos", "48", "--val-videos", "24", "--epochs", "1", "--real-epochs", "1", "--actions", "6"]
    real = ["--train", str(tmp_path / "train.jsonl"), "--test", str(tmp_path / "test.jsonl")]
    out = tmp_path / "timeline.json"
    bench(["timeline", *small, *real, "--out", str(out)])
    document = json.loads(out.read_text(encoding="utf-8"))
    assert [(one["set"], one["videos"], one["actions"]) for one in document["sets"]] == [("Moving Shapes", 2, 12), ("real clips", 1, 6)]
    for one in document["sets"]:
        assert [row["method"] for row in one["methods"]] == ["detections", "segments", "sliding windows", "equal parts", "one label"]
        assert all(0 <= row["map"] <= 1 for row in one["methods"])
        assert one["frames_per_s"] > 0
    assert len(document["goals"]) == 4
    assert "/tmp" not in out.read_text(encoding="utf-8")
