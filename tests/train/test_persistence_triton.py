"""The PA op's Triton kernels: in the interpreter everywhere, on the GPU where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowless.train.pa import forms
from flowless.train.pa.persistence import EPS, body

pytest.importorskip("triton")
op = torch.ops.flowless.persistence
#: What `make quick` runs too.
SOME = "((test_maps and odd and float32) or (test_the_op_learns and root) or nothing_in)"


def run_interpreted(words):
    """Run the tests of `interpreted_persistence.py` that `words` select, in a process where Triton interprets."""
    environment = {key: value for key, value in os.environ.items() if key != "FLOWLESS_PA"}
    file = Path(__file__).with_name("interpreted_persistence.py")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", words, str(file)],
        env={**environment, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_maps_and_gradients_in_the_interpreter():
    done = run_interpreted(f"not {SOME}")
    assert done.returncode == 0, done.stdout


def test_some_of_both_in_the_interpreter():
    done = run_interpreted(SOME)
    assert done.returncode == 0, done.stdout


def on_gpu(x, w, upstream):
    """Return the maps and gradients of Triton's kernels, of the frames too unless they are uint8."""
    x, w = x.cuda(), w.cuda().requires_grad_()
    sources = (x.requires_grad_(), w) if x.is_floating_point() else (w,)
    assert body(x, w) == "triton"
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
            # A gradient divides by the map as it was returned, so by one more rounded number: twice the tolerance.
            allowed = 2 * forms.TOLERANCES[dtype] * true.abs().max() + torch.finfo(ours.dtype).tiny
            assert (ours.double().cpu() - true).abs().max() <= allowed, case.name


@pytest.mark.gpu
def test_gradients_are_the_same_again_on_the_gpu(monkeypatch):
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
    # The maps, the one plane that divides by them, and the parts of the weights' gradient; features would be eight times the maps.
    assert torch.cuda.max_memory_allocated() - before < 3.5 * upstream.nbytes
