"""The C++ runtime reads, refuses and chooses from manifests as Python does: the same verdicts, contents and messages."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from manifest_reader import Reader, changed, python_choice, python_verdict
from manifest_states import STATES, state_of

from flowless import machine
from flowless.engines.bundle.manifest import MANIFEST, read_manifest
from flowless.files import sha256_of

OK, INVALID, MISSING, DAMAGED, UNSUPPORTED, RUNTIME = range(6)
SEEDS = Path(__file__).parents[2] / "engines" / "cpp" / "tests" / "manifest_seeds"

#: A change of the document -> the status that C++ ends with. The messages are equal.
CHANGES: dict[str, tuple[str, int]] = {
    "nothing": ("document", OK),
    "model": ("document.update(model='other')", OK),
    "a packed bundle": ("[document['files'].pop(name) for name in ('model.onnx', 'reference.npz')]", OK),
    "an older bundle": ("[document.pop(name) for name in ('trials', 'memory', 'config', 'state')]", OK),
    "an older clip": ("[document['spec'].pop(name) for name in ('crop_side', 'average')]", OK),
    "a square that is resized": ("document['spec'].update(width=48, crop_side=56, crop='three', average='softmax')", OK),
    "memory": ("(document['spec'].update(frames_per_segment=1), document.update(memory=3))", OK),
    "labels of other scripts": ("document.update(labels=['é', '動作', '\\U0001f600', '\"', '\\n'])", OK),
    "no engines": ("document.update(artefacts=[])", OK),
    "a recommendation": ("document.update(trials=[dict(target='openvino', precision='fp32', machine='here', recommended=True)])", OK),
    "options of TensorRT": (
        "document['artefacts'][0].update(target='tensorrt', options=dict(platform='linux-x86_64', gpu='X', gpu_compute_capability=90, "
        "compute_capabilities=[86, 89], portable=True, stripped=True, refit_from='weights.onnx', pa='plugin', batch=[1, 2, 3]))",
        OK,
    ),
    "a GPU without name": ("document['artefacts'][0]['options'].update(gpu=None, gpu_compute_capability=None)", OK),
    "a time": ("document['artefacts'][0]['figures'].update(latency_ms_p50=1.25, machine='here')", OK),
    "a file in a folder twice": ("document['artefacts'][0].update(files=['./openvino-fp32//model.xml', '.'])", OK),
    "version 2": ("document.update(version=2)", UNSUPPORTED),
    "version 0": ("document.update(version=0)", DAMAGED),
    "version -1": ("document.update(version=-1)", DAMAGED),
    "version 1.0": ("document.update(version=1.0)", DAMAGED),
    "version true": ("document.update(version=True)", DAMAGED),
    "version '2'": ("document.update(version='2')", DAMAGED),
    "version null": ("document.update(version=None)", DAMAGED),
    "no version": ("document.pop('version')", DAMAGED),
    "another format": ("document.update(format='flowless-checkpoint')", DAMAGED),
    "no format": ("document.pop('format')", DAMAGED),
    "a format that is a number": ("document.update(format=1)", DAMAGED),
    "another program's": ("(document.clear(), document.update(manifest_version=3, name='an extension'))", DAMAGED),
    "no labels": ("document.pop('labels')", DAMAGED),
    "an unknown field": ("document.update(surprise=1)", DAMAGED),
    "several fields missing and unknown": ("(document.pop('opset'), document.pop('model'), document.update(b=1, a=2))", DAMAGED),
    "an empty list of labels": ("document.update(labels=[])", DAMAGED),
    "labels that are numbers": ("document.update(labels=[1, 2])", DAMAGED),
    "a model that is a number": ("document.update(model=5)", DAMAGED),
    "an opset that is text": ("document.update(opset='20')", DAMAGED),
    "an opset below 0": ("document.update(opset=-1)", DAMAGED),
    "config that is a list": ("document.update(config=[1])", DAMAGED),
    "files that are a list": ("document.update(files=[])", DAMAGED),
    "a file that is null": ("document['files'].update({'model.onnx': None})", DAMAGED),
    "a file without a hash": ("document['files']['model.onnx'].pop('sha256')", DAMAGED),
    "a file of a size below 0": ("document['files']['model.onnx'].update(bytes=-1)", DAMAGED),
    "a file of a size that is true": ("document['files']['model.onnx'].update(bytes=True)", DAMAGED),
    "a trial without target": ("document.update(trials=[dict(precision='fp32', recommended=True)])", DAMAGED),
    "a trial that is recommended 'yes'": ("document.update(trials=[dict(target='a', precision='b', recommended='yes')])", DAMAGED),
    "an unknown target": ("document['artefacts'][0].update(target='coffee')", DAMAGED),
    "an unknown status": ("document['artefacts'][0].update(status='trust me')", DAMAGED),
    "an unknown precision": ("document['artefacts'][0].update(precision='fp7')", DAMAGED),
    "an unknown hint": ("document['artefacts'][0]['options'].update(hint='f64')", DAMAGED),
    "an engine without files": ("document['artefacts'][0].update(files=[])", DAMAGED),
    "an engine without precision": ("document['artefacts'][0].pop('precision')", DAMAGED),
    "an engine that is a list": ("document['artefacts'].append([])", DAMAGED),
    "an engine's unknown field": ("document['artefacts'][1].update(speed=1)", DAMAGED),
    "a compute capability that is text": ("document['artefacts'][0]['options'].update(compute_capabilities=['86'])", DAMAGED),
    "a time that is text": ("document['artefacts'][0]['figures'].update(latency_ms_p50='1', machine='here')", DAMAGED),
    "segments 0": ("document['spec'].update(segments=0)", DAMAGED),
    "segments 4.0": ("document['spec'].update(segments=4.0)", DAMAGED),
    "segments true": ("document['spec'].update(segments=True)", DAMAGED),
    "every field of the clip": ("document['spec'].update({name: [{}] for name in document['spec']})", DAMAGED),
    "a clip without mean": ("(document['spec'].pop('mean'), document['spec'].update(colours='RGB'))", DAMAGED),
    "a mean of two": ("document['spec'].update(mean=[0.5, 0.5])", DAMAGED),
    "a deviation of 0": ("document['spec'].update(std=[0.5, 0, 0.5])", DAMAGED),
    "a mean that is text": ("document['spec'].update(mean='abc')", DAMAGED),
    "a short side below the crop": ("document['spec'].update(short_side=48)", DAMAGED),
    "a square crop of a wide frame": ("document['spec'].update(crop_side=50)", DAMAGED),
    "a sampling rule of training": ("document['spec'].update(sampling='train')", DAMAGED),
    "BGR": ("document['spec'].update(colour='BGR', pixel='float16')", DAMAGED),
    "memory of another size": ("document.update(memory=2)", DAMAGED),
    "memory of segments of several frames": ("document.update(memory=3)", DAMAGED),
    "memory true": ("document.update(memory=True)", DAMAGED),
    "a path upwards": ("document['artefacts'][0].update(files=['../outside.xml'])", DAMAGED),
    "a path upwards in the middle": ("document['artefacts'][0].update(files=['openvino-fp32/../../outside.xml'])", DAMAGED),
    "a path upwards that stays inside": ("document['artefacts'][0].update(files=['openvino-fp32/../model.onnx'])", DAMAGED),
    "an absolute path": ("document.update(graph='/etc/passwd')", DAMAGED),
    "a backslash": ("document.update(reference='a\\\\..\\\\b')", DAMAGED),
    "a drive": ("document['files'].update({'C:/x': document['files']['model.onnx']})", DAMAGED),
    "an empty path": ("document['artefacts'][0].update(files=[''])", DAMAGED),
    "a path with a zero byte": ("document['artefacts'][0].update(files=['model.xml\\0.bin'])", DAMAGED),
}

#: A change of the text -> the status. Where the parsers say what is wrong, they do in their own way.
TEXTS: dict[str, tuple[str, int]] = {
    "empty": ("b''", DAMAGED),
    "half of it": ("text[: len(text) // 2]", DAMAGED),
    "all but the last brace": ("text.rstrip()[:-1]", DAMAGED),
    "a list": ("b'[]'", DAMAGED),
    "null": ("b'null'", DAMAGED),
    "text": ("b'\"flowless-bundle\"'", DAMAGED),
    "UTF-16": ("text.decode().encode('utf-16')", DAMAGED),
    "a byte order mark": ("b'\\xef\\xbb\\xbf' + text", DAMAGED),
    "latin-1": ("with_parity(b'\"caf\\xe9\"')", DAMAGED),
    "an overlong character": ("with_parity(b'\"\\xc0\\xaf\"')", DAMAGED),
    "a surrogate in UTF-8": ("with_parity(b'\"\\xed\\xa0\\x80\"')", DAMAGED),
    "a zero byte at the end": ("text + b'\\0'", DAMAGED),
    "a second document": ("text + b'{}'", DAMAGED),
    "a comment": ("b'// bundle\\n' + text", DAMAGED),
    "a trailing comma": ("with_parity(b'[1,]')", DAMAGED),
    "single quotes": ("with_parity(b\"'a'\")", DAMAGED),
    "a leading zero": ("with_parity(b'01')", DAMAGED),
    "a tab in a text": ("with_parity(b'\"a\\tb\"')", DAMAGED),
    "a bad escape": ("with_parity(b'\"\\\\x41\"')", DAMAGED),
    "NaN": ("with_parity(b'NaN')", DAMAGED),
    "infinity": ("with_parity(b'-Infinity')", DAMAGED),
    "a number beyond double": ("with_parity(b'1e999')", DAMAGED),
    "a number of 5000 digits": ("with_parity(b'9' * 5000)", DAMAGED),
    "100,000 lists": ("with_parity(b'[' * 100_000)", DAMAGED),
    "100,000 lists that are closed": ("with_parity(b'[' * 100_000 + b']' * 100_000)", DAMAGED),
    "100,000 tables": ("b'{\"a\":' * 100_000", DAMAGED),
    "400 lists": ("with_parity(b'[' * 400 + b']' * 400)", OK),
    "a number below double": ("with_parity(b'1e-999')", OK),
    "an integer beyond 64 bits": ("with_parity(b'9' * 30)", OK),
    "a surrogate without its pair": ("with_parity(b'\"clip-\\\\udce9.mp4 \\\\\\\\ud800 \\\\ud83d\\\\ude00\"')", OK),
    "a key twice": ('text.replace(b\'{\', b\'{"model": 5, "format": 1, "labels": [],\', 1)', OK),
    "lines that end in CR and LF": ("text.replace(b'\\n', b'\\r\\n')", OK),
    "an opset beyond 64 bits": ("text.replace(b'\"opset\": 20', b'\"opset\": 9223372036854775808')", DAMAGED),
}

#: A change of the folder -> the status, and what C++ opens, from the bundle's folder.
TREES: dict[str, tuple[str, int, str]] = {
    "no folder": ("rmtree(bundle)", MISSING, "."),
    "no manifest": ("manifest.unlink()", MISSING, "."),
    "a file": ("None", MISSING, "model.onnx"),
    "a folder beside it": ("None", MISSING, "openvino-fp32"),
    "a manifest that is a folder": ("(manifest.unlink(), manifest.mkdir())", DAMAGED, "."),
    "a manifest that is a link": ("(manifest.rename(outside), manifest.symlink_to(outside))", OK, "."),
    "a manifest that is a link to nothing": ("(manifest.unlink(), manifest.symlink_to(outside))", MISSING, "."),
    "a folder with a slash at its end": ("None", OK, ".//./"),
    "a bundle behind a link": ("(bundle / 'link').symlink_to(bundle)", OK, "link"),
    "a link that leads out": ("(weights.rename(outside), weights.symlink_to(outside))", DAMAGED, "."),
    "a link to nothing outside": ("(weights.unlink(), weights.symlink_to('/nowhere/model.bin'))", DAMAGED, "."),
    "a link to nothing inside": ("(weights.unlink(), weights.symlink_to('nothing'))", OK, "."),
    "a link inside": ("(weights.rename(bundle / 'w'), weights.symlink_to('../w'))", OK, "."),
    "a link out and in again": ("(weights.rename(bundle / 'w'), weights.symlink_to(f'../../{bundle.name}/w'))", OK, "."),
    "a link to a link that leads out": ("((bundle / 'l').symlink_to(outside), weights.unlink(), weights.symlink_to('../l'))", DAMAGED, "."),
    "a folder that leads out": ("(weights.parent.rename(outside), weights.parent.symlink_to(outside))", DAMAGED, "."),
    "links in a circle": ("(weights.unlink(), weights.symlink_to('model.bin'))", OK, "."),
}


@pytest.fixture
def manifest(bundle: Path) -> Path:
    return bundle / MANIFEST


def compare(reader: Reader, folder: str | Path, status: int) -> None:
    """Check that both read the same, or refuse for the same reason."""
    content, message = python_verdict(folder)
    reply = reader.request(do="read", folder=str(folder))
    assert reply.get("status", OK) == status, reply.get("message", f"C++ read it; Python: {message}")
    assert reply.get("value") == content, message
    if message is not None:
        assert _comparable(reply["message"]) == _comparable(message)


def _comparable(message: str) -> str:
    """Cut what is said otherwise: why a text is not JSON, and a table, which C++ sorts."""
    start, parser, _ = message.partition("not JSON (")
    return (start + parser).partition("{")[0]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_document(reader: Reader, bundle: Path, manifest: Path, name: str) -> None:
    change, status = CHANGES[name]
    document = json.loads(manifest.read_text(encoding="utf-8"))
    eval(change, {"document": document})  # noqa: S307  of the table above
    manifest.write_text(json.dumps(document), encoding="utf-8")
    compare(reader, bundle, status)


@pytest.mark.parametrize("name", STATES)
def test_a_change_of_the_state(reader: Reader, bundle: Path, manifest: Path, name: str) -> None:
    change, status = STATES[name]
    document = json.loads(manifest.read_text(encoding="utf-8"))
    state = document["state"] = state_of(document["spec"])
    eval(change, {"document": document, "state": state})  # noqa: S307  of the table
    manifest.write_text(json.dumps(document), encoding="utf-8")
    compare(reader, bundle, status)


@pytest.mark.parametrize("name", TEXTS)
def test_a_change_of_the_text(reader: Reader, bundle: Path, manifest: Path, name: str) -> None:
    change, status = TEXTS[name]
    text = manifest.read_bytes()
    document = json.loads(text)

    def with_parity(value: bytes) -> bytes:
        return json.dumps({**document, "parity": {"x": "HERE"}}).encode().replace(b'"HERE"', value)

    manifest.write_bytes(eval(change, {"text": text, "with_parity": with_parity}))  # noqa: S307  of the table above
    compare(reader, bundle, status)


@pytest.mark.parametrize("name", TREES)
def test_a_change_of_the_folder(reader: Reader, bundle: Path, manifest: Path, name: str) -> None:
    change, status, place = TREES[name]
    weights = bundle / "openvino-fp32" / "model.bin"
    names = {"bundle": bundle, "manifest": manifest, "weights": weights, "outside": bundle.parent / "outside", "rmtree": shutil.rmtree}
    eval(change, names)  # noqa: S307  of the table above
    compare(reader, f"{bundle}/{place}", status)


def test_random_changes(reader: Reader, bundle: Path, manifest: Path) -> None:
    original = json.loads(manifest.read_text(encoding="utf-8"))
    originals = [json.dumps({**original, "state": state}) for state in ([], state_of(original["spec"]))]
    generator = random.Random(7)
    read = 0
    for turn in range(2000):
        text = changed(originals[turn % 2], generator)
        manifest.write_text(text, encoding="utf-8")
        content, _ = python_verdict(bundle)
        reply = reader.request(do="read", folder=str(bundle))
        if "this runtime takes at most" in reply.get("message", ""):
            assert content is not None
            continue
        assert (content is None) == ("status" in reply), (text, reply)
        compare(reader, bundle, reply.get("status", OK))
        read += content is not None
    assert 100 < read < 1900


@pytest.mark.parametrize("seed", sorted(SEEDS.glob("*.json")), ids=lambda path: path.stem)
def test_seeds_of_the_fuzzer(reader: Reader, bundle: Path, manifest: Path, seed: Path) -> None:
    """`deep` is what C++ alone refuses: it has 600 lists, and C++ reads 500."""
    manifest.write_bytes(seed.read_bytes())
    content, _ = python_verdict(bundle)
    assert (content is not None) == (seed.stem in {"smallest", "every_field", "streaming", "older", "surrogates", "deep"})
    if seed.stem == "surrogates":
        assert reader.request(do="read", folder=str(bundle))["value"]["labels"] == ["\ufffd", "\U0001f600", "\\ud800"]
    elif seed.stem == "deep":
        assert "nested too deeply" in reader.request(do="read", folder=str(bundle))["message"]
    else:
        compare(reader, bundle, OK if content is not None else UNSUPPORTED if seed.stem == "newer" else DAMAGED)


def test_what_cpp_alone_refuses(reader: Reader, bundle: Path, manifest: Path) -> None:
    """Sizes beyond its integers and buffers, and a manifest of more than 16 MiB."""
    original = json.loads(manifest.read_text(encoding="utf-8"))

    def refusal(change: dict[str, Any]) -> tuple[int, str]:
        manifest.write_text(json.dumps({**original, **change}), encoding="utf-8")
        read_manifest(bundle)
        reply = reader.request(do="read", folder=str(bundle))
        return reply["status"], reply["message"]

    for size in (40_000, 10**30):
        status, message = refusal({"spec": {**original["spec"], "segments": size}})
        assert status == UNSUPPORTED
        assert "segments is" in message
        assert "at most 32768" in message
    assert refusal({"spec": {**original["spec"], "segments": 32768, "frames_per_segment": 32768}})[0] == UNSUPPORTED
    status, message = refusal({"parity": {"x": "x" * (16 << 20)}})
    assert status == DAMAGED
    assert "16 MiB" in message


@pytest.mark.parametrize("change", ["nothing", "altered", "shorter", "missing", "no fingerprint", "a folder", "upper case"])
def test_files_are_compared_with_their_hashes(reader: Reader, bundle: Path, manifest: Path, change: str) -> None:
    names = ["openvino-fp32/model.xml", "openvino-fp32/model.bin"]
    path = bundle / names[1]
    document = json.loads(manifest.read_text(encoding="utf-8"))
    record = document["files"][names[1]]
    content = path.read_bytes()
    if change == "altered":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif change == "shorter":
        path.write_bytes(content[:-1])
    elif change in {"missing", "a folder"}:
        path.unlink()
    elif change == "no fingerprint":
        del document["files"][names[1]]
    elif change == "upper case":
        record["sha256"] = record["sha256"].upper()
    if change == "a folder":
        path.mkdir()
    manifest.write_text(json.dumps(document), encoding="utf-8")
    _, message = python_verdict(bundle, check=names)
    reply = reader.request(do="read", folder=str(bundle), check=names)
    assert reply.get("message") == message
    statuses = {"nothing": OK, "missing": MISSING, "a folder": MISSING}
    assert reply.get("status", OK) == statuses.get(change, DAMAGED)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 262_143, 262_144, 262_145, 3_000_001])
def test_sha256(reader: Reader, tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(random.Random(size).randbytes(size))
    assert reader.request(do="sha256", path=str(path))["value"] == sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_sha256_of_what_cannot_be_read(reader: Reader, tmp_path: Path) -> None:
    reply = reader.request(do="sha256", path=str(tmp_path / "nothing"))
    assert reply == {"status": MISSING, "message": f"{tmp_path}/nothing: cannot be read (No such file or directory)."}
    assert reader.request(do="sha256", path=str(tmp_path)) == {
        "status": RUNTIME,
        "message": f"{tmp_path}: cannot be read (Is a directory).",
    }


def test_choices(reader: Reader, bundle: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random bundles on random machines: the same engine for the same reason, or the same error."""
    original = json.loads(manifest.read_text(encoding="utf-8"))
    generator = random.Random(11)
    whys: set[str] = set()
    for _ in range(1500):
        situation = python_choice(original, generator, bundle, monkeypatch)
        reply = reader.request(do="choose", folder=str(bundle), **situation.request)
        assert reply.get("message") == situation.message
        assert reply.get("value") == situation.choice
        if situation.message is not None:
            assert reply["status"] == (UNSUPPORTED if situation.some_fit else MISSING)
        why = situation.message or (situation.choice or {})["why"]
        whys.add(why.partition(": ")[2].partition(" (")[0])
    assert whys >= {
        "asked for",
        "the fastest engine of this bundle that runs here",
        "what flowless build --precision auto found the fastest",
        "no engine that runs here",
    }


