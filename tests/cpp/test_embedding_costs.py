"""What an application that embeds the library pays beside the engine: no allocation once warm; and the benchmark that measures the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import run

from flowless.bench.commands import bench
from flowless.engines.bundle.manifest import read_manifest
from flowless.errors import FlowlessError


def allocations(build: Callable[[str], Path], bundle: Path) -> list[int]:
    """Return those of a call: OpenVINO's alone, flowless_run, flowless_prepare, flowless_stream_push, flowless_step."""
    artefact = read_manifest(bundle).artefact("openvino", "fp32")
    assert artefact is not None
    program = build("release") / "tests" / "time_engine"
    done = run(program, bundle, bundle / artefact.files[0], "1", "f32", input="allocations\n")
    return [int(number) for number in done.stdout.split()]


def test_a_warm_call_allocates_nothing_of_its_own(cpp_build: Callable[[str], Path], built: Path) -> None:
    bare, own, prepare, push, step = allocations(cpp_build, built)
    assert bare > 0, "OpenVINO's own are counted"
    assert (own, step) == (bare, bare)
    assert (prepare, push) == (0, 0)


@pytest.mark.parametrize("model", ["tsm-r18", "pan-lite-r18"])
def test_a_warm_step_with_a_state_allocates_nothing_of_its_own(
    cpp_build: Callable[[str], Path], streaming_bundles: dict[str, Path], model: str
) -> None:
    """A whole clip is a step for each segment."""
    bare, own, prepare, push, step = allocations(cpp_build, streaming_bundles[model])
    assert bare > 0, "OpenVINO's own are counted"
    assert (own, step) == (read_manifest(streaming_bundles[model]).spec.segments * bare, bare)
    assert (prepare, push) == (0, 0)


@pytest.mark.slow
def test_bench_embed_measures_a_clip_a_frame_and_memory(cpp_build: Callable[[str], Path], tmp_path: Path) -> None:
    program, out = cpp_build("release") / "tests" / "time_engine", tmp_path / "embed.json"
    small = ["--model", "tsn-r18", "--size", "32", "--width", "0.25", "--blocks", "1", "--classes", "4", "--runs", "3", "--calls", "500"]
    bench(["embed", "--program", str(program), "--out", str(out), *small])
    document = json.loads(out.read_text(encoding="utf-8"))
    assert [row["way"] for row in document["clip"]] == ["OpenVINO alone, C++", "libflowless", "Python"]
    assert all(row["runs"] == 3 and row["p50_ms"] > 0 for row in document["clip"])
    assert [row["frame"] for row in document["frames"]] == ["480p", "1080p", "4K"]
    assert document["memory"]["calls"] == 500
    assert 0 < document["memory"]["before_mb"] <= document["memory"]["largest_mb"]
    assert len(document["goals"]) == 3


def test_bench_embed_without_the_library_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(FlowlessError, match="make cpp"):
        bench(["embed", "--program", str(tmp_path / "none"), "--out", str(tmp_path / "out.json"), "--model", "tsn-r18", "--size", "32"])
