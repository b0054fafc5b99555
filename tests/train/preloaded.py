"""Run `flowless` commands in processes forked after the training libraries are imported, since importing takes most of a short run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["flowless.train.loop.fit"])


class Command:
    """A started `flowless` command; its standard output and error go to files below a folder."""

    def __init__(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True)
        self._output = [folder / name for name in ("stdout", "stderr")]
        # The fork server has the environment of its start, without the changes that a test has made since.
        variables = {**os.environ, **(environment or {})}
        self._process = _context.Process(target=_run, args=(list(arguments), [str(path) for path in self._output], variables))
        self._process.start()

    @property
    def pid(self) -> int | None:
        """The process id."""
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, None while it runs, the negative signal that ended it."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, seconds: float = 240) -> subprocess.CompletedProcess[str]:
        """Wait for the process to end; return its exit code and output."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        stdout, stderr = (path.read_text(encoding="utf-8") if path.exists() else "" for path in self._output)
        return subprocess.CompletedProcess([], self._process.exitcode or 0, stdout, stderr)


def _run(arguments: list[str], output: list[str], environment: dict[str, str]) -> None:
    from flowless.cli import main

    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for number, path in enumerate(output, 1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
