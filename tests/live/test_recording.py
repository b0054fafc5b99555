"""Recordings of sources: read back, cut into files, stopped by a full disk."""

from __future__ import annotations

import itertools
import re
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from made_items import Camera, file_size_limit

from flowless.engines.live.outputs.board import Board
from flowless.engines.live.outputs.recording import Recorder, _stems
from flowless.engines.live.records import SourceChange
from flowless.errors import FlowlessError
from flowless.pipeline.video.encode import write_video
from flowless.pipeline.video.reader import VideoReader


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@contextmanager
def recording(folder: Path, board: Board, camera: Camera, seconds: float = 60):
    reports: list[str] = []
    with Recorder(folder, board, camera.picture, seconds=seconds, report=reports.append):
        yield reports


def test_a_recording_is_read_back(tmp_path):
    board, camera = Board(["cam/1"]), Camera(height=241, width=321, fps=20)
    board.see(SourceChange(source="cam/1", state="running"))
    with recording(tmp_path, board, camera) as reports:
        time.sleep(1.2)
        assert all(path.name.startswith(".") for path in tmp_path.iterdir()), "a file appears when it is complete"
    assert not reports
    (path,) = tmp_path.iterdir()
    assert re.fullmatch(r"cam_1-\d{8}-\d{6}\.mp4", path.name)
    with VideoReader(path) as video:
        info, frames = video.info, list(video)
        seconds = float((info.pts[-1] - info.pts[0]) * info.time_base)
    assert frames[0].shape == (240, 320, 3)
    assert 12 <= len(frames) <= 26
    greys = [int(frame[120, 160, 0]) for frame in frames]
    assert all(later > earlier for earlier, later in itertools.pairwise(greys)), "each frame once, in order"
    assert 0.7 < seconds < 1.6, "in real time"


def test_another_size_begins_another_file(tmp_path):
    board, camera = Board(["cam"]), Camera()
    with recording(tmp_path, board, camera):
        time.sleep(0.4)
        camera.size = (480, 640)
        time.sleep(0.4)
    sizes = []
    for path in sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_ino):
        with VideoReader(path) as video:
            sizes.append(next(iter(video)).shape)
    assert sorted(sizes) == [(240, 320, 3), (480, 640, 3)]


def test_files_end_after_the_time_that_is_named(tmp_path):
    with recording(tmp_path, Board(["cam"]), Camera(), seconds=0.3):
        time.sleep(1.1)
    assert 3 <= len(list(tmp_path.iterdir())) <= 4


def test_names_of_sources_become_different_files(tmp_path):
    with recording(tmp_path, Board(["rtsp://a/1", "rtsp://a?1", "..", "RTSP://A/1"]), Camera()):
        time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) == 4
    assert all(path.parent == tmp_path and not path.name.startswith(".") for path in tmp_path.iterdir())


def test_a_number_that_makes_a_name_different_is_no_other_name():
    assert len(set(_stems(["x-2", "x", "x."]))) == 3


def test_a_full_disk_ends_recording_with_one_line(tmp_path):
    board, camera = Board(["cam"]), Camera(height=480, width=640)
    camera.picture = lambda _: np.random.default_rng().integers(0, 255, (480, 640, 3), np.uint8)  # type: ignore[method-assign]
    with file_size_limit(300_000), recording(tmp_path, board, camera) as reports:
        until = time.monotonic() + 20
        while not reports and time.monotonic() < until:
            time.sleep(0.05)
    (line,) = reports
    assert line.startswith("cam is no longer recorded, watching goes on")
    assert "disk is full" in line
    assert not list(tmp_path.iterdir())


def test_a_slow_encoder_leaves_frames_out(tmp_path):
    """A camera faster than any encoder: what is recorded is fewer frames, in real time, and memory holds one."""
    board, camera = Board(["cam"]), Camera(height=1080, width=1920, fps=2000)
    begin = time.monotonic()
    with recording(tmp_path, board, camera):
        time.sleep(1)
    assert time.monotonic() - begin < 2.5, "nothing was queued"
    (path,) = tmp_path.iterdir()
    with VideoReader(path) as video:
        assert 1 <= sum(1 for _ in video) < 500


def test_a_disk_that_is_full_while_a_video_is_written(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 240, 320, 3), np.uint8)
    with file_size_limit(100_000), pytest.raises(FlowlessError, match="the disk is full"):
        write_video(tmp_path / "video.mp4", noise)
    assert not list(tmp_path.iterdir())
