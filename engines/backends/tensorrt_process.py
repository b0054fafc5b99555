"""TensorRT's state in this process: its logger and its plugin registry, each of which all engines of the process share."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowless.engines.targets import TARGETS, Target

#: Name, version and namespace of the PA op's plugin, as the graph's nodes name it.
PLUGIN = ("PersistenceOfAppearance", "1", "flowless")


class ErrorMessages:
    """Errors that TensorRT logged within one `TensorRtProcess.errors` block."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __str__(self) -> str:
        """Each message once, in one line."""
        return "; ".join(dict.fromkeys(self.texts)) or "it gives no reason"


class TensorRtProcess:
    """Owns what `tensorrt` or `tensorrt_rtx` shares between all builders and engines of a process; see `tensorrt_process`.

    - The logger: TensorRT keeps a bare pointer to the first logger that it is given, so there is one, which is never destroyed. It prints
      nothing. Errors go to the `errors` blocks of the thread that caused them, so that two engines in two threads do not read each
      other's; an error from one of TensorRT's own threads goes to every open block.
    - The plugin registry: a plugin stays registered until the process ends, and from then on the parser takes it for every PA node, even
      where the graph has the op's function body.

    Its methods may be called from several threads. Runtimes, engines and execution contexts belong to one engine each and are not shared.

    Attributes:
        target: `tensorrt` or `tensorrt-rtx`.
        trt: The module.
        logger: The logger, for every object of the module that takes one.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.trt: Any = importlib.import_module(TARGETS[target].module)
        # Two locks, so that a message of one of TensorRT's own threads does not wait for a plugin that is being registered.
        self._registry_lock, self._messages_lock = threading.RLock(), threading.RLock()
        self._open: list[tuple[int, ErrorMessages]] = []
        self.logger: Any = _make_logger(self.trt, self._record)

    @property
    def name(self) -> str:
        """The target and the library's version, for messages."""
        return f"{self.target} {self.trt.__version__}"

    @contextmanager
    def errors(self) -> Iterator[ErrorMessages]:
        """Collect the errors that are logged within the block."""
        entry = (threading.get_ident(), ErrorMessages())
        with self._messages_lock:
            self._open.append(entry)
        try:
            yield entry[1]
        finally:
            with self._messages_lock:
                self._open = [other for other in self._open if other is not entry]

    def _record(self, text: str) -> None:
        thread, line = threading.get_ident(), " ".join(text.split())
        with self._messages_lock:
            own = [messages for ident, messages in self._open if ident == thread]
            for messages in own or [messages for _, messages in self._open]:
                messages.texts.append(line)

    def plugin_kind(self) -> str | None:
        """Return TensorRT's name for the kind of the PA op's registered plugin creator; None where none is registered."""
        with self._registry_lock:
            for item in self.trt.get_plugin_registry().all_creators:
                if (item.name, item.plugin_version, item.plugin_namespace) == PLUGIN:
                    return item.interface_info.kind
        return None

    def load_plugin(self, library: str | Path) -> str | None:
        """Register the PA op's plugin from a shared library, unless one is registered; return the kind of the registered plugin.

        The library stays loaded until the process ends. Returns None where TensorRT does not register the plugin from it.
        """
        with self._registry_lock:
            if self.plugin_kind() is None:
                self.trt.get_plugin_registry().load_library(str(Path(library).absolute()))
            return self.plugin_kind()


_lock = threading.Lock()
_processes: dict[Target, TensorRtProcess] = {}


def tensorrt_process(target: Target) -> TensorRtProcess:
    """Return the process's one `TensorRtProcess` of `tensorrt` or `tensorrt-rtx`; importing the module may raise ImportError or OSError."""
    with _lock:
        if target not in _processes:
            _processes[target] = TensorRtProcess(target)
        return _processes[target]


def _make_logger(trt: Any, record: Any) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                record(text)

    return Logger()
