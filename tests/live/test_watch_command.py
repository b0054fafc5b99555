"""`flowless watch` as a real process, on generated videos and a real clip: lines, page, metrics, recordings, and how it ends."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from flowless.cli import main
from flowless.pipeline.video.encode import write_video
from flowless.pipeline.video.reader import VideoReader

#: Of a network with random weights, whose probabilities are low, every change of the most likely class is an event.
SENSITIVE = ("--begin-above", "0.3", "--begin-after", "0", "--end-below", "0.3", "--end-after", "0", "--smooth", "0")


@pytest.fixture(scope="session")
def film(once) -> Path:
    """20 seconds of moving noise, 25 frames a second, each part of it other noise."""

    def make(path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (10, 12, 12, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        write_video(path, (np.roll(noise[index // 50], 2 * index, axis=1) for index in range(500)))

    return once("film-of-20-seconds.mp4", make)


@contextmanager
def watching(*arguments: object, **how) -> Iterator[subprocess.Popen[str]]:
    """Run the command in its own process; end it with the block."""
    command = [sys.executable, "-m", "flowless", "watch", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how) as process:
        try:
            yield process
        finally:
            process.kill()


def watched(*arguments: object) -> tuple[int, list[dict], str]:
    """Run the command to its end with --json; return its exit code, its lines and what it printed to standard error."""
    with watching(*arguments, "--json") as process:
        out, err = process.communicate(timeout=60)
        return process.returncode, [json.loads(line) for line in out.splitlines()], err


def url_of(process: subprocess.Popen[str], what: str) -> str:
    """Read standard error until it says where the page or the metrics are."""
    assert process.stderr is not None
    for line in process.stderr:
        if match := re.search(rf"{what}: (http://\S+)", line):
            return match[1]
    raise AssertionError(f"it ended with {process.wait()} and no address")


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read()


def test_json_lines_of_files(exported, videos, tmp_path):
    out = tmp_path / "lines.jsonl"
    out.write_text('{"kind": "earlier"}\n')
    code, lines, err = watched(exported, f"one={videos[0]}", videos[1], "--pace", "max", "--top", "2", "--out", out, *SENSITIVE)
    assert code == 0, err
    assert {line["kind"] for line in lines} == {"answer", "event", "source"}
    for name in ("one", str(videos[1])):
        own = [line for line in lines if line["source"] == name]
        assert [line["state"] for line in own if line["kind"] == "source"] == ["connecting", "running", "ended"]
        scored = [line for line in own if line["kind"] == "answer"]
        assert [line["frame"] for line in scored] == list(range(24))
        assert all(line["dropped"] == 0 and len(line["top"]) == 2 and line["latency"] > 0 for line in scored)
        assert all(line["label"] == line["top"][0]["label"] and line["score"] == line["top"][0]["score"] for line in scored)
        stamps = {line["pts_ns"]: line for line in scored}
        assert list(stamps) == sorted(stamps)
        events = [line for line in own if line["kind"] == "event"]
        assert len(events) % 2 == 0, "what began has ended"
        for event in events:
            assert stamps[event["begin_ns"]]["label"] == event["label"]
            assert stamps[event["peak_ns"]]["score"] == pytest.approx(event["peak"])
    assert out.read_text().splitlines()[0] == '{"kind": "earlier"}'
    assert [json.loads(line) for line in out.read_text().splitlines()[1:]] == lines


def test_a_real_clip_for_people(exported, clips):
    with watching(exported, f"arms={clips / 'arm_wrestling.mp4'}", "--every", "10", "--pace", "max", *SENSITIVE) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d  arms", line) for line in lines)
    assert any("arms is running" in line for line in lines)
    assert re.search(r"arms: action \d began, score 0\.\d\d\n", out)
    assert re.search(r"arms: action \d ended after \d+\.\d s, highest score 0\.\d\d\n", out)
    assert "scored/s" in err
    assert "ended" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no source was named"),
        (("ftp://camera/1",), "ftp://camera/1: it cannot be watched"),
        (("film", "--page", "70000"), "--page is '70000'"),
        (("film", "--metrics", "::1:80"), "--metrics is '::1:80'"),
        (("film", "--begin-above", "1.5"), "begin_above is 1.5"),
        (("film", "--background", "action 1", "--background", "action"), "background is 'action', which is no label"),
        (("film", "--for", "0"), "--for is 0.0"),
        (("film", "--for", "1e12"), "--for is 1000000000000.0"),
        (("film", "--every", "0"), "every is 0"),
        (("film", "--record-minutes", "nan"), "--record-minutes is nan"),
        (("film", "--record", "{file}"), "this is a file; it must be a folder"),
        (("film", "--record", "{file}/folder"), "cannot write there"),
        (("film", "--out", "{file}/lines.jsonl"), "cannot be opened to append to it"),
        (("film", "--out", "{bundle}/manifest.json"), "does not have these lines"),
        (("{video}", "--out", "{video}"), "does not have these lines"),
        (("film", "--page", "{port}"), "cannot listen there (Address already in use)"),
        (("film", "--metrics", "{port}"), "cannot listen there (Address already in use)"),
    ],
)
def test_what_is_refused_before_anything_is_opened(arguments, message, exported, videos, tmp_path, capsys, monkeypatch):
    def opened(*_: object) -> None:
        raise AssertionError("a source was opened")

    monkeypatch.setattr("flowless.engines.live.watcher.Watcher", opened)
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        values = {"file": tmp_path / "file", "port": taken.getsockname()[1], "bundle": exported, "video": videos[0]}
        assert main(["watch", str(exported), *(text.format(**values) for text in arguments)]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_source_that_cannot_be_read_harms_no_other(exported, videos, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_text("text")
    code, lines, err = watched(exported, f"bad={bad}", f"good={videos[0]}", "--pace", "max")
    assert code == 1
    (failed,) = [line for line in lines if line["kind"] == "source" and line["state"] == "failed"]
    assert failed["source"] == "bad"
    assert failed["reason"]
    assert f"flowless: bad: {failed['reason']}" in err
    assert sum(line["kind"] == "answer" for line in lines) == 24
    assert "Traceback" not in err


def test_metrics_without_the_library(exported, film, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main(["watch", str(exported), str(film), "--metrics", "0"]) == 1
    assert "flowless[live]" in capsys.readouterr().err


def next_jpeg(response) -> np.ndarray:
    """Read one picture of an MJPEG response."""
    assert response.readline().startswith(b"--")
    headers = dict(line.decode().strip().split(": ") for line in iter(response.readline, b"\r\n"))
    assert headers["Content-Type"] == "image/jpeg"
    picture = np.asarray(Image.open(io.BytesIO(response.read(int(headers["Content-Length"])))))
    assert response.readline() == b"\r\n"
    return picture


def test_page_metrics_and_recordings_until_ctrl_c(exported, film, tmp_path):
    arguments = (exported, f"front door={film}", f"yard={film}", "--page", "0", "--metrics", "0", "--record", tmp_path / "films")
    with watching(*arguments, "--out", tmp_path / "lines.jsonl", *SENSITIVE) as process:
        page, metrics = url_of(process, "page"), url_of(process, "metrics")
        assert b"flowless watch" in fetch(page)
        with urllib.request.urlopen(f"{page}video/1", timeout=10) as response:
            assert response.headers["Content-Type"].startswith("multipart/x-mixed-replace; boundary=")
            pictures = [next_jpeg(response) for _ in range(8)]
        assert pictures[-1].shape == (288, 288, 3)
        assert (pictures[-1][100:200] != pictures[0][100:200]).any()
        time.sleep(1)
        sources = json.loads(fetch(f"{page}sources.json"))["sources"]
        assert [(row["name"], row["state"]) for row in sources] == [("front door", "running"), ("yard", "running")]
        assert all(row["fps"] == pytest.approx(25, rel=0.3) and row["label"].startswith("action") and row["runs"] for row in sources)
        for url in (metrics, f"{page}metrics"):
            families = {family.name: family for family in text_string_to_metric_families(fetch(url).decode())}
            values = {(sample.name, sample.labels.get("source")): sample.value for family in families.values() for sample in family.samples}
            assert values["flowless_source_up", "yard"] == 1
            assert values["flowless_frames_total", "yard"] >= values["flowless_scored_frames_total", "yard"] > 10
            assert values["flowless_dropped_frames_total", "yard"] >= 0
            assert values["flowless_reconnects_total", "yard"] == 0
            assert 0 <= values["flowless_scored_frames_total", "yard"] - values["flowless_latency_seconds_count", "yard"] <= 2
            assert values["flowless_latency_seconds_sum", "yard"] > 0
            assert values["flowless_batch_size_sum", None] >= values["flowless_batch_size_count", None] > 10
            assert values["flowless_engine_seconds_sum", None] > 0
        process.send_signal(signal.SIGINT)
        pressed = time.monotonic()
        out, err = process.communicate(timeout=10)
        took = time.monotonic() - pressed
    assert process.returncode == 130
    assert took < 2, "a second, and what a shared machine adds"
    assert "Traceback" not in err
    assert err.rstrip().endswith("flowless: stopped.")
    assert "ended" in out
    files = sorted(path.name for path in (tmp_path / "films").iterdir())
    assert len(files) == 2
    assert all(name.endswith(".mp4") and not name.startswith(".") for name in files), "whole files and nothing else"
    for name in files:
        with VideoReader(tmp_path / "films" / name) as video:
            frames = list(video)
        assert len(frames) > 10
        assert frames[0].shape == (288, 288, 3)
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    events = [line for line in lines if line["kind"] == "event"]
    assert sum(line["state"] == "began" for line in events) == sum(line["state"] == "ended" for line in events) > 0


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)])
def test_signals_while_every_source_is_missing(how, code, exported, request):
    # Under nohup SIGHUP is ignored, also by what the tests start.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, before))
    with watching(exported, "rtsp://127.0.0.1:9/none", "--json") as process:
        assert process.stdout is not None
        while json.loads(process.stdout.readline())["state"] != "waiting":
            pass
        process.send_signal(how)
        sent = time.monotonic()
        _, err = process.communicate(timeout=10)
    assert process.returncode == code
    assert time.monotonic() - sent < 2
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_network_camera_that_is_lost_and_comes_back(exported, rtsp, stream_files, tmp_path):
    server = rtsp(password="secret", cam=stream_files["wide"])
    address = f"door={server.url('cam', 'camera:secret@')}"
    arguments = (exported, address, "--retry-seconds", "0.2", "--page", "0", "--json", "--record", tmp_path / "films")
    with watching(*arguments, "--begin-above", "0.01", "--begin-after", "0", "--end-below", "0.01") as process:
        page = url_of(process, "page")
        assert process.stdout is not None
        lines: list[dict] = []

        def read_until(kind: str, state: str | None = None) -> None:
            assert process.stdout is not None
            while not lines or lines[-1]["kind"] != kind or (state and lines[-1]["state"] != state):
                lines.append(json.loads(process.stdout.readline()))

        read_until("answer")
        time.sleep(1)
        server.kill()
        read_until("event", "ended")
        read_until("source", "waiting")
        with urllib.request.urlopen(f"{page}video/0", timeout=10) as response:
            assert next_jpeg(response).shape == (288, 384, 3), "the last frame, with why there is no newer one"
        server.start()
        read_until("source", "running")
        lines.append({"kind": "after"})
        read_until("answer")
        (row,) = json.loads(fetch(f"{page}sources.json"))["sources"]
        assert (row["state"], row["reconnects"] > 0) == ("running", True)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert {line["why_ended"] for line in lines if line["kind"] == "event" and line["state"] == "ended"} == {"source"}
    assert "secret" not in err + json.dumps(lines)
    assert "Traceback" not in err
    for path in (tmp_path / "films").iterdir():
        with VideoReader(path) as video:
            assert next(iter(video)).shape == (288, 384, 3)


def test_a_reader_that_goes_away_ends_it(exported, film, tmp_path):
    with watching(exported, film, "--json", "--record", tmp_path / "films") as process:
        assert process.stdout is not None
        while json.loads(process.stdout.readline())["kind"] != "answer":
            pass
        time.sleep(0.5)
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        assert process.wait(10) == 0
    assert "Traceback" not in err
    assert "Broken" not in err
    (path,) = (tmp_path / "films").iterdir()
    with VideoReader(path) as video:
        assert sum(1 for _ in video) > 3


def bytes_in(pipe: int) -> int:
    """Return how many bytes wait in a pipe."""
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]


def test_ctrl_c_while_the_reader_is_stuck(exported, film):
    with watching(exported, film, "--json", "--pace", "max", *SENSITIVE) as process:  # an event goes on, whose end is not read
        assert process.stdout is not None
        process.stdout.readline()
        waiting = -1
        while waiting != (now := bytes_in(process.stdout.fileno())):
            waiting = now
            time.sleep(0.5)
        assert waiting > 4096, "the pipe is full"
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        assert process.wait(10) == 130
        assert time.monotonic() - sent < 2


def test_an_end_after_a_time(exported, film):
    begin = time.monotonic()
    code, lines, err = watched(exported, film, "--for", "1", "--every", "5")
    assert code == 0, err
    scored = [line for line in lines if line["kind"] == "answer"]
    assert all(line["frame"] % 5 == 0 for line in scored)
    assert 1 <= len(scored) <= 7
    assert time.monotonic() - begin < 15


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_a_table_in_a_terminal(exported, film):
    import pty

    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
    command = [sys.executable, "-m", "flowless", "watch", str(exported), f"door={film}", "--for", "1.5", *SENSITIVE]
    with subprocess.Popen(command, stdout=follower, stderr=follower, stdin=follower, env=environment) as process:
        os.close(follower)
        text = b""
        while select.select([leader], [], [], 30)[0]:
            try:
                text += os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
        assert process.wait() == 0
    os.close(leader)
    shown = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", text).decode()
    assert shown.count("p50/p99, ms") > 3, "drawn again and again"
    assert re.search(r"│ door\s+│ running\s+│ \d+\.\d\s+│ \d+\.\d\s+│ \d+\s+│ \d+/\d+\s+│ action \d\s+│ 0\.\d\d", shown)
    assert "door: action" in shown
    assert text.count(b"\x1b[?25l") == text.count(b"\x1b[?25h"), "the cursor is shown again"
