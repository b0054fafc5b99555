"""Displacement maps and warping against NumPy float64, and on textures with a known displacement."""

from __future__ import annotations

import disentangling_reference as plain
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flowless.errors import FlowlessError
from flowless.train.models.backbones.bn_inception import STEM, Unit
from flowless.train.models.layers.displacement import Displacement, warp, warped_differences


def features(seed, *shape, relu=True):
    x = np.random.default_rng(seed).standard_normal(shape)
    return np.maximum(x, 0) if relu else x


@pytest.mark.parametrize(
    ("window", "size", "temperature"),
    # Sides of one block, of several, and of no integer number of blocks; a window larger than the frame.
    [
        (1, (6, 5), 0.02),
        (2, (8, 4), 0.05),
        (2, (9, 14), 0.02),
        (3, (13, 6), 0.2),
        (4, (16, 24), 0.02),
        (4, (3, 5), 0.05),
        (4, (1, 1), 0.02),
    ],
)
@pytest.mark.parametrize("relu", [True, False])
def test_displacement_is_equations_1_and_2(window, size, temperature, relu):
    before, after = features(1, 2, 6, *size, relu=relu), features(2, 2, 6, *size, relu=relu)
    before[0, :, 0, 0] = 0  # a feature of zeros: its cosine with all others is 0
    measure = Displacement(window=window, temperature=temperature)
    wanted = plain.displacement(before, after, window, temperature)
    ours = measure.double()(torch.from_numpy(before), torch.from_numpy(after))
    np.testing.assert_allclose(ours, wanted, atol=1e-9)
    single = measure.float()(torch.from_numpy(before).float(), torch.from_numpy(after).float())
    np.testing.assert_allclose(single, wanted, atol=1e-4)


def waves(y, x):
    """Return features of a continuous plane: pairs of waves, whose cosine depends only on the distance of two positions."""
    random = np.random.default_rng(3)
    turns = random.uniform(0, 2 * np.pi, 24)
    lengths = random.uniform(14, 30, 24)
    phase = 2 * np.pi * (np.multiply.outer(np.sin(turns) / lengths, y) + np.multiply.outer(np.cos(turns) / lengths, x))
    return np.concatenate([np.cos(phase), np.sin(phase)])[None]


@pytest.mark.parametrize("moved", [(0.0, 0.0), (0.5, 0.0), (-0.3, 0.0), (0.0, 0.7), (0.0, -0.25), (1.4, -0.6), (-2.25, 1.75)])
def test_fractional_displacement_of_a_texture(moved):
    y, x = np.mgrid[0:24, 0:32].astype(np.float64)
    before, after = waves(y, x), waves(y - moved[0], x - moved[1])  # what is at p before is at p + moved after
    ours = Displacement(window=4, temperature=0.02).double()(torch.from_numpy(before), torch.from_numpy(after))
    inner = ours[0, :, 6:-6, 6:-6].numpy()
    np.testing.assert_allclose(inner, np.broadcast_to(np.array(moved)[:, None, None], inner.shape), atol=0.01)


def fine_texture(seed):
    """Return an image at four times the frame's resolution, smooth over three pixels of the frame."""
    noise = torch.randn(3, 1, 4 * 80, 4 * 80, generator=torch.Generator().manual_seed(seed))
    line = torch.exp(-((torch.arange(-48.0, 49) / 12) ** 2) / 2)
    image = F.conv2d(F.conv2d(noise, line.view(1, 1, -1, 1), padding=(48, 0)), line.view(1, 1, 1, -1), padding=(0, 48)).movedim(1, 0)
    return image / image.std()


@pytest.mark.parametrize("moved", [(3, 0), (-5, 0), (0, 6), (0, -3), (10, -7), (0, 0)])
def test_displacement_of_random_features(moved):
    # Shifted by quarters of a pixel, which are eighths of a cell: features of random filters still show the displacement.
    torch.manual_seed(4)
    low = Unit(3, STEM, kernel=7, stride=2).train()
    image = fine_texture(5)
    with torch.no_grad():
        before = F.avg_pool2d(image[:, :, 32:-32, 32:-32], 4)
        after = F.avg_pool2d(image[:, :, 32 - moved[0] : 288 - moved[0], 32 - moved[1] : 288 - moved[1]], 4)
        both = low(torch.cat([before, after]))
        error = Displacement()(both[:1], both[1:])[0, :, 6:-6, 6:-6] - torch.tensor(moved)[:, None, None] / 8
    assert error.abs().mean() < 0.16
    assert error.mean((1, 2)).abs().max() < 0.16


