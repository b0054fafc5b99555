"""Motion cues beside optical flow: one convention of direction, all rows there, ratios that are the rows', a picture of the right size."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from flowless.bench.lib.tables import rows_table
from flowless.bench.motion import motion_methods
from flowless.bench.motion.motion import Motion, claims, fastest, measure, tables
from flowless.bench.motion.motion_maps import PAPER_CLIP
from flowless.bench.motion.motion_methods import grey, opencv_flows, raft
from flowless.bench.motion.motion_picture import cue_of_stacks, load_cues, write_picture
from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.video.encode import write_video
from flowless.train.checkpoints import save_checkpoint
from flowless.train.models import build_model

STACK = replace(PAPER_CLIP, segments=1, height=48, width=48, short_side=48)
#: Pixels that the texture moves from a frame to the next: down and to the left, and whole cells of the displacement map.
DOWN, LEFT = 2, 4


def moving(frames: int = 6, side: int = 48) -> np.ndarray:
    """Return frames uint8 `[frames, side, side, 3]` of a smooth texture that moves all at once."""
    rng = np.random.default_rng(3)
    scene = Image.fromarray(rng.integers(0, 256, size=(28, 28, 3), dtype=np.uint8)).resize((168, 168), Image.Resampling.BICUBIC)
    texture = np.asarray(scene)
    return np.stack([texture[60 - DOWN * t : 60 - DOWN * t + side, 20 + LEFT * t : 20 + LEFT * t + side] for t in range(frames)])


@pytest.fixture
def without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def refuse(name: str, package: str | None = None) -> Any:
        if name == "cv2":
            raise ModuleNotFoundError("No module named 'cv2'", name="cv2")
        return real(name, package)

    monkeypatch.setattr(motion_methods.importlib, "import_module", refuse)


def test_cue_and_flows_agree_on_what_direction_is() -> None:
    frames = moving()
    torch.manual_seed(0)
    model = build_model("disentangling-bninception", classes=2, spec=STACK, branches="motion", blocks=1).eval()
    inner = cue_of_stacks(model, np.repeat(frames[None], 3, axis=0)).values[0, 2, 0, :, 6:-6, 6:-6]
    assert inner[0].mean() == pytest.approx(DOWN, abs=0.6)
    assert inner[1].mean() == pytest.approx(-LEFT, abs=0.9)
    pytest.importorskip("cv2", reason="OpenCV is in the extra 'bench'")
    for flow in opencv_flows(frames[None, None, :3]):
        run = flow.runners[0].run
        assert run is not None
        np.testing.assert_array_equal(flow.given[0, 0], grey(frames[:3]))
        found = run(flow.given)[0, :, :, 12:-12, 12:-12]
        assert found.shape == (2, 2, 24, 24)
        assert np.median(found[:, 0]) == pytest.approx(DOWN, abs=0.5), flow.name
        assert np.median(found[:, 1]) == pytest.approx(-LEFT, abs=0.5), flow.name


@pytest.mark.parametrize("name", ["pan-lite-r18", "stm-r18"])
def test_a_cue_is_of_the_middle_pair(name: str) -> None:
    spec = replace(STACK, segments=6, frames_per_segment=1) if name == "stm-r18" else replace(STACK, segments=2)
    model = build_model(name, classes=2, spec=spec, width=0.25, blocks=1).eval()
    moves = moving(8)
    still = moves.copy()
    still[4] = still[3]
    cue = cue_of_stacks(model, np.stack([moves, still]))
    assert cue.values.shape[:3] == (1, 2, 1)
    first, second = np.square(cue.values[0, :, 0]).sum((1, 2))
    assert second < 1e-5 * first


def test_without_opencv_its_rows_say_how_to_get_it(without_opencv: None, tmp_path: Path) -> None:
    methods = {method.name: method for method in opencv_flows(moving()[None, None])}
    assert list(methods) == ["TV-L1", "Farneback", "DIS medium", "DIS fast", "DIS ultrafast"]
    assert methods["TV-L1"].runners[0].run is None
    status = methods["TV-L1"].runners[0].status
    assert status == "not here: pip install 'flowless[bench]'"
    shown = rows_table("motion", [{"name": "TV-L1", "status": status}], {"name": "", "status": ""})
    assert status in "".join(segment.text for segment in Console(width=100).render(shown)), "brackets are no markup"
    write_video(tmp_path / "a.mp4", moving(8))
    drawn = write_picture(tmp_path / "picture.jpg", [tmp_path / "a.mp4"], cues={}, spec=STACK, rates={}, moments=1)
    assert drawn["full_colour_pixels"] == 8


def test_raft_wants_larger_frames() -> None:
    method = raft(moving()[None, None])
    assert method.runners[0].run is None
    assert "at least 128 x 128" in method.runners[0].status
    assert method.gmacs is None


def test_raft_sees_each_pair_of_a_stack() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 3, 128, 136, 3), dtype=np.uint8)
    method = raft(frames)
    assert method.maps == 4
    assert method.gmacs is not None
    run = method.runners[0].run
    assert run is not None
    flows = run(frames)
    assert flows.shape == (1, 4, 2, 128, 136)
    assert np.isfinite(flows).all()
    # A pair's flow does not depend on the stack that it is in.
    np.testing.assert_allclose(run(frames[:, 1:]), flows[:, 2:], atol=1e-3)


def test_claims_are_ratios_of_rows() -> None:
    rows = [
        {"method": "PA", "engine": "openvino fp32", "frames_per_s": 4000.0, "times_tv_l1": 400.0},
        {"method": "PA", "engine": "openvino bf16", "frames_per_s": 6400.0, "times_tv_l1": 640.0},
        {"method": "displacement map", "engine": "openvino fp32", "frames_per_s": 200.0, "times_tv_l1": 20.0},
    ]
    first, second = claims(rows)
    assert (first["what"], first["paper_ratio"], first["ours"]) == ("PA over TV-L1, frames a second", 1024.5, 640.0)
    assert (first["engine"], second["ours"]) == ("openvino bf16", 20.0)
    assert {claim["ours"] for claim in claims([])} == {None}


def checkpoint(folder: Path, name: str, **options: Any) -> Path:
    """Write the checkpoint of an untrained model."""
    spec = ClipSpec(segments=2, frames_per_segment=4, height=32, width=32, short_side=32)
    model = build_model(name, classes=2, spec=spec, width=0.25, **options)
    return save_checkpoint(folder / name, model, model_name=name, recipe={}, spec=spec, labels=["a", "b"], metrics={})


def test_checkpoints_give_their_cues(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "da-tsm-r18")
    assert list(load_cues([path])) == ["dynamic appearance"]
    with pytest.raises(FlowlessError, match="no motion cue"):
        load_cues([checkpoint(tmp_path, "tsn-r18")])
    with pytest.raises(FlowlessError, match="one checkpoint for each cue"):
        load_cues([path, path])


def test_the_picture_has_every_cue_and_flow(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is in the extra 'bench'")
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", moving(12))
    names = {"pan-lite-r18": "PA", "disentangling-bninception": "displacement map", "da-tsm-r18": "dynamic appearance", "stm-r18": "CMM"}
    cues = load_cues([checkpoint(tmp_path, name) for name in names])
    assert list(cues) == list(names.values())
    videos = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    sizes = []
    for some in ({}, cues):
        drawn = write_picture(tmp_path / "picture.jpg", videos, cues=some, spec=STACK, rates={"PA": "7 maps/s"}, moments=2)
        assert drawn["weights"] == {name: f"trained, {loaded.name}" for name, loaded in some.items()}
        with Image.open(tmp_path / "picture.jpg") as picture:
            sizes.append(picture.size)
    assert sizes[0][0] == sizes[1][0] == 880, "four columns"
    assert sizes[1][1] - sizes[0][1] == 4 * 160, "four cues more"


def test_bad_settings() -> None:
    cases: tuple[dict[str, Any], ...] = ({"size": 30}, {"size": 50}, {"runs": 0}, {"moments": 0}, {"out": Path("a.txt")})
    for wrong in cases:
        with pytest.raises(FlowlessError, match="bench motion"):
            Motion(**wrong)


@pytest.mark.slow
def test_the_whole_benchmark(tmp_path: Path) -> None:
    """Exports six graphs, which takes most of the time."""
    pytest.importorskip("cv2", reason="OpenCV is in the extra 'bench'")
    write_video(tmp_path / "videos" / "a.mp4", moving(12))
    out = tmp_path / "motion.json"
    settings = Motion(videos=(tmp_path / "videos",), size=48, stacks=2, runs=1, show=1, moments=2, out=out)
    document = measure(settings)
    assert json.loads(out.read_text(encoding="utf-8")) == document
    rows = {row["name"]: row for row in document["rows"]}
    assert {row["method"] for row in rows.values()} == {method["name"] for method in document["methods"]}
    assert {"PA, openvino bf16", "CMM alone, openvino fp32", "TV-L1, opencv", "RAFT-small, pytorch eager"} <= set(rows)
    slowest = rows["TV-L1, opencv"]["p50_ms"]
    for name, row in rows.items():
        if "p50_ms" in row:
            assert row["frames_per_s"] == pytest.approx(12 / row["p50_ms"] * 1e3, rel=0.01), name
            assert row["times_tv_l1"] == pytest.approx(slowest / row["p50_ms"], abs=1e-3)
        if row["precision"] == "fp32" and row["target"] in {"openvino", "onnxruntime"}:
            assert row["max_abs_diff"] < 1e-3, name
    # A precision that this processor does not compute in has a status and no times.
    timed = [row for row in rows.values() if row["method"] == "PA" and "p50_ms" in row]
    assert document["claims"][0]["ours"] == max(row["times_tv_l1"] for row in timed)
    assert fastest(document["rows"])["PA"]["maps_per_s"] == max(row["maps_per_s"] for row in timed)
    assert (tmp_path / "motion.jpg").is_file()
    maps = {method["name"]: method["maps"] for method in document["methods"]}
    assert {name for name, count in maps.items() if count != 10} == {"dynamic appearance"}
    assert maps["dynamic appearance"] == 2
    assert len(tables(document)) == 3
