"""`flowless explain` of a video: checkpoint and bundle agree, the page is complete and self-contained, the film has every frame."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
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
from flowless.export.explain.cue_pictures import overlaid
from flowless.export.explain.cues import cue_of
from flowless.export.explain.explain_command import default_page
from flowless.export.explain.explain_video import VideoExplanation, explain_video
from flowless.export.explain.film import cue_clips
from flowless.export.explain.introspection import CheckpointModel, open_model
from flowless.export.explain.video_page import render
from flowless.export.graph.export_graph import read_graph
from flowless.export.graph.graph_outputs import opened, read_outputs
from flowless.html_pages import image_uri
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.checkpoints import Checkpoint, save_checkpoint
from flowless.train.models import build_model

LABELS = ("wave & greet", "<clap>", "still")
#: The same arithmetic in float32, in another order.
SAME: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4}


def varied(name: str, *, frames: int = 3, sampling: Any = "centre", **options: Any) -> Checkpoint:
    """Return a small model whose scores depend on its whole input."""
    spec = ClipSpec(segments=4, frames_per_segment=frames, height=32, width=48, short_side=48, sampling=sampling)
    torch.manual_seed(3)
    model = build_model(name, classes=len(LABELS), spec=spec, width=0.25, blocks=1, **options).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(0, 0.1)
            module.get_buffer("running_var").uniform_(0.8, 1.5)
    for head in model.heads:
        head.get_parameter("pred.weight").data.normal_(0, 0.5)
        head.get_parameter("pred.bias").data.normal_(0, 0.5)
    return Checkpoint(model=model, name=name, spec=spec, labels=LABELS, recipe={}, versions={}, metrics={})


def inspected(name: str, **options: Any) -> CheckpointModel:
    return CheckpointModel(varied(name, **options), path=Path(f"{name}.safetensors"))


@pytest.fixture(scope="module")
def video(videos: list[Path]) -> Path:
    """Noise that moves to the right by 2 pixels per frame, 24 frames."""
    return videos[1]


@pytest.fixture(scope="module")
def explanation(video: Path) -> VideoExplanation:
    return explain_video(inspected("pan-lite-r18"), video, top=2)


def test_a_bundle_is_explained_as_its_checkpoint(checkpoint, exported, video, assert_same_explanation):
    """Every system's graph is compared with its checkpoint where it is exported anyway, in tests/export."""
    models = [open_model(path) for path in (checkpoint, exported)]
    mine, theirs = (explain_video(model, video) for model in models)
    assert_same_explanation(*models, mine.clip[None])
    assert [item.label for item in mine.top] == [item.label for item in theirs.top]
    assert mine.frame_indices.tolist() == theirs.frame_indices.tolist()
    assert "ONNX Runtime" in theirs.model.source


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
def test_segment_scores_and_weights_are_those_of_the_head(name, options, video):
    """The score of a segment is that of a clip which repeats it; the page says how the prediction follows from them."""
    checkpoint = varied(name, **options)
    network: Any = checkpoint.model
    model = CheckpointModel(checkpoint, path=Path())
    clips = load_clip(video, checkpoint.spec)
    (branch,) = model.run(clips).branches
    with torch.inference_mode():
        features = network.features(network.normalise(network.as_frames(torch.from_numpy(clips))))
        expected = [network.head(features[:, place : place + 1].expand(-1, 4, -1)).numpy() for place in range(4)]
    assert branch.segment_scores is not None
    np.testing.assert_allclose(branch.segment_scores, np.stack(expected, axis=1), **SAME)
    averages = name == "tsm-r18" or options.get("aggregation") == "average"
    vap = name == "pan-lite-r18" and not options
    page = render(explain_video(model, video))
    assert ("comes from the mean of these segments' scores" in page) == averages
    assert ("is not the mean of these" in page) == (not averages)
    assert ("VAP's timescale weights" in page) == vap
    assert (branch.timescale_weights is not None) == vap
    if averages:
        np.testing.assert_allclose(branch.segment_scores.mean(1), branch.scores, **SAME)
    if branch.timescale_weights is not None:
        assert branch.timescale_weights.sum() == pytest.approx(1, abs=1e-5)
        with torch.inference_mode():
            np.testing.assert_allclose(branch.timescale_weights, network.head.timescale_weights(features).numpy(), **SAME)


@pytest.mark.parametrize(("causal", "shown", "text"), [(False, 0, "segment's first frame"), (True, 2, "segment's newest frame")])
def test_the_picture_of_a_segment_is_the_frame_that_is_seen_in_rgb(video, causal, shown, text):
    found = explain_video(inspected("pan-lite-r18", causal=causal), video)
    page, maps = render(found), found.cams[0].values[0]
    assert maps.max() > 0
    for place in range(found.clip.shape[1]):
        overlay = overlaid(found.clip[:, place], maps, reach=float(maps.max()))[1]
        assert (image_uri(overlay) in page) == (place == shown)
        assert (f'alt="frame {found.frame_indices[1, place]}"' in page.split("<details>")[0]) == (place == shown)
    assert text in page


