"""Model × precision × target: what is verified on a processor, what is built for GPUs, and what is refused, in one table.

A row is a model, which has learnt a few videos; a column a target and precision. `kept` passed parity with PyTorch
(`parity.TOLERANCE`), and its layers compute in the graph's precision; `built` was accepted by TensorRT-RTX's parser and builder,
and its network's types and Q/DQ placement were inspected; refused is what the processor's library does not compute in. Which that is,
the libraries say themselves (`verdicts.py`): it differs from processor to processor, and from version to version.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import verdicts

from flowless.engines.bundle.manifest import read_manifest
from flowless.engines.targets import Target
from flowless.export.auto_precision import TrialSettings, try_precisions
from flowless.export.precision.precisions import PRECISIONS
from flowless.export.verify.checks import Checks
from flowless.export.verify.parity import TOLERANCE

#: (PAN-En is PAN-Full's fusion with PAN-Lite as a third network.)
MODELS = (
    "tsn-r18",
    "tsm-r18",
    "pan-lite-r18",
    "pan-full-r18",
    "stm-r18",
    "da-tsm-r18",
    "da-x3d-xs",
    "da-vit-b",
    "disentangling-bninception",
)

TARGETS: tuple[Target, ...] = (*verdicts.TARGETS, "tensorrt-rtx")
#: Values of `ONEDNN_MAX_CPU_ISA`, which PyTorch's and OpenVINO's oneDNN obey -> what the processor must have, as PyTorch names it, and
#: limits of the other libraries. (ONNX Runtime's MLAS obeys none: it computes as it does without.) Limits only take away.
LIMITS = {
    "AVX2": (("avx2",), {"ATEN_CPU_CAPABILITY": "avx2", "OPENBLAS_CORETYPE": "Haswell"}),
    "AVX512_CORE_VNNI": (("avx512_vnni",), {"ATEN_CPU_CAPABILITY": "avx512", "OPENBLAS_CORETYPE": "SkylakeX"}),
    "AVX512_CORE_BF16": (("avx512_bf16",), {"ATEN_CPU_CAPABILITY": "avx512", "OPENBLAS_CORETYPE": "Cooperlake"}),
    "AVX512_CORE_FP16": (("avx512_fp16",), {"ATEN_CPU_CAPABILITY": "avx512", "OPENBLAS_CORETYPE": "Cooperlake"}),
    "AVX512_CORE_AMX": (("amx_int8", "amx_bf16"), {}),
}
#: What a kernel's name must not hold under a limit.
BEYOND = {
    "AVX2": ("avx512", "amx", "vnni"),
    "AVX512_CORE_VNNI": ("bf16", "fp16", "amx"),
    "AVX512_CORE_BF16": ("fp16", "amx"),
    "AVX512_CORE_FP16": ("amx",),
    "AVX512_CORE_AMX": (),
}


def test_the_table_of_tolerances_is_whole():
    assert set(TOLERANCE) == {(precision, device) for precision in PRECISIONS for device in ("CPU", "GPU")}
    for device in ("CPU", "GPU"):
        exact, half, brain, byte = (TOLERANCE[precision, device] for precision in ("fp32", "fp16", "bf16", "int8"))
        assert exact.largest < half.largest < brain.largest < byte.largest
        assert exact.snr > half.snr > brain.snr > byte.snr


@pytest.mark.slow
@pytest.mark.parametrize("model", [pytest.param(model, marks=pytest.mark.xdist_group(f"table-{model}")) for model in MODELS])
def test_model_by_precision_by_target(model, learnt, calibration, tmp_path):
    bundle = shutil.copytree(learnt(model), tmp_path / model)
    calibration = replace(calibration, spec=read_manifest(bundle).spec, used=[], skipped=[])
    rows = try_precisions(TrialSettings(bundle=bundle, checks=Checks(slower=True), calibration=calibration), TARGETS)
    assert {(row["target"], row["precision"]) for row in rows} == {(target, item) for target in TARGETS for item in PRECISIONS}
    for row in rows:
        message = f"{model}: {row['target']} {row['precision']}: {row['status']}"
        if row["target"] == "tensorrt-rtx":
            assert row["status"] in {"built, not run here", "verified"}, message
            continue
        emulated = row["target"] == "openvino" and verdicts.emulated(row["precision"])
        wrong = verdicts.disagreement(row, verdicts.runs_in(row["target"], row["precision"]), emulated=emulated)
        assert not wrong, f"{message}: {wrong}"
        if row["kept"]:
            rule = TOLERANCE[row["precision"], "CPU"]
            assert row["snr_db"] is None or row["snr_db"] >= rule.snr, message


@pytest.mark.slow
@pytest.mark.parametrize("limit", LIMITS)
def test_another_processor_rehearsed(limit, learnt, shapes, tmp_path):
    """What the product keeps and refuses is what the libraries say that they compute in, where they see fewer instruction sets."""
    import torch

    wanted, others = LIMITS[limit]
    here = torch.cpu.get_capabilities()
    missing = [name for name in wanted if not here.get(name)]
    if missing:
        pytest.skip(f"{limit} is beyond the processor here, which has no {', '.join(missing)}: a limit only takes away")
    bundle = shutil.copytree(learnt("tsn-r18"), tmp_path / "tsn-r18")
    done = subprocess.run(
        [sys.executable, verdicts.__file__, str(bundle), str(shapes / "train.index.jsonl")],
        env={**os.environ, **others, "ONEDNN_MAX_CPU_ISA": limit},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert {(row["target"], row["precision"]) for row in found["rows"]} == {
        (target, item) for target in verdicts.TARGETS for item in PRECISIONS
    }
    for row in found["rows"]:
        name = f"{row['target']} {row['precision']}"
        emulated = row["target"] == "openvino" and row["precision"] in found["emulated"]
        wrong = verdicts.disagreement(row, found["runs_in"][name], emulated=emulated)
        assert not wrong, f"{limit}: {name}: {row['status']}: {wrong}"
    for precision, kernel in found["kernels"].items():
        # A kernel's name ends in the type of its numbers, which is none of an instruction set.
        assert not [name for name in BEYOND[limit] if name in kernel.rpartition("_")[0]], f"{limit}: {precision} runs in {kernel}"


def row_of(precision, status, *, gate="", kept=False):
    return {"target": "openvino", "precision": precision, "status": status, "gate": gate, "kept": kept}


REFUSED = row_of("fp16", "not kept: 21 of 21 convolutions run in fp32, such as conv1; and 1 more", gate="layers")
KEPT = row_of("fp16", "verified", kept=True)


@pytest.mark.parametrize(
    ("row", "computes", "emulated", "right"),
    [
        # AVX2: an fp16 graph runs in fp32
        (REFUSED, "fp32", False, True),
        (KEPT, "fp32", False, False),
        # AVX-512 with fp16, AMX with fp16, Arm with fp16
        (KEPT, "fp16", False, True),
        (REFUSED, "fp16", False, False),
        # bf16 on AVX-512 without its instructions is emulated; some layers may run in fp32
        (row_of("bf16", "verified", kept=True), "bf16", True, True),
        (row_of("bf16", "not kept: 1 of 21 convolutions run in fp32", gate="layers"), "bf16", True, True),
        (row_of("bf16", "not kept: its scores are not PyTorch's", gate="parity"), "bf16", True, False),
        # AVX-512 with bf16 and without fp16, where OpenVINO took bf16 instead
        (row_of("fp16", "not kept: 21 of 21 convolutions run in bf16", gate="layers"), "bf16", False, True),
        (REFUSED, "bf16", False, False),
        # ONNX Runtime: no kernel at all
        (row_of("bf16", "not built: Could not find an implementation for Conv(22) node"), "", False, True),
        (REFUSED, "", False, False),
        (KEPT, "", False, False),
    ],
)
def test_the_verdict_that_follows_on_any_processor(row, computes, emulated, right):
    assert (not verdicts.disagreement(row, computes, emulated=emulated)) == right
