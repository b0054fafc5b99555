"""The live page: every source's picture with its overlay as MJPEG, its state, and a strip of its recent labels."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flowless.engines.live.outputs.board import STRIP_SECONDS, Board
from flowless.engines.live.outputs.http_server import LiveServer, Request
from flowless.engines.live.outputs.overlay import Caption, caption_of, drawn, jpeg

#: Pictures a second at most, and their width at most: what a browser needs, whatever the camera has.
PICTURES_PER_SECOND, MAX_WIDTH = 10, 960
#: Seconds after which an unchanged picture is sent again, which finds out whether the client is still there.
_REPEAT = 2.0
_PAGE = Path(__file__).with_name("page.html")
_BOUNDARY = "flowless-frame"

#: Name of a source -> its newest frame, uint8 `[H, W, 3]`, RGB; None before the first.
Pictures = Callable[[str], NDArray[np.uint8] | None]


class Screens:
    """Draws and compresses the newest picture of every source that a client views, once for all clients, in one thread.

    Where it is slower than the cameras, pictures are left out.

    Args:
        board: What is written on them.
        pictures: The newest frames.
    """

    def __init__(self, board: Board, pictures: Pictures) -> None:
        self._board, self._pictures = board, pictures
        self._viewers = dict.fromkeys(board.names, 0)
        self._jpegs: dict[str, tuple[int, bytes]] = {}
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flowless page pictures")

    def __enter__(self) -> Screens:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    @contextmanager
    def viewed(self, name: str) -> Iterator[None]:
        """Draw a source's pictures within the block."""
        with self._changed:
            self._viewers[name] += 1
        try:
            yield
        finally:
            with self._changed:
                self._viewers[name] -= 1

    def jpegs(self, name: str) -> Iterator[bytes]:
        """Yield a source's newest JPEG whenever there is a newer one, or the same one again after a while; ends with the screens."""
        seen = 0
        while not self._stop.is_set():
            with self._changed:
                self._changed.wait_for(partial(self._is_newer, name, seen), _REPEAT)
                seen, data = self._jpegs.get(name, (0, b""))
            if data and not self._stop.is_set():
                yield data

    def _is_newer(self, name: str, seen: int) -> bool:
        return self._stop.is_set() or (name in self._jpegs and self._jpegs[name][0] != seen)

    def _run(self) -> None:
        drawn_from: dict[str, tuple[NDArray[np.uint8] | None, Caption]] = {}
        number = 0
        while not self._stop.wait(1 / PICTURES_PER_SECOND):
            for name in [name for name, viewers in self._viewers.items() if viewers]:
                picture, caption = self._pictures(name), caption_of(self._board.row(name))
                before = drawn_from.get(name)
                if before is not None and before[0] is picture and before[1] == caption:
                    continue
                drawn_from[name] = picture, caption
                data, number = jpeg(drawn(picture, caption, max_width=MAX_WIDTH)), number + 1
                with self._changed:
                    self._jpegs[name] = number, data
                    self._changed.notify_all()


class Page:
    """Serves the live page within a `with` block.

    `/` is the page, `/sources.json` what it shows, `/video/N` the N-th source (from 0) as MJPEG, `/metrics` the metrics for Prometheus.

    Args:
        address: Host and port; port 0 takes any free one.
        board: What is shown.
        pictures: The newest frames.
        metrics: Sends the metrics.

    Raises:
        FlowlessError: It cannot listen there.
    """

    def __init__(self, address: tuple[str, int], board: Board, pictures: Pictures, metrics: Callable[[Request], None]) -> None:
        self._board, self._screens = board, Screens(board, pictures)
        routes: dict[str, Callable[[Request], None]] = {
            "/": lambda request: request.reply(_PAGE.read_bytes(), "text/html; charset=utf-8"),
            "/sources.json": self._send_sources,
            "/metrics": metrics,
        }
        routes |= {f"/video/{number}": self._video_of(name) for number, name in enumerate(board.names)}
        self._server = LiveServer(address, "--page", routes)

    @property
    def url(self) -> str:
        """Where it is."""
        return self._server.url

    def __enter__(self) -> Page:
        self._screens.__enter__()
        self._server.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._screens.__exit__(kind, error, trace)
        self._server.__exit__(kind, error, trace)

    def _send_sources(self, request: Request) -> None:
        rows = [asdict(row) for row in self._board.rows()]
        document = {"now": self._board.now(), "strip_seconds": STRIP_SECONDS, "sources": rows}
        request.reply(json.dumps(document).encode(), "application/json")

    def _video_of(self, name: str) -> Callable[[Request], None]:
        def send(request: Request) -> None:
            request.send_response(HTTPStatus.OK)
            request.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
            request.send_header("Cache-Control", "no-store")
            request.end_headers()
            with self._screens.viewed(name):
                for data in self._screens.jpegs(name):
                    head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                    request.wfile.write(head.encode() + data + b"\r\n")

        return send
