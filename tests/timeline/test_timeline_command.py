"""`flowless timeline`: segments at known borders, its JSON, its page, bad videos, Ctrl-C, and the base install alone."""

from __future__ import annotations

import importlib.util
import io
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowless.cli import main
from flowless.engines.engine import Engine
from flowless.engines.timeline import TimelineOptions, timeline, timeline_command, timeline_page
from flowless.engines.timeline.thumbnails import Thumbnails
from flowless.engines.timeline.timeline_page import render
from flowless.errors import FlowlessError
from flowless.pipeline.video.encode import write_video

#: What is shown, and for how many seconds.
SCENES = (("grey", 2.0), ("red", 3.0), ("grey", 1.5), ("blue", 1.0), ("green", 2.5), ("grey", 1.0))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, colours: dict) -> Path:
    """A video of SCENES at 20 frames a second."""
    path = tmp_path_factory.mktemp("scenes") / "scenes.mp4"
    frames = (np.full((64, 96, 3), colours[name], np.uint8) for name, seconds in SCENES for _ in range(round(20 * seconds)))
    write_video(path, frames, fps=20)
    return path


def borders() -> list[tuple[str, float, float]]:
    ends = np.cumsum([seconds for _, seconds in SCENES]).tolist()
    return [(name, start, end) for (name, _), start, end in zip(SCENES, [0.0, *ends], ends, strict=False) if name != "grey"]


def test_known_borders_are_found(colour_engine: Engine, scenes: Path) -> None:
    """Within half a window and a stride: a window over a border is scored by its sampled frames."""
    made = timeline(colour_engine, scenes, TimelineOptions(window=0.5, stride=0.1, background=("grey",), detections=True))
    assert [item.label for item in made.segments] == [name for name, *_ in borders()]
    for item, (name, start, end) in zip(made.segments, borders(), strict=True):
        assert item.label == name
        assert item.start == pytest.approx(start, abs=0.2)
        assert item.end == pytest.approx(end, abs=0.2)
        assert start < item.peak < end
        assert item.score > 0.8
    assert {item.label for item in made.detections} == {"red", "green", "blue"}


