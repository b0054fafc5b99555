"""`flowless explain`: a checkpoint and its bundle tell the same, the page holds it all by itself, the film shows every frame."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from video_files import all_frames

from flowless.cli import main
from flowless.engines.bundle.manifest import fingerprint, read_manifest
from flowless.engines.engine import softmax
from flowless.errors import FlowlessError
from flowless.export.bundle_writer import export_bundle
from flowless.export.explain.cues import cue_of
from flowless.export.explain.explain_command import page_of
from flowless.export.explain.explain_video import Explanation, explain
from flowless.export.explain.film import windows
from flowless.export.explain.introspection import open_looker
from flowless.export.explain.video_page import render
from flowless.export.graph.export_graph import read_graph
from flowless.export.graph.graph_outputs import opened, read_outputs
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.video.encode import write_video
from flowless.train.checkpoints import save_checkpoint
from flowless.train.models import build_model

LABELS = ("wave & greet", "<clap>", "still")
#: Both run the same arithmetic in float32, in another order.
SAME: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4}


def make(folder: Path, name: str, *, segments: int = 4, frames: int = 3, sampling: Any = "centre", **options: Any) -> Path:
    """Write a checkpoint whose answers depend on what it sees."""
    spec = ClipSpec(segments=segments, frames_per_segment=frames, height=32, width=48, short_side=48, sampling=sampling)
    torch.manual_seed(3)
    model = build_model(name, classes=len(LABELS), spec=spec, width=0.25, blocks=1, **options).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(0, 0.1)
            module.get_buffer("running_var").uniform_(0.8, 1.5)
    for head in model.heads:
        head.get_parameter("pred.weight").data.normal_(0, 0.5)
        head.get_parameter("pred.bias").data.normal_(0, 0.5)
    return save_checkpoint(folder / f"{name}.safetensors", model, model_name=name, recipe={}, spec=spec, labels=LABELS, metrics={})


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise that moves to the right, 40 frames."""
    coarse = np.random.default_rng(1).integers(0, 256, (8, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    path = tmp_path_factory.mktemp("video") / "moving noise.mp4"
    write_video(path, (np.roll(coarse, 2 * index, axis=1) for index in range(40)), fps=20)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    return make(folder, "pan-lite-r18")


@pytest.fixture(scope="module")
def bundle(folder: Path, checkpoint: Path) -> Path:
    export_bundle(checkpoint, folder / "bundle")
    return folder / "bundle"


def test_a_bundle_explains_as_its_checkpoint(checkpoint, bundle, video, assert_same_introspection):
    """Every system's graph is held against its checkpoint where it is exported anyway, in tests/export."""
    mine, theirs = (explain(open_looker(model), video) for model in (checkpoint, bundle))
    assert_same_introspection(mine.seen, theirs.seen)
    assert [item.label for item in mine.top] == [item.label for item in theirs.top]
    assert mine.places.tolist() == theirs.places.tolist()
    assert "ONNX Runtime" in theirs.source
    looker = open_looker(bundle)
    alone = looker.cue(mine.clip[None])
    assert alone is not None
    assert theirs.cue is not None
    np.testing.assert_array_equal(alone.values, theirs.cue.values)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tsm-r18", {}),
        ("pan-lite-r18", {}),
        ("pan-lite-r18", {"aggregation": "vip"}),
        ("pan-rgb-r18", {"aggregation": "2"}),
        ("pan-rgb-r18", {"aggregation": "average"}),
    ],
)
def test_segments_and_weights_are_the_networks(name, options, video, tmp_path):
    """By hand from the model's own layers; a clip of one segment repeated answers as that segment's scores say."""
    looker = open_looker(make(tmp_path, name, **options))
    network: Any = looker._network  # type: ignore[attr-defined]
    clips = load_clip(video, looker.spec)
    (branch,) = looker.look(clips).branches
    with torch.inference_mode():
        features = network.features(network.normalise(network.as_frames(torch.from_numpy(clips))))
        wanted = [network.head(features[:, place : place + 1].expand(-1, 4, -1)).numpy() for place in range(4)]
    assert branch.segment_scores is not None
    np.testing.assert_allclose(branch.segment_scores, np.stack(wanted, axis=1), **SAME)
    averages = name == "tsm-r18" or options.get("aggregation") == "average"
    page = render(explain(looker, video))
    assert ("made of the mean of these segments' scores" in page) == averages
    assert ("answer is not their mean" in page) == (not averages)
    assert ("Timescales that VAP" in page) == (name == "pan-lite-r18" and not options)
    if averages:
        np.testing.assert_allclose(branch.segment_scores.mean(1), branch.scores, **SAME)
    if name != "pan-lite-r18" or options:
        assert branch.timescale_weights is None
    else:
        assert branch.timescale_weights is not None
        assert branch.timescale_weights.sum() == pytest.approx(1, abs=1e-5)
        with torch.inference_mode():
            by_hand = network.head.timescale_weights(features).numpy()
        np.testing.assert_allclose(branch.timescale_weights, by_hand, **SAME)


