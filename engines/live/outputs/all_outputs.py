"""All outputs of one run of `flowless watch`, opened together and closed together."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from flowless.console import log
from flowless.engines.live.events import Event, EventFinder
from flowless.engines.live.outputs.board import Board
from flowless.engines.live.outputs.http_server import LiveServer, Request, host_and_port
from flowless.engines.live.outputs.lines import LineFile, StandardOutput, change_line, event_line, has_lines, json_line, one_line
from flowless.engines.live.records import Answer, SourceChange, SourceStatus
from flowless.errors import FlowlessError
from flowless.files import refuse_unwritable

if TYPE_CHECKING:
    from flowless.engines.live.outputs.metrics import Metrics
    from flowless.engines.live.watcher import Watcher


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where results go.

    Raises:
        FlowlessError: An address is none, or a time is out of range.
    """

    json: bool = False
    """Print JSON lines to standard output: one object a line for every scored frame (kind answer), event (kind event) and change of a
    source (kind source), each at once. Other commands print one document; this one prints lines, because it has no end."""
    out: Path | None = None
    """Append the same JSON lines to this file."""
    page: str | None = None
    """[HOST:]PORT: serve a page with every source's picture, label, state and recent labels, and /metrics; port 0 takes any free one. The
    host is 127.0.0.1 where none is named, which only this machine reaches; the page has no password, so name another host, such as
    0.0.0.0, only in a network that may see the pictures. (flowless opens no window: the page takes its place.)"""
    metrics: str | None = None
    """[HOST:]PORT: serve metrics for Prometheus at /metrics (pip install 'flowless[live]'). The page has them too."""
    record: Path | None = None
    """Record every source, with label, score and time drawn on it, into MP4 files in this folder. A file appears when it is complete."""
    record_minutes: float = 10.0
    """record: a new file begins after so many minutes."""

    def __post_init__(self) -> None:
        """Validate all fields."""
        for address, option in ((self.page, "--page"), (self.metrics, "--metrics")):
            if address is not None:
                host_and_port(address, option)
        if not 0 < self.record_minutes < math.inf:
            raise FlowlessError(f"--record-minutes is {self.record_minutes}; it must be a number of minutes above 0.")

    def check_paths(self) -> None:
        """Raise `FlowlessError` where a file cannot be written."""
        if self.record is not None:
            if self.record.exists() and not self.record.is_dir():
                raise FlowlessError(f"--record {self.record}: this is a file; it must be a folder, which is made where it is missing.")
            refuse_unwritable(self.record / "source.mp4")
        if self.out is not None and not has_lines(self.out):
            raise FlowlessError(f"--out {self.out}: this file is there already and does not have these lines. Name another file.")
        if self.metrics is not None:
            importlib.import_module("prometheus_client")  # the command reports what to install


class Outputs:
    """Passes what a watcher yields to all outputs, within a `with` block. Nothing is opened before it.

    Args:
        options: Where results go.
        names: Names of the sources, in the order of the watcher.
        finder: Finds the events.

    Attributes:
        board: What is shown of every source.
        draws_table: Whether a table of the sources is drawn in the terminal.
    """

    def __init__(self, options: OutputOptions, names: Sequence[str], finder: EventFinder) -> None:
        self._options, self._finder = options, finder
        self.board = Board(names)
        self.draws_table = False
        self._watcher: Watcher | None = None
        self._stack = ExitStack()
        self._print: Callable[[str], None] = print
        self._report: Callable[[str], None] = _report
        self._file: LineFile | None = None
        self._metrics: Metrics | None = None

    def __enter__(self) -> Outputs:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def attach(self, watcher: Watcher) -> None:
        """Take pictures and counters from this watcher from now on."""
        self._watcher = watcher
        if self._metrics is not None:
            watcher.on_batch = self._metrics.step

    def see(self, item: Answer | SourceChange) -> None:
        """Pass the next item of the watcher on.

        Raises:
            BrokenPipeError: The reader of standard output has gone.
        """
        events = self._finder.see(item)
        self.board.see(item, events)
        if isinstance(item, Answer) and self._metrics is not None:
            self._metrics.see(item)
        self._write(events)
        self._write([item])

    def end(self) -> None:
        """End the events that go on: the watcher yields nothing more."""
        self._write(self._finder.end())

    def statuses(self) -> Sequence[SourceStatus]:
        """Return the state of every source now; empty before there is a watcher."""
        return self._watcher.sources if self._watcher else ()

    @property
    def lost_lines(self) -> int:
        """Lines that could not be written to the file."""
        return self._file.lost if self._file else 0

    def _open(self) -> None:
        from flowless.engines.live.outputs.page import Page
        from flowless.engines.live.outputs.recording import Recorder

        options, stack = self._options, self._stack
        self._open_standard_output()
        if options.out is not None:
            self._file = LineFile(options.out, self._report)
            stack.callback(self._file.close)
        if options.metrics is not None or (options.page is not None and importlib.util.find_spec("prometheus_client") is not None):
            from flowless.engines.live.outputs.metrics import Metrics

            self._metrics = Metrics(self.statuses)
        if options.page is not None:
            page = Page(host_and_port(options.page, "--page"), self.board, self._picture, self._send_metrics)
            stack.enter_context(page)
            self._report(f"page: {page.url}")
        if options.metrics is not None:
            server = LiveServer(host_and_port(options.metrics, "--metrics"), "--metrics", {"/metrics": self._send_metrics})
            stack.enter_context(server)
            self._report(f"metrics: {server.url}metrics")
        if options.record is not None:
            seconds = 60 * options.record_minutes
            stack.enter_context(Recorder(options.record, self.board, self._picture, seconds=seconds, report=self._report))

    def _open_standard_output(self) -> None:
        """Print lines; for people in a terminal, above a table of the sources that is drawn again and again."""
        from rich.console import Console
        from rich.live import Live

        from flowless.engines.live.outputs.table import source_table

        console = Console(highlight=False)
        if self._options.json or not console.is_interactive:
            self._print = StandardOutput().write
            return
        self.draws_table = True
        table = Live(get_renderable=lambda: source_table(self.board.rows()), console=console, refresh_per_second=4)
        self._stack.enter_context(table)
        self._print = lambda line: console.print(line, markup=False, soft_wrap=True)

    def _write(self, items: Sequence[Answer | SourceChange | Event]) -> None:
        for item in items:
            if self._options.json or self._file is not None:
                line = json_line(item)
                if self._file is not None:
                    self._file.write(line)
                if self._options.json:
                    self._print(line)
            if not self._options.json and not isinstance(item, Answer):
                self._print(event_line(item) if isinstance(item, Event) else change_line(item, time.time()))

    def _picture(self, name: str) -> NDArray | None:
        return self._watcher.picture(name) if self._watcher else None

    def _send_metrics(self, request: Request) -> None:
        if self._metrics is not None:
            self._metrics.send(request)
        else:
            request.reply(b"Metrics need: pip install 'flowless[live]'\n", "text/plain", HTTPStatus.NOT_IMPLEMENTED)


def _report(line: str) -> None:
    log.print(f"flowless: {one_line(line)}", style="yellow", markup=False, soft_wrap=True)
