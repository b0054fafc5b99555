"""Damaged and foreign bundles: each gets a clear error that names the file."""

from __future__ import annotations

import json
import os

import pytest

import flowless
from flowless.engines.bundle.manifest import read_manifest
from flowless.errors import FlowlessError


def edit(bundle, change):
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def refused(bundle, says):
    with pytest.raises(FlowlessError, match=says) as caught:
        flowless.load(bundle, target="openvino")
    assert str(bundle) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_comes_back_as_it_was(bundle):
    manifest = read_manifest(bundle)
    before = (bundle / "manifest.json").read_bytes()
    manifest.write()
    assert (bundle / "manifest.json").read_bytes() == before


def test_no_bundle(tmp_path):
    refused(tmp_path / "nowhere", "no such folder")
    refused(tmp_path, r"it has no manifest\.json")
    file = tmp_path / "file"
    file.write_text("x")
    refused(file, rf"a file\..*flowless export {file} --out BUNDLE")


def test_not_json(bundle):
    (bundle / "manifest.json").write_text("{")
    refused(bundle, "not JSON")
    (bundle / "manifest.json").write_bytes(b"\xff\xfe\x00\x80")
    refused(bundle, "not JSON")


def test_a_manifest_of_something_else(bundle):
    (bundle / "manifest.json").write_text('{"manifest_version": 3, "name": "an extension"}')
    refused(bundle, "not the manifest of a flowless-bundle")
    (bundle / "manifest.json").write_text("[]")
    refused(bundle, "not the manifest of a flowless-bundle")


def test_a_newer_version(bundle):
    edit(bundle, lambda document: document.update(version=99))
    refused(bundle, "version 99.*Update flowless")


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_an_altered_file(bundle, name):
    path = bundle / "openvino-fp32" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(bundle, rf"openvino-fp32/{name}: damaged: its SHA-256")


def test_a_truncated_file(bundle):
    path = bundle / "openvino-fp32" / "model.bin"
    path.write_bytes(path.read_bytes()[:-1])
    refused(bundle, r"model\.bin: damaged")


def test_a_missing_file(bundle):
    (bundle / "openvino-fp32" / "model.bin").unlink()
    refused(bundle, r"model\.bin: this file of the bundle is missing")


def test_only_what_is_loaded_is_hashed(bundle):
    (bundle / "tensorrt-rtx-fp32" / "model.engine").write_bytes(b"rubbish")
    assert flowless.load(bundle, target="openvino").target == "openvino"


@pytest.mark.parametrize("name", ["../outside.xml", "/etc/passwd", "openvino-fp32/../../outside.xml", "a\\..\\..\\b", "C:/x", ""])
def test_a_path_that_leads_out(bundle, name):
    (bundle.parent / "outside.xml").write_text("x")
    edit(bundle, lambda document: document["artefacts"][1].update(files=[name]))
    refused(bundle, "lies outside the bundle")


def test_a_link_that_leads_out(bundle):
    outside = bundle.parent / "outside.xml"
    path = bundle / "openvino-fp32" / "model.xml"
    path.rename(outside)
    path.symlink_to(outside)
    refused(bundle, "lies outside the bundle")


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("labels"),
        lambda document: document.update(labels=[]),
        lambda document: document.update(labels=[1, 2]),
        lambda document: document.update(surprise=1),
        lambda document: document.update(files=[]),
        lambda document: document["artefacts"][0].update(target="coffee"),
        lambda document: document["artefacts"][0].update(files=[]),
        lambda document: document["artefacts"][0].update(status="trust me"),
        lambda document: document["spec"].update(segments=0),
        lambda document: document["spec"].pop("mean"),
    ],
)
def test_a_manifest_with_wrong_contents(bundle, change):
    edit(bundle, change)
    refused(bundle, r"manifest\.json: ")


#: The state of a streaming bundle whose clip is that of `bundle`, 4 segments of 3 frames.
STATE = (
    {"name": "frames", "shape": [2, 48, 49, 3], "dtype": "uint8"},
    {"name": "shift_00", "shape": [8, 10, 11], "dtype": "float32"},
    {"name": "features", "shape": [3, 64], "dtype": "float32"},
    {"name": "started", "shape": [2], "dtype": "float32"},
)


