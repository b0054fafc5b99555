"""`flowless doctor` reports what this machine can do."""

from __future__ import annotations

import contextlib
import json

import pytest

from flowless import cuda_driver, doctor
from flowless.cli import main
from flowless.engines.backends import openvino_core
from flowless.engines.targets import TARGETS


@pytest.fixture(scope="module")
def findings() -> list[doctor.Finding]:
    return doctor.examine()


def test_every_stage_is_examined_and_what_is_missing_has_a_remedy(findings: list[doctor.Finding]) -> None:
    assert list(dict.fromkeys(finding.area for finding in findings)) == ["decode", "train", "build", "run", "measure"]
    assert all(finding.remedy for finding in findings if not finding.ok)
    assert not any(finding.remedy for finding in findings if finding.ok)


def test_what_the_tests_themselves_use_is_found(findings: list[doctor.Finding]) -> None:
    able = {(finding.area, finding.what) for finding in findings if finding.ok}
    assert {("decode", "H.264 on the CPU"), ("train", "PyTorch on the CPU"), ("build", "onnxruntime"), ("run", "openvino")} <= able


def test_a_broken_library_is_a_finding_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(openvino_core, "openvino_core", broken)
    found = {finding.what: finding for finding in doctor.examine(["run"])}
    assert not found["openvino"].ok
    assert found["openvino"].detail == "OSError: libcuda.so.1: cannot open shared object file"
    assert found["openvino"].remedy == "pip install openvino"
    assert found["onnxruntime"].ok, "the others are examined all the same"


@pytest.mark.parametrize("area", ["build", "run"])
def test_every_target_is_examined(findings: list[doctor.Finding], area: str) -> None:
    found = {finding.what: finding for finding in findings if finding.area == area}
    for target, library in TARGETS.items():
        assert target in found
        if library.why_missing():
            assert (found[target].ok, found[target].detail) == (False, "not installed")
            assert library.install in found[target].remedy


def test_a_gpu_whose_decoders_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that was given the GPU's computing alone."""
    if cuda_driver.compute_capability() is not None:
        pytest.skip("there is a GPU here")
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: (9, 0))
    monkeypatch.setattr(cuda_driver, "primary_context", lambda number: contextlib.nullcontext())
    (finding,) = (item for item in doctor.examine(["decode"]) if item.what == "NVDEC")
    assert not finding.ok
    assert "libnvcuvid.so.1 does not load" in finding.detail
    assert "NVIDIA_DRIVER_CAPABILITIES" in finding.remedy


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["environment"]["cores"] >= 1
    assert {finding["area"] for finding in document["findings"]} == {"decode", "train", "build", "run", "measure"}


def test_the_table_keeps_the_brackets_of_an_extra() -> None:
    from rich.console import Console

    console = Console(width=300, record=True)
    finding = doctor.Finding(area="build", what="tensorrt", ok=False, detail="not installed", remedy="pip install 'flowless[tensorrt]'")
    console.print(doctor.table([finding]))
    assert "flowless[tensorrt]" in console.export_text()
