"""The table of wrong arguments (engines/cpp/tests/bad_input.c), with the bundles that it opens."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowless.engines.bundle.manifest import fingerprint

ENGINE = "openvino-fp32/model.xml"


def changed(bundle: Path, out: Path, change: Callable[[dict[str, Any]], None]) -> None:
    shutil.copytree(bundle, out)
    path = out / "manifest.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def only(*targets: str) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(artefacts=[item for item in document["artefacts"] if item["target"] in targets])


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A bundle of each kind that the table names."""
    (tmp_path / "file").write_text("{}", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for name, text in (("not-json", "{]"), ("foreign", '{"format": "onnx-bundle", "version": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(text, encoding="utf-8")
    changed(built, tmp_path / "whole", only("openvino"))
    whole = tmp_path / "whole"
    changed(whole, tmp_path / "newer", lambda document: document.update(version=2))
    changed(whole, tmp_path / "outside", lambda document: document["artefacts"][0].update(files=["../file"]))
    changed(whole, tmp_path / "link-outside", lambda _: None)
    (tmp_path / "link-outside" / ENGINE).unlink()
    (tmp_path / "link-outside" / ENGINE).symlink_to(whole / ENGINE)
    changed(whole, tmp_path / "damaged-engine", lambda _: None)
    with (tmp_path / "damaged-engine" / ENGINE).open("ab") as stream:
        stream.write(b" ")
    changed(whole, tmp_path / "missing-engine", lambda _: None)
    (tmp_path / "missing-engine" / ENGINE).unlink()
    changed(whole, tmp_path / "no-engines", only())
    changed(built, tmp_path / "tensorrt-only", only("tensorrt-rtx"))
    changed(whole, tmp_path / "broken-graph", lambda _: None)
    broken = tmp_path / "broken-graph"
    (broken / ENGINE).write_text("<net>", encoding="utf-8")
    document = json.loads((broken / "manifest.json").read_text(encoding="utf-8"))
    document["files"][ENGINE] = vars(fingerprint(broken / ENGINE))
    (broken / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    return tmp_path


def test_every_wrong_argument_is_a_status_and_a_sentence(cpp_build: Callable[[str], Path], folder: Path) -> None:
    program = cpp_build("release") / "tests" / "bad_input"
    done = subprocess.run([program, folder / "whole", folder], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("rows, 0 failures\n")