def test_json_of_the_command(built: Path, videos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--window", "0.4", "--stride", "0.1", "--threshold", "0.01", "--background", "action 0", "action 1"]
    assert main(["timeline", str(built), str(videos[0]), *options, "--scores", "--detections", "--target", "openvino", "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert document["video"] == str(videos[0])
    assert (document["seconds"], document["frames"], document["window"], document["stride"]) == (0.96, 24, 0.4, 0.1)
    assert (document["target"], document["precision"], document["background"]) == ("openvino", "fp32", ["action 0", "action 1"])
    assert document["windows"] == len(document["scores"]["windows"]) == 7
    for row in document["scores"]["windows"]:
        assert sum(row["probabilities"]) == pytest.approx(1)
        assert len(row["probabilities"]) == len(document["scores"]["labels"]) == 6
    assert document["segments"]
    assert all(set(item) == {"start", "end", "label", "index", "score", "peak"} for item in document["segments"])
    assert all(0 <= item["start"] < item["end"] <= 0.96 for item in document["segments"])
    assert not {"action 0", "action 1"} & {item["label"] for item in document["detections"]}
    assert not {"error", "warnings"} & set(document)


def test_a_folder_for_each_video(built: Path, videos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, other = tmp_path / "bad.mp4", tmp_path / "other" / videos[0].name
    bad.write_text("text")
    other.parent.mkdir()
    other.write_bytes(videos[1].read_bytes())
    out = tmp_path / "out"
    command = ["timeline", str(built), *map(str, (videos[0], bad, other)), "--window", "0.4", "--stride", "0.1", "--out", str(out)]
    assert main(command) == 1
    shown = capsys.readouterr()
    assert "cannot be read" in " ".join(shown.out.split())
    assert "bad.mp4" in shown.err
    assert "Traceback" not in shown.err
    assert sorted(path.name for path in out.iterdir()) == [videos[0].name, f"{videos[0].name}-2"]
    for folder, video in ((videos[0].name, videos[0]), (f"{videos[0].name}-2", other)):
        assert sorted(path.name for path in (out / folder).iterdir()) == ["page.html", "timeline.json"]
        assert json.loads((out / folder / "timeline.json").read_text())["video"] == str(video)
    assert f"written: {out}" in "".join(shown.out.split("\n"))
    assert main(["timeline", str(built), str(bad), "--out", str(tmp_path / "nothing")]) == 1
    assert "written" not in capsys.readouterr().out
    # The same command again replaces what it wrote, and nothing else.
    assert main(command) == 1
    (out / videos[0].name / "timeline.json").unlink()
    assert main(command) == 1
    assert "it is there already and is no timeline" in capsys.readouterr().err
    assert (out / videos[0].name / "page.html").exists()


def test_a_damaged_video_keeps_what_comes_before(built: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["timeline", str(built), str(clips / "corrupted.mp4"), "--window", "1", "--threshold", "0.01"]
    assert main([*command, "--out", str(tmp_path / "out"), "--json"]) == 1
    shown = capsys.readouterr()
    (document,) = json.loads(shown.out)
    assert "damaged near frame 28" in document["error"]
    assert document["segments"][-1]["end"] <= document["scored_to"] == 2.5
    page = (tmp_path / "out" / "corrupted.mp4" / "page.html").read_text()
    assert "The timeline ends at 0:02.50" in page
    assert "damaged near frame 28" in page
    assert "The timeline ends at 0:02.50" in shown.err


def test_labels_that_the_model_lacks_and_no_video(built: Path, videos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["timeline", str(built), str(videos[0]), "--background", "nothing"]) == 1
    assert "background is 'nothing', and the model has no such label. Its labels: action 0, action 1" in capsys.readouterr().err
    assert main(["timeline", str(built)]) == 1
    assert "no video was named" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused_at_once(
    built: Path, videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Engine, "__call__", lambda *_: pytest.fail("a window was scored"))
    (tmp_path / "file").write_text("text")
    assert main(["timeline", str(built), str(videos[0]), "--out", str(tmp_path / "file")]) == 1
    assert "cannot write there" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing_half_written(
    built: Path, videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = 0
    score = Engine.__call__

    def pressed(self: Engine, clip: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return score(self, clip)

    monkeypatch.setattr(Engine, "__call__", pressed)
    options = ["--window", "0.4", "--stride", "0.04", "--out", str(tmp_path / "out")]
    assert main(["timeline", str(built), str(videos[0]), str(videos[1]), *options]) == 130
    assert [path.name for path in (tmp_path / "out").iterdir()] == [videos[0].name], "the first was done, the second was not"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("flowless-decode")]


def test_ctrl_c_while_a_page_is_made(built: Path, videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(timeline_page, "render", pressed)
    assert main(["timeline", str(built), str(videos[0]), "--window", "0.5", "--out", str(tmp_path / "out")]) == 130
    assert not list((tmp_path / "out").iterdir())


def test_without_jinja2_the_json_is_written(
    built: Path, videos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(timeline_command.importlib.util, "find_spec", lambda name: None if name == "jinja2" else find(name))
    assert main(["timeline", str(built), str(videos[0]), "--window", "0.5", "--out", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out" / videos[0].name).iterdir()] == ["timeline.json"]
    assert "pip install 'flowless[train]'" in capsys.readouterr().err


def test_the_base_install_is_enough(built: Path, videos: list[Path], run_bare) -> None:
    done = run_bare(["-m", "flowless", "timeline", built, videos[0], "--window", "0.5", "--stride", "0.1", "--threshold", "0.01", "--json"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["segments"]


def test_the_page_shows_every_segment_and_needs_nothing(colour_engine: Engine, scenes: Path) -> None:
    options = TimelineOptions(window=0.5, stride=0.1, background=("grey",), detections=True)
    with Thumbnails(0.1) as pictures:
        made = timeline(colour_engine, scenes, options, see=pictures.add)
        page = render(made, pictures)
    assert "<script" not in page
    assert "src=" in page
    assert not [part for part in page.split("src=")[1:] if not part.startswith('"data:image/jpeg;base64,')]
    assert "http" not in page
    assert page.count('<figure class="card">') == len(made.segments) == 3
    assert page.count("<polyline") == 3
    for item in made.segments:
        assert f'title="{item.label}: ' in page


def test_thumbnails_are_of_the_moment(colour_engine: Engine, scenes: Path, colours: dict) -> None:
    with Thumbnails(0.25) as pictures:
        timeline(colour_engine, scenes, TimelineOptions(window=0.5, stride=0.1), see=pictures.add)
        for name, start, end in borders():
            for at in np.linspace(start + 0.3, end - 0.3, 5):
                jpeg = pictures.nearest(float(at))
                assert jpeg is not None
                mean = np.asarray(Image.open(io.BytesIO(jpeg)), float).mean(axis=(0, 1))
                assert np.abs(mean - colours[name]).max() < 12, (name, at)
        assert len(pictures._times) <= 11 / 0.25 + 1


def test_the_nearest_thumbnail() -> None:
    with Thumbnails(1) as pictures:
        assert pictures.nearest(0) is None
        for seconds in (0.0, 0.5, 1.0, 2.0):
            pictures.add(seconds, np.full((40, 60, 3), 100 * seconds, np.uint8))
        for seconds, value in ((-1, 0), (0.4, 0), (0.6, 100), (1.4, 100), (1.6, 200), (9, 200)):
            jpeg = pictures.nearest(seconds)
            assert jpeg is not None
            assert abs(np.asarray(Image.open(io.BytesIO(jpeg)), float).mean() - value) < 3, seconds


@pytest.mark.parametrize("segments", [1, 300])
def test_pages_of_any_length(segments: int, colour_engine: Engine, scenes: Path) -> None:
    """Rows of a round length; every segment lies in the row of its time."""
    made = timeline(colour_engine, scenes, TimelineOptions(window=0.5, stride=0.1))
    (first, *_) = made.segments
    many = tuple(replace(first, start=12.0 * at, end=12.0 * at + 9, peak=12.0 * at + 4) for at in range(segments))
    with Thumbnails(1) as pictures:
        page = render(replace(made, segments=many, seconds=12.0 * segments, windows=made.windows), pictures)
    assert page.count('<figure class="card">') == segments
    assert page.count('<div class="row">') == (1 if segments == 1 else 6)
    assert page.count('<b style="left') >= segments


def test_a_wrong_option_is_one_line(built: Path, videos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["timeline", str(built), str(videos[0]), "--threshold", "2"])
    except FlowlessError:
        pytest.fail("a traceback")
    assert code == 1
    assert "threshold is 2.0; it must be a number above 0, at most 1" in capsys.readouterr().err


def test_a_process_ends_by_sigint(built: Path, tmp_path: Path) -> None:
    """The signal itself, while a long video is read."""
    path = tmp_path / "long.mp4"
    write_video(path, (np.full((64, 64, 3), at % 200, np.uint8) for at in range(4000)), options={"preset": "ultrafast"})
    command = [sys.executable, "-m", "flowless", "timeline", str(built), str(path), "--window", "1", "--stride", "0.04"]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    process.stderr.readline()  # which engine it is, so the videos are next
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kind", ["file", "hidden file", "folder", "link"])
def test_what_others_put_into_a_folder_is_not_deleted(kind: str, built: Path, videos: list[Path], tmp_path: Path, capsys) -> None:
    command = ["timeline", str(built), str(videos[0]), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    folder = tmp_path / "out" / videos[0].name
    if kind == "link":
        folder.rename(tmp_path / "moved")
        folder.symlink_to(tmp_path / "moved")
        kept = tmp_path / "moved" / "timeline.json"
    else:
        kept = folder / (".notes" if kind == "hidden file" else "notes")
        kept.mkdir() if kind == "folder" else kept.write_text("mine")
    capsys.readouterr()
    assert main(command) == 1
    assert "Traceback" not in (shown := capsys.readouterr().err)
    assert ("is no timeline" if kind == "link" else "which is not this command's") in " ".join(shown.split())
    assert kept.exists()
    assert folder.is_symlink() == (kind == "link")
