"""Ctrl-C: what a library loses of it is raised again, and worker processes leave it to the one that uses them.

Python raises `KeyboardInterrupt` in whatever code looks for signals next. PyAV is built by Cython for CPython's limited API; there a
function that raises runs a line of Python to add itself to the traceback, and drops what that line raises. A Ctrl-C that comes while
the last packet of a file is read meets that line, so the command went on as if nothing had been pressed.
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
    """Count each Ctrl-C, which raises KeyboardInterrupt as before; for a command's main thread.

    Where Ctrl-C is ignored (in the background of a script) or answered otherwise already, it stays so.
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
    """Raise KeyboardInterrupt at the end of a block in which `note_ctrl_c` counted one and the block went on, or failed otherwise.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, and lost.
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
    """Ctrl-C as a request to stop at the next good place; pressed once more, it raises KeyboardInterrupt as ever.

    Args:
        answer: One line that the first Ctrl-C prints to standard error.

    Attributes:
        made: Whether Ctrl-C was pressed within `noted`.
    """

    def __init__(self, answer: str) -> None:
        self.made = False
        self._answer = answer

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Answer Ctrl-C so until the block ends; where it is ignored or answered otherwise than by `note_ctrl_c`, it stays so."""
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
        os.write(2, f"\n{self._answer}\n".encode())  # not print: the signal may come in the middle of one


class WorkerPool(ProcessPoolExecutor):
    """Processes that leave Ctrl-C, which a terminal sends to every process, to the one that uses them.

    They are spawned: a fork would copy the caller's threads (PyTorch's, libav's, the progress bar's) in the middle of a step. They do not
    run the caller's script again, as spawned processes else do; what they are given to do lies in modules that can be imported.

    Args:
        workers: How many, at least 1.
    """

    def __init__(self, workers: int) -> None:
        super().__init__(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_ignore_ctrl_c)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Do as `ProcessPoolExecutor.submit`; the processes that it starts are deaf to Ctrl-C from their first moment on."""
        with _ctrl_c_held_back(), _script_left_out():
            return super().submit(fn, *args, **kwargs)


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Hold Ctrl-C back until the block is done, and for good in every process that is started meanwhile.

    A process inherits what is blocked. Here that is not enough: the system gives the signal to any thread, and Python answers it in
    the main one, in the middle of what a process is handed at its start.
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
def _script_left_out() -> Iterator[None]:
    """Have processes that are started meanwhile not import the script that runs: one without a `__main__` guard would start them again."""
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
