"""Model × precision × target: what is verified on a processor, what is built for GPUs, and what is refused, in one table.

A row is a model, which has learnt a few videos; a column a target and precision. `kept` passed parity with PyTorch
(`parity.TOLERANCE`), and its layers compute in what was asked for; `built` was accepted by TensorRT-RTX's parser and builder,
and its network's types and Q/DQ placement were inspected; `refused` names the gate or the reason.
"""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from flowless.bench.environment import instruction_sets
from flowless.engines.manifest import read_manifest
from flowless.export import trials
from flowless.export.checks import Checks
from flowless.export.parity import TOLERANCE
from flowless.export.precision import PRECISIONS

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

#: target -> precision -> what must come out on any x86 processor.
TABLE = {
    "onnxruntime": {"fp32": "kept", "bf16": "no implementation", "fp16": "run in fp32", "int8": "kept"},
    "openvino": {
        "fp32": "kept",
        "bf16": "kept, where the processor has bf16",
        "fp16": "kept, where the processor has fp16",
        "int8": "kept",
    },
    "tensorrt-rtx": {"fp32": "built", "bf16": "built", "fp16": "built", "int8": "built"},
}
#: Precision -> instruction sets of which OpenVINO needs one to compute in it; without, it computes in another and is refused.
NEEDS = {"bf16": {"avx512_bf16", "amx_bf16"}, "fp16": {"avx512_fp16", "amx_fp16"}}


def test_the_table_of_tolerances_is_whole():
    assert set(TOLERANCE) == {(precision, device) for precision in PRECISIONS for device in ("CPU", "GPU")}
    for device in ("CPU", "GPU"):
        exact, half, brain, byte = (TOLERANCE[precision, device] for precision in ("fp32", "fp16", "bf16", "int8"))
        assert exact.largest < half.largest < brain.largest < byte.largest
        assert exact.snr > half.snr > brain.snr > byte.snr


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_model_by_precision_by_target(model, learnt, calibration, tmp_path, monkeypatch):
    # Times are not looked at here, and opening all engines once more takes seconds. (The race: test_trials.py.)
    monkeypatch.setattr(trials, "_race", lambda *_, **__: None)
    bundle = shutil.copytree(learnt(model), tmp_path / model)
    calibration = replace(calibration, spec=read_manifest(bundle).spec, used=[], skipped=[])
    rows = trials.try_all(bundle, tuple(TABLE), checks=Checks(slower=True), calibration=calibration)  # pyright: ignore[reportArgumentType]
    assert {(row["target"], row["precision"]) for row in rows} == {(target, item) for target in TABLE for item in PRECISIONS}
    for row in rows:
        wanted = TABLE[row["target"]][row["precision"]]
        told = f"{model}: {row['target']} {row['precision']}: {row['status']}"
        if wanted.startswith("kept, where"):
            wanted = "kept" if NEEDS[row["precision"]] & set(instruction_sets()) else "run in"
        if wanted == "kept":
            assert row["status"] == "verified", told
            rule = TOLERANCE[row["precision"], "CPU"]
            assert row["snr_db"] is None or row["snr_db"] >= rule.snr, told
        elif wanted == "built":
            assert row["status"] in {"built, not run here", "verified"}, told
        else:
            assert not row["kept"], told
            assert wanted.replace("no implementation", "Could not find an implementation for Conv") in row["status"], told
