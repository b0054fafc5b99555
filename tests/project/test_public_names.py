"""What `import flowless` offers: six functions, from Python as from the command line, on a generated data set."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import flowless
from flowless.errors import FlowlessError


def test_importing_flowless_imports_no_library() -> None:
    code = "import sys, flowless; assert not {'numpy', 'torch', 'av', 'onnx', 'openvino'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("first", ["flowless", "flowless.train", "flowless.export", "flowless.train.models"])
def test_names_are_callable_whatever_was_imported_before(first: str) -> None:
    code = f"import {first}, flowless; assert all(callable(getattr(flowless, name)) for name in flowless.__all__ if name[0] in 'belst')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_function_is_documented() -> None:
    for name in ("build", "evaluate", "export", "load", "scan", "train"):
        function = flowless.__getattr__(name)
        assert "Args:" in (inspect.getdoc(function) or ""), name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        flowless.predict  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_train_refuses_what_it_cannot_combine(shapes: Path) -> None:
    recipe = flowless.train.find_recipe("tsn-r18/tiny")  # pyright: ignore[reportFunctionMemberAccess]
    with pytest.raises(FlowlessError, match="lr"):
        flowless.train(recipe, shapes / "train.index.jsonl", out="unused", lr=0.1)
    with pytest.raises(FlowlessError, match="out=FOLDER"):
        flowless.train(recipe, shapes / "train.index.jsonl")


@pytest.mark.slow
def test_from_videos_to_an_engine(shapes: Path, tmp_path: Path) -> None:
    index = flowless.scan(shapes / "train", out=tmp_path / "train.jsonl", workers=1)
    run = flowless.train("tsn-r18/tiny", index, out=tmp_path / "run", epochs=1, blocks=1)
    assert 0 <= flowless.evaluate(run.best, tmp_path / "train.jsonl").top1 <= 1
    bundle = flowless.export(run.best, tmp_path / "bundle")
    record = flowless.build(bundle.folder, target="openvino")
    assert flowless.load(bundle.folder, target="openvino").precision == record.precision == "fp32"
