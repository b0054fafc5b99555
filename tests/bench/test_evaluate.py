"""Evaluation of checkpoints and of bundles, through the real loader and the real engines."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from flowless.bench.evaluate import evaluate
from flowless.bench.evaluation import EvaluationOptions
from flowless.cli import main
from flowless.errors import FlowlessError
from flowless.pipeline.preprocess import load_clip
from flowless.pipeline.spec import ClipSpec
from flowless.train.checkpoints import load_checkpoint, save_checkpoint
from flowless.train.models import build_model

SPEC = ClipSpec(segments=4, frames_per_segment=2, height=32, width=32, short_side=32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, train_index):
    torch.manual_seed(0)
    model = build_model("pan-lite-r18", classes=12, spec=SPEC, width=0.25)
    path = tmp_path_factory.mktemp("model") / "best.safetensors"
    return save_checkpoint(path, model, model_name="pan-lite-r18", recipe={}, spec=SPEC, labels=train_index.labels, metrics={})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, checkpoint):
    from flowless.export.build_engine import build
    from flowless.export.bundle import export_bundle

    folder = tmp_path_factory.mktemp("bundle") / "model"
    export_bundle(checkpoint, folder)
    build(folder, target="onnxruntime")
    return folder


def test_scores_are_the_models(checkpoint, val_index):
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


def test_command(checkpoint, shapes, tmp_path, capsys):
    data = ["--data", str(shapes / "val.index.jsonl")]
    picture = tmp_path / "confusion.png"
    assert main(["evaluate", str(checkpoint), *data, "--plot", str(picture)]) == 0
    assert picture.stat().st_size > 5000
    printed = capsys.readouterr().out
    assert "confusion matrix" in printed
    assert "mean class accuracy" in printed
    assert main(["evaluate", str(checkpoint), *data, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"top1", "top5", "mean_class_accuracy", "confusion", "labels", "predictions", "bad_videos"} <= set(document)
    assert sum(map(sum, document["confusion"])) == 12
    assert main(["evaluate", str(checkpoint), *data, "--plot", "matrix.doc"]) == 1


def test_bad_videos_are_counted_out(checkpoint, bundle, val_index, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    rest = tuple(replace(video, path=str(val_index.path_of(video))) for video in val_index.videos[1:])
    index = replace(val_index, root=tmp_path, videos=(replace(val_index.videos[0], path="bad.mp4"), *rest))
    engine = evaluate(bundle, index)
    assert len(engine.ids) == 11
    assert [bad.path for bad in engine.bad_videos] == ["bad.mp4"]
    only = replace(index, videos=index.videos[:1])
    with pytest.raises(FlowlessError, match=r"bad\.mp4|not one of 1"):
        evaluate(bundle, only)


def test_what_is_no_model(tmp_path, val_index):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("hello")
    for name in ("missing", "empty", "text.safetensors"):
        with pytest.raises(FlowlessError, match=name):
            evaluate(tmp_path / name, val_index)


def test_labels_go_by_name(checkpoint, val_index):
    turned = replace(val_index, labels=val_index.labels[::-1])
    unknown = replace(val_index, labels=("swimming", *val_index.labels[1:]))
    names = val_index.labels
    result = evaluate(checkpoint, turned)
    assert [names[label] for label in result.labels] == [turned.labels[video.label] for video in turned.videos]
    with pytest.raises(FlowlessError, match="'swimming'"):
        evaluate(checkpoint, unknown)
    with pytest.raises(FlowlessError, match="no videos"):
        evaluate(checkpoint, replace(val_index, videos=()))
