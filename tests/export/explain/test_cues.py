"""The motion cue of each system shows where something moves, in the colours of the legend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from flowless.errors import FlowlessError
from flowless.export.explain.cue_pictures import centred_colours, heat, paint, reach_of, resized, wheel
from flowless.export.explain.cues import Cue, cue_of, timescale_names
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models import build_model
from flowless.train.models.layers.heads import VariousTimescaleAggregationPooling

SPEC = ClipSpec(segments=4, frames_per_segment=4, height=64, width=80, short_side=80)
#: Top left corner of the square in the first frame, and the pixels that it moves per frame; rows first.
START, STEP = (10, 12), (0, 2)


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    """A textured square that moves to the right over a textured background; a second clip is static."""
    rng = np.random.default_rng(3)
    background = rng.integers(60, 120, (64, 80, 3), dtype=np.uint8)
    square = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    frames = np.broadcast_to(background, (2, 16, 64, 80, 3)).copy()
    for time in range(16):
        y, x = START[0] + STEP[0] * time, START[1] + STEP[1] * time
        frames[0, time, y : y + 16, x : x + 16] = square
    frames[1] = frames[0, 0]
    return torch.from_numpy(frames.reshape(2, *SPEC.shape))


def model_of(name: str, **options: Any) -> Any:
    torch.manual_seed(5)
    return build_model(name, classes=3, spec=SPEC, width=0.25, **options).eval()


def share_in_moving_rows(values: np.ndarray) -> float:
    """Return the share of a map's energy in the rows of the square."""
    height = values.shape[-2]
    start, stop = (START[0] - 4) * height // SPEC.height, (START[0] + 20) * height // SPEC.height
    return float(np.square(values[..., start:stop, :]).sum() / np.square(values).sum())


@pytest.mark.parametrize("name", ["pan-lite-r18", "pan-pa-r18", "pan-full-r18", "pan-en-r18"])
def test_persistence_is_where_the_square_moves(name, clip):
    cue = cue_of(model_of(name), clip)
    assert cue is not None
    assert (cue.kind, cue.over, cue.values.shape) == ("map", "frames", (2, 4, 3, 64, 80))
    assert share_in_moving_rows(cue.values[0]) > 0.999
    assert cue.values[1].max() < 1e-3 * cue.values[0].max()


def test_displacement_is_that_of_the_square(clip):
    cue = cue_of(model_of("disentangling-bninception"), clip)
    assert cue is not None
    assert (cue.kind, cue.over, cue.values.shape) == ("flow", "frames", (2, 4, 3, 2, 32, 40))
    # In the middle of the square: two pixels to the right are one cell.
    middle = cue.values[0, 0, 0, :, 8:10, 9:11].mean((1, 2))
    assert middle == pytest.approx([0, 1], abs=0.35)
    assert np.abs(cue.values[1]).mean() < np.abs(cue.values[0, ..., 5:13, :]).mean() / 3


def test_dynamic_appearance_is_one_picture_a_segment(clip):
    model = model_of("da-tsm-r50")
    cue = cue_of(model, clip)
    assert cue is not None
    assert (cue.kind, cue.over, cue.values.shape) == ("colour", "segment", (2, 4, 1, 3, 64, 80))
    np.testing.assert_array_equal(cue.values[:, :, 0], model.appearance(clip).detach().numpy())


def test_channelwise_motion_is_between_segments(clip):
    model = model_of("stm-r18")
    cue = cue_of(model, clip)
    assert cue is not None
    assert (cue.kind, cue.over, cue.values.shape) == ("map", "segments", (2, 4, 1, 16, 20))
    assert share_in_moving_rows(cue.values[0]) > 0.8  # the stem blurs
    assert not cue.values[0, 3].any()
    assert not cue.values[1, :3].max() > 1e-4 * cue.values[0].max()
    # By hand: with its initial kernels CMM is the difference of the reduced features of two segments.
    with torch.no_grad():
        frames = model.normalise(model.as_frames(clip[0, :, 0]))
        net = model.backbone
        features = net.layer1[0].act1(net.layer1[0].bn1(net.layer1[0].conv1(net.maxpool(net.act1(net.bn1(net.conv1(frames)))))))
        reduced = net.layer1[0].conv2.motion.reduce(features)
        expected = (reduced[:-1] - reduced[1:]).square().sum(1).sqrt()
    np.testing.assert_allclose(cue.values[0, :3, 0], expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["tsn-r18", "tsm-r18", "pan-rgb-r18"])
