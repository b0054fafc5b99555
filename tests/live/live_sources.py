"""What the tests of watching share: moving noise, the names of sources' threads, an RTSP server's process."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

#: Debian's Python, to which its `gi` belongs.
PYTHON = "/usr/bin/python3"
_SCRIPT = Path(__file__).with_name("rtsp_server.py")


def moving(count: int, *, size: tuple[int, int], step: int = 3) -> Iterator[np.ndarray]:
    """Yield noise that moves to the right."""
    rows, columns = size
    coarse = np.random.default_rng(step).integers(0, 256, (rows // 8, columns // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return (np.roll(coarse, step * number, axis=1) for number in range(count))


def source_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("flowless-source")]


class RtspServer:
    """A server process; it keeps its port when it is started again."""

    def __init__(self, *, password: str = "", **files: Path) -> None:
        self._password, self.files, self.port = password, files, 0
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        named = [f"{name}={file}" for name, file in self.files.items()]
        until = time.monotonic() + 10
        while True:
            # The port of a server that was killed may take a moment to be free.
            command = [PYTHON, str(_SCRIPT), str(self.port), self._password, *named]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            assert self._process.stdout is not None
            port = int(self._process.stdout.readline() or -1)
            if port > 0:
                self.port = port
                return
            self.kill()
            assert time.monotonic() < until, "the RTSP server does not start"

    def url(self, name: str, user: str = "") -> str:
        return f"rtsp://{user}127.0.0.1:{self.port}/{name}"

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.communicate()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
