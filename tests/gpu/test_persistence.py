"""The PA op on a GPU in the ways that models use it; its numbers and gradients are tested in tests/train/test_persistence_triton.py."""

from __future__ import annotations

import pytest
import torch

from flowless.train.pa import convolution_forms as forms
from flowless.train.pa.persistence import EPS, PersistenceOfAppearance, implementation

pytestmark = pytest.mark.gpu
op = torch.ops.flowless.persistence


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8).cuda()


def filters() -> torch.Tensor:
    return (0.002 * torch.randn((8, 3, 7, 7), generator=torch.Generator().manual_seed(3))).cuda()


def close(found: torch.Tensor, expected: torch.Tensor, kind: str = "float32") -> None:
    assert (found - expected).abs().max() <= 2 * forms.TOLERANCES[kind] * expected.abs().max()


def test_the_numpy_reference(reference, monkeypatch: pytest.MonkeyPatch) -> None:
    for case in reference.pa_cases():
        expected = torch.from_numpy(reference.persistence(case.frames, case.weight, None, case.eps))
        x, w = torch.from_numpy(case.frames).float().cuda(), torch.from_numpy(case.weight).float().cuda()
        for which in ("triton", "torch"):
            monkeypatch.setenv("FLOWLESS_PA", which)
            # Frames and weight were rounded to float32 first, which the formula did not see.
            error = (op(x, w, case.eps).double().cpu() - expected).abs().max()
            assert error <= 2 * forms.TOLERANCES["float32"] * expected.abs().max(), (case.name, which)


def test_colours_last_need_no_copy() -> None:
    """A decoder's memory, [.., H, W, C], seen as [.., C, H, W]: the same maps, and no second set of frames in memory."""
    stored = pixels(4, 5, 96, 128, 3)
    seen = stored.movedim(-1, -3)
    assert implementation(seen, filters()) == "triton"
    expected = op(seen.contiguous(), filters(), EPS)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found = op(seen, filters(), EPS)
    assert torch.equal(found, expected)
    assert torch.cuda.max_memory_allocated() - before < found.nbytes + stored.nbytes // 2


def test_the_faster_body_is_taken() -> None:
    weight, bytes_ = filters(), pixels(1, 2, 3, 32, 32)
    for frames, maps in ((bytes_, "triton"), (bytes_.half(), "triton"), (bytes_.float(), "torch")):
        kernel = weight.to(frames.dtype) if frames.is_floating_point() else weight
        assert (implementation(frames, kernel), implementation(frames, kernel, backward=True)) == (maps, "torch")


def test_a_part_of_a_larger_tensor() -> None:
    whole = pixels(3, 8, 3, 60, 70).float()
    part = whole[1:, 2:7, :, 5:49, 3:66]
    close(op(part, filters(), EPS), op(part.contiguous(), filters(), EPS))


def test_compiled_without_a_break() -> None:
    module = PersistenceOfAppearance(std=0.1).cuda()
    frames = pixels(2, 4, 3, 40, 56).float()
    expected = module.motion(frames)
    close(torch.compile(module.motion, fullgraph=True)(frames), expected)


def test_captured_in_a_cuda_graph() -> None:
    """Nothing in the op waits for the device or depends on the frames' values."""
    frames, weight = pixels(2, 4, 3, 64, 64).float(), filters()
    op(frames, weight, EPS)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = op(frames, weight, EPS)
    frames.copy_(pixels(2, 4, 3, 64, 64).float().flip(-1))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, op(frames, weight, EPS))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_autocast_leaves_it_in_float32(kind: torch.dtype) -> None:
    frames, weight = pixels(2, 3, 3, 32, 48).float(), filters()
    with torch.autocast("cuda", kind):
        found = op(frames, weight, EPS)
    assert found.dtype == torch.float32
    assert torch.equal(found, op(frames, weight, EPS))


def test_float64_by_pytorch_passes_gradcheck() -> None:
    frames = torch.randn(1, 3, 3, 9, 10, dtype=torch.float64, device="cuda", requires_grad=True)
    weight = torch.randn(8, 3, 7, 7, dtype=torch.float64, device="cuda", requires_grad=True)
    assert implementation(frames, weight) == "torch"
    assert torch.autograd.gradcheck(lambda x, w: op(x, w, 1e-3), (frames, weight))


def test_another_stream() -> None:
    frames, weight = pixels(2, 4, 3, 64, 64).float(), filters()
    expected = op(frames, weight, EPS)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        found = op(frames, weight, EPS)
    torch.cuda.synchronize()
    assert torch.equal(found, expected)
