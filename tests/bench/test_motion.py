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
from flowless.bench.motion import motion_flows
from flowless.bench.motion.motion import Motion, measure, tables
from flowless.bench.motion.motion_claims import claims, goals, quickest
from flowless.bench.motion.motion_cues import cue_of_model, fit_projection, random_cues
from flowless.bench.motion.motion_flows import flow_methods, flows_of, grey, opencv_flows
from flowless.bench.motion.motion_maps import PAPER_CLIP
from flowless.bench.motion.motion_strip import load_cues, write_strip
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

    monkeypatch.setattr(motion_flows.importlib, "import_module", refuse)


def test_cue_and_flows_agree_on_what_direction_is() -> None:
    frames = moving()
    with torch.inference_mode():
        map_ = random_cues(STACK)["displacement map"](torch.from_numpy(frames[None, None]))
    inner = (2 * map_[0, :, :, 6:-6, 6:-6]).numpy()  # two pixels a cell
    assert inner[:, 0].mean() == pytest.approx(DOWN, abs=0.6)
    assert inner[:, 1].mean() == pytest.approx(-LEFT, abs=0.9)
    pytest.importorskip("cv2", reason="OpenCV is in the extra 'bench'")
    for flow in opencv_flows():
        assert flow.pair is not None
        found = flows_of(flow.pair, grey(frames)[None, None, :3])[0, :, :, 12:-12, 12:-12]
        assert found.shape == (2, 2, 24, 24)
        assert np.median(found[:, 0]) == pytest.approx(DOWN, abs=0.5), flow.name
        assert np.median(found[:, 1]) == pytest.approx(-LEFT, abs=0.5), flow.name


def test_channelwise_motion_compares_a_frame_with_the_next() -> None:
    frames = moving()
    frames[3] = frames[2]
    with torch.inference_mode():
        motion = random_cues(STACK)["CMM"](torch.from_numpy(frames[None, None]))[0]
    sizes = motion.flatten(1).square().sum(1).sqrt()
    assert sizes[2] < 1e-3 < sizes[1]
    assert sizes[5] == 0, "a stack's last frame has no next one"


def test_fitted_projection_takes_away_what_stands_still() -> None:
    frames = np.repeat(moving(1), 6, axis=0)
    frames[:, 12:28, 12:28] = moving(6, 16)
    cue = random_cues(STACK)["dynamic appearance"]
    fit_projection(cue, frames[None])
    with torch.inference_mode():
        shown = cue(torch.from_numpy(frames[None, None]))[0, 0].abs().mean(0)
    assert shown[14:26, 14:26].mean() > 5 * shown[36:, 36:].mean()


def test_without_opencv_its_rows_say_how_to_get_it(without_opencv: None, tmp_path: Path) -> None:
    clip = moving()[None, None]
    methods = {method.name: method for method in flow_methods(clip)}
    assert list(methods) == ["TV-L1", "Farneback", "DIS medium", "DIS fast", "DIS ultrafast", "RAFT-small"]
    assert methods["TV-L1"].runners[0].run is None
    status = methods["TV-L1"].runners[0].status
    assert status == "not here: pip install 'flowless[bench]'"
    shown = rows_table("motion", [{"name": "TV-L1", "status": status}], {"name": "", "status": ""})
    assert status in "".join(segment.text for segment in Console(width=100).render(shown)), "brackets are no markup"
    write_video(tmp_path / "a.mp4", moving(8))
    drawn = write_strip(tmp_path / "strip.jpg", [tmp_path / "a.mp4"], cues={}, spec=STACK, rates={}, moments=1)
    assert drawn["full_colour_pixels"] == 8


def test_raft_wants_larger_frames() -> None:
    raft = flow_methods(moving()[None, None])[-1]
    assert raft.runners[0].run is None
    assert "at least 128 x 128" in raft.runners[0].status
    assert raft.gmacs is None


def test_raft_sees_each_pair_of_a_stack() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 3, 128, 136, 3), dtype=np.uint8)
    raft = flow_methods(frames)[-1]
    assert raft.maps == 4
    assert raft.gmacs is not None
    run = raft.runners[0].run
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
    found = claims(rows, [{"name": "PA", "gmacs": 2.38, "parameters": 1184}])
    assert found[0] | {"where": ""} == {
        "what": "PA over TV-L1, frames a second",
        "paper": "8196 fps, TV-L1 8 fps",
        "paper_ratio": 1024.5,
        "ours": 640.0,
        "engine": "openvino bf16",
        "where": "",
    }
    assert [claim["ours"] for claim in found[1:]] == [20.0, 2.38, 1184]
    assert not goals(found)[0]["met"]
    assert goals(claims([{"method": "PA", "engine": "x", "frames_per_s": 1.0, "times_tv_l1": 1000.0}]))[0]["met"]
    assert goals(claims([]))[0] | {"goal": ""} == {"goal": "", "wanted": ">= 1000", "measured": None, "met": False}


def test_checkpoints_give_their_cues(tmp_path: Path) -> None:
    spec = ClipSpec(segments=2, frames_per_segment=4, height=32, width=32, short_side=32)
    paths = []
    for name in ("da-tsm-r18", "tsn-r18"):
        model = build_model(name, classes=2, spec=spec, width=0.25)
        paths.append(save_checkpoint(tmp_path / name, model, model_name=name, recipe={}, spec=spec, labels=["a", "b"], metrics={}))
    found = load_cues(paths[:1])
    assert list(found) == ["dynamic appearance"]
    _, cue = cue_of_model(found["dynamic appearance"].model, spec=STACK)
    with torch.inference_mode():
        assert cue(torch.from_numpy(moving(4)[None, None])).shape == (1, 1, 3, 48, 48)
    with pytest.raises(FlowlessError, match="no motion cue"):
        load_cues(paths[1:])
    with pytest.raises(FlowlessError, match="one checkpoint for each cue"):
        load_cues([paths[0], paths[0]])


def test_bad_settings() -> None:
    cases: tuple[dict[str, Any], ...] = ({"size": 30}, {"size": 50}, {"runs": 0}, {"moments": 0})
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
    assert quickest(document["rows"])["PA"]["maps_per_s"] == max(row["maps_per_s"] for row in timed)
    with Image.open(tmp_path / "motion.jpg") as picture:
        assert picture.size == (16 + 226 + 2 * 164 - 4 + 16, 42 + 8 * 164 + 76)
    assert len(tables(document)) == 4