def test_views_are_averaged_and_the_first_is_shown(video, tmp_path):
    looker = open_looker(make(tmp_path, "pan-full-r18", sampling="two-clip"))
    found = explain(looker, video)
    clips = load_clip(video, looker.spec)
    assert len(clips) == 2
    with torch.inference_mode():
        network: Any = looker._network  # type: ignore[attr-defined]
        np.testing.assert_allclose(found.scores, network(torch.from_numpy(clips)).numpy().mean(0), **SAME)
        np.testing.assert_allclose(found.branch_scores.mean(0), found.scores, **SAME)
        cue = cue_of(network, torch.from_numpy(clips[:1]))
    np.testing.assert_array_equal(found.clip, clips[0])
    assert found.cue is not None
    assert cue is not None
    np.testing.assert_allclose(found.cue.values, cue.values, **SAME)
    page = render(found)
    assert "first of 2 views" in page
    assert "Branch rgb" in page
    assert "branch pa" in page


@pytest.fixture(scope="module")
def explanation(checkpoint: Path, video: Path) -> Explanation:
    return explain(open_looker(checkpoint), video, top=2)


def test_the_page_holds_everything_by_itself(explanation, tmp_path):
    page = render(explanation)
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "<clap>" not in page  # labels are the user's
    assert page.count('alt="Persistence of Appearance of segment') == 4
    assert len(re.findall(r'alt="cue \d', page)) == 4 * 2
    assert len(re.findall(r'alt="frame \d+"', page)) == 4 + 4 * 3
    # The numbers of the heat table are the segments' own answers, class by class.
    branch = explanation.seen.branches[0]
    shown = [int(number) for number in re.findall(r"color: [^>]*>(\d+)</td>", page)]
    wanted = softmax(branch.segment_scores[0])[:, [item.index for item in explanation.top]].T
    np.testing.assert_allclose(shown, (100 * wanted).ravel(), atol=0.51)
    assert all(f"{weight:.3f}</td>" in page for weight in branch.timescale_weights[0])
    # Four segments: one vector of s = 1, two of s = 2.
    first, *others = branch.timescale_weights[0]
    assert f"s = 1: {100 * first:.1f} %, s = 2: {100 * sum(others):.1f} %" in page


