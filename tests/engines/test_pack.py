"""`flowless pack`: the packed bundle scores as the full one, holds nothing else, and appears whole or not at all."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import flowless
from flowless.cli import main
from flowless.engines.backends.tensorrt_backend import weights_file
from flowless.engines.bundle import pack as module
from flowless.engines.bundle.manifest import fingerprint, read_manifest
from flowless.engines.bundle.pack import LICENCE_NOTE, pack
from flowless.errors import FlowlessError

BOTH = pytest.mark.parametrize("target", ["openvino", "onnxruntime"])


def predicted(bundle, paths, *arguments, capsys):
    """Return what `flowless predict` prints for videos, without the times."""
    assert main(["predict", str(bundle), *map(str, paths), "--top", "6", "--json", *arguments]) == 0
    return [{**row, "seconds": None} for row in json.loads(capsys.readouterr().out)]


@BOTH
def test_scores_are_those_of_the_full_bundle_bit_by_bit(target, built, tmp_path, videos, capsys):
    packed = pack(built, tmp_path / "packed", target=target, precision="fp32").folder
    full, alone = flowless.load(built, target), flowless.load(packed)
    assert (alone.target, alone.precision, alone.labels, alone.spec) == (target, "fp32", full.labels, full.spec)
    clips = np.random.default_rng(0).integers(0, 256, (3, *full.spec.shape), dtype=np.uint8)
    assert alone(clips).tobytes() == full(clips).tobytes()
    assert predicted(packed, videos, capsys=capsys) == predicted(built, videos, "--target", target, capsys=capsys)


@BOTH
def test_real_clips_score_as_with_the_full_bundle(target, built, tmp_path, clips, capsys):
    packed = pack(built, tmp_path / "packed", target=target).folder
    paths = [clips / name for name in ("arm_wrestling.mp4", "rotated_90.mov", "h265_video.mp4")]
    assert predicted(packed, paths, capsys=capsys) == predicted(built, paths, "--target", target, capsys=capsys)


@BOTH
def test_it_holds_the_engine_the_manifest_and_the_note(target, built, tmp_path):
    full, packed = read_manifest(built), pack(built, tmp_path / "packed", target=target)
    assert packed == read_manifest(packed.folder)
    engine = full.artefact(target, "fp32")
    assert engine is not None
    assert packed.artefacts == (engine,)
    assert set(packed.files) == {*engine.files, LICENCE_NOTE}
    assert {name: packed.files[name] for name in engine.files} == {name: full.files[name] for name in engine.files}
    there = {path.relative_to(packed.folder).as_posix() for path in packed.folder.rglob("*") if path.is_file()}
    assert there == {*packed.files, "manifest.json"}
    packed.check(packed.files)
    before, after = (json.loads((folder / "manifest.json").read_text()) for folder in (built, packed.folder))
    assert after.keys() == before.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"files", "artefacts"}


def test_the_note_names_files_and_licences(built, tmp_path):
    notes = {}
    for target in ("openvino", "onnxruntime", "tensorrt-rtx"):
        folder = pack(built, tmp_path / target, target=target).folder
        notes[target] = (folder / LICENCE_NOTE).read_text()
        assert all(name in notes[target] for name in read_manifest(folder).files)
        assert "flowless, which made these files and runs them: Apache License 2.0" in notes[target]
    assert "OpenVINO: Apache License 2.0" in notes["openvino"]
    assert "ONNX Runtime: MIT License" in notes["onnxruntime"]
    assert "TensorRT for RTX: proprietary" in notes["tensorrt-rtx"]


def test_trials_and_calibration_of_other_engines_are_left_out(bundle):
    rows = tuple({"target": target, "precision": "fp32", "machine": "m", "recommended": False} for target in ("openvino", "onnxruntime"))
    replace(read_manifest(bundle), trials=rows, calibration={"used": ["a private name"]}).write()
    packed = pack(bundle, target="onnxruntime")
    assert (packed.trials, packed.calibration) == (rows[1:], None)


def test_without_options_it_is_the_engine_that_load_chooses(bundle, capsys):
    chosen = flowless.load(bundle)
    assert main(["pack", str(bundle), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["target"], shown["precision"]) == (chosen.target, chosen.precision)
    assert shown["bundle"] == f"{bundle}-{chosen.target}-{chosen.precision}"
    sizes = [sum(item.bytes for item in read_manifest(folder).files.values()) for folder in (bundle, shown["bundle"])]
    assert [shown["bytes_before"], shown["bytes"]] == sizes
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("graph", ["../model.onnx", "weights.onnx"])
def test_an_engine_without_weights_keeps_its_graph_and_its_plugin(graph, bundle, tmp_path):
    """The record is edited: only a GPU builds such an engine."""
    manifest = read_manifest(bundle)
    engine = manifest.artefact("tensorrt-rtx", "fp32")
    assert engine is not None
    own = ["libflowless_pa_plugin.so", *(["weights.onnx"] if graph == "weights.onnx" else [])]
    for name in own:
        (bundle / "tensorrt-rtx-fp32" / name).write_bytes(name.encode())
    files = (*engine.files, *(f"tensorrt-rtx-fp32/{name}" for name in own))
    stripped = replace(engine, files=files, options={**engine.options, "stripped": True, "refit_from": graph, "portable": True})
    manifest.with_artefact(stripped).write()
    packed = pack(bundle, tmp_path / "packed", target="tensorrt-rtx")
    assert set(packed.files) == {*files, *(["model.onnx"] if graph != "weights.onnx" else []), LICENCE_NOTE}
    assert weights_file(packed.path_of(files[0]), stripped).read_bytes() == weights_file(bundle / files[0], stripped).read_bytes()
    note = (packed.folder / LICENCE_NOTE).read_text()
    assert "libflowless_pa_plugin.so  TensorRT plugin, a part of flowless" in note
    assert "TensorRT put its own runtime" in note


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["build", "{packed}", "--target", "openvino"], "without model.onnx and reference.npz. Use the full bundle"),
        (["build", "{packed}", "--target", "onnxruntime", "--precision", "bf16"], "a packed bundle: it has the engine openvino fp32 alone"),
        (["build", "{packed}", "--target", "openvino", "--precision", "auto"], "Use the full bundle that flowless pack made it from"),
        (["build", "{packed}", "--target", "all"], "Use the full bundle that flowless pack made it from"),
        (["explain", "{packed}", "{video}", "--out", "{page}"], "Use the full bundle that flowless pack made it from"),
        (["predict", "{packed}", "{video}", "--target", "onnxruntime"], "It is a packed bundle: pack another engine of the full bundle"),
        (["pack", "{packed}", "--target", "onnxruntime"], "engines: openvino fp32. Pack one of these, or use the full bundle"),
    ],
)
def test_what_needs_the_full_bundle_says_so(arguments, says, built, tmp_path, videos, capsys):
    packed = pack(built, tmp_path / "packed", target="openvino").folder
    before = {path: path.read_bytes() for path in packed.rglob("*") if path.is_file()}
    names = {"packed": packed, "video": videos[0], "page": tmp_path / "page.html"}
    assert main([argument.format(**names) for argument in arguments]) == 1
    shown = capsys.readouterr().err
    assert says in shown
    assert "Traceback" not in shown
    assert {path: path.read_bytes() for path in packed.rglob("*") if path.is_file()} == before


def test_a_damaged_manifest_is_not_a_packed_bundle(bundle):
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    del document["files"]["reference.npz"]
    path.write_text(json.dumps(document))
    assert main(["build", str(bundle), "--target", "openvino", "--force"]) == 1
    with pytest.raises(FlowlessError, match=r"no fingerprint of 'reference\.npz'\. Export the model again"):
        flowless.build(bundle, target="onnxruntime", precision="bf16")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "cuda"}, "target is 'cuda'; it must be one of"),
        ({"precision": "fp12"}, "precision is 'fp12'; it must be one of"),
        (
            {"target": "openvino", "precision": "int8"},
            "no engine openvino int8.*engines: onnxruntime fp32, openvino fp32, tensorrt-rtx fp32",
        ),
        ({"precision": "int8"}, "build it first: flowless build .* --precision int8"),
        ({"out": "{bundle}"}, "is the bundle .*, lies in it or holds it"),
        ({"out": "{bundle}/packed"}, "is the bundle .*, lies in it or holds it"),
        ({"out": "{bundle}/.."}, "is the bundle .*, lies in it or holds it"),
        ({"out": "{full}"}, "there is a full bundle already; only a packed one is replaced"),
        ({"out": "{folder}"}, "there is a folder already, and it is not a bundle"),
        ({"out": "{file}"}, "is a file; a bundle is a folder"),
        ({"out": "{file}/packed"}, "cannot write there"),
    ],
)
def test_what_pack_refuses(options, says, bundle, tmp_path):
    places = {name: tmp_path / name for name in ("bundle", "full", "folder", "file")}
    shutil.copytree(bundle, places["full"])
    places["folder"].mkdir()
    (places["folder"] / "diary.txt").touch()
    places["file"].touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FlowlessError, match=says):
        pack(bundle, **{"target": "openvino", **{key: value.format(**places) for key, value in options.items()}})
    assert sorted(tmp_path.rglob("*")) == before


def test_of_several_engines_that_do_not_run_here_one_must_be_named(bundle, monkeypatch):
    monkeypatch.setattr(module, "why_not", lambda *_: "no")
    with pytest.raises(FlowlessError, match=r"several engines fit, and none runs here.*Name one: --target T --precision P"):
        pack(bundle)
    assert pack(bundle, target="tensorrt-rtx").artefacts[0].target == "tensorrt-rtx"


@pytest.mark.parametrize("fault", ["damaged", "disk full"])
def test_where_packing_fails_nothing_is_left_and_an_older_pack_stays(fault, bundle, tmp_path, monkeypatch):
    pack(bundle, tmp_path / "packed", target="onnxruntime")
    before = fingerprint(tmp_path / "packed" / "manifest.json")
    if fault == "damaged":
        (bundle / "openvino-fp32" / "model.bin").write_bytes(b"x")
    else:
        real = shutil.copyfile

        def full(source: Path, copy: Path):
            if source.suffix == ".bin":
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(source, copy)

        monkeypatch.setattr(shutil, "copyfile", full)
    for out in ("packed", "new"):
        with pytest.raises(FlowlessError, match=r"model\.bin: damaged" if fault == "damaged" else "the disk is full"):
            pack(bundle, tmp_path / out, target="openvino")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "packed"]
    assert fingerprint(tmp_path / "packed" / "manifest.json") == before


def test_packing_again_replaces_a_packed_bundle(bundle, tmp_path):
    for target in ("onnxruntime", "openvino", "openvino"):
        packed = pack(bundle, tmp_path / "packed", target=target).folder
        assert flowless.load(packed).target == target
    again = pack(packed, tmp_path / "again")
    assert again.files == read_manifest(packed).files


_LOAD = """
import sys, flowless
engine = flowless.load(sys.argv[1], threads=1, warm_up=True)
assert engine.warm_up_seconds > 0
prediction = engine.predict(sys.argv[2])
print(engine.why)
print(prediction.scores.tobytes().hex())
heavy = {"torch", "nvidia", "onnx", "onnxruntime", "timm", "lightning"} & set(sys.modules)
assert not heavy, heavy
"""


def test_a_copy_of_it_runs_with_the_base_install_alone(run_bare, built, tmp_path, videos, capsys):
    """What is copied to another machine: the packed bundle and nothing else."""
    first = pack(built, tmp_path / "packed", target="openvino").folder
    copy = tmp_path / "another machine" / "bundle"
    shutil.copytree(first, copy)
    shutil.rmtree(first)
    done = run_bare(["-m", "flowless", "predict", copy, videos[0], "--threads", "1", "--top", "6", "--json"])
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert [{**row, "seconds": None}] == predicted(built, videos[:1], "--target", "openvino", "--threads", "1", capsys=capsys)
    done = run_bare(["-c", _LOAD, copy, videos[0]])
    assert done.returncode == 0, done.stderr
    why, scores = done.stdout.splitlines()
    assert why.startswith("openvino fp32: the fastest engine of this bundle that runs here")
    expected = flowless.load(built, "openvino", threads=1).predict(videos[0]).scores
    assert expected is not None
    assert bytes.fromhex(scores) == expected.tobytes()


def test_packing_itself_needs_the_base_install_alone(run_bare, built, tmp_path):
    done = run_bare(["-m", "flowless", "pack", built, "--target", "onnxruntime", "--precision", "fp32", "--out", tmp_path / "packed"])
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "packed").packed


def test_a_file_of_the_user_in_a_packed_bundle_is_not_removed(built, tmp_path):
    pack(built, tmp_path / "ship", target="openvino")
    (tmp_path / "ship" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FlowlessError, match=r"has a file that is not the packed bundle's: notes\.txt"):
        pack(built, tmp_path / "ship", target="openvino")
    assert (tmp_path / "ship" / "notes.txt").read_text(encoding="utf-8") == "mine"
