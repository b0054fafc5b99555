"""The live page over HTTP: its pictures, its clients, its end."""

from __future__ import annotations

import http.client
import io
import json
import re
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from made_items import Camera, made_answer
from PIL import Image

from flowless.engines.live.outputs.board import Board
from flowless.engines.live.outputs.http_server import MAX_CONNECTIONS, LiveServer, host_and_port
from flowless.engines.live.outputs.page import MAX_WIDTH, Page
from flowless.errors import FlowlessError


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("text", "parts"), [("8080", ("127.0.0.1", 8080)), ("0.0.0.0:1", ("0.0.0.0", 1)), ("[::1]:0", ("::1", 0)), ("host:80", ("host", 80))]
)
def test_addresses(text, parts):
    assert host_and_port(text, "--page") == parts


@pytest.mark.parametrize("text", ["", "x", "70000", "-1", "::1:80", "host:", "80:host", "٣"])
def test_addresses_that_are_refused(text):
    with pytest.raises(FlowlessError, match="--page is"):
        host_and_port(text, "--page")


@contextmanager
def running_page(board: Board, camera: Camera):
    with Page(("127.0.0.1", 0), board, camera.picture, lambda request: request.reply(b"metrics", "text/plain")) as page:
        yield page, int(page.url.rpartition(":")[2].strip("/"))


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body


def open_video(port: int, number: int = 0) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", f"/video/{number}")
    return connection.getresponse()


def next_part(response: http.client.HTTPResponse, boundary: str) -> np.ndarray:
    """Read one part of an MJPEG response; return its picture."""
    assert response.readline() == f"--{boundary}\r\n".encode()
    assert response.readline() == b"Content-Type: image/jpeg\r\n"
    length = re.fullmatch(rb"Content-Length: (\d+)\r\n", response.readline())
    assert length is not None
    assert response.readline() == b"\r\n"
    picture = np.asarray(Image.open(io.BytesIO(response.read(int(length[1])))))
    assert response.readline() == b"\r\n"
    return picture


def test_the_page_and_what_it_fetches():
    board = Board(["cam", "<b>other"])
    board.see(made_answer(time.time(), "wave", began=0.0))
    with running_page(board, Camera()) as (_, port):
        status, body = get(port, "/")
        assert (status, b"<img" in body or b'"img"' in body) == (200, True)
        document = json.loads(get(port, "/sources.json")[1])
        assert [source["name"] for source in document["sources"]] == ["cam", "<b>other"]
        assert document["sources"][0]["runs"][0]["label"] == "wave"
        assert get(port, "/metrics") == (200, b"metrics")
        assert get(port, "/video/2")[0] == 404
        assert get(port, "/../../etc/passwd")[0] == 404


def test_the_video_of_a_source():
    board, camera = Board(["cam"]), Camera(height=1080, width=1920)
    with running_page(board, camera) as (_, port):
        response = open_video(port)
        kind = response.headers["Content-Type"]
        boundary = kind.partition("boundary=")[2]
        assert (kind.partition(";")[0], response.headers["Cache-Control"]) == ("multipart/x-mixed-replace", "no-store")
        first, second = next_part(response, boundary), next_part(response, boundary)
        assert first.shape == (540, MAX_WIDTH, 3)
        assert int(second[270, 480, 0]) > int(first[270, 480, 0]), "the newest frame"
        response.close()


def test_a_source_without_a_frame_has_a_picture_with_its_state():
    board = Board(["cam"])
    with Page(("127.0.0.1", 0), board, lambda _: None, lambda _: None) as page:
        response = open_video(int(page.url.rpartition(":")[2].strip("/")))
        assert (next_part(response, "flowless-frame") > 150).any()
        response.close()


def test_a_client_that_does_not_read_costs_the_others_nothing_and_ends_with_the_page():
    board, camera = Board(["cam"]), Camera(height=480, width=640)
    camera.picture = lambda _: np.random.default_rng().integers(0, 255, (480, 640, 3), np.uint8)  # type: ignore[method-assign]
    with running_page(board, camera) as (_, port):
        stuck = socket.create_connection(("127.0.0.1", port))
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.sendall(b"GET /video/0 HTTP/1.0\r\n\r\n")
        half = socket.create_connection(("127.0.0.1", port))
        half.sendall(b"GET /vid")
        gone = open_video(port)
        next_part(gone, "flowless-frame")
        gone.close()
        response = open_video(port)
        begin = time.monotonic()
        for _ in range(10):
            next_part(response, "flowless-frame")
        assert time.monotonic() - begin < 5
        response.close()
        closing = time.monotonic()
    assert time.monotonic() - closing < 1
    stuck.close()
    half.close()


def test_nothing_is_drawn_for_no_viewer():
    board, camera, calls = Board(["cam"]), Camera(), []
    picture = camera.picture
    camera.picture = lambda name: calls.append(name) or picture(name)  # type: ignore[method-assign]
    with running_page(board, camera) as (_, port):
        time.sleep(0.3)
        assert not calls
        response = open_video(port)
        next_part(response, "flowless-frame")
        assert calls
        response.close()


def test_too_many_connections_are_refused():
    with running_page(Board(["cam"]), Camera()) as (_, port):
        waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(MAX_CONNECTIONS)]
        time.sleep(0.2)
        assert get(port, "/")[0] == 503
        for connection in waiting:
            connection.close()
        until = time.monotonic() + 10
        while get(port, "/")[0] != 200:
            assert time.monotonic() < until


def test_a_port_in_use_is_refused():
    with (
        running_page(Board(["cam"]), Camera()) as (_, port),
        pytest.raises(FlowlessError, match=rf"--page 127.0.0.1:{port}: cannot listen there \(Address already in use\)"),
    ):
        LiveServer(("127.0.0.1", port), "--page", {})


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_that_is_none_of_this_machine_is_refused(host):
    with pytest.raises(FlowlessError, match="cannot listen there"):
        LiveServer((host, 0), "--page", {})
