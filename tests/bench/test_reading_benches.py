"""`flowless bench decode`, `fuzz` and `memory`: they find what is wrong, and say what they measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flowless.bench.commands import bench
from flowless.bench.speed import decode, fuzz
from flowless.bench.speed.decode_videos import encoders, moving, write_videos
from flowless.pipeline.video.encode import write_video
from flowless.pipeline.video.reader import VideoReader


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_video(folder / "film.mp4", moving(30, 96, 160), options={"g": "10"})
    write_video(folder / "film.avi", moving(20, 96, 160), codec="mpeg4", options={"g": "10", "bf": "2"})
    (folder / "broken.mp4").write_bytes((folder / "film.mp4").read_bytes()[:2000])
    return folder


def test_decode_compares_every_file(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "decode.json"
    assert bench(["decode", str(films), "--runs", "1", "--out", str(out), "--json"]) == 0
    document = json.loads(out.read_text())
    assert document == json.loads(capsys.readouterr().out)
    rows = {row["file"]: row for row in document["files"]}
    assert {name: row["exact"] for name, row in rows.items()} == {"film.mp4": True, "film.avi": True, "broken.mp4": None}
    assert (rows["film.mp4"]["frames"], rows["film.mp4"]["jumps"], rows["film.avi"]["jumps"]) == (30, True, False)
    assert {"flowless", "flowless, known", "pyav in order"} <= set(rows["film.mp4"]["clips_per_s"])
    assert "damaged or cut off" in rows["broken.mp4"]["reason"]


def test_decode_tells_a_frame_that_is_another(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = VideoReader.frames
    upside_down = lambda video, ordinals: ((ordinal, frame[::-1]) for ordinal, frame in inner(video, ordinals))  # noqa: E731
    monkeypatch.setattr(VideoReader, "frames", upside_down)
    assert bench(["decode", str(films / "film.mp4"), "--runs", "1", "--out", str(tmp_path / "decode.json")]) == 3
    (row,) = json.loads((tmp_path / "decode.json").read_text())["files"]
    assert row["exact"] is False
    assert not row["patterns"]["last"]
    assert row["patterns"]["all in order"]


def test_decode_says_which_peers_frames_are_others(films: Path) -> None:
    path = films / "film.mp4"
    _, small = decode._plain(path)

    def shifted(by: int):
        def read(path: Path, ordinals: list[int]) -> np.ndarray:
            with VideoReader(path) as video:
                return video.stack([ordinal + by for ordinal in ordinals])

        return read

    asked = [0, 9, 20]
    assert decode._right(shifted(0), path, asked, small) is True
    assert decode._right(shifted(3), path, asked, small) is False
    assert decode._right(shifted(30), path, asked, small) is None, "it refuses"


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="FFmpeg's command is not installed")
def test_decode_compares_with_ffmpegs_command(films: Path) -> None:
    full, _ = decode._plain(films / "film.mp4")
    assert decode._as_the_command(films / "film.mp4", full) is True
    assert decode._as_the_command(films / "film.mp4", full[::-1]) is False


def test_videos_of_several_codecs_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"libx264", "mpeg4", "mjpeg"} <= set(encoders())
    monkeypatch.setattr("flowless.bench.speed.decode_videos.encoders", lambda: ["mjpeg", "mpeg4"])
    made = list(write_videos(tmp_path, frames=5))
    assert {"mjpeg.avi", "mpeg4.mp4"} <= {path.name for path in made}
    for path in made:
        assert decode.examined(path, runs=1)["exact"], path.name


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_damage_changes_a_file(kind: str) -> None:
    data = np.random.default_rng(0).bytes(20_000)
    changed = [fuzz.damaged(data, kind, np.random.default_rng(seed)) for seed in range(5)]
    assert all(some != data for some in changed)
    assert changed == [fuzz.damaged(data, kind, np.random.default_rng(seed)) for seed in range(5)]


@pytest.mark.slow
def test_damaged_files_are_read_or_refused(films: Path, tmp_path: Path) -> None:
    words = [str(films / "film.mp4"), str(films / "film.avi"), "--files", "60", "--workers", "1", "--out", str(tmp_path / "fuzz.json")]
    assert bench(["fuzz", *words]) == 0
    document = json.loads((tmp_path / "fuzz.json").read_text())
    assert (document["files"], document["crashes"], document["hangs"], document["unexplained"]) == (60, 0, 0, 0)
    verdicts = {verdict for row in document["by_kind"].values() for verdict in row}
    assert {"read", "refused"} <= verdicts <= {"read", "read in part", "refused"}


@pytest.mark.slow
def test_a_crash_and_a_hang_cost_one_file_each(films: Path, tmp_path: Path) -> None:
    """Processes whose reading ends in a crash, in a sleep, and in an error that nobody foresaw."""
    (tmp_path / "sitecustomize.py").write_text(
        "import flowless.bench.speed.fuzz as fuzz, os, time\n"
        "def verdict(path):\n"
        "    number = int(os.path.basename(path).split('.')[0])\n"
        "    if number == 1: os.abort()\n"
        "    if number == 2: time.sleep(60)\n"
        "    return ('unexplained', 'x') if number == 3 else ('read', '')\n"
        "fuzz._verdict = verdict\n"
    )
    words = ["bench", "fuzz", str(films / "film.mp4"), "--files", "5", "--seconds", "1.5", "--workers", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "flowless", *words, "--out", str(tmp_path / "fuzz.json"), "--keep", str(tmp_path / "kept")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    document = json.loads((tmp_path / "fuzz.json").read_text())
    assert {row["number"]: row["verdict"] for row in document["bad"]} == {1: "crash", 2: "hang", 3: "unexplained"}
    assert (document["files"], document["crashes"], document["hangs"], document["unexplained"]) == (5, 1, 1, 1)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["1.mp4", "2.mp4", "3.mp4"]
