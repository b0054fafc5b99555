"""Sampling compared with the published code of TSN, TSM and PAN, including every row of the table in `sampling`.

The `published_` functions below reimplement that code. They count frames from 1 and raise where it fails: where a stack starts before the
first frame, or a random number is drawn from an empty range.
"""

from __future__ import annotations

import hashlib
from typing import Any, get_args

import numpy as np
import pytest

from flowless.pipeline.clip.sampling import clip_indices, frames_spanned, sample_rng
from flowless.pipeline.clip.spec import CLIPS, EvaluationRule, Rule

SHAPES = [(8, 4), (8, 1), (16, 8), (3, 8), (8, 8), (4, 8), (16, 3), (80, 1)]


def sampled(n: int, shape: tuple[int, int], rule: str, rng: np.random.Generator | None = None) -> np.ndarray:
    return clip_indices(n, segments=shape[0], frames_per_segment=shape[1], rule=rule, rng=rng)  # type: ignore[arg-type]


def published_stacks(starts: list[int], n: int, m: int) -> np.ndarray:
    """Return the frames, counted from 1, of the stacks at `starts`; at the end of the video the last frame repeats."""
    stacks = []
    for frame in starts:
        if not 1 <= frame <= n:
            raise FileNotFoundError(f"frame {frame} of {n}")
        stack = [frame]
        for _ in range(m - 1):
            stack.append(min(stack[-1] + 1, n))
        stacks.append(stack)
    return np.array(stacks)


def published_test(n: int, segments: int, m: int, *, middle: bool = True) -> list[int]:
    length = (n - m + 1) / segments
    return [1 + int(length * k + (length / 2 if middle else 0)) for k in range(segments)]


def published_train(n: int, segments: int, m: int, rng: np.random.Generator) -> list[int]:
    """Draw in the same order as `clip_indices`, so that equal rules give equal frames."""
    each = (n - m + 1) // segments
    if each > 0:
        return [1 + each * k + int(shift) for k, shift in enumerate(rng.integers(each, size=segments))]
    if n <= segments:
        return [1] * segments
    if n - m + 1 <= 0:
        raise ValueError("low >= high")
    return [1 + int(start) for start in sorted(rng.integers(n - m + 1, size=segments))]


