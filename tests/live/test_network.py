"""Network streams from a real RTSP server, killed, frozen, changed and started again; addresses that are wrong; HLS."""

from __future__ import annotations

import functools
import gc
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest
from live_sources import RtspServer, moving, source_threads
from video_files import all_frames

from flowless.engines.live.records import Answer, SourceChange
from flowless.engines.live.watcher import Watcher
from flowless.engines.streaming.online import Online
from flowless.pipeline.video.encode import write_video

pytestmark = pytest.mark.usefixtures("no_thread_left")
Start = Callable[..., RtspServer]
#: Short waits, so that the tests are short.
FAST = {"timeout_seconds": 1.0, "retry_seconds": 0.1, "retry_most_seconds": 0.4}


def until(watcher: Watcher, found: Callable[[Answer | SourceChange], bool], seconds: float = 15) -> Answer | SourceChange:
    """Return the first record that fits; fail where none comes."""
    ends = time.monotonic() + seconds
    for record in watcher:
        if found(record):
            return record
        assert time.monotonic() < ends, f"not found within {seconds} s: {watcher.sources}"
    raise AssertionError(f"it ended: {watcher.sources}")


def answer_of(name: str, after: int = -1) -> Callable[[Answer | SourceChange], bool]:
    return lambda record: isinstance(record, Answer) and record.source == name and record.frame > after


def state_of(name: str, state: str) -> Callable[[Answer | SourceChange], bool]:
    return lambda record: isinstance(record, SourceChange) and record.source == name and record.state == state


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_server_that_is_killed_and_started_again(transport, online, rtsp: Start, stream_files):
    server = rtsp(cam=stream_files["wide"])
    started = time.monotonic()
    with online.watch([f"cam={server.url('cam')}"], transport=transport, **FAST) as watcher:
        first = until(watcher, answer_of("cam"))
        assert isinstance(first, Answer)
        assert (first.frame, first.pts_ns) == (0, 0)
        assert time.monotonic() - started < 5
        before = until(watcher, answer_of("cam", 5))
        server.kill()
        lost = until(watcher, state_of("cam", "waiting"))
        assert isinstance(lost, SourceChange)
        assert lost.reason
        assert lost.retry_in == 0.1
        until(watcher, lambda record: isinstance(record, SourceChange) and "refused" in record.reason)
        server.start()
        fresh = until(watcher, answer_of("cam"))
        assert isinstance(fresh, Answer)
        alone = [Online(online).push(frame) for frame in all_frames(stream_files["wide"])[:20]]
        assert any(np.array_equal(fresh.scores, scores) for scores in alone), "the frames before the cut are forgotten"
        after = until(watcher, answer_of("cam", 8))
        assert isinstance(before, Answer)
        assert isinstance(after, Answer)
        assert after.pts_ns > before.pts_ns + 300_000_000, "time stamps go on by the clock"
        (status,) = watcher.sources
        assert (status.reconnects, status.state, status.reason) == (1, "running", "")


def test_a_server_that_freezes(online, rtsp: Start, stream_files):
    server = rtsp(cam=stream_files["wide"])
    with online.watch([f"cam={server.url('cam')}"], **FAST) as watcher:
        until(watcher, answer_of("cam", 5))
        server.freeze()
        stalled = until(watcher, state_of("cam", "waiting"))
        assert isinstance(stalled, SourceChange)
        assert stalled.reason == "stalled: no frame for 1 s"
        again = until(watcher, state_of("cam", "waiting"))
        assert isinstance(again, SourceChange)
        assert again.reason == "stalled: no reply for 1 s"
        seen = watcher.sources[0].frames
        server.go_on()
        until(watcher, answer_of("cam", seen))


