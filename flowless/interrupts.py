"""Ctrl-C: a KeyboardInterrupt that a library swallows is raised again, and worker processes ignore the signal.

Python raises `KeyboardInterrupt` in the code that next checks for signals. PyAV is built by Cython for CPython's limited API; there a
function that raises runs a line of Python to add itself to the traceback, and drops any exception raised in that line. A Ctrl-C while
the last packet of a file is read is raised in that line and lost.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

_pressed: list[None] = []


@contextmanager
def note_ctrl_c() -> Iterator[None]:
    """Count each Ctrl-C, which still raises KeyboardInterrupt; has an effect in the main thread only.

    Where SIGINT is ignored (in a script's background job) or has another handler, that stays.
    """
    here = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if here:
        signal.signal(signal.SIGINT, _note)
    try:
        yield
    finally:
        if here:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def raise_lost_ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt at the end of the block if `note_ctrl_c` counted a Ctrl-C that the block swallowed.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, and the block completed or raised another exception.
    """
    before = len(_pressed)
    try:
        yield
    except Exception:
        if len(_pressed) != before:
            raise KeyboardInterrupt from None
        raise
    if len(_pressed) != before:
        raise KeyboardInterrupt


class StopRequest:
    """The first Ctrl-C requests a graceful stop; a second one raises KeyboardInterrupt as usual.

    Args:
        message: One line that the first Ctrl-C prints to standard error.

    Attributes:
        made: Whether Ctrl-C was pressed within `noted`.
    """

    def __init__(self, message: str) -> None:
        self.made = False
        self._message = message

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Handle Ctrl-C this way within the block, unless SIGINT is ignored or has another handler than `note_ctrl_c`'s."""
        with note_ctrl_c():
            here = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is _note
            if here:
                signal.signal(signal.SIGINT, self._request)
            try:
                yield
            finally:
                if here:
                    signal.signal(signal.SIGINT, _note)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.made:
            _note(number, frame)
        self.made = True
        os.write(2, f"\n{self._message}\n".encode())  # not print(): the signal may interrupt another print()


class WorkerPool(ProcessPoolExecutor):
    """A process pool whose workers ignore Ctrl-C, which a terminal sends to every process of its group.

    Workers are spawned: a fork would copy the caller's threads (PyTorch's, libav's, the progress bar's) in an undefined state. Unlike
    other spawned processes they do not import the caller's script again, so submitted functions must be importable from modules.

    Args:
        workers: Number of processes, at least 1.
    """

    def __init__(self, workers: int) -> None:
        super().__init__(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_ignore_ctrl_c)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Like `ProcessPoolExecutor.submit`; worker processes that it starts ignore Ctrl-C from their start."""
        with _defer_ctrl_c(), _hide_main_script():
            return super().submit(fn, *args, **kwargs)


@contextmanager
def _defer_ctrl_c() -> Iterator[None]:
    """Defer Ctrl-C to the end of the block; processes that are started within it inherit the blocked signal.

    Blocking is not enough in this process: the system may deliver the signal to any thread, and Python then runs the handler in the
    main thread, while a worker is being started.
    """
    pressed: list[FrameType | None] = []
    handler = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread() and callable(handler)
    if main:
        signal.signal(signal.SIGINT, lambda _, frame: pressed.append(frame))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if hasattr(signal, "pthread_sigmask") else None  # not on Windows
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if main:
            signal.signal(signal.SIGINT, handler)
        if pressed and callable(handler):
            handler(signal.SIGINT, pressed[0])


@contextmanager
def _hide_main_script() -> Iterator[None]:
    """Keep processes that are started within the block from importing the main script: without a `__main__` guard it would run again."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _note(number: int, frame: FrameType | None) -> None:
    _pressed.append(None)
    signal.default_int_handler(number, frame)
