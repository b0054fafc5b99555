"""The throughput benchmark end to end on a tiny network, and the parts that it adds up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from video_files import info_of

from flowless.bench.lib.goals import goal, goals_table
from flowless.bench.lib.networks import random_clips, random_model
from flowless.bench.lib.runners import Runner, snr_db, time_runners
from flowless.bench.lib.sample_videos import sample_videos, videos_of
from flowless.bench.lib.system_load import busy_share, judged
from flowless.bench.speed.random_network import NetworkArgs, save_random, varied_videos
from flowless.bench.speed.throughput import build_precisions, goals, main
from flowless.bench.speed.video_stages import decode_with_libav_alone, stage_rows
from flowless.engines.backends.openvino_core import computes_in
from flowless.errors import FlowlessError
from flowless.export.precision.calibration import Calibration
from flowless.pipeline import ClipSpec, DatasetIndex, load_clip
from flowless.train.checkpoints import load_checkpoint

#: The options of a benchmark that takes seconds.
SMALL = ["--model", "pan-lite-r18", "--blocks", "1", "--size", "49", "--classes", "3", "--runs", "2", "--no-compiled", "--json"]
TINY = ClipSpec(segments=4, frames_per_segment=2, height=32, width=32, short_side=36)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sample_videos(tmp_path_factory.mktemp("videos"), count=2, sizes=((96, 64), (80, 64)), frames=40)


def test_sample_videos_are_what_they_say_and_always_the_same(videos: list[Path], tmp_path: Path) -> None:
    info = info_of(videos[0])
    assert (info.codec, info.width, info.height, info.frames) == ("h264", 96, 64, 40)
    again = sample_videos(tmp_path, count=1, sizes=((96, 64),), frames=40)[0]
    assert again.read_bytes() == videos[0].read_bytes()
    assert videos[0].stat().st_size > 2000  # textured and moving: not a video that compresses to nothing


def test_libav_alone_stops_at_the_last_frame(videos: list[Path]) -> None:
    assert decode_with_libav_alone(videos[0], last=17) == 18
    assert decode_with_libav_alone(videos[0], last=10_000) == 40


def test_stages_are_timed(videos: list[Path]) -> None:
    times = {row["stage"]: row["p50_ms"] for row in stage_rows(videos, TINY, runs=2)}
    assert list(times) == ["libav", "decode", "known", "preprocess", "load"]
    assert min(times.values()) > 0


def test_videos_are_found_by_name_and_in_folders(videos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert videos_of([videos[0].parent, videos[0]]) == [*videos, videos[0]]
    for missing in (tmp_path, tmp_path / "none.mp4"):
        with pytest.raises(FlowlessError, match="no such file, and no folder that holds a video"):
            videos_of([missing])


@pytest.mark.parametrize("name", ["pan-lite-r18", "stm-r18", "da-x3d-xs", "disentangling-bninception"])
def test_scores_of_random_weights_differ_between_clips(name: str) -> None:
    model = random_model(name, classes=5, spec=TINY, width=0.25)
    import torch

    with torch.inference_mode():
        scores = model(torch.from_numpy(random_clips(3, TINY, seed=3))).numpy()
    assert scores.std(axis=0).mean() > 0.01
    assert np.abs(scores).max() < 100


def test_random_weights_hold_in_int8() -> None:
    """What makes int8 of random weights worth comparing: branches that add little, and a last layer that reads what differs."""
    import torch

    model = random_model("pan-full-r18", classes=5, spec=TINY, width=0.25)
    clips = torch.from_numpy(random_clips(6, TINY, seed=7))
    with torch.inference_mode():
        exact = model(clips).numpy()
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                steps = module.weight.abs().amax((1, 2, 3), keepdim=True) / 127
                module.weight.copy_((module.weight / steps).round() * steps)
        rounded = model(clips).numpy()
    found = snr_db(rounded, exact)
    assert found is not None
    assert found > 25.5


def test_decibels_are_of_the_spread_over_clips() -> None:
    exact = np.array([[0.0, 100.0], [2.0, 102.0]])
    assert snr_db(exact + 0.1, exact) == pytest.approx(20)
    assert snr_db(exact + 0.01, exact) == pytest.approx(40)
    assert snr_db(exact, exact) is None


def test_varied_videos_differ_and_are_indexed(tmp_path: Path) -> None:
    index = DatasetIndex.load(varied_videos(tmp_path / "varied", TINY, count=4, seed=1))
    assert {(video.frames, video.info.width, video.info.height) for video in index.videos} == {(8, 36, 36)}
    clips = [load_clip(index.path_of(video), TINY)[0].astype(int) for video in index.videos]
    assert min(np.abs(one - other).mean() for place, one in enumerate(clips) for other in clips[:place]) > 5


@pytest.mark.slow
def test_refused_precisions_have_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWLESS_CACHE", str(tmp_path / "cache"))
    network = NetworkArgs(model="pan-lite-r18", size=32, classes=3, width=0.25, blocks=1)
    calibration = Calibration(index=varied_videos(tmp_path / "videos", network.spec(), count=4, seed=1), spec=network.spec(), videos=4)
    bundle = network.export(tmp_path).folder
    rows = build_precisions(bundle, targets=("onnxruntime",), precisions=("fp16", "int8"), calibration=calibration)
    assert [row["precision"] for row in rows] == ["fp16", "int8"]
    fp16, int8 = rows
    # ONNX Runtime has no half-precision convolution on any x86 processor, and computes in fp32.
    if fp16["gate"]:
        assert fp16["gate"] == "layers"
        assert fp16["status"].startswith("not kept: ")
        assert "convolutions run in fp32" in fp16["status"]
        assert fp16["megabytes"] is None
    assert int8["status"] == "built, not compared"
    assert int8["megabytes"] < 1.5
    assert int8["build_s"] > 0


def test_runners_are_timed_and_compared_with_the_first() -> None:
    clip = np.zeros((1, *TINY.shape), np.uint8)
    runners = [
        Runner("exact", "a", "fp32", "runs", lambda clip: np.ones((len(clip), 3), np.float32)),
        Runner("rounded", "b", "bf16", "runs", lambda clip: np.full((len(clip), 3), 1.25, np.float32)),
        Runner("elsewhere", "c", "fp32", "there is no GPU here"),
    ]
    rows = time_runners(runners, clip, runs=3, rate="clips_per_s")
    assert [row.get("max_abs_diff") for row in rows] == [0.0, 0.25, None]
    assert rows[0]["runs"] == 3
    assert rows[1]["times_eager"] == pytest.approx(rows[0]["p50_ms"] / rows[1]["p50_ms"], rel=0.01)
    assert rows[1]["clips_per_s"] == pytest.approx(1e3 / rows[1]["p50_ms"], rel=0.01)
    assert "p50_ms" not in rows[2]
    assert rows[2]["status"] == "there is no GPU here"


def test_goals_are_met_or_not() -> None:
    assert goal("speed", 6, 6.0)["met"]
    assert not goal("speed", 6, 5.9)["met"]
    assert goal("cost", 1.3, 1.3, at_most=True)["met"]
    assert not goal("cost", 1.3, 1.31, at_most=True)["met"]
    assert not goal("speed", 6, None)["met"]
    engines = [
        {"target": "pytorch", "precision": "fp32", "times_eager": 1.0},
        {"target": "torch.compile", "precision": "fp32", "times_eager": 9.0},
        {"target": "openvino", "precision": "fp32", "times_eager": 2.0},
    ]
    found = goals(engines, [{"target": "pytorch", "maps_per_s": 9e9}], [], libav_ratio=1.0)
    assert [row["measured"] for row in found] == [2.0, 1.0, None, None]
    engines += [{"target": "openvino", "precision": "bf16", "p50_ms": 30.0}, {"target": "openvino", "precision": "int8", "p50_ms": 20.0}]
    int8 = goals(engines, [], [], libav_ratio=1.0)[-1]
    assert "INT8" in int8["goal"]
    assert (int8["measured"], int8["met"]) == (1.5, True)
    assert goals([{"target": "openvino", "precision": "int8", "status": "not kept"}], [], [], libav_ratio=1)[-1]["measured"] is None


def test_a_busy_machine_is_noticed_and_not_judged() -> None:
    used = ["cpu 100 0 50 800 50 0 0 0 7 0\ncpu0 1 2", "cpu 150 10 60 900 80 0 0 0 9 0\n"]
    lines = iter([*used, "cpu 0 0 0 0 0 0 0 0", "cpu 1 0 0 99 0 0 0 0"])
    share = busy_share(read=lambda: next(lines), sleep=lambda _: None)
    assert share == pytest.approx(70 / 200)
    low = busy_share(read=lambda: next(lines), sleep=lambda _: None)
    assert low == pytest.approx(0.01)
    rows = [goal("speed", 6, 7.0)]
    assert judged(rows, share)[0]["met"] is None
    assert judged(rows, low) == judged(rows, None) == rows
    assert goals_table(judged(rows, share)).row_count == 1


def test_settings_that_measure_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FlowlessError, match=r"bench throughput: .*runs is -1; it must be at least 1.*size is 0"):
        main(["--size", "0", "--runs", "-1", "--out", str(tmp_path / "out.json")])


@pytest.mark.slow
def test_the_whole_benchmark(videos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "throughput.json"
    main([*SMALL, "--width", "0.25", "--targets", "openvino", "onnxruntime", "--videos", *map(str, videos), "--out", str(out)])
    document = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == document
    names = [row["name"] for row in document["engines"]]
    assert names[0] == "pytorch eager"
    assert {"openvino fp32", "openvino bf16", "onnxruntime fp32"} <= set(names)
    for row in document["engines"]:
        if row["name"] == "openvino bf16" and computes_in("bf16") != "bf16":
            # Measured, it would be fp32 by another name.
            assert row["status"] == "OpenVINO computes in fp32 on this processor"
            assert "p50_ms" not in row
            continue
        assert row["times_eager"] == pytest.approx(document["engines"][0]["p50_ms"] / row["p50_ms"], rel=0.01)
    exact = {row["name"]: row["max_abs_diff"] for row in document["engines"] if "max_abs_diff" in row}
    assert max(exact["openvino fp32"], exact["onnxruntime fp32"]) < 1e-3
    for row in document["motion_maps"]:
        assert "p50_ms" not in row or row["maps_per_s"] == pytest.approx(40e3 / row["p50_ms"], rel=0.01)
    assert all(row["share"] > 0 for row in document["end_to_end"])
    assert {row["goal"] for row in document["goals"]} == {row["goal"] for row in goals([], [], [], libav_ratio=1)}
    assert {"processor", "cores", "versions"} <= set(document["environment"])
    assert document["builds"] == []


@pytest.mark.slow
def test_a_bundle_beside_its_own_network_in_pytorch(videos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = NetworkArgs(model="tsn-r18", size=32, classes=3, width=0.25, blocks=1).export(tmp_path)
    out = tmp_path / "throughput.json"
    args = ["--bundle", str(manifest.folder), "--no-compiled", "--runs", "2", "--videos", str(videos[0])]
    main([*args, "--out", str(out)])
    eager, engine = json.loads(out.read_text())["engines"]
    assert (eager["name"], engine["name"]) == ("pytorch eager", "onnxruntime fp32")
    assert engine["times_eager"] == pytest.approx(eager["p50_ms"] / engine["p50_ms"], rel=0.01)
    assert "max_abs_diff" not in engine, "PyTorch has other weights"
    network = load_checkpoint(save_random(manifest, tmp_path / "random.safetensors")).model
    assert sum(item.numel() for item in network.parameters()) < 2e6, "the bundle's narrow network, not the full one of its name"
    with pytest.raises(FlowlessError, match="leave --model --precision out"):
        main([*args, "--model", "tsn-r50", "--precision", "int8"])
    replace(manifest, config={}).write()
    with pytest.raises(FlowlessError, match="does not record the size of its network"):
        main([*args, "--out", str(tmp_path / "other.json")])
    capsys.readouterr()


@pytest.mark.slow
def test_the_benchmark_in_every_precision(videos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "throughput.json"
    # With fewer channels, scores hang on what INT8 saturates on a processor without VNNI.
    main([*SMALL, "--width", "0.5", "--precision", "all", "--targets", "openvino", "--videos", str(videos[0]), "--out", str(out)])
    document = json.loads(capsys.readouterr().out)
    builds = {row["precision"]: row for row in document["builds"]}
    assert list(builds) == ["fp32", "bf16", "fp16", "int8"]
    rows = {row["name"]: row for row in document["engines"]}
    assert next(iter(rows)) == "pytorch eager"
    # Kept and measured, or refused with its reason: no precision is passed over in silence.
    for precision, build in builds.items():
        row = rows[f"openvino {precision}"]
        if build["megabytes"] is None:
            assert row["status"] == build["status"] != ""
            assert "p50_ms" not in row
        else:
            assert row["p50_ms"] > 0
            assert row["snr_db"] > {"fp32": 80, "bf16": 25, "fp16": 25, "int8": 15}[precision]
    assert builds["int8"]["megabytes"] < 0.6 * builds["fp32"]["megabytes"]
    goal_names = [row["goal"] for row in document["goals"]]
    assert any("INT8" in name for name in goal_names)
