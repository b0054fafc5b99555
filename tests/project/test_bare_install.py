"""The base install (numpy, PyAV, Pillow, rich, tyro, OpenVINO) imports its modules, names missing extras, and runs the doctor."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

#: Modules that must import without PyTorch, DALI, ONNX and the other optional libraries.
LIGHT = (
    *("cli", "console", "errors", "files", "machine", "timing"),
    *(
        "pipeline",
        "pipeline.commands",
        "pipeline.clip.spec",
        "pipeline.clip.protocols",
        "pipeline.clip.sampling",
        "pipeline.clip.preprocess",
    ),
    *("pipeline.dataset.index", "pipeline.dataset.scan", "pipeline.video.reader", "pipeline.video.encode", "pipeline.video.open_reader"),
    *("pipeline.synthetic.moving_shapes", "pipeline.loading.augment"),
    *(
        "train",
        "train.recipes",
        "train.evaluation.metrics",
        "train.commands.train",
        "export.export_command",
        "export.build_engine",
        "export.build_command",
    ),
    *(
        "engines",
        "engines.bundle.manifest",
        "engines.bundle.pack",
        "engines.pack_command",
        "engines.predict_command",
        "bench.commands",
        "train.commands.evaluate",
        "export.explain.explain_command",
        "train.evaluation.evaluate",
        "doctor",
    ),
)


Run = Callable[[Sequence[str]], subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("module", ["torch", "nvidia.dali", "onnx", "onnxruntime", "timm", "lightning"])
def test_optional_libraries_are_missing(run_bare: Run, module: str) -> None:
    done = run_bare(["-c", f"import {module}"])
    assert "ModuleNotFoundError" in done.stderr


def test_light_modules_import(run_bare: Run) -> None:
    done = run_bare(["-c", "\n".join(f"import flowless.{name}" for name in LIGHT)])
    assert done.returncode == 0, done.stderr


def test_a_missing_library_names_its_extra(run_bare: Run, tmp_path: Path) -> None:
    checkpoint = tmp_path / "best.safetensors"
    checkpoint.write_bytes(b"x")
    done = run_bare(["-m", "flowless", "export", str(checkpoint), "--out", str(tmp_path / "bundle")])
    assert done.returncode == 1
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_runs(run_bare: Run) -> None:
    done = run_bare(["-m", "flowless", "doctor", "--json"])
    assert done.returncode == 0, done.stderr
    assert "pip install 'flowless[train]'" in done.stdout
