"""The average over views, logits or softmax, is the same in every command: engine, evaluation, accuracy gate and explanation.

A network's last layer is solved so that the three crops of one video score (9, 0, 0), (0, 3, 0), (0, 3, 0). Then the mean of the logits
is highest for class 0, and the mean of the softmax for class 1.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import flowless
from flowless.cli import main
from flowless.engines.backends.backend import open_backend
from flowless.engines.bundle.manifest import MANIFEST, read_manifest
from flowless.errors import FlowlessError
from flowless.export.explain.explain_video import explain_video
from flowless.export.explain.introspection import open_model
from flowless.export.export_bundle import export_bundle
from flowless.export.verify.accuracy import compare_accuracy
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.dataset.scan import scan
from flowless.pipeline.video.encode import write_video
from flowless.train.checkpoints import load_checkpoint, save_checkpoint
from flowless.train.evaluation import evaluate_checkpoint
from flowless.train.evaluation.evaluate import evaluate
from flowless.train.evaluation.options import EvaluationOptions
from flowless.train.models import build_model

CROP_SCORES = np.array([[9, 0, 0], [0, 3, 0], [0, 3, 0]], np.float64)
SPEC = ClipSpec(segments=4, frames_per_segment=1, height=32, width=32, short_side=40, crop="three", average="softmax")
SHARES = np.exp(CROP_SCORES) / np.exp(CROP_SCORES).sum(1, keepdims=True)
#: Class 1 by the mean of the probabilities, class 0 by the mean of the logits.
SOFTMAX, LOGITS = np.log(SHARES.mean(0)), CROP_SCORES.mean(0)
LABELS = ("first", "second", "third")


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> DatasetIndex:
    """The same wide video under each of three labels; its left, middle and right parts differ."""
    folder = tmp_path_factory.mktemp("wide")
    rng = np.random.default_rng(0)
    film = rng.integers(0, 256, (12, 5, 15, 3)).astype(np.uint8).repeat(8, 1).repeat(8, 2)
    film[:, :, :40] //= 3
    film[:, :, 80:, 1:] //= 4
    for label in LABELS:
        (folder / label).mkdir()
        write_video(folder / label / "film.mp4", film)
    return scan(folder, out=folder / "index.jsonl", workers=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, index) -> Path:
    torch.manual_seed(0)
    model = build_model("tsn-r18", classes=3, spec=SPEC, width=0.25, blocks=1).eval()
    views = torch.from_numpy(load_clip(index.path_of(index.videos[0]), SPEC))
    (head,) = model.heads
    features: list[torch.Tensor] = []
    handle = head.register_forward_hook(lambda _, given, __: features.append(given[0].mean(1)))
    with torch.inference_mode():
        model(views)
    handle.remove()
    weight, *_ = np.linalg.lstsq(features[0].double().numpy(), CROP_SCORES, rcond=None)
    head.get_parameter("pred.weight").data = torch.from_numpy(weight.T.copy()).float()
    head.get_parameter("pred.bias").data.zero_()
    with torch.inference_mode():
        np.testing.assert_allclose(model(views).numpy(), CROP_SCORES, atol=1e-3)
    path = tmp_path_factory.mktemp("model") / "best.safetensors"
    recipe = {"name": "tsn-r18/ours", "test_views": "thirty-draw"}
    return save_checkpoint(path, model, model_name="tsn-r18", recipe=recipe, spec=SPEC, labels=LABELS, metrics={})


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, checkpoint) -> dict[str, Path]:
    """One bundle for each average; they differ only in the manifest and the graph's metadata."""
    folder, loaded = tmp_path_factory.mktemp("bundles"), load_checkpoint(checkpoint)
    for average in ("softmax", "logits"):
        export_bundle(replace(loaded, spec=replace(SPEC, average=average)), folder / average)
    return {average: folder / average for average in ("softmax", "logits")}