def test_a_low_temperature_takes_the_best_match():
    before = features(6, 1, 32, 12, 12, relu=False)
    after = np.roll(before, (2, -1), (2, 3))
    ours = Displacement(window=3, temperature=0.001).double()(torch.from_numpy(before), torch.from_numpy(after))
    np.testing.assert_allclose(ours[0, 0, :9, 1:], 2, atol=1e-6)
    np.testing.assert_allclose(ours[0, 1, :9, 1:], -1, atol=1e-6)


def test_cells_outside_the_frame_are_not_matched():
    # All features equal: the displacement is the mean of the window's cells inside the frame.
    same = torch.ones(1, 4, 8, 9, dtype=torch.double)
    ours = Displacement(window=2, temperature=0.05).double()(same, same)
    np.testing.assert_allclose(ours[0, 0, :, 4], [1, 0.5, 0, 0, 0, 0, -0.5, -1], atol=1e-9)
    np.testing.assert_allclose(ours[0, 1, 4], [1, 0.5, 0, 0, 0, 0, 0, -0.5, -1], atol=1e-9)


def test_gradients_are_the_derivatives():
    measure = Displacement(window=1, temperature=0.5).double()
    before, after = (torch.from_numpy(features(seed, 1, 3, 3, 4, relu=False)).requires_grad_() for seed in (7, 8))
    assert torch.autograd.gradcheck(measure, (before, after))
    moved = torch.from_numpy(np.random.default_rng(9).uniform(-0.9, 0.9, (1, 2, 3, 4))).requires_grad_()
    assert torch.autograd.gradcheck(warped_differences, (before, after, moved))


def test_featureless_cells_have_finite_gradients():
    before, after = torch.zeros(1, 8, 5, 7, requires_grad=True), torch.zeros(1, 8, 5, 7, requires_grad=True)
    moved = Displacement()(before, after)
    (moved.square().sum() + warped_differences(before, after, moved).sum()).backward()
    for value in (before, after):
        assert value.grad is not None
        assert torch.isfinite(value.grad).all()


def test_autocast_does_not_change_displacement():
    before, after = (torch.from_numpy(features(seed, 1, 16, 9, 9)).float() for seed in (10, 11))
    wanted = Displacement()(before, after)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Displacement()(before, after), wanted)


@pytest.mark.parametrize("seed", range(3))
def test_warp_is_bilinear_with_zeros_outside(seed):
    moved = np.random.default_rng(seed).uniform(-4, 4, (2, 2, 7, 9))
    before, after = features(seed, 2, 3, 7, 9, relu=False), features(seed + 50, 2, 3, 7, 9, relu=False)
    wanted = plain.warp(before, moved)
    assert (np.abs(wanted).max(1) == 0).any()  # some sources lie outside
    tensors = [torch.from_numpy(value).float() for value in (before, after, moved)]
    np.testing.assert_allclose(warp(tensors[0], tensors[2]), wanted, atol=1e-5)
    np.testing.assert_allclose(warped_differences(*tensors), after - wanted, atol=1e-5)


@pytest.mark.parametrize("moved", [(1, 0), (-2, 0), (0, 1), (0, -3), (2, -1)])
def test_warping_undoes_what_displacement_measures(moved):
    # The signs of displacement and warping agree: after warping, only differences at the frame's edge remain.
    before = torch.from_numpy(features(12, 1, 32, 16, 16)).float()
    after = torch.roll(before, moved, (2, 3))
    measured = Displacement(window=4, temperature=0.005)(before, after)
    difference = warped_differences(before, after, measured)[:, :, 5:-5, 5:-5].abs()
    unwarped = (after - before)[:, :, 5:-5, 5:-5].abs()
    assert difference.max() < 0.01
    assert unwarped.mean() > 0.3


@pytest.mark.parametrize(
    ("options", "message"), [({"window": 0}, "window is 0"), ({"window": 17}, "window is 17"), ({"temperature": 0.0}, r"temperature 0\.0")]
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(FlowlessError, match=message):
        Displacement(**options)
