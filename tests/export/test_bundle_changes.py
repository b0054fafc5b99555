"""Changes of a bundle wait for each other."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from flowless.engines.bundle.manifest import read_manifest
from flowless.export.bundle_changes import keep_trials, open_draft


def test_a_change_waits_until_the_draft_of_another_is_closed(exported: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    bundle = Path(shutil.copytree(exported, tmp_path / "bundle"))
    other = threading.Thread(target=keep_trials, args=(bundle, [{"target": "openvino", "precision": "fp16"}]))
    with open_draft(bundle, "openvino", "fp16"):
        other.start()
        other.join(0.3)
        assert other.is_alive()
        assert read_manifest(bundle).trials == ()
    other.join(20)
    assert read_manifest(bundle).trials == ({"target": "openvino", "precision": "fp16"},)
    assert {path.name for path in bundle.iterdir()} == {"manifest.json", "model.onnx", "reference.npz"}, "the draft was not committed"