def test_a_state_comes_back_as_it_was(bundle):
    assert read_manifest(bundle).state == ()
    edit(bundle, lambda document: document.update(state=list(STATE)))
    manifest = read_manifest(bundle)
    assert [(tensor.name, list(tensor.shape), tensor.dtype) for tensor in manifest.state] == [tuple(item.values()) for item in STATE]
    manifest.write()
    assert json.loads((bundle / "manifest.json").read_text())["state"] == list(STATE)
    edit(bundle, lambda document: document.pop("state"))
    assert read_manifest(bundle).state == ()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("document.update(state=None)", "state is None; it must be a list of tables"),
        ("state[1].pop('dtype')", r"state\[1\]: fields missing: \['dtype'\]; unknown: \[\]"),
        ("state[1].update(name='frame')", r"state\[1\]\.name is 'frame'; it must be at most 40 characters of a-z"),
        ("state[1].update(name='scores')", "'scores'; it must be"),
        ("state[1].update(name='next_x')", "'next_x'; it must be"),
        ("state[1].update(name='')", "''; it must be"),
        ("state[1].update(name='Shift')", "'Shift'; it must be"),
        ("state[1].update(name='shift\\n')", "'shift.*; it must be"),
        ("state[1].update(shape=[])", r"state\[1\]\.shape is a list; it must be a list of at least one integer"),
        ("state[1].update(shape=[8, 0])", r"state\[1\]\.shape\[1\] is 0; it must be an integer from 1 to 2\^31 - 1"),
        ("state[1].update(shape=[8, True])", r"shape\[1\] is True; it must be an integer"),
        ("state[1].update(shape=[65536, 32768])", r"state shift_00: float32 \[65536, 32768\] has more than 2\^31 - 1 elements"),
        ("state[1].update(dtype='float16')", r"state\[1\]\.dtype is 'float16'; it must be one of float32, uint8"),
        ("state[1].update(name='started')", "state has the name 'started' twice"),
        ("state.pop(3)", r"state started: missing for a clip of \[4, 3, 48, 49, 3\]"),
        ("state[3].update(shape=[1])", r"state started: float32 \[1\] for a clip of"),
        ("state[3].update(dtype='uint8')", r"state started: uint8 \[2\] for a clip of"),
        ("state.pop(2)", "state features: missing for a clip of"),
        ("state[2].update(shape=[4, 64])", r"state features: float32 \[4, 64\] for a clip of"),
        ("state[2].update(shape=[3, 8, 8])", r"state features: float32 \[3, 8, 8\] for a clip of"),
        ("state.pop(0)", "state frames: missing for a clip of"),
        ("state[0].update(shape=[3, 48, 49, 3])", r"state frames: uint8 \[3, 48, 49, 3\] for a clip of"),
        ("document['spec'].update(frames_per_segment=1)", r"state frames: uint8 \[2, 48, 49, 3\] for a clip of \[4, 1,"),
        ("(document['spec'].update(frames_per_segment=1), document.update(memory=3))", "memory is 3 beside a state"),
    ],
)
def test_a_state_that_does_not_fit(bundle, change, says):
    def apply(document):
        document["state"] = [dict(item) for item in STATE]
        eval(change, {"document": document, "state": document["state"]})  # noqa: S307  of the table above

    edit(bundle, apply)
    refused(bundle, rf"manifest\.json: damaged \(.*{says}")


def test_a_file_without_fingerprint(bundle):
    edit(bundle, lambda document: document["files"].pop("openvino-fp32/model.bin"))
    refused(bundle, "no fingerprint of 'openvino-fp32/model.bin'")


def test_a_manifest_that_is_no_file_is_refused(bundle):
    (bundle / "manifest.json").unlink()
    os.mkfifo(bundle / "manifest.json")
    with pytest.raises(FlowlessError, match="not a regular file"):
        read_manifest(bundle)