def test_a_picture_of_another_size_after_a_restart(online, rtsp: Start, stream_files):
    server = rtsp(cam=stream_files["wide"])
    with online.watch([f"cam={server.url('cam')}"], **FAST) as watcher:
        until(watcher, answer_of("cam", 2))
        assert (watcher.sources[0].width, watcher.sources[0].height) == (128, 96)
        server.kill()
        server.files = {"cam": stream_files["small"]}
        server.start()
        until(watcher, lambda record: isinstance(record, Answer) and watcher.sources[0].width == 96)
        assert watcher.sources[0].height == 64


def test_a_picture_of_another_size_within_the_stream(online, web):
    folder, address = web
    parts = []
    for number, size in enumerate([(96, 128), (64, 96)]):
        write_video(folder / f"{number}.ts", moving(20, size=size), options={"bf": "0"})
        parts.append((folder / f"{number}.ts").read_bytes())
    (folder / "both.ts").write_bytes(b"".join(parts))
    with online.watch([f"cam={address}/both.ts"], keep_pictures=True, **FAST) as watcher:
        sizes = set()
        while len(sizes) < 2:
            until(watcher, answer_of("cam"))
            picture = watcher.picture("cam")
            assert picture is not None
            sizes.add(picture.shape[:2])
        assert sizes == {(96, 128), (64, 96)}
        assert watcher.sources[0].reconnects == 0


def memory() -> int:
    """Return the resident memory in bytes."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


@pytest.mark.parametrize("cuts", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_cuts(cuts, online, rtsp: Start, stream_files):
    server = rtsp(cam=stream_files["wide"])
    with online.watch([f"cam={server.url('cam')}"], **{**FAST, "retry_seconds": 0.05}) as watcher:
        early = 0
        for cut in range(cuts):
            until(watcher, answer_of("cam", watcher.sources[0].frames))
            if cut == min(10, cuts - 1):
                early = memory()
            server.kill()
            until(watcher, state_of("cam", "waiting"))
            server.start()
        until(watcher, answer_of("cam", watcher.sources[0].frames))
        assert watcher.sources[0].reconnects == cuts
        assert len(source_threads()) == 1
        grown = memory() - early
    assert grown < 16 * 2**20
    assert not source_threads()


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts connections and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def web(tmp_path) -> Iterator[tuple[Path, str]]:
    """A folder and the address of a web server of it."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield tmp_path, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_addresses_that_are_wrong(online, rtsp: Start, stream_files, silent, web):
    folder, address = web
    (folder / "text.m3u8").write_text("no list")
    (folder / "page.txt").write_text("no video\n" * 100)
    server = rtsp(cam=stream_files["wide"])
    locked = rtsp(password="secret-1", cam=stream_files["wide"])
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        unused = free.getsockname()[1]
    wrong = {
        "refused": (f"rtsp://127.0.0.1:{unused}/cam", "the connection was refused: nothing listens at 127.0.0.1"),
        "missing": (server.url("other"), "there is no such stream (404)"),
        "locked": (locked.url("cam"), "it needs a user and a password (401): rtsp://USER:PASSWORD@HOST/..."),
        "wrong": (locked.url("cam", "camera:secret-2@"), "its user or password is wrong"),
        "host": ("rtsp://no-such-host.invalid/cam", "there is no such host (no-such-host.invalid)"),
        "silent": (f"rtsp://127.0.0.1:{silent}/cam", "stalled: no reply for 1 s"),
        "web": (f"http://127.0.0.1:{silent}/cam.m3u8", "stalled: no reply for 1 s"),
        "list": (f"{address}/text.m3u8", "not a video that FFmpeg can read"),
        "page": (f"{address}/page.txt", "not a video: it has no video stream"),
        "none": (f"{address}/none.m3u8", "there is no such stream (404)"),
        "camera": ("/dev/video97", "there is no such camera (/dev/video97)"),
    }
    good = {"good": server.url("cam"), "open": locked.url("cam", "camera:secret-1@")}
    sources = [f"{name}={url}" for name, url in good.items()] + [f"{name}={url}" for name, (url, _) in wrong.items()]
    records = []
    with online.watch(sources, retries=1, **FAST) as watcher:
        ends = time.monotonic() + 12
        for record in watcher:
            records.append(record)
            failed = {item.source for item in records if isinstance(item, SourceChange) and item.state == "failed"}
            if len(failed) == len(wrong) or time.monotonic() > ends:
                break
        statuses = {item.name: item for item in watcher.sources}
    for name, (_, reason) in wrong.items():
        changes = [item for item in records if isinstance(item, SourceChange) and item.source == name]
        assert [item.state for item in changes] == ["connecting", "waiting", "connecting", "failed"], name
        assert {item.reason for item in changes if item.state != "connecting"} == {reason}, name
        assert statuses[name].reason == reason
    for name in good:
        assert statuses[name].state == "running"
        assert sum(isinstance(item, Answer) and item.source == name for item in records) > 20, "the others go on"
    assert "secret" not in repr(records) + repr(statuses)


