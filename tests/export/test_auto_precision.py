"""`--precision auto`: everything tried, one recommended, nothing tried twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from flowless import machine
from flowless.cli import main
from flowless.engines.bundle.manifest import read_manifest
from flowless.engines.loading import load
from flowless.errors import FlowlessError
from flowless.export import auto_precision, build_engine
from flowless.export.auto_precision import recommended, try_all
from flowless.export.bundle_changes import keep_trials
from flowless.export.verify.checks import Checks


def row(target, precision, *, kept=True, latency=None):
    return {"target": target, "precision": precision, "kept": kept, "latency_ms_p50": latency}


def test_the_fastest_that_runs_here_is_recommended():
    rows = [row("onnxruntime", "fp32", latency=5.0), row("openvino", "bf16", latency=2.0), row("tensorrt-rtx", "int8")]
    assert recommended(rows) is rows[1]
    rows.append(row("openvino", "int8", kept=False, latency=1.0))
    assert recommended(rows) is rows[1], "what was not kept is not recommended"


def test_where_nothing_runs_the_lowest_precision_is():
    rows = [row("tensorrt-rtx", "fp32"), row("tensorrt-rtx", "int8"), row("tensorrt-rtx", "fp16")]
    assert recommended(rows) is rows[1]
    assert recommended([row("openvino", "fp32", kept=False)]) is None


@pytest.mark.slow
def test_auto_tries_all_and_tries_nothing_twice(learnt_bundle, calibration, shapes, capsys, monkeypatch):
    arguments = ["build", str(learnt_bundle), "--target", "openvino", "--precision", "auto", "--json"]
    arguments += ["--calibrate", str(calibration.index), "--data", str(shapes / "train.index.jsonl"), "--max-drop", "10"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {item["precision"]: item for item in document["engines"]}
    assert set(rows) == {"fp32", "bf16", "fp16", "int8"}
    assert rows["fp32"]["kept"]
    assert rows["fp32"]["top1"] == 1.0
    assert sum(item["recommended"] for item in rows.values()) == 1
    for item in rows.values():
        assert item["kept"] == (item["status"] == "verified")
        assert (item["bytes"] is not None) == item["kept"]
        if not item["kept"]:
            assert item["gate"] in {"layers", "speed", "accuracy", "parity"}
    manifest = read_manifest(learnt_bundle)
    assert {item["precision"] for item in manifest.trials} == set(rows)
    monkeypatch.setattr(build_engine, "compile_engine", lambda *_: pytest.fail("built again"))
    assert main(arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == document


@pytest.mark.slow
def test_results_of_another_machine_are_neither_used_nor_kept(learnt_bundle, monkeypatch):
    """A recommendation and its times are those of the machine that measured them."""
    rows = try_all(learnt_bundle, ["onnxruntime", "openvino"], checks=Checks(slower=True))
    (best,) = [row for row in rows if row["recommended"]]
    assert "--precision auto found the fastest" in load(learnt_bundle).why
    monkeypatch.setattr(machine, "_cpuinfo", lambda: [("model name", "Another Processor"), ("flags", "avx2")])
    other = load(learnt_bundle)
    assert "--precision auto" not in other.why
    assert other.precision == other.why.split()[1].rstrip(":")
    again = try_all(learnt_bundle, ["onnxruntime", "openvino"], checks=Checks(slower=True))
    times = [{(row["target"], row["precision"]): row["latency_ms_p50"] for row in found if row["kept"]} for found in (rows, again)]
    assert times[0].keys() == times[1].keys()
    assert all(times[0][key] != times[1][key] for key in times[0]), "measured anew"
    assert {row["machine"].partition(",")[0] for row in again} == {"Another Processor"}
    assert best["machine"] != again[0]["machine"]


@pytest.mark.slow
def test_one_target_after_another_leaves_one_recommendation_per_machine(exported, tmp_path):
    bundle = Path(shutil.copytree(exported, tmp_path / "bundle"))
    elsewhere = {**row("onnxruntime", "fp32", latency=0.001), "status": "verified", "key": "", "machine": "another", "recommended": True}
    keep_trials(bundle, [elsewhere | {"target": "tensorrt"}])
    found = {}
    for target in ("openvino", "onnxruntime", "openvino"):
        found |= {(item["target"], item["precision"]): item for item in try_all(bundle, [target], checks=Checks(slower=True))}
        trials = read_manifest(bundle).trials
        best = [item for item in trials if item["recommended"]]
        assert len([item for item in best if item["machine"] == machine.machine_name()]) == 1
        assert [item for item in best if item["machine"] == "another"], "its recommendation is its own"
    mine = [item for item in trials if item["machine"] == machine.machine_name()]
    assert {(item["target"], item["precision"]) for item in mine} == set(found)
    timed = [item for item in mine if item["kept"]]
    fastest = min(timed, key=lambda item: item["latency_ms_p50"])
    assert fastest["recommended"], "of both targets, timed together"
    engine = load(bundle)
    assert (engine.target, engine.precision) == (fastest["target"], fastest["precision"])


@pytest.mark.slow
def test_an_engine_that_was_built_again_otherwise_is_not_recommended(exported, tmp_path):
    """A plain build replaces an engine that was tried: its row's latency is of another engine."""
    bundle = Path(shutil.copytree(exported, tmp_path / "bundle"))
    try_all(bundle, ["openvino"], checks=Checks(slower=True))
    manifest = read_manifest(bundle)
    for item in manifest.artefacts:
        if item.target == "openvino":
            manifest = manifest.with_artefact(replace(item, key="another"))
    manifest.write()
    try_all(bundle, ["onnxruntime"], checks=Checks(slower=True))
    (best,) = [item for item in read_manifest(bundle).trials if item["recommended"]]
    assert best["target"] == "onnxruntime"