def test_views_are_averaged_and_the_first_is_shown(video):
    checkpoint = varied("pan-full-r18", sampling="two-clip")
    found = explain_video(CheckpointModel(checkpoint, path=Path()), video)
    clips = load_clip(video, checkpoint.spec)
    assert len(clips) == 2
    with torch.inference_mode():
        np.testing.assert_allclose(found.scores, checkpoint.model(torch.from_numpy(clips)).numpy().mean(0), **SAME)
        np.testing.assert_allclose(found.branch_scores.mean(0), found.scores, **SAME)
        cue = cue_of(checkpoint.model, torch.from_numpy(clips[:1]))
    np.testing.assert_array_equal(found.clip, clips[0])
    assert found.cue is not None
    assert cue is not None
    np.testing.assert_allclose(found.cue.values, cue.values, **SAME)
    page = render(found)
    assert "first of 2 views" in page
    assert "branch rgb" in page
    assert "branch pa" in page


def test_the_page_is_complete_and_self_contained(explanation):
    page = render(explanation)
    assert not re.findall(r"""\s(?:src|href)=["'](?!data:)""", page)
    assert "<clap>" not in page  # labels are the user's
    assert page.count('alt="Persistence of Appearance of segment') == 4
    assert len(re.findall(r'alt="cue \d', page)) == 4 * 2
    assert len(re.findall(r'alt="frame \d+"', page)) == 4 + 4 * 3
    # The table has the softmax of the segments' scores, a row a class.
    (branch,) = explanation.branches
    shown = [int(number) for number in re.findall(r"color: [^>]*>(\d+)</td>", page)]
    expected = softmax(branch.segment_scores[0])[:, [item.index for item in explanation.top]].T
    np.testing.assert_allclose(shown, (100 * expected).ravel(), atol=0.51)
    assert all(f"{weight:.3f}</td>" in page for weight in branch.timescale_weights[0])
    # Four segments: one vector of s = 1, two of s = 2.
    first, *others = branch.timescale_weights[0]
    assert f"s = 1: {100 * first:.1f} %, s = 2: {100 * sum(others):.1f} %" in page