@pytest.mark.parametrize(("target", "precision"), [("coffee", ""), ("openvino", "fp7"), ("", "FP32")])
def test_unknown_names(reader: Reader, bundle: Path, target: str, precision: str) -> None:
    import flowless

    with pytest.raises(flowless.FlowlessError) as caught:
        flowless.load(bundle, target or None, precision or None)
    situation = {"target": target, "precision": precision, "machine": "", "reasons": {}, "computes": {}}
    assert reader.request(do="choose", folder=str(bundle), **situation) == {"status": INVALID, "message": str(caught.value)}


CPUINFO = {
    "a PC": "processor\t: 0\nmodel name\t: Some CPU @ 3 GHz \nflags\t\t: fpu avx avx2 avx512f avx512_vnni avx_vnni avx512_bf16 avx512_fp16 "
    "amx_tile amx_bf16 avx10_1 avx2x sve3\n\nprocessor\t: 1\nmodel name\t: Another\nflags\t\t: avx2\n",
    "a board": "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: asimd asimdhp asimddp asimdfhm i8mm sve sve2 svebf16\nModel\t: Board 5\n",
    "a server without a name": "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\n",
    "nothing": "",
    "no file": None,
}


@pytest.mark.parametrize("name", CPUINFO)
@pytest.mark.parametrize("cards", [0, 2])
def test_machine_names(reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, cards: int) -> None:
    (tmp_path / "proc").mkdir()
    if (text := CPUINFO[name]) is not None:
        (tmp_path / "proc" / "cpuinfo").write_text(text, encoding="utf-8")
    for index in range(cards):
        folder = tmp_path / f"proc/driver/nvidia/gpus/0000:0{2 - index}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t NVIDIA Card {index}\nIRQ:   \t\t 16\n", encoding="utf-8")
    monkeypatch.setattr(machine, "Path", lambda path: Path(f"{tmp_path}{path}"))
    machine._cpuinfo.cache_clear()
    expected = machine.machine_name()
    machine._cpuinfo.cache_clear()
    assert ("NVIDIA Card 1; NVIDIA Card 0" in expected) == (cards == 2)
    assert reader.request(do="machine", root=str(tmp_path)) == {"value": expected}


def test_the_name_of_this_machine(reader: Reader) -> None:
    assert reader.request(do="machine", root="") == {"value": machine.machine_name()}
