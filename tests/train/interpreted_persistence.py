"""Tests of the PA op's Triton kernels in Triton's interpreter, on the CPU.

Triton reads TRITON_INTERPRET when it is imported, and other tests may have imported it before. So pytest does not collect this file:
`test_persistence_triton.py` runs it in a separate process.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from flowless.train.pa import convolution_forms as forms
from flowless.train.pa import triton_backward as backward_kernels
from flowless.train.pa import triton_forward as kernels
from flowless.train.pa.persistence import EPS, OFFICIAL_EPS

op = torch.ops.flowless.persistence


def cases():
    spec = importlib.util.spec_from_file_location("numpy_reference", Path(__file__).parents[1] / "numpy_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pa_cases()


INSIDE = pytest.mark.parametrize("inside", [False, True], ids=["under the root", "eps inside"])
#: Combinations of dtype and `eps_inside`: every dtype, and both places of eps with float32 and uint8.
COMBINED = [("float32", False), ("float32", True), ("float16", False), ("bfloat16", True), ("uint8", False), ("uint8", True)]
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "uint8"])


def cast(case, dtype):
    weight = torch.from_numpy(case.weight).to(torch.float32 if dtype == "uint8" else getattr(torch, dtype))
    return torch.from_numpy(case.frames).to(getattr(torch, dtype)), weight


def assert_close(ours, wanted, dtype):
    """Compare within the tolerance of the dtype, or its smallest subnormal number."""
    wanted = torch.as_tensor(wanted)
    finest = torch.finfo(ours.dtype).tiny * torch.finfo(ours.dtype).eps
    assert ours.shape == wanted.shape
    assert (ours.double() - wanted).abs().max() <= forms.TOLERANCES[dtype] * wanted.abs().max() + finest


def each_type(tried, everything):
    """Return cases in every dtype with alternating places of eps; those named in `everything` in all of COMBINED. uint8 needs pixels."""
    rows = []
    for number, case in enumerate(tried):
        alternating = [(dtype, bool((number + at) % 2)) for at, dtype in enumerate(("float32", "float16", "bfloat16", "uint8"))]
        for dtype, inside in COMBINED if case.name in everything else alternating:
            if dtype != "uint8" or case.pixels:
                rows.append(pytest.param(case, dtype, inside, id=f"{case.name}, {dtype}{', eps inside' * inside}"))
    return rows


@pytest.mark.parametrize(
    ("case", "dtype", "inside"),
    each_type(cases(), {"random", "more than one tile, ragged", "constant in time", "pixels with scaled filters"}),
)
def test_maps(reference, case, dtype, inside):
    x, w = cast(case, dtype)
    wanted = reference.persistence(x.double().numpy(), w.double().numpy(), np.zeros(8), case.eps, eps_inside=inside)
    assert_close(kernels.forward(x, w, case.eps, eps_inside=inside), wanted, dtype)


@DTYPES
def test_frames_with_any_strides(reference, dtype):
    clip = torch.randint(0, 256, (2, 2, 3, 9, 35, 3), generator=torch.Generator().manual_seed(1)).to(getattr(torch, dtype))
    # Every second clip, a part of the rows and columns, channels last: nothing is contiguous.
    x = clip[::2, :, :, 1:, 2:].movedim(-1, -3)
    w = torch.randn(8, 3, 7, 7).to(torch.float32 if dtype == "uint8" else x.dtype)
    wanted = reference.persistence(x.double().numpy(), w.double().numpy(), np.zeros(8), EPS)
    assert_close(kernels.forward(x, w, EPS), wanted, dtype)


def test_offsets_beyond_32_bits(reference):
    # The third stack begins beyond element 2^31. The memory in between is never touched, so the system does not allocate it.
    step = 2**30 + 64
    x = torch.empty(2 * step + 2 * 60, dtype=torch.uint8).as_strided((3, 2, 3, 4, 5), (step, 60, 20, 5, 1))
    x.copy_(torch.randint(0, 256, x.shape, dtype=torch.uint8))
    w = torch.randn(8, 3, 7, 7)
    wanted = reference.persistence(x.numpy(), w.double().numpy(), np.zeros(8), EPS)
    assert kernels.supports(x, w)
    assert_close(kernels.forward(x, w, EPS), wanted, "uint8")
    upstream = torch.randn(3, 1, 4, 5)
    out, _, wanted_w = gradients(x, w, eps=EPS, inside=False, upstream=upstream)
    assert_close(backward_kernels.backward((upstream / out).float(), x, w, 0.0, need_x=False)[1], wanted_w, "uint8")


def test_differences_of_uint8_are_exact():
    x = torch.randint(0, 256, (1, 2, 3, 8, 20), dtype=torch.uint8)
    w = torch.randint(-8, 9, (8, 3, 7, 7)).float()
    wanted = forms.persistence_by_pixels(x.double(), w.double(), 0.0)
    # Differences, weights and their sums are integers: only the root rounds.
    torch.testing.assert_close(kernels.forward(x, w, 0.0).double(), wanted, rtol=2e-7, atol=0)


def gradients(x, w, *, eps, inside, upstream):
    """Return the maps and gradients of the same inputs by autograd through the formula in float64."""
    x, w = x.double().requires_grad_(), w.double().requires_grad_()
    out = forms.persistence_by_pixels(x, w, eps, eps_inside=inside)
    return out.detach(), *torch.autograd.grad(out, (x, w), upstream.double())


SOME = {"random", "one pixel large", "odd sides", "large magnitude"}
#: The larger case is cut to five rows at its full width: tiles of both kernels still meet in a row, and the interpreter takes half as long.
GRADIENT_CASES = [case._replace(frames=case.frames[..., :5, :]) if case.name == "random" else case for case in cases() if case.name in SOME]


@pytest.mark.parametrize(("case", "dtype", "inside"), each_type(GRADIENT_CASES, {"odd sides", "large magnitude"}))
def test_gradients(case, dtype, inside):
    x, w = cast(case, dtype)
    upstream = torch.randn(forms.motion_shape(x), generator=torch.Generator().manual_seed(2))
    out, wanted_x, wanted_w = gradients(x, w, eps=case.eps, inside=inside, upstream=upstream)
    need_x = dtype != "uint8"
    ratio = (upstream / out).float()
    grad_x, grad_w = backward_kernels.backward(ratio, x, w, case.eps if inside else 0.0, need_x=need_x)
    assert_close(grad_w, wanted_w, dtype)
    if need_x:
        assert_close(grad_x, wanted_x, dtype)


def test_frames_gradient_where_tiles_meet():
    # 27 columns and more need a second tile of the frames' kernel, whose halos overlap.
    x, w = torch.randn(1, 2, 3, 5, 31), torch.randn(8, 3, 7, 7)
    upstream = torch.randn(1, 1, 5, 31)
    out, wanted_x, wanted_w = gradients(x, w, eps=EPS, inside=False, upstream=upstream)
    grad_x, grad_w = backward_kernels.backward((upstream / out).float(), x, w, 0.0, need_x=True)
    assert_close(grad_x, wanted_x, "float32")
    assert_close(grad_w, wanted_w, "float32")


def test_the_number_of_parts_changes_only_rounding(monkeypatch):
    x, w, ratio = torch.randn(1, 3, 3, 5, 20), torch.randn(8, 3, 7, 7), torch.randn(1, 2, 5, 20)
    _, each_tile = backward_kernels.backward(ratio, x, w, 0.0, need_x=False)
    monkeypatch.setattr(backward_kernels, "PARTS", 3)
    _, three = backward_kernels.backward(ratio, x, w, 0.0, need_x=False)
    _, again = backward_kernels.backward(ratio, x, w, 0.0, need_x=False)
    torch.testing.assert_close(three, each_tile, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(again, three, rtol=0, atol=0)


@INSIDE
def test_the_op_learns_through_the_kernels(monkeypatch, inside):
    x = torch.randn(2, 3, 3, 6, 7, requires_grad=True)
    w = torch.randn(8, 3, 7, 7, requires_grad=True)
    eps = OFFICIAL_EPS if inside else EPS

    def run(which):
        monkeypatch.setenv("FLOWLESS_PA", which)
        out = op(x, w, eps, inside)
        return out, *torch.autograd.grad(out.square().sum(), (x, w))

    for ours, wanted in zip(run("triton"), run("torch"), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-3)


@INSIDE
def test_identical_frames_have_finite_gradients(monkeypatch, inside):
    monkeypatch.setenv("FLOWLESS_PA", "triton")
    x = torch.randn(1, 1, 3, 6, 5).expand(1, 3, 3, 6, 5).clone().requires_grad_()
    w = torch.randn(8, 3, 7, 7, requires_grad=True)
    out = op(x, w, OFFICIAL_EPS if inside else EPS, inside)
    for gradient in torch.autograd.grad(out.sum(), (x, w)):
        assert torch.isfinite(gradient).all()


def test_unsupported_tensors_are_refused(monkeypatch):
    from flowless.errors import FlowlessError

    monkeypatch.setenv("FLOWLESS_PA", "triton")
    with pytest.raises(FlowlessError, match="float64"):
        op(torch.zeros(1, 2, 3, 8, 8).double(), torch.zeros(8, 3, 7, 7).double(), EPS)
    with pytest.raises(FlowlessError, match=r"\[4, 3, 7, 7\]"):
        op(torch.zeros(1, 2, 3, 8, 8), torch.zeros(4, 3, 7, 7), EPS)


def test_an_empty_batch():
    x, w = torch.zeros(0, 3, 3, 8, 8), torch.randn(8, 3, 7, 7)
    assert kernels.forward(x, w, EPS).shape == (0, 2, 8, 8)
    grad_x, grad_w = backward_kernels.backward(torch.zeros(0, 2, 8, 8), x, w, 0.0, need_x=True)
    assert grad_x is not None
    assert grad_x.shape == x.shape
    assert not grad_w.any()