def published_dense(n: int, segments: int) -> list[list[int]]:
    last = max(1, n - 63) - 1
    return [[1 + (int(last * view / 9) + k * (64 // segments)) % n for k in range(segments)] for view in range(10)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", ["centre", "two-clip"])
def test_centre_and_two_clip(shape, rule):
    """As published for all lengths; where that fails with a frame before the first, all stacks are at the first frame."""
    segments, m = shape
    failed = set()
    for n in range(1, 2 * segments * m + 3):
        for clip, middle in zip(sampled(n, shape, rule), (True, False), strict=False):
            try:
                expected = published_stacks(published_test(n, segments, m, middle=middle), n, m) - 1
            except FileNotFoundError:
                failed.add(n)
                expected = published_stacks([1] * segments, n, m) - 1
            assert np.array_equal(clip, expected), n
        if n < m:
            assert (sampled(n, shape, rule) == np.minimum(np.arange(m), n - 1)).all(), "frame 0, then the last frame repeats"
    assert failed == set(range(1, m - 2))


def test_overlapping_and_repeated_stacks():
    assert sampled(20, (8, 4), "centre")[0, :3].tolist() == [[1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 7, 8]]
    assert len(np.unique(sampled(10, (8, 4), "centre")[0, :, 0])) == 7, "n < N + m - 1"
    assert len(np.unique(sampled(11, (8, 4), "centre")[0, :, 0])) == 8
    # Published validation uses only the first frame up to N + m - 1 = 11 frames; here the testing rule applies.
    assert sampled(11, (8, 4), "centre")[0, :, 0].tolist() == list(range(8))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", ["train", "ten-draw"])
def test_train_and_ten_draw(shape, rule):
    segments, m = shape
    failed = set()
    for n in range(1, 2 * segments * m + 3):
        try:
            expected = published_stacks(published_train(n, segments, m, np.random.default_rng(n)), n, m) - 1
        except ValueError:
            failed.add(n)
            expected = published_stacks([1] * segments, n, m) - 1
        assert np.array_equal(sampled(n, shape, rule, np.random.default_rng(n))[0], expected), n
    assert failed == set(range(segments + 1, m))
    shortest = min(segments, segments + m - 2)
    assert (sampled(shortest, shape, rule, np.random.default_rng(0))[0, :, 0] == 0).all(), "n <= N, n < N + m - 1: all at frame 0"


def draw_rng(n: int, draw: int) -> np.random.Generator:
    """Return the generator of one test draw by its definition: seed 0, the draw's number, and the number of frames."""
    name = np.frombuffer(hashlib.blake2b(f"{n} frames".encode(), digest_size=16).digest(), "<u4")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([0, draw, *name.tolist()])))


@pytest.mark.parametrize("n", [300, 41, 8, 3, 1])
@pytest.mark.parametrize("shape", [(8, 1), (16, 1), (8, 4)])
def test_ten_draw_is_reproducible(n, shape):
    clips = sampled(n, shape, "ten-draw")
    expected = [published_stacks(published_train(n, shape[0], shape[1], draw_rng(n, draw)), n, shape[1]) - 1 for draw in range(10)]
    assert np.array_equal(clips, expected)
    assert np.array_equal(clips, sampled(n, shape, "ten-draw"))


def test_draws_differ_between_draws_and_lengths():
    clips = sampled(40, (8, 1), "ten-draw")
    assert len({clip.tobytes() for clip in clips}) == 10, "unlike ten dense clips of 40 frames, which are equal"
    assert len({clip.tobytes() for clip in sampled(40, (8, 1), "dense")}) == 1
    assert (clips[:, :, 0] // 5 == np.arange(8)).all(), "one frame of each segment of five"
    assert clips.tobytes() != np.minimum(sampled(47, (8, 1), "ten-draw"), 39).tobytes()
    assert sampled(40, (8, 1), "ten-draw", sample_rng(1, 2, "v")).shape == (1, 8, 1)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if 64 // shape[0] >= shape[1]])
def test_dense_where_stacks_fit(shape):
    for n in (*range(1, 140), 300):
        expected = [published_stacks(starts, n, shape[1]) - 1 for starts in published_dense(n, shape[0])]
        assert np.array_equal(sampled(n, shape, "dense"), expected), n
        one = sampled(n, shape, "one-dense")
        start = (max(1, n - 63) - 1) // 2
        starts = [1 + (start + k * (64 // shape[0])) % n for k in range(shape[0])]
        assert np.array_equal(one, [published_stacks(starts, n, shape[1]) - 1])


@pytest.mark.parametrize("rule", ["dense", "one-dense", "consecutive", "ten-consecutive"])
@pytest.mark.parametrize("shape", SHAPES)
def test_stacks_do_not_overlap(rule, shape):
    """In testing and training, for long enough videos; the published dense rule gives 68 distinct frames for 16 x 8."""
    count = shape[0] * shape[1]
    for n in (max(64, count), max(64, count) + 1, 300):
        for clip in (*sampled(n, shape, rule), *sampled(n, shape, rule, sample_rng(0, n, "v"))):
            assert len(np.unique(clip)) == count
            assert (np.diff(clip.reshape(-1)) > 0).all()
            if "consecutive" in rule:
                assert (np.diff(clip.reshape(-1)) == 1).all()
    published = published_stacks(published_dense(300, 16)[0], 300, 8)
    assert len(np.unique(published)) == 68


@pytest.mark.parametrize("shape", [(16, 8), (8, 8), (4, 8), (8, 4), (16, 3)])
@pytest.mark.parametrize("n", [400, 129, 128, 127, 40, 12, 3, 1])
def test_consecutive(shape, n):
    """Dynamic Appearance, section 4: S x T consecutive frames; short videos as in the dense rule."""
    segments, m = shape
    num_starts = max(1, n - segments * m + 1)

    def clip(start: int) -> np.ndarray:
        return published_stacks([1 + (start + k * m) % n for k in range(segments)], n, m) - 1

    assert np.array_equal(sampled(n, shape, "consecutive"), [clip((num_starts - 1) // 2)])
    assert np.array_equal(sampled(n, shape, "ten-consecutive"), [clip(int((num_starts - 1) * view / 9)) for view in range(10)])
    rng = sample_rng(3, 4, "v")
    start = int(sample_rng(3, 4, "v").integers(num_starts))
    assert np.array_equal(sampled(n, shape, "consecutive", rng), [clip(start)])
    if n >= segments * m:
        assert np.array_equal(clip(start).reshape(-1), start + np.arange(segments * m))


def test_consecutive_training_draws_all_starts():
    seen = {int(sampled(20, (4, 4), "consecutive", sample_rng(0, epoch, "v"))[0, 0, 0]) for epoch in range(200)}
    assert seen == {0, 1, 2, 3, 4}, "the last start too"


def test_dense_clips_wrap_in_short_videos():
    # 16 x 8 of 100 frames: stacks at 0, 8 … 96, then 104 - 100 = 4; the stack at 96 has four frames and repeats the last.
    for rule in ("dense", "consecutive"):
        clip = sampled(100, (16, 8), rule)[0]
        assert clip[:, 0].tolist() == [0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 4, 12, 20]
        assert clip[12].tolist() == [96, 97, 98, 99, 99, 99, 99, 99]
    assert sampled(3, (4, 8), "consecutive")[0].tolist() == [[0, 1, *[2] * 6], [2] * 8, [1, *[2] * 7], [0, 1, *[2] * 6]]


@pytest.mark.parametrize("rule", get_args(EvaluationRule))
def test_number_of_clips_and_videos_of_one_frame(rule):
    for n in (300, 2, 1):
        clips = sampled(n, (8, 4), rule)
        assert clips.shape == (CLIPS[rule], 8, 4)
        assert clips.min() >= 0
        assert clips.max() < n
    assert not sampled(1, (8, 4), rule).any()


def test_training_takes_one_clip():
    rules: Any = [rule for rule in get_args(Rule) if rule not in {"centre", "two-clip"}]
    assert {rule: len(sampled(90, (8, 4), rule, sample_rng(0, 0, "v"))) for rule in rules} == dict.fromkeys(rules, 1)


@pytest.mark.parametrize("rule", get_args(Rule))
@pytest.mark.parametrize(("segments", "m"), [(8, 1), (8, 4), (16, 8), (100, 1), (3, 5)])
def test_frames_spanned(rule: Rule, segments: int, m: int) -> None:
    span = frames_spanned(rule, segments=segments, frames_per_segment=m)
    assert span == 1 or rule in {"dense", "one-dense", "consecutive", "ten-consecutive"}

    def in_order(frames: int) -> bool:
        found = clip_indices(frames, segments=segments, frames_per_segment=m, rule=rule, rng=sample_rng(0, 0, "a"))
        return bool((np.diff(found[:, :, 0], axis=1) >= 0).all())

    assert all(in_order(frames) for frames in range(span, span + 70, 23))
    if span > 64:
        # (For spans up to 64, some shorter videos are long enough too, since the last stack starts before the end of the span.)
        assert not in_order(segments * m - m)