def test_the_command_writes_a_page_and_prints_the_numbers(checkpoint, video, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["explain", str(checkpoint), str(video), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert Path(document["out"]) == default_page(video)
    assert (tmp_path / document["out"]).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert document["cue"]["name"] == "Persistence of Appearance"
    assert [len(segment["frames"]) for segment in document["segments"]] == [3] * 4
    assert document["segments"][1]["seconds"] == pytest.approx(document["segments"][1]["frames"][0] / 25)
    assert sum(document["branches"][0]["timescales"].values()) == pytest.approx(1, abs=1e-5)
    assert np.argmax(document["scores"]) == document["top"][0]["index"]


def test_grad_cam_of_a_bundle_is_refused_and_the_page_says_why(exported, video, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["explain", str(exported), str(video), "--out", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["grad_cam"] is None
    assert "Grad-CAM needs gradients" in page.read_text(encoding="utf-8")
    assert main(["explain", str(exported), str(video), "--out", str(page), "--label", "action 1"]) == 1
    assert "explain the checkpoint" in " ".join(capsys.readouterr().err.split())


def test_videos_of_one_name_have_different_pages(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pages = Path("runs") / "explain"
    assert default_page(Path("up/1.mp4")) == default_page(tmp_path / "here" / "up" / "1.mp4") == pages / "up" / "1.mp4.html"
    assert default_page(Path("down/1.mp4")) == pages / "down" / "1.mp4.html"
    assert default_page(Path("1.avi")) == pages / "1.avi.html"
    # Outside the current folder by the whole path, and never outside runs/explain.
    assert default_page(Path("../1.mp4")) == pages.joinpath("elsewhere", *tmp_path.parts[1:], "1.mp4.html")
    assert default_page(Path(*tmp_path.parts[1:], "1.mp4")) != default_page(tmp_path / "1.mp4")
    assert default_page(Path()).suffix == default_page(Path("/")).suffix == ".html"  # not a video: refused when it is opened


@pytest.mark.parametrize(("over", "frames"), [("frames", 3), ("segment", 4), ("segments", 1), (None, 1)])
@pytest.mark.parametrize("count", [1, 5, 23])
def test_the_clips_of_a_film_show_every_frame_once(over, frames, count, explanation):
    cue = None if over is None else replace(explanation.cue, over=over)
    indices = np.minimum(np.arange(5)[:, None] * 4 + np.arange(frames), count - 1)
    pictures = frames - 1 if over == "frames" else 1
    shown = []
    for clip in cue_clips(cue, count, indices):
        assert clip.frames.shape == indices.shape
        assert clip.frames.max() < count
        for frame, number in zip(clip.shown, range(0, 5 * pictures, clip.stride), strict=False):
            segment, picture = divmod(number, pictures)
            shown.append(frame)
            assert clip.frames[segment, picture] == frame
            if over == "frames":
                assert clip.frames[segment, picture + 1] == min(frame + 1, count - 1)
            if over == "segments":
                assert clip.frames[segment + 1, 0] == min(frame + indices[1, 0] - indices[0, 0], count - 1)
    assert shown == list(range(count))


def test_the_film_has_every_frame_beside_its_cue(checkpoint, video, tmp_path):
    out = tmp_path / "film.mp4"
    assert main(["explain", str(checkpoint), str(video), "--out", str(out)]) == 0
    film = list(all_frames(out))
    assert len(film) == 24
    scale, height, width = 7, 48, 49  # 48 rows to at least 320
    assert film[0].shape[:2] == (height * scale + 76, 2 * width * scale + 8)
    clip = load_clip(video, open_model(checkpoint).info.spec, first_frame=12, num_frames=1)[0, 0, 0]
    left = film[12][: height * scale : scale, : width * scale : scale].astype(float)
    assert np.abs(left - clip).mean() < 12  # through H.264
    # The noise moves in every frame but the last, which has no next frame.
    cues = np.array([frame[: height * scale, width * scale + 8 :].mean() for frame in film])
    assert cues[:23].min() > 5 * max(cues[23], 1)


def test_models_without_a_cue_say_so(video, tmp_path, capsys):
    made = varied("tsn-r18", frames=1)
    path, page = tmp_path / "tsn.safetensors", tmp_path / "tsn [final].html"  # brackets are no markup
    save_checkpoint(path, made.model, model_name=made.name, recipe={}, spec=made.spec, labels=made.labels, metrics={})
    assert main(["explain", str(path), str(video), "--out", str(page)]) == 0
    output = capsys.readouterr()
    assert "no motion cue" in output.err
    assert "tsn [final].html" in output.out.replace("\n", "")
    assert "it has no motion cue" in page.read_text(encoding="utf-8")
    assert main(["explain", str(path), str(video), "--out", str(tmp_path / "tsn.mp4")]) == 0
    assert all_frames(tmp_path / "tsn.mp4")[0].shape[1] == 48 * 10


def test_one_vector_of_a_clip_has_no_segment_scores(video):
    found = explain_video(inspected("da-x3d-xs", frames=4), video)
    assert found.branches[0].segment_scores is None
    assert "no scores of single segments" in render(found)


def test_wrong_arguments_are_refused(checkpoint, video, tmp_path, capsys):
    page = str(tmp_path / "x.html")
    for args, message in (
        ([str(checkpoint), str(video), "--out", str(tmp_path / "x.gif")], ".mp4"),
        ([str(tmp_path / "none"), str(video), "--out", page], "no such checkpoint"),
        ([str(checkpoint), str(tmp_path / "none.mp4"), "--out", page], "none.mp4"),
        ([str(checkpoint), "runs/../film.mp4", "--out", "film.mp4"], "the video itself"),
        ([str(checkpoint), str(video), "--top", "0", "--out", page], "at least 1"),
    ):
        assert main(["explain", *args]) == 1
        assert message in capsys.readouterr().err.replace("\n", "")
    assert not list(tmp_path.iterdir())


def test_a_graph_must_record_where_its_cue_is(exported, tmp_path):
    older = Path(shutil.copytree(exported, tmp_path / "older"))

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
        open_model(older)
    rewrite(json.dumps({"system": "persistence", "cue": "elsewhere", "heads": []}))
    with pytest.raises(FlowlessError, match="elsewhere"):
        open_model(older)
    rewrite("[")
    with pytest.raises(FlowlessError, match="cannot be read"):
        open_model(older)
    # The key of earlier versions.
    recorded = next(item.value for item in onnx.load(exported / "model.onnx").metadata_props if item.key == "flowless.outputs")
    rewrite(recorded, key="flowless.insides")
    assert open_model(older).info.labels == open_model(exported).info.labels


def test_the_cue_alone_is_a_small_part_of_the_graph(exported):
    graph = read_graph(exported / "model.onnx")
    part = opened(graph, [read_outputs(graph, what="model.onnx").cue])
    assert len(part.graph.node) < 12
    assert len(part.SerializeToString()) < len(graph.SerializeToString()) / 20
