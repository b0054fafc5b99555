"""The table of targets is whole: names, extras, options and builders agree with what else names them."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from flowless.cli import main
from flowless.engines.targets import TARGETS, Target, find_target, targets_with
from flowless.errors import FlowlessError
from flowless.export.targets.build_options import BuildOptions
from flowless.export.targets.builders import buildable, builder_of

ROOT = Path(__file__).parents[2]


def test_the_type_has_the_tables_names_in_the_tables_order() -> None:
    assert get_args(Target) == tuple(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_the_extra_installs_a_distribution_of_the_target(target: Target) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    library = TARGETS[target]
    installed = project["optional-dependencies"][library.extra] if library.extra else project["dependencies"]
    assert {line.split(">")[0] for line in installed} & set(library.distributions)


def test_every_option_of_a_target_is_a_build_option() -> None:
    known = {item.name for item in fields(BuildOptions)}
    assert {name for library in TARGETS.values() for name in library.options} <= known
    assert targets_with("compute_capabilities") == ("tensorrt-rtx",)
    assert targets_with("batch") == ()


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_a_builder_and_is_listed_once(target: Target) -> None:
    pytest.importorskip("onnx")
    assert callable(builder_of(target))
    can, left_out = buildable()
    assert (target in can) != (target in left_out)


@pytest.mark.parametrize("command", ["build", "predict"])
def test_the_commands_offer_every_target(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    offered = "".join(capsys.readouterr().out.split()).replace("│", "")
    assert ",".join(TARGETS) in offered


def test_a_target_that_does_not_exist() -> None:
    with pytest.raises(FlowlessError, match="target is 'cuda'; it must be one of tensorrt, tensorrt-rtx, openvino, onnxruntime"):
        find_target("cuda")
