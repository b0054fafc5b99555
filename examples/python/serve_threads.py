"""A service: videos are uploaded, JSON comes back. A pool of threads shares one engine.

python serve_threads.py BUNDLE [--port 8080] [--threads 2] [--waiting 8] [--megabytes 200]

    curl --data-binary @clip.mp4 http://127.0.0.1:8080/predict
    curl http://127.0.0.1:8080/health

Each thread decodes its own video; in the engine, which uses all cores for one clip, calls run one after another. At most THREADS + WAITING
requests are accepted at a time; the next one gets 503 at once, so that a client can turn to another server. Ctrl-C and SIGTERM stop
accepting, finish what was accepted, and end. For TLS, passwords and limits of connections put a proxy in front.
"""

import argparse
import json
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import flowless
from flowless.engines import Engine


class Service(ThreadingHTTPServer):
    """The server, its engine and its pool. A connection has a thread that mostly waits; the pool's threads do the work."""

    daemon_threads = False  # closing the server waits for the requests that were accepted

    def __init__(self, address: tuple[str, int], engine: Engine, *, threads: int, waiting: int, largest: int) -> None:
        super().__init__(address, Request)
        self.engine = engine
        self.largest = largest
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="predict")
        self.places = threading.BoundedSemaphore(threads + waiting)


class Request(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"  # with it, clients that wait for 100 Continue before a large body get it
    timeout = 20  # seconds for which a client may send or take nothing
    longest = 60  # seconds that a whole upload may take

    @property
    def service(self) -> Service:
        """The server, with what is its own."""
        assert isinstance(self.server, Service)
        return self.server

    def do_GET(self) -> None:
        """Handle /health."""
        if self.path != "/health":
            return self.reply(404, {"error": f"no page {self.path}; there are GET /health and POST /predict"})
        return self.reply(200, {"status": "ok", "model": self.service.engine.model, "engine": self.service.engine.why})

    def do_POST(self) -> None:
        """Handle /predict: the body is a video file."""
        if self.path != "/predict":
            return self.reply(404, {"error": f"no page {self.path}; there are GET /health and POST /predict"})
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 18 or int(length) == 0:
            return self.reply(411, {"error": "send the video as the body, with its Content-Length"})
        if int(length) > self.service.largest:
            return self.reply(413, {"error": f"the video has {length} bytes; at most {self.service.largest} are taken"})
        if not self.service.places.acquire(blocking=False):
            self.copy_body(int(length), None)  # a client that is still sending would not read the reply
            return self.reply(503, {"error": "all threads are busy and the queue is full; try again"})
        try:
            with tempfile.NamedTemporaryFile(prefix="flowless-upload-") as video:
                if not self.copy_body(int(length), video):
                    return self.reply(400, {"error": "the body ended before its Content-Length, or took too long"})
                video.flush()
                return self.reply(*self.predict(video.name))
        finally:
            self.service.places.release()

    def predict(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return the status and the document for a video."""
        try:
            document = self.service.pool.submit(self.service.engine.predict, path).result().to_dict()
        except flowless.FlowlessError as error:
            return 422, {"error": str(error).replace(path, "the upload")}
        return 200, {**document, "video": "the upload"}

    def copy_body(self, length: int, file: Any) -> bool:
        """Copy the body into a file, or discard it; return whether all of it came."""
        deadline = time.monotonic() + self.longest
        while length and time.monotonic() < deadline and (part := self.rfile.read1(min(length, 2**20))):
            length -= len(part)
            if file:
                file.write(part)
        return length == 0

    def reply(self, status: int, document: dict[str, Any]) -> None:
        """Send a JSON document."""
        body = json.dumps(document).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            if status == 503:
                self.send_header("Retry-After", "1")
            self.end_headers()
            self.wfile.write(body)
        except ConnectionError:
            self.log_message("the client is gone")


def main() -> None:
    """Load, serve until a signal comes, finish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    parser.add_argument("--threads", type=int, default=2, help="videos that are worked on at a time")
    parser.add_argument("--waiting", type=int, default=8, help="requests that wait for a thread")
    parser.add_argument("--megabytes", type=int, default=200, help="largest upload")
    args = parser.parse_args()
    if args.threads < 1 or args.waiting < 0 or args.megabytes < 1:
        parser.error("--threads and --megabytes must be at least 1, --waiting at least 0")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        engine = flowless.load(args.bundle, warm_up=True)
        limits = {"threads": args.threads, "waiting": args.waiting, "largest": args.megabytes * 10**6}
        service = Service((args.host, args.port), engine, **limits)
    except (flowless.FlowlessError, OSError, OverflowError) as error:
        sys.exit(f"serve_threads: {error}")
    print(f"{engine.why}; http://{args.host}:{service.server_port}", flush=True)
    with service.pool, service:  # the server is closed first: it waits for its requests, which need the pool
        accepting = threading.Thread(target=service.serve_forever)
        accepting.start()
        stop.wait()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # a second one ends the program at once
        service.shutdown()
        accepting.join()
    print("stopped", flush=True)


if __name__ == "__main__":
    main()
