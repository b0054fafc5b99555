"""The PA op against the paper's formula in NumPy float64, its gradients and its memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowless.errors import FlowlessError
from flowless.train.pa import convolution_forms as forms
from flowless.train.pa import persistence as module
from flowless.train.pa.persistence import EPS, OFFICIAL_EPS, PersistenceOfAppearance, phase_weight

op = torch.ops.flowless.persistence


def arrays(shape, *, seed=0):
    random = np.random.default_rng(seed)
    return random.standard_normal(shape), random.standard_normal((8, 3, 7, 7)) * 0.1, random.standard_normal(8)


@pytest.mark.parametrize("shape", [(1, 2, 3, 8, 8), (2, 4, 3, 13, 9), (3, 3, 3, 16, 21), (1, 2, 3, 7, 7), (1, 2, 3, 1, 1)])
@pytest.mark.parametrize("inside", [False, True])
def test_every_form_equals_the_reference(reference, shape, inside):
    frames, weight, bias = arrays(shape)
    eps = 1e-3
    wanted = reference.persistence(frames, weight, bias, eps, eps_inside=inside)
    x, w = torch.from_numpy(frames), torch.from_numpy(weight)
    for form in (forms.persistence_by_pixels, forms.persistence_by_phases):
        np.testing.assert_allclose(form(x, w, eps, eps_inside=inside), wanted, atol=1e-12)
    np.testing.assert_allclose(op(x, w, eps, inside), wanted, atol=1e-12)
    np.testing.assert_allclose(op(x.float(), w.float(), eps, inside), wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "uint8"])
@pytest.mark.parametrize("inside", [False, True])
def test_hard_cases_in_every_type(reference, dtype, inside):
    for case in reference.pa_cases():
        if dtype == "uint8" and not case.pixels:
            continue
        x = torch.from_numpy(case.frames).to(getattr(torch, dtype))
        w = torch.from_numpy(case.weight).to(torch.float32 if dtype == "uint8" else x.dtype)
        wanted = reference.persistence(x.double().numpy(), w.double().numpy(), np.zeros(8), case.eps, eps_inside=inside)
        ours = op(x, w, case.eps, inside)
        assert ours.dtype == w.dtype
        allowed = forms.TOLERANCES[dtype] * wanted.max() + torch.finfo(ours.dtype).tiny * torch.finfo(ours.dtype).eps
        assert np.abs(ours.double().numpy() - wanted).max() <= allowed, case.name


def test_uint8_pixels_equal_float_pixels():
    clip = torch.randint(0, 256, (2, 3, 4, 9, 10, 3), dtype=torch.uint8)
    x, w = clip.movedim(-1, -3), torch.randn(8, 3, 7, 7, requires_grad=True)
    out, wanted = op(x, w, EPS), op(x.float(), w, EPS)
    torch.testing.assert_close(out, wanted, rtol=0, atol=0)
    for ours, theirs in zip(torch.autograd.grad(out.sum(), w), torch.autograd.grad(wanted.sum(), w), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_gradients_of_static_frames_are_finite_in_half_precision():
    # 1 / sqrt(EPS) is beyond float16.
    x, w = torch.zeros(1, 2, 3, 9, 9, dtype=torch.float16), torch.randn(8, 3, 7, 7).half().requires_grad_()
    (gradient,) = torch.autograd.grad(op(x, w, EPS).sum(), w)
    assert gradient.dtype == torch.float16
    assert not gradient.any()


def test_the_environment_forces_an_implementation(monkeypatch):
    x, w = torch.randn(1, 2, 3, 8, 8), torch.randn(8, 3, 7, 7)
    monkeypatch.delenv("FLOWLESS_PA", raising=False)
    assert module.implementation(x, w) == "torch"
    monkeypatch.setenv("FLOWLESS_PA", "torch")
    assert module.implementation(x, w) == "torch"
    monkeypatch.setenv("FLOWLESS_PA", "cuda")
    with pytest.raises(FlowlessError, match=r"'cuda'.*'torch' or 'triton'"):
        op(x, w, EPS)
    monkeypatch.setenv("FLOWLESS_PA", "triton")
    monkeypatch.setattr(module, "_has_triton", lambda: False)
    with pytest.raises(FlowlessError, match="not installed"):
        op(x, w, EPS)


def test_triton_is_refused_on_a_cpu(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("FLOWLESS_PA", "triton")
    with pytest.raises(FlowlessError, match="on cpu"):
        op(torch.randn(1, 2, 3, 8, 8), torch.randn(8, 3, 7, 7), EPS)


def test_leading_dimensions_are_kept():
    x, w = torch.randn(2, 5, 4, 3, 12, 10), torch.randn(8, 3, 7, 7)
    out = op(x, w, EPS)
    assert out.shape == (2, 5, 3, 12, 10)
    torch.testing.assert_close(out[1, 3], op(x[1, 3], w, EPS))
    for form in (forms.persistence_by_pixels, forms.persistence_by_phases):
        torch.testing.assert_close(form(x, w, EPS), out, rtol=1e-4, atol=1e-4)


def test_channels_last_frames_give_the_same_maps():
    clip = torch.randint(0, 256, (2, 3, 4, 15, 18, 3), dtype=torch.uint8)
    x, w = clip.float().movedim(-1, -3), torch.randn(8, 3, 7, 7)
    torch.testing.assert_close(op(x, w, EPS), op(x.contiguous(), w, EPS), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("size", [(9, 8), (5, 4)])
def test_gradients_pass_gradcheck(inside, size):
    x = torch.randn(2, 3, 3, *size, dtype=torch.double, requires_grad=True)
    w = torch.randn(8, 3, 7, 7, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: op(x, w, 1e-3, inside), (x, w), fast_mode=True)


def test_the_op_passes_opcheck():
    x = torch.randn(2, 3, 3, 9, 8, requires_grad=True)
    w = torch.randn(8, 3, 7, 7, requires_grad=True)
    torch.library.opcheck(op.default, (x, w, 1e-6))
    torch.library.opcheck(op.default, (x, w, 1e-6, True))
    pixels = torch.randint(0, 256, x.shape, dtype=torch.uint8)
    torch.library.opcheck(op.default, (pixels, w, 1e-6))


def test_chunks_do_not_change_the_result(monkeypatch):
    x, w = torch.randn(5, 3, 3, 12, 12), torch.randn(8, 3, 7, 7, requires_grad=True)
    whole = op(x, w, EPS)
    (whole_gradient,) = torch.autograd.grad(whole.sum(), w)
    monkeypatch.setitem(module._CHUNK, "cpu", 1)
    parts = op(x, w, EPS)
    (parts_gradient,) = torch.autograd.grad(parts.sum(), w)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts_gradient, whole_gradient, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("inside", [False, True])
def test_identical_frames_have_finite_gradients(inside):
    x = torch.randn(1, 1, 3, 12, 12).expand(1, 4, 3, 12, 12).clone().requires_grad_()
    w = torch.randn(8, 3, 7, 7, requires_grad=True)
    out = op(x, w, OFFICIAL_EPS if inside else EPS, inside)
    out.sum().backward()
    assert x.grad is not None
    assert w.grad is not None
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(w.grad).all()
    # The official code's value for identical frames: sqrt(8) times its eps.
    expected = 8**0.5 * OFFICIAL_EPS if inside else EPS**0.5
    torch.testing.assert_close(out, torch.full_like(out, expected), rtol=1e-3, atol=0)


def test_autocast_does_not_change_the_op():
    x, w = torch.randn(1, 3, 3, 16, 16) * 50, torch.randn(8, 3, 7, 7, requires_grad=True)
    plain = op(x, w, EPS)
    (wanted,) = torch.autograd.grad(plain.sum(), w)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = op(x, w, EPS)
        (gradient,) = torch.autograd.grad(out.sum(), w)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, plain, rtol=0, atol=0)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=0)


def test_nothing_but_input_and_output_is_stored():
    x = torch.randn(2, 4, 3, 64, 64)
    w = torch.randn(8, 3, 7, 7, requires_grad=True)

    def saved(function) -> int:
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            function(x, w, EPS)
        return sum(storages.values())

    ours, plain = saved(op), saved(forms.persistence_by_pixels)
    maps = 2 * 3 * 64 * 64 * 4
    assert ours <= x.nbytes + maps + w.nbytes
    assert plain >= ours + 8 * maps - x.nbytes


def test_the_exported_graph_has_one_node():
    x, w = torch.randn(1, 2, 3, 16, 16), torch.randn(8, 3, 7, 7)
    program = torch.export.export(PersistenceOnly(w), (x,))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [name for name in calls if "persistence" in name] == ["flowless.persistence.default"]


class PersistenceOnly(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x):
        return op(x, self.weight, EPS)


def test_phase_weight_places_the_kernel_at_four_offsets():
    weight = torch.randn(8, 3, 7, 7)
    placed = phase_weight(weight)
    assert placed.shape == (32, 3, 8, 8)
    for a in (0, 1):
        for b in (0, 1):
            group = placed[(2 * a + b) * 8 : (2 * a + b + 1) * 8]
            torch.testing.assert_close(group[..., a : a + 7, b : b + 7], weight, rtol=0, atol=0)
            assert group.abs().sum() == pytest.approx(weight.abs().sum().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("x", "weight", "named"),
    [
        (torch.zeros(1, 1, 3, 8, 8), torch.zeros(8, 3, 7, 7), r"\[1, 1, 3, 8, 8\]"),
        (torch.zeros(1, 2, 3, 8, 8, dtype=torch.int32), torch.zeros(8, 3, 7, 7), "int32"),
        (torch.zeros(1, 2, 3, 8, 8), torch.zeros(8, 3, 7, 7).half(), "float16.*must be torch.float32"),
        (torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8), torch.zeros(8, 3, 7, 7, dtype=torch.uint8), "must be floating"),
        (torch.zeros(1, 2, 3, 8, 8), torch.zeros(8, 4, 7, 7), r"\[8, 4, 7, 7\]"),
        (torch.zeros(1, 2, 3, 8, 8), torch.zeros(8, 3, 6, 6), "k odd"),
    ],
)
def test_invalid_tensors_are_refused(x, weight, named):
    with pytest.raises(FlowlessError, match=named):
        op(x, weight, EPS)


def test_module_has_the_papers_parameters():
    pa = PersistenceOfAppearance()
    assert sum(parameter.numel() for parameter in pa.parameters()) == 1184
    assert not pa.bias.requires_grad
    with pytest.raises(FlowlessError, match="'e3'"):
        PersistenceOfAppearance(encoding="e3")  # type: ignore[arg-type]


def test_pixels_with_scaled_filters_equal_normalised_frames():
    pa = PersistenceOfAppearance(std=0.1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]) * 255, torch.tensor([0.229, 0.224, 0.225]) * 255
    x = torch.randint(0, 256, (2, 3, 3, 14, 11)).float()
    normalised = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(pa.motion(x, scale=1 / std), pa.motion(normalised), rtol=1e-4, atol=1e-5)


def test_attention_encoding_is_equation_7(reference):
    pa = PersistenceOfAppearance(encoding="e2", std=0.1)
    torch.nn.init.normal_(pa.bias)
    x = torch.randn(2, 3, 4, 3, 10, 12)
    maps = pa.motion(x)
    weight, bias = pa.weight.detach().double().numpy(), pa.bias.detach().double().numpy()
    features = reference.conv2d(x.double().numpy().reshape(-1, 3, 10, 12), weight, padding=3, bias=bias).mean(1).reshape(2, 3, 4, 10, 12)
    wanted = 1 / (1 + np.exp(-maps.detach().double().numpy())) * features[:, :, :-1]
    np.testing.assert_allclose(pa(x, maps).detach(), wanted, rtol=1e-4, atol=1e-5)
    pa(x, maps).sum().backward()
    assert pa.bias.grad is not None