def test_closing_is_at_once_in_every_state(online, silent, rtsp: Start, stream_files):
    server = rtsp(cam=stream_files["wide"])
    sources = [f"rtsp://127.0.0.1:{silent}/cam", server.url("cam"), "rtsp://127.0.0.1:9/cam"]
    for frozen in (False, True):
        watcher = online.watch(sources, timeout_seconds=2.0)
        until(watcher, answer_of(sources[1], 3))
        if frozen:
            server.freeze()
            time.sleep(0.3)
        started = time.monotonic()
        watcher.close()
        watcher.close()
        assert time.monotonic() - started < 1
        assert list(watcher) == []


def test_sixteen_streams_in_one_batch_with_one_of_them_dead(online, rtsp: Start, stream_files):
    server = rtsp(cam=stream_files["small"])
    sources = [f"cam {number}={server.url('cam')}" for number in range(15)] + [f"dead={server.url('none')}"]
    batches = []
    with online.watch(sources, **FAST) as watcher:
        step = watcher._score  # pyright: ignore[reportPrivateUsage]
        watcher._score = lambda batch: (batches.append(len(batch)), step(batch))  # pyright: ignore
        ends, counts = time.monotonic() + 15, dict.fromkeys((f"cam {number}" for number in range(15)), 0)
        for record in watcher:
            if isinstance(record, Answer):
                counts[record.source] += 1
            if min(counts.values()) >= 10 or time.monotonic() > ends:
                break
        (dead,) = [item for item in watcher.sources if item.name == "dead"]
    assert min(counts.values()) >= 10
    assert dead.state in {"waiting", "connecting"}
    assert max(batches) > 1
    assert sum(batches) >= sum(counts.values())


def test_another_codec_in_a_stream_that_two_share(online, rtsp: Start, tmp_path):
    file = tmp_path / "camera.webm"
    write_video(file, moving(250, size=(96, 128)), codec="libvpx", options={"g": "60"})
    url = rtsp(camera=file).url("camera")
    with online.watch([f"first={url}", f"second={url}"], **{**FAST, "timeout_seconds": 5.0}) as watcher:
        for name in ("first", "second"):
            until(watcher, answer_of(name, 5))
        assert {(item.width, item.height, item.reconnects) for item in watcher.sources} == {(128, 96, 0)}


def test_hls(online, web, stream_files):
    folder, address = web
    with (
        av.open(str(stream_files["small"])) as source,
        av.open(str(folder / "list.m3u8"), "w", format="hls", options={"hls_time": "1", "hls_list_size": "0"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    with online.watch([f"cam={address}/list.m3u8"], **FAST) as watcher:
        started = time.monotonic()
        last = until(watcher, answer_of("cam", 30))
        assert isinstance(last, Answer)
        assert time.monotonic() - started > 0.9, "at its own pace, though segments come at once"
        assert last.pts_ns >= 1_200_000_000
