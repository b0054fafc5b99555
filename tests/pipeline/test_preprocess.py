"""Resizing and cropping, compared with an independent implementation in Pillow, and evaluation clips."""

from __future__ import annotations

from dataclasses import replace

import barcode
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from video_files import all_frames

from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import crop_corners, load_clip, load_views, resize_and_crop, resized_size
from flowless.pipeline.clip.sampling import clip_indices
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.video.reader import VideoReader

SPEC = ClipSpec()
SMALL = ClipSpec(height=48, width=48, short_side=56)
THREE = replace(SMALL, crop="three")
FULL_THREE = ClipSpec(height=256, width=256, crop="three")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (341, 256)),  # 341.33 rounds down
        ((480, 640), (256, 341)),
        ((340, 256), (340, 256)),  # the short side already has that length
        ((1920, 1080), (455, 256)),  # 455.1
        ((426, 240), (454, 256)),  # 454.4
        ((100, 100), (256, 256)),
    ],
)
def test_resized_size(size, expected):
    assert resized_size(*size, short_side=256) == expected


def test_centre_crop_rounds_half_to_even():
    assert crop_corners(341, 256, SPEC) == ((58, 16),)  # 58.5
    assert crop_corners(343, 256, SPEC) == ((60, 16),)  # 59.5
    assert crop_corners(224, 224, SPEC) == ((0, 0),)
    assert crop_corners(341, 256, replace(SPEC, height=256, width=256)) == ((42, 0),)  # 42.5


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        # Quarter steps of whole pixels, (341 - 256) // 4 = 21: the last crop ends a pixel before the frame does.
        ((341, 256), ((0, 0), (84, 0), (42, 0))),
        ((343, 256), ((0, 0), (84, 0), (42, 0))),  # 87 // 4 = 21, where the centre crop would lie at 44
        ((344, 256), ((0, 0), (88, 0), (44, 0))),
        ((455, 256), ((0, 0), (196, 0), (98, 0))),
        ((256, 341), ((0, 0), (0, 84), (0, 42))),
        ((256, 256), ((0, 0), (0, 0), (0, 0))),
        ((259, 256), ((0, 0), (0, 0), (0, 0))),  # 3 // 4 = 0
    ],
)
def test_three_crops_are_at_both_ends_and_in_the_middle(size, expected):
    width, height = size
    assert crop_corners(width, height, FULL_THREE) == expected


def test_three_crops_smaller_than_the_short_side():
    three = replace(SPEC, crop="three")
    # (341 - 224) // 4 = 29 along, (256 - 224) // 4 = 8 across.
    assert crop_corners(341, 256, three) == ((0, 16), (116, 16), (58, 16))
    assert crop_corners(256, 341, three) == ((16, 0), (16, 116), (16, 58))
    assert crop_corners(256, 256, three) == ((0, 16), (32, 16), (16, 16))


@given(width=st.integers(40, 300), height=st.integers(40, 300), seed=st.integers(0, 99))
@example(width=57, height=58, seed=0)
def test_three_crops_match_pillow(width, height, seed):
    frames = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), np.uint8)
    short = min(width, height)
    size = (int(56 * width / short), int(56 * height / short)) if short != 56 else (width, height)
    images = [Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR) for frame in frames]
    step = [(side - 48) // 4 for side in size]
    along = int(size[1] > size[0])  # of the resized frame: 57 x 58 becomes a square
    found = resize_and_crop(frames, THREE)
    assert found.shape == (6, 48, 48, 3)
    for number, quarters in enumerate((0, 4, 2)):
        corner = [2 * step[0], 2 * step[1]]
        corner[along] = quarters * step[along]
        left, top = corner
        expected = np.stack([np.asarray(image.crop((left, top, left + 48, top + 48))) for image in images])
        assert np.array_equal(found[2 * number : 2 * number + 2], expected)


SHRUNK = replace(SMALL, height=40, width=40, crop="three", crop_side=56)


@given(width=st.integers(40, 300), height=st.integers(40, 300), seed=st.integers(0, 99), side=st.sampled_from([56, 50]))
@example(width=56, height=90, seed=0, side=56)
def test_shrunk_crops_match_pillow(width, height, seed, side):
    """STM, section 4.2: scale the short side, take three square crops, then resize those."""
    frames = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), np.uint8)
    short = min(width, height)
    size = (int(56 * width / short), int(56 * height / short))
    images = [Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR) for frame in frames]
    step = [(edge - side) // 4 for edge in size]
    along = int(size[1] > size[0])
    found = resize_and_crop(frames, replace(SHRUNK, crop_side=side))
    assert found.shape == (6, 40, 40, 3)
    for number, quarters in enumerate((0, 4, 2)):
        corner = [2 * step[0], 2 * step[1]]
        corner[along] = quarters * step[along]
        left, top = corner
        crops = [image.crop((left, top, left + side, top + side)) for image in images]
        expected = [np.asarray(crop.resize((40, 40), Image.Resampling.BILINEAR)) for crop in crops]
        assert np.array_equal(found[2 * number : 2 * number + 2], expected)


def test_a_crop_of_the_input_size_is_not_resized_again():
    frames = np.random.default_rng(0).integers(0, 256, (1, 56, 90, 3), np.uint8)
    plain = replace(SMALL, height=56, width=56, crop="three")
    assert np.array_equal(resize_and_crop(frames, replace(plain, crop_side=56)), resize_and_crop(frames, plain))


@given(width=st.integers(40, 300), height=st.integers(40, 300), seed=st.integers(0, 99))
def test_centre_crop_matches_pillow(width, height, seed):
    frames = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), np.uint8)
    short, long = sorted((width, height))
    size = (int(56 * width / short), int(56 * height / short)) if short != 56 else (width, height)
    left, top = round((size[0] - 48) / 2.0), round((size[1] - 48) / 2.0)
    images = [Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR) for frame in frames]
    expected = np.stack([np.asarray(image.crop((left, top, left + 48, top + 48))) for image in images])
    assert long >= short
    assert np.array_equal(resize_and_crop(frames, SMALL), expected)