def test_the_command_writes_a_page_and_prints_the_numbers(checkpoint, video, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["explain", str(checkpoint), str(video), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert Path(document["out"]) == page_of(video)
    assert (tmp_path / document["out"]).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert document["cue"]["name"] == "Persistence of Appearance"
    assert [len(segment["frames"]) for segment in document["segments"]] == [3] * 4
    assert document["segments"][1]["seconds"] == pytest.approx(document["segments"][1]["frames"][0] / 20)
    assert sum(document["branches"][0]["timescales"].values()) == pytest.approx(1, abs=1e-5)
    assert np.argmax(document["scores"]) == document["top"][0]["index"]


def test_a_bundle_says_where_grad_cam_is_to_be_had(bundle, video, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["explain", str(bundle), str(video), "--out", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["grad_cam"] is None
    assert "Grad-CAM needs gradients" in page.read_text(encoding="utf-8")
    # A class that was asked for would not be seen: not in silence.
    assert main(["explain", str(bundle), str(video), "--out", str(page), "--label", "still"]) == 1
    assert "explain the checkpoint" in " ".join(capsys.readouterr().err.split())


def test_videos_of_one_name_have_pages_of_their_own(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pages = Path("runs") / "explain"
    assert page_of(Path("up/1.mp4")) == page_of(tmp_path / "here" / "up" / "1.mp4") == pages / "up" / "1.mp4.html"
    assert page_of(Path("down/1.mp4")) == pages / "down" / "1.mp4.html"
    assert page_of(Path("1.avi")) == pages / "1.avi.html"
    # From outside by the whole path, and never out of the folder.
    assert page_of(Path("../1.mp4")) == pages.joinpath("elsewhere", *tmp_path.parts[1:], "1.mp4.html")
    assert page_of(Path(*tmp_path.parts[1:], "1.mp4")) != page_of(tmp_path / "1.mp4")
    assert page_of(Path()).suffix == page_of(Path("/")).suffix == ".html"  # not a video: refused when it is opened


@pytest.mark.parametrize(("over", "frames"), [("frames", 3), ("segment", 4), ("segments", 1), (None, 1)])
@pytest.mark.parametrize("count", [1, 5, 23])
def test_a_films_windows_show_every_frame_once(over, frames, count, explanation):
    from dataclasses import replace

    cue = None if over is None else replace(explanation.cue, over=over)
    places = np.minimum(np.arange(5)[:, None] * 4 + np.arange(frames), count - 1)
    shown = []
    for window in windows(cue, count, places):
        assert window.frames.shape == places.shape
        assert window.frames.max() < count
        for frame, segment, place in window.pictures:
            shown.append(frame)
            first = window.frames[segment]
            # What the picture is of begins at the frame that it stands beside.
            assert first[place] == frame
            if over == "frames" and frame < count - 1:
                assert first[place + 1] == frame + 1
            if over == "segments":
                assert window.frames[segment + 1, 0] == min(frame + places[1, 0] - places[0, 0], count - 1)
    assert shown == list(range(count))


def test_the_film_has_every_frame_with_its_cue_beside(checkpoint, video, tmp_path, capsys):
    out = tmp_path / "film.mp4"
    assert main(["explain", str(checkpoint), str(video), "--out", str(out)]) == 0
    film = list(all_frames(out))
    assert len(film) == 40
    height, width = film[0].shape[:2]
    scale = 10  # 32 rows to at least 320
    assert (height, width) == (32 * scale + 76, 2 * 48 * scale + 8)
    looker = open_looker(checkpoint)
    mid = film[20].astype(float)
    clip = load_clip(video, looker.spec, first_frame=20, num_frames=1)[0, 0, 0]
    left = mid[: 32 * scale : scale, : 48 * scale : scale]
    assert np.abs(left - clip).mean() < 12  # through H.264
    # The noise moves at every frame but stands at the film's last, where no next frame is.
    cues = np.array([frame[: 32 * scale, 48 * scale + 8 :].mean() for frame in film])
    assert cues[:39].min() > 5 * max(cues[39], 1)


def test_networks_without_a_cue_say_so(video, tmp_path, capsys):
    path = make(tmp_path, "tsn-r18", frames=1)
    # A name with brackets is no markup.
    assert main(["explain", str(path), str(video), "--out", str(tmp_path / "tsn [final].html")]) == 0
    said = capsys.readouterr()
    assert "no motion cue" in said.err
    assert "tsn [final].html" in said.out.replace("\n", "")
    assert "it has no motion cue" in (tmp_path / "tsn [final].html").read_text(encoding="utf-8")
    assert main(["explain", str(path), str(video), "--out", str(tmp_path / "tsn.mp4")]) == 0
    assert all_frames(tmp_path / "tsn.mp4")[0].shape[1] == 48 * 10


def test_a_vector_a_clip_has_no_segments_scores(video, tmp_path):
    found = explain(open_looker(make(tmp_path, "da-x3d-xs", frames=4)), video)
    assert found.seen.branches[0].segment_scores is None
    assert "no segment has scores of its own" in render(found)


def test_mistakes_are_told(checkpoint, video, tmp_path, capsys):
    for words, told in (
        ([str(checkpoint), str(video), "--out", str(tmp_path / "x.gif")], ".mp4"),
        ([str(tmp_path / "none"), str(video)], "no such checkpoint"),
        ([str(checkpoint), str(tmp_path / "none.mp4"), "--out", str(tmp_path / "x.html")], "none.mp4"),
        ([str(checkpoint), "runs/../film.mp4", "--out", "film.mp4"], "the video itself"),
        ([str(checkpoint), str(video), "--top", "0", "--out", str(tmp_path / "x.html")], "at least 1"),
    ):
        assert main(["explain", *words]) == 1
        assert told in capsys.readouterr().err.replace("\n", "")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_does_not_say_where_its_cue_lies(bundle, tmp_path):
    older = Path(shutil.copytree(bundle, tmp_path / "older"))

    def rewrite(outputs: str | None, *, key: str = "flowless.outputs") -> None:
        graph = onnx.load(older / "model.onnx")
        kept = [item for item in graph.metadata_props if item.key != "flowless.outputs"]
        del graph.metadata_props[:]
        graph.metadata_props.extend(kept)
        if outputs is not None:
            graph.metadata_props.add(key=key, value=outputs)
        (older / "model.onnx").write_bytes(graph.SerializeToString())
        manifest = read_manifest(older)
        manifest.files["model.onnx"] = fingerprint(older / "model.onnx")
        manifest.write()

    rewrite(None)
    with pytest.raises(FlowlessError, match=r"older flowless.*explain its checkpoint"):
        open_looker(older)
    rewrite(json.dumps({"system": "persistence", "cue": "elsewhere", "heads": []}))
    with pytest.raises(FlowlessError, match="elsewhere"):
        open_looker(older)
    rewrite("[")
    with pytest.raises(FlowlessError, match="cannot be read"):
        open_looker(older)
    # Earlier versions called it otherwise.
    written = next(item.value for item in onnx.load(bundle / "model.onnx").metadata_props if item.key == "flowless.outputs")
    rewrite(written, key="flowless.insides")
    assert open_looker(older).labels == open_looker(bundle).labels


def test_the_cue_alone_is_a_small_part_of_the_graph(bundle):
    graph = read_graph(bundle / "model.onnx")
    outputs = read_outputs(graph, what="model.onnx")
    part = opened(graph, [outputs.cue])
    assert len(part.graph.node) < 12
    assert len(part.SerializeToString()) < len(graph.SerializeToString()) / 20
