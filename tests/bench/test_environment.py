"""What is noted of the processor, and the arithmetic that training takes, on processors that are not here."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowless import machine
from flowless.machine import instruction_sets, processor, quick_precision

#: A processor's line of /proc/cpuinfo, shortened -> what is noted of it.
FLAGS = {
    "fpu sse2 fma avx f16c avx2 sme sha_ni": ["avx2"],
    "avx avx2 avx512f avx512dq avx512_vnni avx512_bitalg": ["avx2", "avx512f", "avx512_vnni"],
    "avx2 avx512f avx_vnni avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8 amx_fp16": [
        *("avx2", "avx512f", "avx_vnni", "avx512_bf16", "amx_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_fp16"),
    ],
    "avx2 avx512f avx10_1 avx_vnni_int8": ["avx2", "avx512f", "avx10_1", "avx_vnni_int8"],
    "fp asimd evtstrm aes crc32 fphp asimdhp asimddp sve svei8mm i8mm bf16": ["asimd", "asimdhp", "asimddp", "sve", "i8mm", "bf16"],
}


@pytest.mark.parametrize("flags", FLAGS)
def test_the_instruction_sets_that_matter_are_noted(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "Features" if "asimd" in flags else "flags"
    monkeypatch.setattr(machine, "_cpuinfo", lambda: [("model name", "Some Processor"), (key, flags)])
    assert instruction_sets() == FLAGS[flags]
    assert processor() == "Some Processor"


@pytest.mark.parametrize(
    ("capabilities", "taken", "precision"),
    [
        ({"avx2": True}, False, "fp32"),
        # taken by oneDNN, and emulated: slower than fp32
        ({"avx2": True, "avx512_f": True, "avx512_vnni": True, "avx512_bf16": False}, True, "fp32"),
        # converts bf16, and does not multiply in it
        ({"avx2": True, "avx_ne_convert": True}, True, "fp32"),
        ({"avx512_f": True, "avx512_bf16": True}, True, "bf16"),
        ({"avx512_f": True, "avx512_bf16": True, "avx512_fp16": True, "amx_bf16": True}, True, "bf16"),
        ({"architecture": "arm64", "bf16": True}, True, "bf16"),
        # the processor has it, and this build of PyTorch does not use it
        ({"architecture": "arm64", "bf16": True}, False, "fp32"),
        ({"architecture": "arm64", "bf16": False}, False, "fp32"),
    ],
)
def test_training_takes_bf16_where_it_is_the_faster(
    capabilities: dict[str, Any], taken: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: taken)
    assert quick_precision() == precision


def test_pytorch_reports_the_processors_capabilities() -> None:
    assert "architecture" in torch.cpu.get_capabilities()
    assert quick_precision() in {"bf16", "fp32"}