def test_models_of_single_frames_have_no_cue(name, clip):
    assert cue_of(model_of(name), clip) is None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("da-tsm-r18", {"da_input": "dynamic-image"}),
        ("da-vit-b", {"da_input": "rgb", "blocks": 1}),
        ("disentangling-bninception", {"branches": "appearance", "blocks": 1}),
        ("disentangling-bninception", {"branches": "changes", "changes_input": "features", "blocks": 1}),
    ],
)
def test_options_that_leave_the_cue_out_leave_none(name, options, clip):
    assert cue_of(model_of(name, **options), clip) is None


@pytest.mark.parametrize("branches", ["motion", "changes"])
def test_a_single_branch_has_its_displacement(branches, clip):
    cue = cue_of(model_of("disentangling-bninception", branches=branches, blocks=1), clip)
    assert cue is not None
    assert (cue.kind, cue.values.shape) == ("flow", (2, 4, 3, 2, 32, 40))


def test_a_cue_refuses_values_that_do_not_fit():
    with pytest.raises(FlowlessError, match="flow"):
        Cue(name="x", kind="flow", over="frames", values=np.zeros((1, 2, 1, 8, 8), np.float32), meaning="")
    with pytest.raises(FlowlessError, match="float64"):
        Cue(name="x", kind="map", over="frames", values=np.zeros((1, 2, 1, 8, 8)), meaning="")  # pyright: ignore[reportArgumentType]


def test_directions_on_the_wheel_are_those_on_the_screen():
    disc = wheel(101).astype(int)
    right, down, left, up = disc[50, 97], disc[97, 50], disc[50, 3], disc[3, 50]
    assert right[0] > 240
    assert right[1:3].max() < 30  # red
    assert left[1:3].min() > 240
    assert left[0] < 30  # cyan
    assert down[1] > 240
    assert down[2] < 30  # yellow-green
    assert up[2] > 240
    assert up[1] < 30  # violet
    assert disc[50, 50, :3].min() > 240  # white
    assert disc[0, 0, 3] == 0
    assert disc[50, 50, 3] == 255


def test_paint_spans_the_values_of_the_cue():
    flow = np.zeros((1, 1, 1, 2, 4, 4), np.float32)
    flow[..., 1, :, 0] = 3
    painted = paint(Cue(name="x", kind="flow", over="frames", values=flow, meaning=""))
    assert painted[0, 0, 0, 0].tolist() == [[255, 0, 0], *[[255, 255, 255]] * 3]
    maps = np.array([0, 2, 5], np.float32).reshape(1, 1, 1, 1, 3)
    cue = Cue(name="x", kind="map", over="frames", values=maps, meaning="")
    assert reach_of(cue) == pytest.approx(5, rel=0.02)
    brightness = paint(cue).sum(-1).ravel()
    assert brightness[0] < 10 < brightness[1] < brightness[2]
    assert heat(maps, reach=2)[0, 0, 0, 0, 1].tolist() == heat(maps, reach=2)[0, 0, 0, 0, 2].tolist()
    colours = centred_colours(np.array([-9, 0, 1], np.float32).reshape(3, 1, 1), reach=1)
    assert colours[0, 0].tolist() == [0, 128, 255]
    nothing = Cue(name="x", kind="map", over="frames", values=np.zeros((1, 1, 1, 4, 4), np.float32), meaning="")
    assert paint(nothing).max() < 8


def test_resizing_by_whole_multiples_repeats_pixels():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resized(pictures, height=8, width=15), pictures.repeat(2, 2).repeat(3, 3))
    assert resized(pictures, height=7, width=9).shape == (2, 3, 7, 9, 3)


@pytest.mark.parametrize("segments", [2, 4, 8])
def test_every_vector_of_vap_has_a_name(segments):
    head = VariousTimescaleAggregationPooling(8, segments=segments, classes=2, dropout=0.0)
    assert len(timescale_names(segments)) == segments - 1
    assert [name.split(",")[0] for name in timescale_names(segments)] == [f"s = {s}" for s in head.scales for _ in range(s)]
