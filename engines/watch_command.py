"""The command line of `flowless watch`."""

from __future__ import annotations

import inspect
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from flowless.console import log
from flowless.engines.live.events import EventFinder, EventOptions
from flowless.engines.live.options import WatchOptions
from flowless.engines.live.outputs.all_outputs import OutputOptions, Outputs
from flowless.engines.live.outputs.lines import one_line
from flowless.engines.live.outputs.table import source_table
from flowless.engines.targets import Target
from flowless.errors import FlowlessError

if TYPE_CHECKING:
    from flowless.engines.live.watcher import Watcher


@dataclass(frozen=True, kw_only=True)
class _Watching(WatchOptions):
    """How sources are watched."""

    keep_pictures: tyro.conf.Suppress[bool] = False
    """Set where an output needs pictures."""


@dataclass(frozen=True, kw_only=True)
class _Events(EventOptions):
    """When an action begins and ends."""

    background: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME")] = ()
    """A label that is never an event, such as "no gesture"; may be given several times."""


@dataclass(frozen=True, kw_only=True)
class WatchArgs:
    """Recognise actions in cameras, network streams and files as they come, many in one batch.

    A camera, with a table in the terminal; two RTSP cameras, named, on a page; a file as fast as possible, as JSON lines; a camera for an
    hour, with events in a file:

      flowless watch BUNDLE /dev/video0
      flowless watch BUNDLE door=rtsp://USER:PASSWORD@10.0.0.5/1 yard=rtsp://10.0.0.6/1 --page 8080
      flowless watch BUNDLE clip.mp4 --pace max --json
      flowless watch BUNDLE 0 --for 3600 --out events.jsonl --background "no gesture"

    The newest frame of every source is scored; frames for which there is no time are dropped and counted, so that results are never
    late. A lost camera is opened again and costs the others nothing. An action begins where its smoothed probability has stayed high for
    a while, and ends where it has stayed low: that is an event. Ctrl-C ends it within a second, with exit code 130; SIGTERM, --for and
    the end of all files with 0, or with 1 where a source has failed for good.
    """

    bundle: tyro.conf.Positional[Path]
    """The bundle's folder, which flowless export and build wrote."""
    sources: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE")]
    """What is watched, each as ADDRESS or NAME=ADDRESS: a file, rtsp://..., http://... (HLS), /dev/video0 or a camera's number."""
    for_: Annotated[float | None, tyro.conf.arg(name="for", metavar="SECONDS")] = None
    """End after so many seconds."""
    target: Target | None = None
    """Library that runs the engine; by default the fastest that this machine can run."""
    precision: str | None = None
    """Precision of the engine, such as fp32; by default what the bundle has."""
    hint: Literal["f32", "bf16", "f16"] | None = None
    """openvino: compute an fp32 engine in this precision."""
    threads: int | None = None
    """CPU threads of the engine; by default the library chooses."""
    watching: tyro.conf.OmitArgPrefixes[_Watching] = field(default_factory=_Watching)
    events: tyro.conf.OmitArgPrefixes[_Events] = field(default_factory=_Events)
    outputs: tyro.conf.OmitArgPrefixes[OutputOptions] = field(default_factory=OutputOptions)


def watch(arguments: Sequence[str]) -> int:
    """Run `flowless watch`."""
    args = tyro.cli(WatchArgs, args=list(arguments), prog="flowless watch", description=inspect.getdoc(WatchArgs))
    from flowless.engines.live.addresses import parse_addresses
    from flowless.engines.live.watcher import Watcher
    from flowless.engines.loading import load

    if args.for_ is not None and not 0 < args.for_ <= threading.TIMEOUT_MAX:
        raise FlowlessError(f"--for is {args.for_}; it must be a number of seconds above 0, up to {threading.TIMEOUT_MAX:.0f}.")
    if not args.sources:
        raise FlowlessError(f"{args.bundle}: no source was named. Use: flowless watch BUNDLE SOURCE...")
    names = [address.name for address in parse_addresses(args.sources)]
    args.outputs.check_paths()
    engine = load(args.bundle, args.target, args.precision, threads=args.threads, hint=args.hint, warm_up=True)
    finder = EventFinder(engine.labels, args.events)
    log.print(engine.why, markup=False, soft_wrap=True)
    pictures = args.outputs.page is not None or args.outputs.record is not None
    options = replace(args.watching, keep_pictures=pictures)
    interrupted = False
    with _terminable(), Outputs(args.outputs, names, finder) as outputs:
        try:
            with Watcher(engine, args.sources, options) as watcher, _closed_after(watcher, args.for_):
                outputs.attach(watcher)
                for item in watcher:
                    outputs.see(item)
        except _Terminated:
            pass
        except KeyboardInterrupt:
            interrupted = True
        outputs.end()
    code = _summary(outputs, table=not args.outputs.json)
    if interrupted:
        raise KeyboardInterrupt
    return code


class _Terminated(BaseException):
    """SIGTERM or SIGHUP arrived."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise `_Terminated` for SIGTERM, and for SIGHUP (its terminal was closed), within the block, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: object) -> None:
        raise _Terminated

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]  # not on Windows
    # Under nohup SIGHUP is ignored, and stays so.
    before = {number: signal.signal(number, terminate) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    except _Terminated:
        pass  # while it was opened or closed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _closed_after(watcher: Watcher, seconds: float | None) -> Iterator[None]:
    """Close the watcher after a time; None: never."""
    if seconds is None:
        yield
        return
    timer = threading.Timer(seconds, watcher.close)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _summary(outputs: Outputs, *, table: bool) -> int:
    """Report sources that failed and lines that were lost; return the exit code."""
    failed = [status for status in outputs.statuses() if status.state == "failed"]
    if table and not outputs.draws_table:
        log.print(source_table(outputs.board.rows()))
    for status in failed:
        log.print(f"flowless: {one_line(f'{status.name}: {status.reason}')}", style="red", markup=False, soft_wrap=True)
    if outputs.lost_lines:
        log.print(f"flowless: {outputs.lost_lines} lines could not be written to the file.", style="red", markup=False)
    return 1 if failed or outputs.lost_lines else 0