EXPECTED = {"softmax": SOFTMAX, "logits": LOGITS}


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_an_engine(average, bundles, index, capsys):
    engine, path = flowless.load(bundles[average]), index.path_of(index.videos[0])
    for prediction in (engine.predict(path), *engine.predict_many([path])):
        assert prediction.scores is not None
        np.testing.assert_allclose(prediction.scores, EXPECTED[average], atol=2e-3)
        assert prediction.top[0].label == {"softmax": "second", "logits": "first"}[average]
        shares = SHARES.mean(0) if average == "softmax" else np.exp(LOGITS) / np.exp(LOGITS).sum()
        np.testing.assert_allclose([item.score for item in prediction.top], np.sort(shares)[::-1], atol=2e-3)
    capsys.readouterr()
    assert main(["predict", str(bundles[average]), str(path), "--top", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["top"][0]["index"] == EXPECTED[average].argmax()


@pytest.mark.parametrize("average", ["softmax", "logits"])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_an_evaluation_of_a_bundle(average, batch_size, bundles, index):
    found = evaluate(bundles[average], index, options=EvaluationOptions(batch_size=batch_size))
    np.testing.assert_allclose(found.scores, [EXPECTED[average]] * 3, atol=2e-3)
    assert [item["predicted"] for item in found.to_dict()["predictions"]] == [LABELS[EXPECTED[average].argmax()]] * 3
    assert found.to_dict()["average"] == average


@pytest.mark.parametrize("average", [None, "softmax", "logits"])
@pytest.mark.parametrize("loader_views", [2, 3])
def test_an_evaluation_of_a_checkpoint(average, loader_views, checkpoint, index, monkeypatch):
    """Both view by view, and with the loader, as on a GPU. By default the checkpoint's average is taken."""
    called = []
    monkeypatch.setattr(evaluate_checkpoint, "_LOADER_VIEWS", loader_views)
    for name in ("score_videos", "_score_with_loader"):
        inner = getattr(evaluate_checkpoint, name)
        monkeypatch.setattr(evaluate_checkpoint, name, lambda *a, inner=inner, name=name, **k: called.append(name) or inner(*a, **k))
    found = evaluate(checkpoint, index, options=EvaluationOptions(average=average, batch_size=2))
    assert called == ["_score_with_loader" if loader_views == 3 else "score_videos"]
    np.testing.assert_allclose(found.scores, [EXPECTED[average or "softmax"]] * 3, atol=2e-3)
    assert (found.spec.average, found.views) == (average or "softmax", "three-crop")


def test_the_command_line(checkpoint, index, tmp_path, capsys):
    data = ["--data", str(index.root / "index.jsonl"), "--json"]
    for average, place in (("logits", 0), ("softmax", 1)):
        assert main(["evaluate", str(checkpoint), *data, "--average", average]) == 0
        assert [sum(row) for row in zip(*json.loads(capsys.readouterr().out)["confusion"], strict=True)][place] == 3
        assert main(["export", str(checkpoint), "--out", str(tmp_path / average), "--average", average, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["clip"]["average"] == average
        graph = onnx.load(tmp_path / average / read_manifest(tmp_path / average).graph)
        assert json.loads({item.key: item.value for item in graph.metadata_props}["flowless.clip"])["average"] == average
        assert evaluate(tmp_path / average, index).scores.argmax(1).tolist() == [place] * 3
    assert main(["evaluate", str(checkpoint), *data[:2]]) == 0
    assert "three-crop: 3 views of 32 x 32, softmax averaged" in " ".join(capsys.readouterr().out.split())


def test_views_paper_takes_the_recipes_protocol(checkpoint, bundles, index, tmp_path, capsys):
    """A checkpoint takes the recipe's `test_views`; a bundle has no recipe and is refused."""
    found = evaluate(checkpoint, index, options=EvaluationOptions(views="paper"))
    assert (found.views, found.spec.views, found.spec.crop_side) == ("thirty-draw", 30, 40)
    with pytest.raises(FlowlessError, match=r"a bundle has no recipe.*thirty-draw"):
        evaluate(bundles["softmax"], index, options=EvaluationOptions(views="paper"))
    loaded = load_checkpoint(checkpoint)
    with pytest.raises(FlowlessError, match=r"the model's recipe \(tsn-r18/else\) names no test protocol"):
        evaluate(replace(loaded, recipe={"name": "tsn-r18/else"}), index, options=EvaluationOptions(views="paper"))
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "paper"), "--views", "paper"]) == 0
    again = evaluate(tmp_path / "paper", index)
    assert again.views == "thirty-draw"
    np.testing.assert_allclose(again.scores, found.scores, atol=0.01)
    for record, scores in zip(index.videos, again.scores, strict=True):
        prediction = flowless.load(tmp_path / "paper").predict(index.path_of(record))
        assert prediction.scores is not None
        np.testing.assert_allclose(prediction.scores, scores, atol=1e-4)


def test_compare_accuracy_averages_the_same(bundles, index):
    for average, bundle in bundles.items():
        manifest = read_manifest(bundle)
        artefact = manifest.artefact("onnxruntime", "fp32")
        assert artefact is not None
        backend = open_backend(artefact, manifest.path_of(artefact.files[0]), classes=3)
        rest = tuple(record for record in index.videos if index.labels[record.label] == "second")
        replace(index, videos=rest).save(bundle / "second.jsonl")
        found = compare_accuracy(backend, backend, manifest, bundle / "second.jsonl", what="x")
        assert (found.videos, found.top1, found.exact_top1) == (1, *[float(average == "softmax")] * 2)


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_an_explanation_has_the_scores_of_a_prediction(average, bundles, index):
    found = explain_video(open_model(bundles[average]), index.path_of(index.videos[0]))
    np.testing.assert_allclose(found.scores, EXPECTED[average], atol=2e-3)
    np.testing.assert_allclose(found.branch_scores, [EXPECTED[average]], atol=2e-3)
    assert found.top[0].index == EXPECTED[average].argmax()


def test_older_checkpoints_and_bundles_average_logits(checkpoint, bundles, index, tmp_path):
    """Checkpoints and bundles written before the fields `average` and `crop_side` existed."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(checkpoint, framework="pt") as file:
        document = json.loads(file.metadata()["flowless"])
    document["spec"] = {name: value for name, value in document["spec"].items() if name not in {"average", "crop_side"}}
    older = tmp_path / "older.safetensors"
    save_file(load_file(checkpoint), older, metadata={"flowless": json.dumps(document)})
    np.testing.assert_allclose(evaluate(older, index).scores, [LOGITS] * 3, atol=2e-3)

    manifest = json.loads((bundles["softmax"] / MANIFEST).read_text())
    del manifest["spec"]["average"], manifest["spec"]["crop_side"]
    copy = tmp_path / "bundle"
    copy.mkdir()
    for file in bundles["softmax"].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / MANIFEST).write_text(json.dumps(manifest))
    prediction = flowless.load(copy).predict(index.path_of(index.videos[0]))
    assert prediction.scores is not None
    np.testing.assert_allclose(prediction.scores, LOGITS, atol=2e-3)
