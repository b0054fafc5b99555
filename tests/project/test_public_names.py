"""What `import flowless` offers: seven functions, from Python as from the command line, on a generated data set."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import flowless
from flowless.errors import FlowlessError
from flowless.train.evaluation.options import EvaluationOptions


def test_importing_flowless_imports_no_library() -> None:
    code = "import sys, flowless; assert not {'numpy', 'torch', 'av', 'onnx', 'openvino'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("first", ["flowless", "flowless.train", "flowless.export", "flowless.train.models"])
def test_names_are_callable_whatever_was_imported_before(first: str) -> None:
    code = f"import {first}, flowless; assert all(callable(getattr(flowless, name)) for name in flowless.__all__ if name[0] in 'belpst')"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("first", ["flowless", "flowless.export"])
def test_a_process_pool_takes_a_function_whatever_was_imported_before(first: str) -> None:
    code = f"import {first}, flowless, pickle; assert callable(pickle.loads(pickle.dumps(flowless.export)))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert pickle.loads(pickle.dumps(flowless.train)) is copy.deepcopy(flowless.train) is flowless.train


def test_every_public_function_is_documented() -> None:
    for name in ("build", "evaluate", "export", "load", "pack", "scan", "train"):
        function = flowless.__getattr__(name)
        assert "Args:" in (inspect.getdoc(function) or ""), name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        flowless.predict  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_train_refuses_what_it_cannot_combine(shapes: Path) -> None:
    recipe = flowless.train.find_recipe("tsn-r18/tiny")  # pyright: ignore[reportFunctionMemberAccess]
    with pytest.raises(FlowlessError, match="lr"):
        flowless.train(recipe, shapes / "train.index.jsonl", out="unused", lr=0.1)


def test_a_recipe_object_trains_into_the_folder_of_its_name(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "tsn-r18-tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tsn-r18-tiny" / "diary.txt").touch()
    monkeypatch.chdir(tmp_path)
    recipe = flowless.train.find_recipe("tsn-r18/tiny", blocks=1)  # pyright: ignore[reportFunctionMemberAccess]
    for given in (recipe, "tsn-r18/tiny"):
        with pytest.raises(FlowlessError, match="runs/tsn-r18-tiny: holds other files already"):
            flowless.train(given, shapes / "train.index.jsonl")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": "1"}, "epochs is '1'; it must be a whole number"),
        ({"epochs": 1.5}, "epochs is 1.5; it must be a whole number"),
        ({"lr": "0.1"}, "lr is '0.1'; it must be a number"),
        ({"scales": 1.0}, "scales is 1.0; it must be a tuple"),
        ({"flip": "no"}, "flip is 'no'; it must be True or False"),
        ({"workers": 2}, "has no field workers"),
    ],
)
def test_values_of_the_wrong_type_are_refused(shapes: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(FlowlessError, match=message):
        flowless.train("tsn-r18/tiny", shapes / "train.index.jsonl", out="unused", **fields)


def test_arguments_of_the_wrong_kind_are_refused(shapes: Path, tmp_path: Path) -> None:
    nothing: Any = None
    with pytest.raises(FlowlessError, match="recipe is None"):
        flowless.train(nothing, shapes / "train.index.jsonl", out="unused")
    wrong: list[Any] = [None, [1], 3]
    for data in wrong:
        with pytest.raises(FlowlessError, match="is no index"):
            flowless.train("tsn-r18/tiny", data, out="unused")
        with pytest.raises(FlowlessError, match="is no index"):
            flowless.evaluate(tmp_path, data)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FlowlessError, match="target is 'openvino', which chooses an engine of a bundle's folder"):
        flowless.evaluate(tmp_path / "model.safetensors", shapes / "val.index.jsonl", options=EvaluationOptions(target="openvino"))


@pytest.mark.slow
def test_from_videos_to_an_engine(shapes: Path, tmp_path: Path) -> None:
    index = flowless.scan(shapes / "train", out=tmp_path / "train.jsonl", workers=1)
    run = flowless.train("tsn-r18/tiny", index, out=tmp_path / "run", epochs=1, blocks=1)
    assert 0 <= flowless.evaluate(run.best, tmp_path / "train.jsonl").top1 <= 1
    with pytest.raises(FlowlessError, match="must be a list of videos"):
        flowless.export(run.best, tmp_path / "bundle", videos=str(index.path_of(index.videos[0])))
    bundle = flowless.export(run.best, tmp_path / "bundle")
    record = flowless.build(bundle.folder, target="openvino")
    engine = flowless.load(bundle.folder, target="openvino")
    assert engine.precision == record.precision == "fp32"
    with pytest.raises(FlowlessError, match="takes a list of videos"):
        list(engine.predict_many("clip.mp4"))
