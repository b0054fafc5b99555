"""`flowless predict`, and that it needs neither PyTorch nor DALI nor ONNX."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flowless.cli import main

HEAVY = ("torch", "torchvision", "timm", "lightning", "nvidia", "onnx", "onnxscript", "onnx_ir", "safetensors", "matplotlib", "scipy")


def test_json(built, videos, capsys):
    assert main(["predict", str(built), *map(str, videos), "--target", "openvino", "--top", "2", "--json"]) == 0
    out = capsys.readouterr()
    document = json.loads(out.out)
    assert [row["video"] for row in document] == [str(path) for path in videos]
    for row in document:
        assert set(row) == {"video", "top", "target", "precision", "seconds", "decoder"}
        assert set(row["seconds"]) == {"decode", "preprocess", "engine"}
        assert (row["target"], row["precision"]) == ("openvino", "fp32")
        assert len(row["top"]) == 2
        assert set(row["top"][0]) == {"label", "index", "score"}
        assert 1 >= row["top"][0]["score"] >= row["top"][1]["score"] >= 0
    assert "asked for" in out.err


def test_a_video_that_cannot_be_read(built, videos, tmp_path, capsys):
    bad = tmp_path / "bad.mp4"
    bad.write_text("text")
    assert main(["predict", str(built), str(bad), str(videos[0]), "--json"]) == 1
    out = capsys.readouterr()
    first, second = json.loads(out.out)
    assert set(first) == {"video", "error"}
    assert first["video"] == str(bad)
    assert "bad.mp4" in first["error"]
    assert second["top"]
    assert "Traceback" not in out.err


def test_a_table_for_people(built, videos, tmp_path, capsys):
    bad = tmp_path / "bad[red].mp4"
    bad.write_text("text")
    assert main(["predict", str(built), str(videos[0]), str(bad)]) == 1
    out = capsys.readouterr().out
    assert "action" in out
    assert "cannot be read" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["nowhere", "x.mp4"], 1), (["{bundle}"], 1), (["{bundle}", "x.mp4", "--top", "0"], 1), (["{bundle}", "--wrong"], 2)],
)
def test_exit_codes(arguments, code, built, capsys):
    arguments = [word.format(bundle=built) for word in arguments]
    if code == 2:
        with pytest.raises(SystemExit) as stopped:
            main(["predict", *arguments])
        assert stopped.value.code == 2
    else:
        assert main(["predict", *arguments]) == code


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_no_heavy_import(target, built, videos):
    """Blocked libraries fail to import: predict, load and the engines do without."""
    code = f"""
import sys
from pathlib import Path
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)
sys.meta_path.insert(0, Block())
try:
    import torch
except ModuleNotFoundError:
    pass
else:
    sys.exit("the block does not block")
from flowless.cli import main
code = main(["predict", {str(built)!r}, {str(videos[0])!r}, "--target", {target!r}, "--json"])
import flowless, flowless.engines.loading, flowless.cuda_driver, flowless.engines.backends.backend
loaded = sorted(name for name in sys.modules if name.partition(".")[0] in {HEAVY!r})
sys.exit(code or (f"imported: {{loaded}}" if loaded else 0))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["target"] == target


def test_real_clips(built, clips, capsys):
    """Every real video that plays is predicted by both CPU engines alike; the damaged one is named."""
    paths = [str(clips / name) for name in ("short_32_frames.mp4", "corrupted.mp4", "rotated_90.mov", "h264_10bits.mp4")]
    found = {}
    for target in ("openvino", "onnxruntime"):
        assert main(["predict", str(built), *paths, "--target", target, "--json"]) == 1
        found[target] = json.loads(capsys.readouterr().out)
        assert [set(row) == {"video", "error"} for row in found[target]] == [False, True, False, False]
    for one, other in zip(found["openvino"], found["onnxruntime"], strict=True):
        assert [item["index"] for item in one.get("top", [])] == [item["index"] for item in other.get("top", [])]


FIELD = ("sjis.avi", "fate_svq3_watermark.mov", "mir_clockwise_h.mp4", "overlap_cc.ts", "same.ts", "lost1.ts", "gaps_mjpeg.avi")


def test_files_that_users_had_trouble_with(built, clips, capsys, tmp_path):
    """Each is answered; none takes another's answer along."""
    field = clips.parent / "field"
    if not field.is_dir():
        pytest.skip("the folder of such files is not beside the clips")
    paths = [str(field / name) for name in (*FIELD, "dur.ogv", "reschange.webm", "av.mts", "base.mp4")]
    assert main(["predict", str(built), *paths, "--target", "openvino", "--json"]) == 0
    shown = capsys.readouterr()
    rows = json.loads(shown.out)
    assert [row["video"] for row in rows] == paths
    assert all("error" not in row for row in rows)
    warned = {Path(row["video"]).name: row["warning"] for row in rows if "warning" in row}
    assert warned.keys() == {"same.ts", "lost1.ts"}
    assert warned["same.ts"] == "packets are missing after frame 49, or recordings were joined there"
    assert f"{field / 'same.ts'}: {warned['same.ts']}." in shown.err


def test_a_folder_of_pictures(built, tmp_path, videos, capsys):
    from PIL import Image
    from video_files import all_frames

    folder = tmp_path / "film"
    folder.mkdir()
    for number, frame in enumerate(all_frames(videos[0]), start=1):
        Image.fromarray(frame).save(folder / f"{number:05d}.png")
    assert main(["predict", str(built), str(folder), str(videos[0]), "--target", "openvino", "--json"]) == 0
    pictures, film = json.loads(capsys.readouterr().out)
    assert pictures["top"] == film["top"]


def test_a_name_that_is_no_text(built, videos, tmp_path, capsys):
    import os

    path = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    with open(path, "wb") as stream:  # noqa: PTH123
        stream.write(videos[0].read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "flowless", "predict", str(built), path, "--target", "openvino"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"caf" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "flowless", "predict", str(built), path, "--target", "openvino", "--json"], capture_output=True, check=False
    )
    assert json.loads(done.stdout)[0]["top"]


def test_nothing_is_imported_in_a_thread_that_decodes(built, videos):
    """A Ctrl-C in the middle of an import leaves its lock held, and a thread that imports the same waits for ever."""
    code = f"""
import sys
from pathlib import Path
from concurrent.futures import ThreadPoolExecutor
import flowless
from flowless.engines import engine
class Pool(ThreadPoolExecutor):
    def submit(self, function, *arguments):
        before = set(sys.modules)
        def checked(*given):
            made = function(*given)
            new = [name for name in set(sys.modules) - before if name.startswith("flowless")]
            if new: sys.exit(f"imported: {{new}}")
            return made
        return super().submit(checked, *arguments)
engine.ThreadPoolExecutor = Pool
(answer,) = flowless.load({str(built)!r}, "openvino").predict_many([{str(videos[0])!r}])
sys.exit(answer.error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