@pytest.mark.slow
def test_without_videos_int8_is_left_out(learnt_bundle):
    rows = {row["precision"]: row for row in try_all(learnt_bundle, ["onnxruntime"])}
    assert rows["int8"]["status"] == "not tried: it needs videos, --calibrate INDEX"
    assert rows["fp32"]["recommended"]


@pytest.mark.slow
def test_what_is_recommended_is_what_loads(learnt_bundle, calibration):
    rows = try_all(learnt_bundle, ["onnxruntime", "openvino"], checks=Checks(slower=True), calibration=calibration)
    (best,) = [row for row in rows if row["recommended"]]
    engine = load(learnt_bundle)
    assert (engine.target, engine.precision) == (best["target"], best["precision"])
    assert "--precision auto found the fastest" in engine.why
    for row in rows:
        if row["kept"]:
            assert load(learnt_bundle, row["target"], row["precision"]).precision == row["precision"]


@pytest.mark.slow
def test_other_checks_ask_again(learnt_bundle, monkeypatch):
    """A trial that was refused under one rule is tried again under another."""
    try_all(learnt_bundle, ["onnxruntime"])
    tried = []
    honest = auto_precision.build
    monkeypatch.setattr(auto_precision, "build", lambda *a, **k: tried.append(k["precision"]) or honest(*a, **k))
    try_all(learnt_bundle, ["onnxruntime"])
    assert tried == ["fp32"], "fp32 is there already; the others were refused, and nothing changed"
    try_all(learnt_bundle, ["onnxruntime"], checks=Checks(max_drop=2.0))
    assert tried == ["fp32", "fp32", "bf16", "fp16"]


@pytest.mark.slow
def test_a_target_that_takes_no_fp32_does_not_stop_the_others(learnt_bundle, monkeypatch):
    honest = auto_precision.build

    def picky(*place, **how):
        if how["target"] == "openvino":
            raise FlowlessError("openvino does not take the graph: Foo. Build another target.")
        return honest(*place, **how)

    monkeypatch.setattr(auto_precision, "build", picky)
    rows = {(row["target"], row["precision"]): row for row in try_all(learnt_bundle, ["openvino", "onnxruntime"])}
    assert len(rows) == 8
    assert all(rows["openvino", item]["status"] == "not built: openvino does not take the graph: Foo" for item in ("fp32", "int8"))
    assert rows["onnxruntime", "fp32"]["recommended"]
    with pytest.raises(FlowlessError, match="Foo"):
        try_all(learnt_bundle, ["openvino"])
