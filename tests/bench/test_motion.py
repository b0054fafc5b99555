"""Motion cues beside optical flow: one convention of direction, all rows there, ratios that are the rows', a picture of the right size."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from flowless.bench.lib.tables import rows_table
from flowless.bench.motion.motion import claims, fastest, main
from flowless.bench.motion.motion_methods import PAPER_CLIP, opencv_flows, raft
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
        found = run(flow.given[0])[:, :, 12:-12, 12:-12]
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


def test_without_opencv_its_rows_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    methods = {method.name: method for method in opencv_flows(moving()[None, None])}
    assert list(methods) == ["TV-L1", "Farneback", "DIS medium", "DIS fast", "DIS ultrafast"]
    runner = methods["TV-L1"].runners[0]
    assert runner.run is None
    assert "pip install 'flowless[bench]'" in runner.status
    shown = rows_table("motion", [{"name": "TV-L1", "status": runner.status}], "name status")
    assert runner.status in "".join(segment.text for segment in Console(width=120).render(shown)), "brackets are no markup"
    write_video(tmp_path / "a.mp4", moving(8))
    write_picture(tmp_path / "picture.jpg", [tmp_path / "a.mp4"], cues={}, spec=STACK)
    assert (tmp_path / "picture.jpg").is_file()


def test_raft_sees_each_pair_of_a_stack() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 3, 128, 136, 3), dtype=np.uint8)
    method = raft(frames)
    assert (method.maps, len(method.given)) == (4, 2)
    run = method.runners[0].run
    assert run is not None
    flows = run(method.given[1])
    assert flows.shape == (2, 2, 128, 136)
    assert np.isfinite(flows).all()
    # A pair's flow does not depend on the stack that it is in.
    np.testing.assert_allclose(run(method.given[1][1:]), flows[1:], atol=1e-3)


def test_claims_are_ratios_of_rows() -> None:
    rows = [
        {"method": "PA", "engine": "openvino fp32", "frames_per_s": 4000.0, "times_tv_l1": 400.0},
        {"method": "PA", "engine": "openvino bf16", "frames_per_s": 6400.0, "times_tv_l1": 640.0},
        {"method": "displacement map", "engine": "openvino fp32", "frames_per_s": 200.0, "times_tv_l1": 20.0},
    ]
    first, second = claims(rows)
    assert (first["what"], first["paper_ratio"], first["ours"]) == ("PA over TV-L1, frames a second", 1024.5, 640.0)
    assert second["ours"] == 20.0
    assert {claim["ours"] for claim in claims([])} == {None}


def checkpoint(folder: Path, name: str, **options: Any) -> Path:
    """Write the checkpoint of an untrained model."""
    spec = ClipSpec(segments=2, frames_per_segment=4, height=32, width=32, short_side=32)
    model = build_model(name, classes=2, spec=spec, width=0.25, **options)
    return save_checkpoint(folder / name, model, model_name=name, recipe={}, spec=spec, labels=["a", "b"], metrics={})


def test_checkpoints_give_their_cues(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "da-tsm-r18")
    assert list(load_cues([path])) == ["Dynamic appearance"]
    with pytest.raises(FlowlessError, match="no motion cue"):
        load_cues([checkpoint(tmp_path, "tsn-r18")])
    with pytest.raises(FlowlessError, match="one checkpoint for each cue"):
        load_cues([path, path])


def test_the_picture_has_every_cue_and_flow(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV is in the extra 'bench'")
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", moving(12))
    cues = load_cues([checkpoint(tmp_path, name) for name in ("pan-lite-r18", "disentangling-bninception", "da-tsm-r18", "stm-r18")])
    assert len(cues) == 4
    pictures = []
    for some in ({}, cues):
        write_picture(tmp_path / "picture.jpg", [tmp_path / "a.mp4", tmp_path / "b.mp4"], cues=some, spec=STACK)
        with Image.open(tmp_path / "picture.jpg") as picture:
            pictures.append(np.asarray(picture))
    flows, everything = pictures
    assert flows.shape[1] == everything.shape[1]
    assert everything.shape[0] - flows.shape[0] == 4 * 164, "four cues more"
    # Every tile shows something: 3 moments of 2 videos, a frame, 4 cues and 3 flows.
    tiles = everything[30 : 30 + 8 * 164, 220:].reshape(8, 164, 6, 164, 3).swapaxes(1, 2)[:, :, :160, :160]
    assert (tiles.std(axis=(2, 3, 4)) > 1).all()


def test_bad_settings(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.mp4")
    for wrong in (["--size", "120"], ["--size", "130"], ["--runs", "0"], ["--stacks", "0"], ["--out", "a.txt"], [missing]):
        with pytest.raises(FlowlessError, match=r"bench motion|none\.mp4"):
            main(["--out", str(tmp_path / "motion.json"), *wrong])


@pytest.mark.slow
def test_the_whole_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exports six graphs, which takes most of the time."""
    pytest.importorskip("cv2", reason="OpenCV is in the extra 'bench'")
    write_video(tmp_path / "videos" / "a.mp4", moving(12, side=100))
    out = tmp_path / "motion.json"
    main([str(tmp_path / "videos"), "--size", "128", "--stacks", "2", "--runs", "1", "--out", str(out), "--json"])
    document = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out) == document
    assert document["settings"]["frames"] == 12
    rows = {row["name"]: row for row in document["rows"]}
    assert {row["method"] for row in rows.values()} == {method["name"] for method in document["methods"]}
    assert {"PA, openvino bf16", "CMM alone, openvino fp32", "TV-L1, opencv", "RAFT-small, pytorch eager"} <= set(rows)
    slowest = rows["TV-L1, opencv"]["p50_ms"]
    for name, row in rows.items():
        if "p50_ms" in row:
            assert row["frames_per_s"] == pytest.approx(12 / row["p50_ms"] * 1e3, rel=0.01), name
            assert row["times_tv_l1"] == pytest.approx(slowest / row["p50_ms"], abs=1e-3)
            if row["precision"] == "fp32":
                assert row["max_abs_diff"] < 1e-3, name
    # A precision that this processor does not compute in has a status and no times.
    timed = [row for row in rows.values() if row["method"] == "PA" and "p50_ms" in row]
    assert document["claims"][0]["ours"] == document["goals"][0]["measured"] == max(row["times_tv_l1"] for row in timed)
    assert fastest(document["rows"])["PA"]["maps_per_s"] == max(row["maps_per_s"] for row in timed)
    assert (tmp_path / document["picture"]["file"]).is_file()
    maps = {method["name"]: method["maps"] for method in document["methods"]}
    assert {name for name, count in maps.items() if count != 10} == {"dynamic appearance"}
    assert maps["dynamic appearance"] == 2
