"""The examples of `examples/python/`, run as a user runs them, on real clips: their output is the engine's."""

from __future__ import annotations

import ast
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import flowless
from flowless.engines.bundle.pack import pack

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"
GOOD = ("arm_wrestling.mp4", "rotated_90.mov", "h265_video.mp4", "short_32_frames.mp4")
BAD = "corrupted.mp4"


@pytest.fixture(scope="module")
def shipped(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed bundle, as an application carries."""
    return pack(built, tmp_path_factory.mktemp("shipped") / "bundle", target="openvino").folder


@pytest.fixture(scope="module")
def expected(shipped: Path, clips: Path) -> dict[str, list[tuple[str, float]]]:
    """The engine's own answer for each clip."""
    engine = flowless.load(shipped)
    return {name: [(item.label, item.score) for item in engine.predict(clips / name).top] for name in GOOD}


def run(name: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / name, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def top_of(document: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(item["label"], pytest.approx(item["score"], abs=1e-5)) for item in document["top"]]


@pytest.mark.parametrize("name", ["recognise.py", "serve_threads.py", "process_per_core.py"])
def test_wrong_arguments_and_bundles_end_in_a_sentence(name: str, tmp_path: Path) -> None:
    for args in ((), (tmp_path / "nowhere", *(["clip.mp4"] if "serve" not in name else []))):
        done = run(name, *args)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert ("no such folder" in done.stderr) if args else ("BUNDLE" in done.stderr.upper())


def test_the_script_is_ten_lines() -> None:
    tree = ast.parse((EXAMPLES / "recognise.py").read_text(encoding="utf-8"))
    tree.body = tree.body[1:]  # the docstring
    assert len(ast.unparse(tree).splitlines()) <= 10


def test_the_script(shipped: Path, clips: Path, expected: dict[str, list[tuple[str, float]]]) -> None:
    done = run("recognise.py", shipped, *(clips / name for name in (*GOOD, BAD)))
    assert (done.returncode, done.stderr) == (1, ""), "one video cannot be read"
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [str(clips / name) for name in (*GOOD, BAD)]
    assert [line[1] for line in lines[:-1]] == ["{} {:.3f}".format(*expected[name][0]) for name in GOOD]
    assert "the stream is damaged" in lines[-1][1]


class Server:
    """The service, running."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process, self.address = process, address

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, Any], Any]:
        connection = http.client.HTTPConnection(self.address, timeout=60)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, json.loads(response.read()), response.headers

    def begin_upload(self, body: bytes) -> socket.socket:
        """Send a request without the last byte of its body; wait until it is being read."""
        host, port = self.address.split(":")
        upload = socket.create_connection((host, int(port)), timeout=60)
        upload.sendall(b"POST /predict HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert upload.recv(100).startswith(b"HTTP/1.1 100 ")
        upload.sendall(body[:-1])
        time.sleep(0.2)  # from the 100 to the place in the queue
        return upload


@contextlib.contextmanager
def serving(bundle: Path, folder: Path, *options: str) -> Iterator[Server]:
    """Run the service on a free port, with temporary files below `folder`."""
    folder.mkdir()
    command = [sys.executable, EXAMPLES / "serve_threads.py", bundle, "--port", "0", *options]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with (folder.parent / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield Server(process, process.stdout.readline().strip().rpartition("http://")[2])
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert "Traceback" not in (folder.parent / "log").read_text()


def ended(server: Server, folder: Path) -> bool:
    """Whether the service ends by itself, in order, and leaves no file."""
    code = server.process.wait(30)
    assert server.process.stdout is not None
    return (code, server.process.stdout.read(), list(folder.iterdir())) == (0, "stopped\n", [])


def test_the_service(shipped: Path, clips: Path, expected: dict[str, list[tuple[str, float]]], tmp_path: Path) -> None:
    with serving(shipped, tmp_path / "uploads", "--threads", "2", "--waiting", "8", "--megabytes", "30") as server:
        status, health, _ = server.request("GET", "/health")
        assert (status, health["status"], health["model"]) == (200, "ok", "pan-lite-r18")
        assert health["engine"].startswith("openvino fp32: ")
        bodies = [(clips / name).read_bytes() for name in (*GOOD, BAD) * 2]
        with ThreadPoolExecutor(5) as pool:
            replies = list(pool.map(lambda body: server.request("POST", "/predict", body), bodies))
        for name, (status, document, _) in zip((*GOOD, BAD) * 2, replies, strict=True):
            if name == BAD:
                assert status == 422
                assert document["error"].startswith("the upload: the stream is damaged")
            else:
                assert (status, top_of(document)) == (200, expected[name])
        for status, method, path, body in (
            (422, "POST", "/predict", b"not a video"),
            (411, "POST", "/predict", b""),
            (404, "POST", "/elsewhere", b"x"),
            (404, "GET", "/", None),
        ):
            found, document, _ = server.request(method, path, body)
            assert (found, list(document)) == (status, ["error"])
            assert str(tmp_path) not in document["error"]
        assert server.request("POST", "/predict", None, Content_Length="40000000")[0] == 413
        assert server.request("POST", "/predict", None, Content_Length="all")[0] == 411
        server.process.send_signal(signal.SIGTERM)
        assert ended(server, tmp_path / "uploads")


def test_where_the_queue_is_full_the_next_request_is_refused_at_once(shipped: Path, clips: Path, tmp_path: Path) -> None:
    body = (clips / GOOD[0]).read_bytes()
    with serving(shipped, tmp_path / "uploads", "--threads", "1", "--waiting", "0") as server:
        with server.begin_upload(body) as first:
            status, document, headers = server.request("POST", "/predict", body)
            assert (status, list(document), headers["Retry-After"]) == (503, ["error"], "1")
            assert server.request("GET", "/health")[0] == 200
            first.sendall(body[-1:])
            assert first.recv(100).startswith(b"HTTP/1.1 200 ")
        server.begin_upload(body).close()  # a client that goes away leaves its place
        statuses = [server.request("POST", "/predict", body)[0] for _ in range(3)]
        assert statuses[-1] == 200, statuses


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_accepted_request_finish(number: signal.Signals, shipped: Path, clips: Path, tmp_path: Path) -> None:
    body = (clips / GOOD[0]).read_bytes()
    with serving(shipped, tmp_path / "uploads") as server:
        with server.begin_upload(body) as upload:
            server.process.send_signal(number)
            time.sleep(1)
            assert server.process.poll() is None
            with pytest.raises(ConnectionError):
                server.request("GET", "/health")
            upload.sendall(body[-1:])
            assert upload.recv(100).startswith(b"HTTP/1.1 200 ")
        assert ended(server, tmp_path / "uploads")


def test_a_process_per_core(shipped: Path, clips: Path, expected: dict[str, list[tuple[str, float]]]) -> None:
    paths = [clips / name for name in (*GOOD, BAD, GOOD[0])]
    done = run("process_per_core.py", shipped, *paths, "--processes", "2")
    assert done.returncode == 1, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["video"] for row in rows] == list(map(str, paths))
    assert [top_of(row) for row in rows if "top" in row] == [expected[name] for name in (*GOOD, GOOD[0])]
    assert "the stream is damaged" in rows[len(GOOD)]["error"]
    assert "Traceback" not in done.stderr


def members(group: int) -> list[int]:
    """Return the processes of a group that have not ended; those that have may wait for their parent."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            number, _, rest = place.read_text().partition(" ")
            state, _, of_group = rest.rpartition(") ")[2].split()[:3]
            if int(of_group) == group and state not in "ZX":
                found.append(int(number))
    return found


def ignores(process: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{process}/status").read_text()
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:")]
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="lists processes as Linux does")
def test_a_process_that_is_killed_ends_the_others_with_a_sentence(shipped: Path, clips: Path) -> None:
    command = [sys.executable, EXAMPLES / "process_per_core.py", shipped, *[clips / GOOD[0]] * 500, "--processes", "2"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    busiest = max(members(process.pid), key=lambda number: (number != process.pid, memory_of(number)))
    os.kill(busiest, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith("process_per_core: a process was killed")


def memory_of(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="lists processes as Linux does")
@pytest.mark.parametrize("whom", ["group", "main"])
def test_ctrl_c_ends_all_processes(whom: str, shipped: Path, clips: Path) -> None:
    """A terminal sends SIGINT to every process of the group; a service manager sends SIGTERM to the first alone."""
    command = [sys.executable, EXAMPLES / "process_per_core.py", shipped, *[clips / GOOD[0]] * 500, "--processes", "2"]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["top"]
    workers = [number for number in members(process.pid) if number != process.pid]
    assert len(workers) >= 2
    assert all(ignores(number, signal.SIGINT) for number in workers), "from their start: they print no tracebacks"
    if whom == "group":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(out.splitlines()) < 400
    assert "Traceback" not in err
    until = time.monotonic() + 20
    while left := members(process.pid):
        assert time.monotonic() < until, left
        time.sleep(0.05)
