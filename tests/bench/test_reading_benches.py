"""`flowless bench decode` and `memory`, and the fuzzer: they find what is wrong, and record what they measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import codec_videos
import fuzz_decoding
import numpy as np
import other_readers
import pytest

from flowless.bench.commands import bench
from flowless.bench.lib.run_bench import BenchArgs, run_bench
from flowless.bench.lib.sample_videos import sample_frames
from flowless.bench.speed import decode, memory
from flowless.errors import FlowlessError
from flowless.pipeline import scan
from flowless.pipeline.video.encode import write_video
from flowless.pipeline.video.reader import VideoReader


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    frames = list(sample_frames(np.random.default_rng(0), width=160, height=96, frames=30))
    write_video(folder / "film.mp4", frames, options={"g": "10"})
    write_video(folder / "film.avi", frames[:20], codec="mpeg4", options={"g": "10", "bf": "2"})
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


def test_decode_reports_a_wrong_frame(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = VideoReader.frames
    upside_down = lambda video, ordinals: ((ordinal, frame[::-1]) for ordinal, frame in inner(video, ordinals))  # noqa: E731
    monkeypatch.setattr(VideoReader, "frames", upside_down)
    assert bench(["decode", str(films / "film.mp4"), "--runs", "1", "--out", str(tmp_path / "decode.json")]) == 3
    (row,) = json.loads((tmp_path / "decode.json").read_text())["files"]
    assert row["exact"] is False
    assert not row["patterns"]["last"]
    assert row["patterns"]["all in order"]


def test_decode_counts_readers_whose_frames_are_others(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(by: int) -> other_readers.Read:
        def read(path: Path, ordinals: list[int]) -> np.ndarray:
            with VideoReader(path) as video:
                return video.stack([ordinal + by if ordinal < 20 else ordinal - by for ordinal in ordinals])

        return read

    readers = {"exact": shifted(0), "shifted": shifted(3), "failing": shifted(90)}
    monkeypatch.setattr(other_readers, "installed_readers", lambda: readers)
    assert bench(["decode", str(films / "film.mp4"), "--runs", "1", "--out", str(tmp_path / "decode.json")]) == 0
    document = json.loads((tmp_path / "decode.json").read_text())
    (row,) = document["files"]
    assert row["peers_right"] == {"exact": True, "shifted": False, "failing": None}
    assert document["peers"]["shifted"] == {"right": 0, "others": 1, "none": 0}
    assert {"exact", "shifted"} <= set(row["clips_per_s"])
    assert "failing" not in row["clips_per_s"]


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="FFmpeg's command is not installed")
def test_ffmpegs_command_gives_the_frames_of_a_full_decode(films: Path) -> None:
    path = films / "film.mp4"
    frames = other_readers.frames_of_ffmpegs_command(path, frame_bytes=3 * 96 * 160)
    assert frames is not None
    assert list(frames) == [frame.tobytes() for frame in other_readers.full_decode(path)]


def test_videos_of_several_codecs_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"libx264", "mpeg4", "mjpeg"} <= set(codec_videos.encoders())
    monkeypatch.setattr(codec_videos, "encoders", lambda: ["mjpeg", "mpeg4"])
    made = list(codec_videos.write_videos(tmp_path, frames=5))
    assert {"mjpeg.avi", "mpeg4.mp4"} <= {path.name for path in made}
    for path in made:
        assert decode.examined(path, runs=1)["exact"], path.name


def test_memory_is_recorded_after_every_200_clips(films: Path, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    (tmp_path / "films").mkdir()
    shutil.copytree(films, tmp_path / "films" / "class")
    index = scan(tmp_path / "films", out=tmp_path / "films.jsonl")
    found = memory._resident_over(index, 400)
    assert list(found) == [200, 400]
    assert 0 < found[200] <= memory._peak_of_a_batch(index, 2)


def test_a_process_that_is_killed_is_an_error_with_a_reason(tmp_path: Path) -> None:
    def measure(_: BenchArgs) -> dict[str, object]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(os.abort).result()

    with pytest.raises(FlowlessError, match=r"bench memory: a process was killed, as happens when memory runs out"):
        run_bench("memory", BenchArgs, ["--out", str(tmp_path / "out.json")], measure=measure, tables=lambda _: [])


@pytest.mark.parametrize("kind", fuzz_decoding.KINDS)
def test_damage_changes_a_file(kind: str) -> None:
    data = np.random.default_rng(0).bytes(20_000)
    changed = [fuzz_decoding.damaged(data, kind, np.random.default_rng(seed)) for seed in range(5)]
    assert all(some != data for some in changed)
    assert changed == [fuzz_decoding.damaged(data, kind, np.random.default_rng(seed)) for seed in range(5)]


def run_fuzzer(*args: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, fuzz_decoding.__file__, *map(str, args), "--workers", "1"]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_damaged_files_are_read_or_refused(films: Path, tmp_path: Path) -> None:
    done = run_fuzzer(films / "film.mp4", films / "film.avi", "--files", 60, "--out", tmp_path / "fuzz.json")
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "fuzz.json").read_text())
    assert (document["files"], document["crashes"], document["hangs"], document["unexplained"]) == (60, 0, 0, 0)
    verdicts = {verdict for row in document["by_kind"].values() for verdict in row}
    assert {"read", "refused"} <= verdicts <= {"read", "read in part", "refused"}


@pytest.mark.slow
def test_a_crash_and_a_hang_cost_one_file_each(films: Path, tmp_path: Path) -> None:
    """Processes whose reading ends in a crash, in a sleep, and in an unforeseen error."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\n"
        "from types import SimpleNamespace\n"
        "import flowless.pipeline.dataset.scan_jobs as jobs\n"
        "inspect = jobs.inspect_file\n"
        "def reading(job):\n"
        "    number = int(os.path.basename(job.path).split('.')[0])\n"
        "    if number == 1: os.abort()\n"
        "    if number == 2: time.sleep(60)\n"
        "    return SimpleNamespace(reason='reading failed (x)') if number == 3 else inspect(job)\n"
        "jobs.inspect_file = reading\n"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    args = [films / "film.mp4", "--files", 5, "--seconds", 1.5, "--out", tmp_path / "fuzz.json", "--keep", tmp_path / "kept"]
    done = run_fuzzer(*args, PYTHONPATH=paths)
    assert done.returncode == 3, done.stderr
    document = json.loads((tmp_path / "fuzz.json").read_text())
    assert {row["number"]: row["verdict"] for row in document["bad"]} == {1: "crash", 2: "hang", 3: "unexplained"}
    assert (document["files"], document["crashes"], document["hangs"], document["unexplained"]) == (5, 1, 1, 1)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["1.mp4", "2.mp4", "3.mp4"]
