"""The PA op's Triton kernels: in Triton's interpreter on every machine, and on a GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowless.train.pa import convolution_forms as forms
from flowless.train.pa.persistence import EPS, implementation

pytest.importorskip("triton")
op = torch.ops.flowless.persistence
#: The tests of `interpreted_persistence.py` that `make quick` runs too.
SELECTED = "((test_maps and odd and float32) or (test_the_op_learns and root) or empty)"


def run_interpreted(expression):
    """Run the tests of `interpreted_persistence.py` that pytest's `-k` expression selects, in a process with Triton's interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "FLOWLESS_PA"}
    file = Path(__file__).with_name("interpreted_persistence.py")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", expression, str(file)],
        env={**environment, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_all_kernels_in_the_interpreter():
    done = run_interpreted(f"not {SELECTED}")
    assert done.returncode == 0, done.stdout


def test_selected_kernels_in_the_interpreter():
    done = run_interpreted(SELECTED)
    assert done.returncode == 0, done.stdout


def on_gpu(x, w, upstream):
    """Return the maps and the gradients of the Triton kernels: of the frames, unless they are uint8, and of the weights."""
    x, w = x.cuda(), w.cuda().requires_grad_()
    sources = (x.requires_grad_(), w) if x.is_floating_point() else (w,)
    assert implementation(x, w) == "triton"
    out = op(x, w, EPS)
    return [out.detach(), *torch.autograd.grad(out, sources, upstream.to(out))]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "uint8"])
def test_kernels_on_the_gpu(reference, dtype, monkeypatch):
    monkeypatch.setenv("FLOWLESS_PA", "triton")
    for case in reference.pa_cases():
        if dtype == "uint8" and not case.pixels:
            continue
        x = torch.from_numpy(case.frames).to(getattr(torch, dtype))
        w = torch.from_numpy(case.weight).to(torch.float32 if dtype == "uint8" else x.dtype)
        upstream = torch.randn(forms.motion_shape(x), generator=torch.Generator().manual_seed(3)).to(w.dtype)
        exact = x.double().requires_grad_(), w.double().requires_grad_()
        out = forms.persistence_by_pixels(*exact, EPS)
        wanted = [out.detach(), *torch.autograd.grad(out, exact, upstream.double())]
        for ours, true in zip(on_gpu(x, w, upstream), wanted if x.is_floating_point() else wanted[::2], strict=True):
            # A gradient divides by the returned map, which is rounded too: twice the tolerance.
            allowed = 2 * forms.TOLERANCES[dtype] * true.abs().max() + torch.finfo(ours.dtype).tiny
            assert (ours.double().cpu() - true).abs().max() <= allowed, case.name


@pytest.mark.gpu
def test_gradients_are_deterministic_on_the_gpu(monkeypatch):
    monkeypatch.setenv("FLOWLESS_PA", "triton")
    x, w, upstream = torch.randn(4, 4, 3, 64, 96), torch.randn(8, 3, 7, 7), torch.randn(4, 3, 64, 96)
    for first, again in zip(on_gpu(x, w, upstream), on_gpu(x, w, upstream), strict=True):
        torch.testing.assert_close(first, again, rtol=0, atol=0)


@pytest.mark.gpu
def test_no_feature_map_is_in_memory_on_the_gpu(monkeypatch):
    monkeypatch.setenv("FLOWLESS_PA", "triton")
    x = torch.randn(32, 4, 3, 224, 224, device="cuda")
    w = torch.randn(8, 3, 7, 7, device="cuda", requires_grad=True)
    upstream = torch.ones(32, 3, 224, 224, device="cuda")
    torch.autograd.grad(op(x, w, EPS), w, upstream)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.autograd.grad(op(x, w, EPS), w, upstream)
    # Memory for the maps, the ratio, and the parts of the weights' gradient; feature maps would take eight times the maps.
    assert torch.cuda.max_memory_allocated() - before < 3.5 * upstream.nbytes