def test_a_frame_of_the_right_size_is_not_resized():
    frames = np.random.default_rng(0).integers(0, 256, (1, 256, 340, 3), np.uint8)
    assert np.array_equal(resize_and_crop(frames, SPEC), frames[:, 16:240, 58:282])


def test_reduction_is_antialiased():
    stripes = np.zeros((1, 560, 560, 3), np.uint8)
    stripes[:, :, ::2] = 255
    assert np.abs(resize_and_crop(stripes, SMALL).astype(int) - 127).max() <= 1


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 0, 5, 3), np.uint8), np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 8, 8, 4), np.uint8)],
)
def test_invalid_frames(frames):
    with pytest.raises(FlowlessError, match=r"they must be uint8 \[K, H, W, 3\]"):
        resize_and_crop(frames, SMALL)


@pytest.mark.parametrize("sampling", ["centre", "two-clip", "dense"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_clip_is_the_sampled_frames_resized(sampling, threads, barcodes):
    spec = ClipSpec(height=48, width=48, short_side=56, sampling=sampling)
    path = barcodes(barcode.KINDS[0])
    full = resize_and_crop(np.stack(list(all_frames(path))), spec)
    indices = clip_indices(100, segments=8, frames_per_segment=4, rule=sampling)
    clip = load_clip(path, spec, threads=threads)
    assert clip.shape == (len(indices), 8, 4, 48, 48, 3)
    assert clip.dtype == np.uint8
    assert np.array_equal(clip, full[indices])


@pytest.mark.parametrize("sampling", ["centre", "two-clip", "dense", "ten-draw", "ten-consecutive"])
@pytest.mark.parametrize("crop_side", [None, 56])
def test_views_are_ordered_by_crop_then_clip(sampling, crop_side, barcodes):
    spec = replace(THREE, sampling=sampling, crop_side=crop_side)
    path = barcodes(barcode.KINDS[0])
    full = resize_and_crop(np.stack(list(all_frames(path))), spec).reshape(3, 100, 48, 48, 3)
    indices = clip_indices(100, segments=8, frames_per_segment=4, rule=sampling)
    clip = load_clip(path, spec)
    assert clip.shape == (spec.views, 8, 4, 48, 48, 3)
    assert spec.views == 3 * len(indices)
    assert np.array_equal(clip, np.concatenate([full[crop][indices] for crop in range(3)]))


@pytest.mark.parametrize("crop_side", [None, 56])
def test_views_share_resized_frames(crop_side, barcodes):
    """Thirty views share at most 100 frames, each stored once and no larger than the bounding box of its crops."""
    spec = replace(THREE, sampling="dense", crop_side=crop_side)
    path = barcodes(barcode.KINDS[0])
    with VideoReader(path) as video:
        views = load_views(video, spec)
    height, width = all_frames(path)[0].shape[:2]
    across, _ = resized_size(width, height, short_side=56)
    assert len(views) == 30
    across = across if crop_side is None else 3 * 48
    assert sum(frame.pixels.nbytes for frame in views.frames) <= 100 * 48 * across * 3 < views.cut().nbytes / 3
    assert all(frame.pixels.base is None for frame in views.frames), "no reference to a larger array"
    parts = list(views.parts(8))
    assert [len(part) for part in parts] == [8, 8, 8, 6]
    assert np.array_equal(np.concatenate(parts), views.cut())
    assert np.array_equal(views.cut(9, 12), views.cut()[9:12])


def test_a_part_of_a_video(barcodes):
    path = barcodes(barcode.KINDS[0])
    full = resize_and_crop(np.stack(list(all_frames(path))), SMALL)
    indices = 40 + clip_indices(30, segments=8, frames_per_segment=4, rule="centre")
    assert np.array_equal(load_clip(path, SMALL, first_frame=40, num_frames=30), full[indices])


def test_a_video_shorter_than_a_clip_repeats_its_frames(clips):
    clip = load_clip(clips / "rotated_90.mov", SMALL)
    assert clip.shape == (1, 8, 4, 48, 48, 3)
    full = resize_and_crop(np.stack(list(all_frames(clips / "rotated_90.mov"))), SMALL)
    assert np.array_equal(clip[0, 0], full[[0, 1, 2, 2]])


def test_each_frame_is_resized_once(barcodes):
    spec = replace(THREE, sampling="dense")
    seconds = []
    load_clip(barcodes(barcode.KINDS[0]), spec, resizing=seconds)
    assert len(seconds) == len(np.unique(clip_indices(100, segments=8, frames_per_segment=4, rule="dense")))


@pytest.mark.parametrize("part", [{"first_frame": 100}, {"first_frame": -1}, {"num_frames": 0}])
def test_a_part_out_of_range(part, barcodes):
    with pytest.raises(FlowlessError, match=r"h264_b_pyramid\.mp4: a part of .* was requested"):
        load_clip(barcodes(barcode.KINDS[0]), SMALL, **part)
