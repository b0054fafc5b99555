"""The gate: a graph that computes something else is refused, and nothing is kept."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from flowless.cli import main
from flowless.errors import CheckFailed, FlowlessError
from flowless.export.export_bundle import export_bundle
from flowless.export.graph import export_graph
from flowless.export.graph.pa_function import pa_nodes
from flowless.export.verify import parity
from flowless.export.verify.reference import Reference, gather_clips, made_clips
from flowless.pipeline.clip.spec import ClipSpec


def initializer(proto, name):
    return next(item for item in proto.graph.initializer if item.name == name)


def change(proto, name, by):
    item = initializer(proto, name)
    item.CopyFrom(numpy_helper.from_array(by(numpy_helper.to_array(item)).astype(np.float32), name))


def wrong_mean(proto):
    (node,) = [item for item in proto.graph.node if item.op_type == "Sub"][:1]
    change(proto, node.input[1], lambda mean: mean + 255 * 0.01)


def colours_swapped(proto):
    (node,) = [item for item in proto.graph.node if item.op_type == "Sub"][:1]
    change(proto, node.input[1], lambda mean: mean[::-1])


def shift_reversed(proto):
    for node in proto.graph.node:
        if node.op_type == "Concat" and len(node.input) == 3:
            node.input[0], node.input[1] = node.input[1], node.input[0]
            return
    pytest.fail("no shift in this graph")


def filter_mirrored(proto):
    change(proto, pa_nodes(proto)[0].input[1], lambda weight: weight[..., ::-1])


def not_a_number(proto):
    change(proto, pa_nodes(proto)[0].input[1], lambda weight: weight * np.nan)


def export_with(fault, exported, monkeypatch):
    """Have the exporter give the good graph with a fault in it."""
    proto = onnx.load(exported / "model.onnx")
    del proto.functions[:]
    del proto.metadata_props[:]
    fault(proto)
    monkeypatch.setattr(export_graph, "_translate", lambda *_, **__: proto)


@pytest.mark.parametrize("fault", [wrong_mean, colours_swapped, shift_reversed, filter_mirrored, not_a_number])
def test_a_seeded_fault_is_caught(fault, exported, checkpoint, tmp_path, monkeypatch):
    export_with(fault, exported, monkeypatch)
    with pytest.raises(CheckFailed, match="differ from PyTorch"):
        export_bundle(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_ends_with_3(exported, checkpoint, tmp_path, monkeypatch, capsys):
    export_with(wrong_mean, exported, monkeypatch)
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out")]) == 3
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in capsys.readouterr().err


def test_a_failed_export_leaves_the_older_bundle(exported, checkpoint, bundle, monkeypatch):
    before = (bundle / "manifest.json").read_bytes()
    export_with(wrong_mean, exported, monkeypatch)
    with pytest.raises(CheckFailed):
        export_bundle(checkpoint, bundle)
    assert (bundle / "manifest.json").read_bytes() == before
    assert (bundle / "openvino-fp32" / "model.xml").is_file()


def test_the_tolerance_is_a_share_of_the_spread():
    expected = np.array([[100.0, 1.0], [102.0, 1.0]], np.float32)
    spread = np.sqrt(np.mean([1.0, 1.0, 0.0, 0.0]))
    good = parity.compare(expected + 9e-4 * spread, expected, precision="fp32", device="CPU")
    assert good.spread == pytest.approx(spread)
    assert good.passed
    assert not parity.compare(expected + 2e-3, expected, precision="fp32", device="CPU").passed
    assert not parity.compare(np.full_like(expected, np.nan), expected, precision="fp32", device="CPU").passed
    with pytest.raises(CheckFailed, match="shape"):
        parity.compare(expected[:, :1], expected, precision="fp32", device="CPU")


def test_every_batch_size_is_run():
    class WrongInBatches:
        device = "CPU"
        fallback = None

        def __call__(self, clip):
            return np.arange(len(clip), dtype=np.float32)[:, None] * (len(clip) > 1) + clip.reshape(len(clip), -1).mean(1, keepdims=True)

    clips = np.random.default_rng(0).integers(0, 256, (4, 2, 2), dtype=np.uint8)
    expected = clips.reshape(4, -1).mean(1, keepdims=True).astype(np.float32)
    with pytest.raises(CheckFailed):
        parity.check(WrongInBatches(), Reference(names=(), clips=clips, scores=expected), precision="fp32", what="engine")


def test_the_batch_that_fails_is_named_even_where_another_differs_by_more():
    """One clip a call: one large difference, which int8 allows. Three clips a call: smaller ones everywhere, which it does not."""
    expected = np.array([[1.0], [-1.0]] * 100)
    once, everywhere = np.zeros((200, 1)), np.full((200, 1), 0.5)
    once[0] = 0.9
    clips = np.arange(200, dtype=np.int64)[:, None]
    wrong = {1: once, 3: everywhere}

    class Uneven:
        device = "CPU"
        fallback = None

        def __call__(self, clip):
            places = clip[:, 0]
            # The last call of the threes has two clips.
            return (expected + wrong[1 if len(places) == 1 else 3])[places]

    runs = [parity.compare(expected + by, expected, precision="int8", device="CPU") for by in (once, everywhere)]
    assert [run.passed for run in runs] == [True, False]
    assert runs[0].max_abs_diff > runs[1].max_abs_diff
    with pytest.raises(CheckFailed):
        parity.check(Uneven(), Reference(names=(), clips=clips, scores=expected), precision="int8", what="engine")


def test_made_clips_never_change():
    """Bundles contain their scores, so their bytes must not change."""
    import hashlib

    spec = ClipSpec(segments=2, frames_per_segment=2, height=8, width=9, short_side=9)
    digest = hashlib.sha256(b"".join(clip.tobytes() for clip in made_clips(spec).values())).hexdigest()
    assert digest == "06a5be19dfee2cbb856095b4e3c6325374a2196f1564e06b2fdba31a57e78392"
    assert all(clip.shape == spec.shape and clip.dtype == np.uint8 for clip in made_clips(spec).values())
    assert (made_clips(spec)["made: still"] == made_clips(spec)["made: still"][0, 0]).all()


def test_reference_comes_back(tmp_path):
    spec = ClipSpec(segments=2, frames_per_segment=2, height=32, width=32, short_side=32)
    names, clips = gather_clips(spec)
    scores = np.random.default_rng(0).normal(size=(len(clips), 3)).astype(np.float32)
    Reference(names=names, clips=clips, scores=scores).save(tmp_path / "r.npz", spec)
    back = Reference.load(tmp_path / "r.npz", spec)
    assert back.names == (*names[:2], *names[3:])  # two of the three videos are kept
    np.testing.assert_array_equal(back.clips, clips[[0, 1, 3, 4, 5]])
    np.testing.assert_array_equal(back.scores, scores[[0, 1, 3, 4, 5]])
    with pytest.raises(FlowlessError, match=r"r\.npz: not the reference clips"):
        Reference.load(tmp_path / "r.npz", ClipSpec(segments=4, frames_per_segment=2, height=32, width=32, short_side=32))


def test_videos_given_by_the_user(checkpoint, exported, videos, tmp_path, capsys, monkeypatch):
    export_with(lambda _: None, exported, monkeypatch)
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out"), "--clips", *map(str, videos), "--json"]) == 0
    import json

    document = json.loads(capsys.readouterr().out)
    assert [name for name in document["parity"]["clips"] if name.startswith("video")] == [
        f"video: {path.name} ({index})" for index, path in enumerate(videos)
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{missing}", "--out", "{out}"], "missing.safetensors"),
        (["{checkpoint}", "--out", "{full}"], "it is not a bundle"),
        (["{checkpoint}", "--out", "{file}"], "is a file"),
        (["{checkpoint}", "--out", "{out}", "--clips", "{file}"], "notes.txt"),
    ],
)
def test_what_export_refuses(arguments, says, checkpoint, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "notes.txt").write_text("not a video")
    names = {
        "missing": tmp_path / "missing.safetensors",
        "out": tmp_path / "out",
        "full": tmp_path / "full",
        "file": tmp_path / "notes.txt",
        "checkpoint": checkpoint,
    }
    assert main(["export", *(word.format(**names) for word in arguments)]) == 1
    # The terminal's width breaks lines anywhere, even inside a path.
    assert says.replace(" ", "") in "".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
