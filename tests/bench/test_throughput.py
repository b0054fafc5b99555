"""The throughput benchmark end to end on a tiny network, and the parts that it adds up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from video_files import info_of

from flowless.bench.lib import networks
from flowless.bench.lib.goals import goal, goals_table
from flowless.bench.lib.networks import lively_model, random_clips
from flowless.bench.lib.runners import Runner, exported, snr_db, time_runners, torch_runners
from flowless.bench.lib.sample_videos import sample_videos
from flowless.bench.lib.system_load import busy_share, judged
from flowless.bench.speed import machine_peak
from flowless.bench.speed.precision_builds import build_precisions, cold_cache, made_index, wanted_precisions
from flowless.bench.speed.throughput import Throughput, goals, main
from flowless.bench.speed.video_stages import decode_with_libav_alone, measure_stages
from flowless.engines.backends.openvino_core import computes_in
from flowless.engines.bundle.manifest import Manifest
from flowless.errors import FlowlessError
from flowless.export.cache import cache_folder
from flowless.export.precision.calibration import Calibration
from flowless.export.verify.checks import Checks
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.train.models import build_model

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


def test_libav_alone_stops_where_it_is_told(videos: list[Path]) -> None:
    assert decode_with_libav_alone(videos[0], last=17) == 18
    assert decode_with_libav_alone(videos[0], last=10_000) == 40


def test_stages_add_up(videos: list[Path]) -> None:
    stages = measure_stages(videos, TINY, runs=2)
    rows = {row["stage"]: row for row in stages.rows()}
    assert set(rows) == {"libav", "info", "decode", "known", "preprocess", "load"}
    assert stages.libav_ratio == pytest.approx(stages.mean_ms("decode") / stages.mean_ms("libav"))
    assert rows["load"]["clips_per_s"] == pytest.approx(1e3 / rows["load"]["p50_ms"], rel=0.01)
    assert [row["file"] for row in stages.videos()] == ["sample_0.mp4", "sample_1.mp4"]


@pytest.mark.parametrize("name", ["pan-lite-r18", "stm-r18", "da-x3d-xs", "disentangling-bninception"])
def test_lively_weights_tell_clips_apart(name: str) -> None:
    model = lively_model(name, classes=5, spec=TINY, width=0.25)
    import torch

    with torch.inference_mode():
        scores = model(torch.from_numpy(random_clips(3, TINY, seed=3))).numpy()
    assert scores.std(axis=0).mean() > 0.01
    assert np.abs(scores).max() < 100


def test_lively_weights_hold_in_int8() -> None:
    """What makes int8 of random weights worth comparing: branches that add little, and a last layer that reads what differs."""
    import torch

    model = lively_model("pan-full-r18", classes=5, spec=TINY, width=0.25)
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


def test_precisions_are_named_in_their_order() -> None:
    assert wanted_precisions(("all",)) == ("fp32", "bf16", "fp16", "int8")
    assert wanted_precisions(("int8", "fp32")) == ("fp32", "int8")
    assert wanted_precisions(()) == ()


def test_made_videos_differ_and_are_indexed_rightly(tmp_path: Path) -> None:
    train, val = made_index(tmp_path, TINY, train=3, val=2)
    indexes = [DatasetIndex.load(path) for path in (train, val)]
    clips = []
    for index, count in zip(indexes, (3, 2), strict=True):
        assert len(index.videos) == count
        for record in index.videos:
            info = info_of(index.path_of(record))
            assert (info.frames, info.width, info.height) == (record.frames, record.info.width, record.info.height) == (8, 36, 36)
            clips.append(load_clip(index.path_of(record), TINY)[0].astype(int))
    means = [np.abs(one - other).mean() for place, one in enumerate(clips) for other in clips[:place]]
    assert min(means) > 5


@pytest.mark.slow
def test_what_is_refused_is_told(tmp_path: Path) -> None:
    train, _ = made_index(tmp_path / "videos", TINY, train=4, val=0)
    manifest = exported("pan-lite-r18", spec=TINY, classes=3, width=0.25, blocks=1, folder=tmp_path)
    before = cache_folder()
    with cold_cache(tmp_path / "cache"):
        rows = build_precisions(
            manifest.folder,
            targets=("onnxruntime",),
            precisions=("fp16", "int8"),
            calibration=Calibration(index=train, spec=TINY, videos=4),
            checks=Checks(parity=False, slower=True),
            threads=1,
        )
        assert len(list((tmp_path / "cache" / "graphs").glob("*.onnx"))) == 2
    assert cache_folder() == before
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
    assert int8["graph_s"] > 0
    assert int8["build_s"] > 0


def test_runners_are_timed_and_compared_with_the_first() -> None:
    clip = np.zeros((1, *TINY.shape), np.uint8)
    runners = [
        Runner("exact", "a", "fp32", "runs", lambda clip: np.ones((len(clip), 3), np.float32)),
        Runner("rounded", "b", "bf16", "runs", lambda clip: np.full((len(clip), 3), 1.25, np.float32)),
        Runner("elsewhere", "c", "fp32", "there is no GPU here"),
    ]
    rows = time_runners(runners, clip, runs=3, compare=True)
    assert [row.get("max_abs_diff") for row in rows] == [0.0, 0.25, None]
    assert rows[0]["runs"] == 3
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
    quiet = busy_share(read=lambda: next(lines), sleep=lambda _: None)
    assert quiet == pytest.approx(0.01)
    rows = [goal("speed", 6, 7.0)]
    assert judged(rows, share)[0]["met"] is None
    assert judged(rows, quiet) == judged(rows, None) == rows
    assert goals_table(judged(rows, share)).row_count == 1


@pytest.mark.parametrize(("most_seconds", "products"), [(0.0, 1), (1e9, 14)])
def test_a_type_whose_products_are_slow_gets_fewer(most_seconds: float, products: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    multiplied: list[torch.dtype] = []
    monkeypatch.setattr(torch, "matmul", lambda left, _: multiplied.append(left.dtype))
    monkeypatch.setattr(machine_peak, "_MOST_SECONDS", most_seconds)
    found = machine_peak.measure_peak(threads=1)
    assert multiplied == [torch.float32] * products + [torch.bfloat16] * products
    assert all(rate > 0 for rate in found.values())


def test_pytorch_beside_a_bundle_is_the_bundles_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow bundle was once measured beside the whole network of its name."""
    config = {"classes": 3, "width": 0.25, "blocks": 1}
    manifest = Manifest(folder=tmp_path, model="tsn-r18", spec=TINY, labels=("a", "b", "c"), opset=18, config=config)
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(networks, "build_model", lambda name, **asked: made.append(asked) or build_model(name, **asked))
    (runner,) = torch_runners(None, manifest, compiled=False)
    assert runner.run is not None
    assert runner.run(np.zeros((1, *TINY.shape), np.uint8)).shape == (1, 3)
    assert made == [{"spec": TINY, **config}]
    for wrong in ({}, {**config, "classes": 4}, {**config, "depth": 3}):
        with pytest.raises(FlowlessError, match="does not say how large its network is"):
            torch_runners(None, replace(manifest, config=wrong), compiled=False)


def test_settings_that_measure_nothing_are_refused() -> None:
    with pytest.raises(FlowlessError, match=r"batch is 0, runs is -1"):
        Throughput(batch=0, runs=-1)


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
    assert {row["maps"] for row in document["motion_maps"] if "p50_ms" in row} == {40}
    assert all(row["share"] > 0 for row in document["end_to_end"])
    assert {row["goal"] for row in document["goals"]} == {row["goal"] for row in goals([], [], [], libav_ratio=1)}
    assert {"processor", "cores", "versions"} <= set(document["environment"])
    assert document["bound"]["gmac_per_clip"] > 0
    assert document["builds"] == []


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
