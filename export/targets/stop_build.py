"""Ctrl-C while TensorRT builds: the builder is stopped by its progress monitor, and KeyboardInterrupt is raised afterwards."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stop:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def stop_on_ctrl_c() -> Iterator[Stop]:
    """Turn Ctrl-C into a note within the block, and into KeyboardInterrupt at its end.

    An exception in a callback from C++ would end the process; instead a progress monitor reads the note and stops the builder.
    """
    stop = Stop()

    def note(number: int, frame: Any) -> None:
        stop.requested = True

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield stop  # only the main thread receives signals and may set their handlers
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
        if stop.requested:
            raise KeyboardInterrupt


def progress_monitor(trt: Any, stop: Stop) -> Any:
    """Return a progress monitor of `tensorrt` or `tensorrt_rtx` that stops the builder once `stop.requested` is set."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            pass

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not stop.requested

    return Monitor()
