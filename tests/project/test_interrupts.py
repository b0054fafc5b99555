"""Ctrl-C: raised again where PyAV swallows it, stop requests, and worker processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import av.error
import numpy as np
import pytest

from flowless.cli import run_command
from flowless.interrupts import StopRequest, WorkerPool, note_ctrl_c, raise_lost_ctrl_c
from flowless.pipeline.video.container import Unreadable, wrap_io_errors


def ctrl_c_at_the_last_packet(path) -> int:
    """Read a video of 20 packets from a pipe, and interrupt while waiting for its end; return the number of packets read."""
    video = path.with_suffix(".ivf")
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libvpx", rate=10, width=64, height=64, pix_fmt="yuv420p")
        for number in range(20):
            picture = np.full((64, 64, 3), 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    os.mkfifo(path)
    opened = threading.Event()

    def write():
        with path.open("wb", buffering=0) as pipe:
            pipe.write(video.read_bytes())
            opened.wait(30)
            time.sleep(0.2)  # until the other thread has read all data
            # To this thread, so that the read in the other thread is not interrupted: a process's signal may go to any thread.
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with wrap_io_errors(path), av.open(str(path), format="ivf", options={"probesize": "32", "analyzeduration": "0"}) as container:
            opened.set()
            return sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)
    finally:
        opened.set()
        writer.join()


def test_pyav_swallows_ctrl_c(tmp_path):
    """Fails when PyAV is fixed: then `flowless.interrupts` is no longer needed for it."""
    assert ctrl_c_at_the_last_packet(tmp_path / "pipe") == 20


def test_a_swallowed_ctrl_c_is_raised(tmp_path):
    with note_ctrl_c(), pytest.raises(KeyboardInterrupt):
        ctrl_c_at_the_last_packet(tmp_path / "pipe")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_command_that_swallowed_ctrl_c_exits_with_130(tmp_path, capsys):
    assert run_command(lambda: ctrl_c_at_the_last_packet(tmp_path / "pipe")) == 130
    assert "stopped" in capsys.readouterr().err


def test_a_command_that_swallowed_it_anywhere_exits_with_130(capsys):
    def swallow() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    assert run_command(swallow) == 130
    assert "stopped" in capsys.readouterr().err


def test_ctrl_c_during_an_error_is_raised(tmp_path):
    with note_ctrl_c(), pytest.raises(KeyboardInterrupt), wrap_io_errors("a.mp4"):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise av.error.InvalidDataError(1, "damaged") from None


def test_a_raised_ctrl_c_stays_raised():
    with note_ctrl_c(), pytest.raises(KeyboardInterrupt), raise_lost_ctrl_c():
        signal.raise_signal(signal.SIGINT)


def test_without_ctrl_c_the_error_is_kept():
    with note_ctrl_c(), pytest.raises(Unreadable), wrap_io_errors("a.mp4"):
        raise av.error.InvalidDataError(1, "damaged")


def test_an_earlier_ctrl_c_is_not_raised_again():
    with note_ctrl_c():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with raise_lost_ctrl_c():
            pass


def test_stop_request(capfd):
    request = StopRequest("stopping after this step")
    with note_ctrl_c(), request.noted():
        assert not request.made
        signal.raise_signal(signal.SIGINT)
        assert request.made
        assert "stopping after this step" in capfd.readouterr().err
        with raise_lost_ctrl_c():  # a stop request does not count as swallowed
            pass
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with note_ctrl_c(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None], ids=["ignored", "handled"])
def test_other_handlers_are_kept(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with note_ctrl_c(), raise_lost_ctrl_c(), StopRequest("stopping").noted():
            assert signal.getsignal(signal.SIGINT) is handler
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_set_no_handler():
    seen = []

    def record_handler():
        with note_ctrl_c():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=record_handler)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_workers_start_with_sigint_blocked():
    with WorkerPool(1) as pool:
        status = pool.submit(Path("/proc/self/status").read_text).result()
    blocked = next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk"))
    assert int(blocked, 16) & 1 << signal.SIGINT - 1
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def imports_numpy(process: str) -> bool:
    try:
        return "_multiarray_umath" in Path(f"/proc/{process}/maps").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_starting_workers_ignore_ctrl_c(tmp_path):
    """Ctrl-C reaches them too; during their imports it would print a traceback each."""
    command = [sys.executable, "-m", "flowless", "shapes", str(tmp_path / "shapes"), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, process_group=0)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(imports_numpy(child) for child in children.read_text().split()):
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 130, log
    assert "Traceback" not in log
    assert not (tmp_path / "shapes").exists()


def test_ctrl_c_during_imports():
    code = """
import sys
class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == "flowless.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Pressed())
from flowless.__main__ import run
sys.exit(run())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "flowless: stopped.\n")
