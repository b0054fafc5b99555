"""Polygraphy as the one front of TensorRT and TensorRT-RTX: quiet, its messages kept, stopped by Ctrl-C without leaving anything.

Polygraphy decides once for a process which of the two it speaks, when it is imported. So each gets a copy of Polygraphy of its
own, and while a front is open that copy is the imported one.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import onnx

from flowless.engines.backends.backend import LIBRARIES
from flowless.engines.backends.tensorrt_backend import listener_of
from flowless.errors import FlowlessError

_SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"
_copies: dict[str, dict[str, ModuleType]] = {}
#: How the parser reports an operator: "In node 5 with name: conv1 and operator: Foo (function): CODE: reason".
_NODE = re.compile(r"In node -?\d+ with name: ?(?P<node>.*?) ?and operator: (?P<operator>\S*) \([^)]*\): \w+: (?P<reason>.*)", re.DOTALL)
#: The node of the graph itself, where the operator stands in a function's body and has no name.
_OUTER = re.compile(r"Node name: (\S+)")
_QUOTED = re.compile(r'"([^"]+)"')


@dataclass(frozen=True)
class Front:
    """An open front."""

    target: str
    """`tensorrt` or `tensorrt-rtx`."""
    trt: Any
    """The module `tensorrt` or `tensorrt_rtx`."""
    backend: Any
    """`polygraphy.backend.trt`, speaking to that module."""
    said: list[str]
    """Errors that TensorRT and Polygraphy told of so far."""

    @property
    def name(self) -> str:
        """The library and its version, for people."""
        return f"{self.target} {self.trt.__version__}"

    def because(self) -> str:
        """Return what was told, each reason once, or that nothing was."""
        return "; ".join(dict.fromkeys(self.said)) or "it says no more"

    def parse(self, proto: onnx.ModelProto) -> tuple[Any, Any, Any]:
        """Return builder, network and parser of a graph; the parser owns the weights and must outlive the build.

        Raises:
            FlowlessError: The library refuses the graph; operator and node are named.
        """
        # The one kind of network from TensorRT 11 on, which may then have no name for it.
        strongly = hasattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
        try:
            return self.backend.NetworkFromOnnxBytes(proto.SerializeToString(), strongly_typed=strongly)()
        except Exception as error:
            if not _from_polygraphy(error):
                raise
            reason = _node(self.said) or self.because()
            raise FlowlessError(f"{self.name} does not take the graph: {reason}. Build another target.") from error


@contextlib.contextmanager
def open_front(target: str) -> Iterator[Front]:
    """Open Polygraphy for `tensorrt` or `tensorrt-rtx`; whatever it and TensorRT say is kept and not printed."""
    listener = listener_of(_module(target))
    listener.said.clear()
    with _polygraphy(target):
        backend = importlib.import_module("polygraphy.backend.trt")
        logger = importlib.import_module("polygraphy.logger").G_LOGGER
        # Polygraphy's own listener ends the process at Ctrl-C, and what was half written would stay.
        util: Any = importlib.import_module("polygraphy.backend.trt.util")
        util.TRT_LOGGER = listener
        logger.colors = logger.letter = False
        logger.use_python_logging_system = True
        keeper = _Keeper(listener.said)
        channel = logging.getLogger("Polygraphy")
        before = channel.propagate
        channel.addHandler(keeper)
        channel.propagate = False
        try:
            with logger.verbosity(logger.ERROR), warnings.catch_warnings():
                # Polygraphy sets a timing cache in TensorRT-RTX too, where that does nothing and is deprecated.
                warnings.simplefilter("ignore", DeprecationWarning)
                yield Front(target, _module(target), backend, listener.said)
        finally:
            channel.removeHandler(keeper)
            channel.propagate = before


class Stop:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        """Start without."""
        self.asked = False


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """Turn Ctrl-C into a note for the time of a build, and into KeyboardInterrupt after it.

    An exception inside a call-back from C++ would end the process on the spot; a progress monitor reads the note and has the
    builder stop by itself.
    """
    stop = Stop()

    def note(number: int, frame: Any) -> None:
        stop.asked = True

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield stop  # only the main thread receives signals, and may say what they do
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
        if stop.asked:
            raise KeyboardInterrupt


def progress_monitor(trt: Any, stop: Stop) -> Any:
    """Return a progress monitor that has the builder stop once `stop` is asked for."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            pass

        def phase_finish(self, phase_name: str) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not stop.asked

    return Monitor()


class _Keeper(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(" ".join(record.getMessage().split()))


@contextlib.contextmanager
def _polygraphy(target: str) -> Iterator[None]:
    """Have `import polygraphy` mean this target's copy."""
    others, variable = _taken(), os.environ.get(_SWITCH)
    sys.modules.update(_copies.get(target, {}))
    os.environ[_SWITCH] = "1" if target == "tensorrt-rtx" else "0"
    try:
        yield
    finally:
        _copies[target] = _taken()
        sys.modules.update(others)
        if variable is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = variable


def _taken() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name == "polygraphy" or name.startswith("polygraphy.")]
    return {name: sys.modules.pop(name) for name in names}


def _module(target: str) -> Any:
    return importlib.import_module(LIBRARIES[target][0])


def _from_polygraphy(error: Exception) -> bool:
    return any(kind.__module__.startswith("polygraphy.") for kind in type(error).__mro__)


def _node(said: list[str]) -> str | None:
    """Return which operator of which node the parser refused, and why, from what it told."""
    found = next((found for text in said if (found := _NODE.search(text))), None)
    if found is None:
        return None
    outer = next((named[1] for text in said if (named := _OUTER.search(text))), "")
    quoted = _QUOTED.search(found["reason"])
    reason = (quoted[1] if quoted else found["reason"]).strip().rstrip(".?")
    return f"operator {found['operator']} of node {found['node'] or outer!r}: {reason}"
