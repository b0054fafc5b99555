"""Evaluation of checkpoints and bundles, with the real loader and real engines."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import flowless
from flowless.cli import main
from flowless.errors import FlowlessError
from flowless.export.build_engine import build
from flowless.export.export_bundle import export_bundle
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.clip.protocols import protocol_spec
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.scan import scan
from flowless.pipeline.video.encode import write_video
from flowless.train.checkpoints import load_checkpoint, save_checkpoint
from flowless.train.evaluation import evaluate_checkpoint
from flowless.train.evaluation.evaluate import evaluate
from flowless.train.evaluation.options import EvaluationOptions
from flowless.train.loop.index_checks import relabel
from flowless.train.models import build_model

SPEC = ClipSpec(segments=4, frames_per_segment=2, height=32, width=32, short_side=32)


def make_checkpoint(path, spec, *, labels, seed):
    torch.manual_seed(seed)
    model = build_model("pan-lite-r18", classes=len(labels), spec=spec, width=0.25, blocks=1)
    return save_checkpoint(path, model, model_name="pan-lite-r18", recipe={}, spec=spec, labels=labels, metrics={})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, train_index):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "best.safetensors", SPEC, labels=train_index.labels, seed=0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, checkpoint):
    folder = tmp_path_factory.mktemp("bundle") / "model"
    export_bundle(checkpoint, folder)
    build(folder, target="onnxruntime")
    return folder


def test_scores_equal_the_models(checkpoint, val_index):
    result = evaluate(checkpoint, val_index)
    model = load_checkpoint(checkpoint).model
    clips = np.concatenate([load_clip(val_index.path_of(video), SPEC) for video in val_index.videos])
    with torch.inference_mode():
        wanted = model(torch.from_numpy(clips)).numpy()
    np.testing.assert_allclose(result.scores, wanted, atol=0.02)
    assert result.labels.tolist() == [video.label for video in val_index.videos]
    assert result.ids == tuple(video.id for video in val_index.videos)
    assert result.target == "pytorch"


def test_views_are_averaged(checkpoint, val_index):
    one = replace(val_index, videos=val_index.videos[:1])
    result = evaluate(checkpoint, one, options=EvaluationOptions(views="two-clip"))
    clips = load_clip(one.path_of(one.videos[0]), replace(SPEC, sampling="two-clip"))
    with torch.inference_mode():
        wanted = load_checkpoint(checkpoint).model(torch.from_numpy(clips)).numpy().mean(0)
    np.testing.assert_allclose(result.scores[0], wanted, atol=0.02)
    assert result.views == "two-clip"


@pytest.fixture(scope="module")
def wide_index(tmp_path_factory, train_index):
    """Landscape, portrait and square videos, whose crops differ, of 70 frames, so that dense clips differ too."""
    folder = tmp_path_factory.mktemp("wide")
    rng = np.random.default_rng(0)
    for number, (label, height, width) in enumerate((("up", 40, 66), ("down", 70, 42), ("left", 48, 48))):
        coarse = rng.integers(0, 256, (70, height // 6 + 1, width // 6 + 1, 3)).astype(np.uint8).repeat(6, 1).repeat(6, 2)
        (folder / label).mkdir()
        write_video(folder / label / f"{number}.mp4", coarse[:, :height, :width])
    return relabel(scan(folder, out=folder / "index.jsonl", workers=1), train_index.labels)


@pytest.fixture(scope="module")
def roomy(tmp_path_factory, train_index):
    """A model for crops of 32 x 32 from frames with short side 40, so that full-resolution protocols have another size."""
    path = tmp_path_factory.mktemp("roomy") / "best.safetensors"
    return make_checkpoint(path, replace(SPEC, short_side=40), labels=train_index.labels, seed=1)


@pytest.fixture(scope="module")
def roomy_bundle(tmp_path_factory, roomy):
    folder = tmp_path_factory.mktemp("roomy-bundle") / "model"
    export_bundle(roomy, folder)
    return folder


def scores_view_by_view(model, index, spec):
    """Return the scores of every view, each run through the model alone: `[videos, views, classes]`."""
    rows = []
    for video in index.videos:
        clip = load_clip(index.path_of(video), spec)
        with torch.inference_mode():
            rows.append(np.stack([model(torch.from_numpy(view[None]))[0].numpy() for view in clip]))
    return np.stack(rows)


def averaged(alone, average):
    """Average the scores of views `[videos, views, classes]` in NumPy."""
    if average == "logits" or alone.shape[1] == 1:
        return alone.mean(1)
    raised = np.exp(alone.astype(np.float64))
    return np.log((raised / raised.sum(-1, keepdims=True)).mean(1))


#: Protocols with larger frames -> their side.
SIDES = dict.fromkeys(("full-resolution", "thirty-view", "three-view", "six-view", "three-consecutive", "thirty-consecutive"), 40)
EVERY = [
    *(("one-view", 1), ("two-clip", 2), ("dense", 10), ("consecutive", 1), ("three-crop", 3), ("three-crop-two-clip", 6)),
    *(("full-resolution", 2), ("thirty-view", 30), ("three-view", 3), ("six-view", 6), ("thirty-draw", 30)),
    *(("three-consecutive", 3), ("thirty-consecutive", 30)),
]


@pytest.mark.parametrize(("name", "views"), EVERY)
def test_protocols_average_their_views_in_bounded_batches(name, views, roomy, wide_index):
    checkpoint = load_checkpoint(roomy)
    seen = []
    handle = checkpoint.model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    result = evaluate(checkpoint, wide_index, options=EvaluationOptions(views=name, batch_size=7))
    handle.remove()
    assert sum(seen) == 3 * views
    assert max(seen) <= 7, "never more than batch_size views at once"
    side = SIDES.get(name, 32)
    assert result.to_dict()["views"] == name
    assert result.to_dict()["views_per_video"] == views
    assert result.to_dict()["frame"] == {"height": side, "width": side}
    alone = scores_view_by_view(checkpoint.model, wide_index, protocol_spec(checkpoint.spec, name))
    assert alone.shape == (3, views, 12)
    assert result.to_dict()["average"] == result.spec.average
    difference = np.abs(result.scores - averaged(alone, result.spec.average)).max()
    assert difference <= 0.02 * alone.std()
    assert views == 1 or np.ptp(alone, axis=1).max() > 10 * difference, "the views differ"


@pytest.mark.parametrize("name", ["full-resolution", "thirty-view", "thirty-draw", "six-view"])
def test_the_loader_gives_the_same_scores(name, roomy, wide_index, monkeypatch):
    """On a GPU every protocol uses the loader; here it is forced on the CPU."""
    options = EvaluationOptions(views=name, batch_size=7)
    expected = evaluate(roomy, wide_index, options=options)
    checkpoint, seen = load_checkpoint(roomy), []
    checkpoint.model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    monkeypatch.setattr(evaluate_checkpoint, "_LOADER_VIEWS", 30)
    result = evaluate(checkpoint, wide_index, options=options)
    np.testing.assert_allclose(result.scores, expected.scores, atol=0.02 * expected.scores.std())
    assert (result.ids, result.labels.tolist()) == (expected.ids, expected.labels.tolist())
    assert max(seen) <= 7


@pytest.mark.parametrize("name", ["dense", "three-crop", "thirty-draw"])
def test_a_bundle_runs_the_protocols_of_its_size(name, roomy, roomy_bundle, wide_index):
    engine, seen = flowless.load(roomy_bundle, "onnxruntime"), []
    backend = engine._backend

    class Counting:
        device = "CPU"
        fallback = None

        def __call__(self, clip):
            seen.append(len(clip))
            return backend(clip)

    engine._backend = Counting()  # pyright: ignore[reportAttributeAccessIssue]
    result = evaluate(engine, wide_index, options=EvaluationOptions(views=name, batch_size=4))
    total = 3 * result.spec.views
    assert seen == [4] * (total // 4) + [total % 4] * (total % 4 > 0), "batches are full, across videos"
    alone = scores_view_by_view(load_checkpoint(roomy).model, wide_index, result.spec)
    np.testing.assert_allclose(result.scores, averaged(alone, result.spec.average), atol=1e-4)
    assert result.views == name
    assert np.array_equal(result.scores, evaluate(engine, wide_index, options=EvaluationOptions(views=name, batch_size=4)).scores)


@pytest.mark.parametrize("name", ["full-resolution", "thirty-view"])
def test_a_bundle_of_another_size_is_refused(name, roomy_bundle, wide_index):
    with pytest.raises(FlowlessError, match=rf"frames of 40 x 40; .* 32 x 32\. .*flowless export .* --views {name}.* three-crop"):
        evaluate(roomy_bundle, wide_index, options=EvaluationOptions(views=name))


@pytest.mark.slow
def test_a_bundle_exported_for_a_protocol_runs_it(roomy, wide_index, tmp_path, capsys):
    checkpoint = load_checkpoint(roomy)
    large = tmp_path / "large"
    export_bundle(replace(checkpoint, spec=protocol_spec(checkpoint.spec, "thirty-view")), large)
    result = evaluate(large, wide_index)
    assert (result.views, result.spec.views, result.spec.shape) == ("thirty-view", 30, (4, 2, 40, 40, 3))
    by_torch = evaluate(roomy, wide_index, options=EvaluationOptions(views="thirty-view"))
    np.testing.assert_allclose(result.scores, by_torch.scores, atol=0.02 * by_torch.scores.std())
    videos = [wide_index.path_of(video) for video in wide_index.videos]
    for item, scores in zip(flowless.load(large).predict_many(videos), result.scores, strict=True):
        assert item.scores is not None
        np.testing.assert_allclose(item.scores, scores, atol=1e-4)
    capsys.readouterr()
    assert main(["predict", str(large), *map(str, videos), "--top", "1", "--json"]) == 0
    printed = [row["top"][0]["index"] for row in json.loads(capsys.readouterr().out)]
    assert printed == result.scores.argmax(1).tolist()
    other = evaluate(large, wide_index, options=EvaluationOptions(views="full-resolution"))
    assert other.spec.views == 2, "of the same size"


def test_bundle_and_checkpoint_agree(checkpoint, bundle, val_index):
    engine = evaluate(bundle, val_index, options=EvaluationOptions(batch_size=5))
    torch_scores = evaluate(checkpoint, val_index)
    np.testing.assert_allclose(engine.scores, torch_scores.scores, atol=0.02)
    assert engine.ids == torch_scores.ids
    assert engine.target.startswith("onnxruntime")
    two = evaluate(bundle, val_index, options=EvaluationOptions(views="two-clip"))
    assert two.scores.shape == engine.scores.shape


def test_a_bundle_needs_no_torch(bundle, shapes):
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'torch', 'lightning', 'timm', 'onnx', 'nvidia'}:\n"
        "            raise ModuleNotFoundError(f'{name} is blocked', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from flowless.cli import main\n"
        f"sys.exit(main(['evaluate', {str(bundle)!r}, '--data', {str(shapes / 'val.index.jsonl')!r}, '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["videos"] == 12


def test_the_command(checkpoint, shapes, tmp_path, capsys):
    data = ["--data", str(shapes / "val.index.jsonl")]
    picture = tmp_path / "confusion.png"
    assert main(["evaluate", str(checkpoint), *data, "--plot", str(picture)]) == 0
    assert picture.stat().st_size > 5000
    printed = capsys.readouterr().out
    assert "confusion matrix" in printed
    assert "mean class accuracy" in printed
    assert "one-view: 1 view of 32 x 32" in " ".join(printed.split())
    assert main(["evaluate", str(checkpoint), *data, "--views", "centre", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["views"] == "one-view"
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(checkpoint), *data, "--views", "ten-crop"])
    assert stopped.value.code == 2
    assert "thirty-view" in capsys.readouterr().err
    assert main(["evaluate", str(checkpoint), *data, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["views"], document["views_per_video"], document["frame"]) == ("one-view", 1, {"height": 32, "width": 32})
    assert {"top1", "top5", "mean_class_accuracy", "confusion", "labels", "predictions", "bad_videos"} <= set(document)
    assert sum(map(sum, document["confusion"])) == 12
    assert main(["evaluate", str(checkpoint), *data, "--plot", "matrix.doc"]) == 1


def test_labels_in_brackets_are_printed(val_index, tmp_path, capsys):
    """Rich takes `[a]` for a style, and `[/a]` for its end, which is an error."""
    labels = ("[a]", "[/b]", *(f"[{letter}]" for letter in "cdefghijkl"))
    make_checkpoint(tmp_path / "model.safetensors", SPEC, labels=labels, seed=0)
    replace(val_index, labels=labels).save(tmp_path / "index.jsonl")
    assert main(["evaluate", str(tmp_path / "model.safetensors"), "--data", str(tmp_path / "index.jsonl")]) == 0
    printed = capsys.readouterr().out
    for number, label in enumerate(labels):
        assert f"{number} {label}" in printed


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": -1}, {"batch_size": 0}])
def test_numbers_below_one_are_refused(options):
    (name,) = options
    with pytest.raises(FlowlessError, match=f"{name} is {options[name]}; it must be at least 1"):
        EvaluationOptions(**options)


def test_bad_videos_are_left_out(checkpoint, bundle, val_index, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    rest = tuple(replace(video, path=str(val_index.path_of(video))) for video in val_index.videos[1:])
    index = replace(val_index, root=tmp_path, videos=(replace(val_index.videos[0], path="bad.mp4"), *rest))
    engine = evaluate(bundle, index)
    assert len(engine.ids) == 11
    assert [bad.path for bad in engine.bad_videos] == ["bad.mp4"]
    only = replace(index, videos=index.videos[:1])
    with pytest.raises(FlowlessError, match=r"none of the 1 videos could be read; the first: .*bad\.mp4"):
        evaluate(bundle, only)
    # Parts of one file: the loader counts files, of which one may be unreadable.
    parts = tuple(replace(index.videos[0], id=f"bad.mp4#{number}") for number in range(20))
    with pytest.raises(FlowlessError, match=r"none of the 20 videos could be read; the first: .*bad\.mp4"):
        evaluate(checkpoint, replace(index, videos=parts))


def test_files_that_are_no_model_are_refused(tmp_path, val_index):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("missing", "empty", "text.safetensors"):
        with pytest.raises(FlowlessError, match=name):
            evaluate(tmp_path / name, val_index)


def test_labels_are_matched_by_name(checkpoint, val_index):
    turned = replace(val_index, labels=val_index.labels[::-1])
    unknown = replace(val_index, labels=("swimming", *val_index.labels[1:]))
    names = val_index.labels
    result = evaluate(checkpoint, turned)
    assert [names[label] for label in result.labels] == [turned.labels[video.label] for video in turned.videos]
    with pytest.raises(FlowlessError, match="'swimming'"):
        evaluate(checkpoint, unknown)
    with pytest.raises(FlowlessError, match="no videos"):
        evaluate(checkpoint, replace(val_index, videos=()))


@pytest.mark.parametrize("bundled", [False, True])
def test_videos_shorter_than_a_dense_clip_are_counted(checkpoint, bundle, val_index, capsys, bundled):
    model = bundle if bundled else checkpoint
    evaluate(model, val_index, options=EvaluationOptions(views="one-view"))
    assert "wrap around" not in capsys.readouterr().err
    evaluate(model, val_index, options=EvaluationOptions(views="dense"))
    printed = " ".join(capsys.readouterr().err.split())
    count = len(val_index.videos)
    assert f"{count} of the {count} videos" in printed
    assert "fewer frames than a clip spans here, 64 (dense)" in printed
