"""The processes of `flowless bench neighbours`, from the side of the command that starts and ends them."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowless.errors import FlowlessError
from flowless.thread_waiting import DECIDED_BY

#: What libgomp, ONNX Runtime and OpenVINO do where nobody says anything: the policy keeps flowless from changing it, and the count is
#: libgomp's own default, without which that policy would have threads wait awake for minutes.
BY_DEFAULT = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "300000"}
#: Seconds in which a worker must be ready, or end a piece of its work.
_PATIENCE = 900.0
#: Seconds after which the pieces that are there must do, one of each worker at least.
_ENOUGH = 20.0


@dataclass(frozen=True)
class Piece:
    """One piece of work that was done."""

    start: float
    """Seconds of the system's monotonic clock."""
    end: float
    cpu_s: float
    """Processor time of all threads."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


class Worker:
    """A process that works between `go` and `stop`; see `neighbours_work.py`. It is ready when this returns, and ended by `close`.

    Args:
        kind: What it does; `busy` keeps a core busy from its start to its end.
        folder: The inputs; its log is written there too.
        by_default: Let its threads wait as the libraries have it, not as flowless does.

    Raises:
        FlowlessError: It fails; the last line of its log is in the error.
    """

    def __init__(self, kind: str, folder: Path, *, by_default: bool = False) -> None:
        self.kind = kind
        environment = {name: value for name, value in os.environ.items() if name not in DECIDED_BY}
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        number = len(list(folder.glob("worker-*.log")))
        self._log = folder / f"worker-{number}.log"
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C is for the command, which ends its workers.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flowless.bench.speed.neighbours_work", kind, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                # What DALI writes for its own use stays where it is removed with all else, however the worker ends.
                env=environment | {"TMPDIR": str(folder)} | (BY_DEFAULT if by_default else {}),
                start_new_session=True,
            )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        try:
            self._next("ready")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def go(self) -> None:
        """Let it work."""
        self._send("go")

    def stop(self) -> list[Piece]:
        """Let it finish the piece that it is at, and return those that nobody has asked for yet."""
        self._send("stop")
        pieces = []
        while "stopped" not in (message := self._next()):
            pieces.append(Piece(**message))
        return pieces

    def piece(self) -> Piece:
        """Wait for the next piece of work."""
        return Piece(**self._next("cpu_s"))

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _send(self, word: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: whoever waits for its answer says why
            self._process.stdin.write(f"{word}\n".encode("ascii"))

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._messages.put(json.loads(line))
        self._messages.put(None)

    def _next(self, key: str = "") -> dict[str, Any]:
        try:
            message = self._messages.get(timeout=_PATIENCE)
        except queue.Empty:
            raise FlowlessError(f"bench neighbours: {self.kind} did nothing for {_PATIENCE:g} s.") from None
        if message is None or (key and key not in message):
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
            raise FlowlessError(f"bench neighbours: {self.kind} failed: {lines[-1]}")
        return message


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Let a polite end (SIGTERM) clean up as Ctrl-C does: processes are ended, files removed."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def side_by_side(workers: Sequence[Worker], count: int) -> list[Piece]:
    """Let workers work at the same time until each has done `count` pieces, fewer where they take long.

    Returns:
        All pieces that ended while all worked.
    """
    for worker in workers:
        worker.go()
    late = time.monotonic() + _ENOUGH
    found = []
    for worker in workers:
        own = [worker.piece()]
        while len(own) < count and time.monotonic() < late:
            own.append(worker.piece())
        found += own
    until = time.monotonic()
    for worker in workers:
        found += worker.stop()
    # What ends later may have had the cores of one that had stopped.
    return [piece for piece in found if piece.end <= until]
