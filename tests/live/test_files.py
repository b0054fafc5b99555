"""Files that are watched give what `predict` gives on the same frames; sources are independent; closing ends everything."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from live_sources import moving, source_threads
from video_files import all_frames

from flowless.engines.engine import Engine, softmax
from flowless.engines.live.records import Answer, SourceChange
from flowless.engines.live.watcher import Watcher
from flowless.engines.streaming.online import Online
from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import load_views
from flowless.pipeline.clip.view_scores import average_views
from flowless.pipeline.video.encode import write_video
from flowless.pipeline.video.reader import VideoReader

pytestmark = pytest.mark.usefixtures("no_thread_left")


@pytest.fixture(scope="module")
def short(once) -> Path:
    return once("watched-short.mp4", lambda path: write_video(path, moving(40, size=(96, 128)), options={"bf": "2"}))


@pytest.fixture(scope="module")
def turned(once) -> Path:
    return once("watched-turned.mp4", lambda path: write_video(path, moving(30, size=(64, 96), step=5), fps=10, rotation=90))


def scored_frames(watcher: Watcher) -> list[Answer]:
    with watcher:
        return [record for record in watcher if isinstance(record, Answer)]


def test_every_window_is_what_predict_scores(rolling, short, turned):
    window = 12
    found = scored_frames(rolling.watch([short, turned], pace="max", window_frames=window, top=2))
    for path, count, fps in ((short, 40, 25), (turned, 30, 10)):
        own = [item for item in found if item.source == str(path)]
        assert [item.frame for item in own] == list(range(count))
        with VideoReader(path) as video:
            for item in own:
                first = max(0, item.frame - window + 1)
                views = load_views(video, rolling.spec, first_frame=first, num_frames=item.frame + 1 - first)
                expected = average_views(rolling(views.cut()), rolling.spec.average)
                np.testing.assert_array_equal(item.scores, expected)
        last = own[-1]
        assert [label.index for label in last.top] == np.argsort(-last.scores)[:2].tolist()
        assert last.top[0].score == pytest.approx(softmax(last.scores).max())
        assert (last.dropped, last.pts_ns) == (0, pytest.approx((count - 1) / fps * 1e9, abs=1e6))
        assert last.latency > 0
        assert abs(last.arrived - time.time()) < 600


def test_online_is_frame_for_frame_predict_online(online, short):
    found = scored_frames(online.watch([short], pace="max"))
    reference = Online(online)
    assert len(found) == 40
    for item, frame in zip(found, all_frames(short), strict=True):
        np.testing.assert_array_equal(item.scores, reference.push(frame))
    every = scored_frames(online.watch([short], pace="max", every=3))
    reference = Online(online)
    assert [item.frame for item in every] == list(range(0, 40, 3))
    for item, frame in zip(every, all_frames(short)[::3], strict=True):
        np.testing.assert_array_equal(item.scores, reference.push(frame))


def test_stride_is_seconds_between_results(rolling, short):
    found = scored_frames(rolling.watch([short], pace="max", stride=0.2))
    assert [item.frame for item in found] == list(range(0, 40, 5))
    with VideoReader(short) as video:
        views = load_views(video, rolling.spec, num_frames=found[-1].frame + 1)
    np.testing.assert_array_equal(found[-1].scores, average_views(rolling(views.cut()), rolling.spec.average))
    assert found[-1].dropped == 0, "frames between two results are in the window, and not dropped"


def test_a_file_at_its_own_pace(online, short):
    started = time.monotonic()
    watcher = online.watch([short], keep_pictures=True)
    found = scored_frames(watcher)
    assert 1.5 < time.monotonic() - started < 8
    (status,) = watcher.sources
    assert (status.state, status.frames, status.width, status.height) == ("ended", 40, 128, 96)
    assert status.answered == len(found)
    assert status.answered + status.dropped == 40
    assert found[-1].frame == 39
    assert found[-1].dropped == status.dropped


def test_one_that_cannot_be_read_leaves_the_others(online, short, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video")
    with online.watch([tmp_path / "none.mp4", f"good={short}", tmp_path / "text.mp4", f"good={short}"], pace="max") as watcher:
        records = list(watcher)
    states = {
        name: [item.state for item in records if isinstance(item, SourceChange) and item.source == name] for name in ("good", "good (2)")
    }
    assert states == {"good": ["connecting", "running", "ended"], "good (2)": ["connecting", "running", "ended"]}
    reasons = {item.source: item.reason for item in records if isinstance(item, SourceChange) and item.state == "failed"}
    assert reasons == {
        str(tmp_path / "none.mp4"): "there is no such file",
        str(tmp_path / "text.mp4"): "it is not a video that FFmpeg can read, or it is damaged or cut off",
    }
    assert sum(isinstance(item, Answer) for item in records) == 80
    last = max(place for place, item in enumerate(records) if isinstance(item, Answer) and item.source == "good")
    ended = next(
        place for place, item in enumerate(records) if isinstance(item, SourceChange) and item.source == "good" and item.state == "ended"
    )
    assert last < ended


def test_a_damaged_file_fails_after_the_frames_before(online, short, tmp_path):
    broken = Path(shutil.copy(short, tmp_path / "broken.mp4"))
    with VideoReader(short) as video:
        video.prove()
    data = bytearray(broken.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 600] = os.urandom(600)
    broken.write_bytes(data)
    with online.watch([broken], pace="max") as watcher:
        list(watcher)
        (status,) = watcher.sources
    expected = None
    try:
        all_frames(broken)
    except FlowlessError as error:
        expected = getattr(error, "reason", str(error))
    assert (status.state, status.reason) == ("failed", expected) if expected else ("ended", "")


class Slow(Engine):
    """An engine that takes its time."""

    seconds = 0.2

    def __call__(self, clip, **options):  # pyright: ignore
        time.sleep(self.seconds)
        return super().__call__(clip)


@pytest.fixture
def slow(rolling, monkeypatch) -> Engine:
    monkeypatch.setattr(rolling, "__class__", Slow)
    return rolling


def test_an_engine_that_is_too_slow_drops_frames_and_stays_up_to_date(slow, stream_files):
    """Frames come every 0.04 s, and the engine needs 0.2."""
    with slow.watch([stream_files["wide"]] * 3, window_frames=8) as watcher:
        found = []
        for record in watcher:
            if isinstance(record, Answer):
                found.append(record)
            if len(found) == 30:
                break
        statuses = watcher.sources
    for status in statuses:
        own = [item for item in found if item.source == status.name]
        assert len(own) >= 8, "all have their turn"
        assert own[-1].dropped >= 2 * len(own)
        assert own[-1].frame + 1 == own[-1].dropped + len(own)
        waited = [item.latency for item in own]
        assert np.median(waited[-4:]) < 0.6, "the newest frame is scored, not the one that came first"


def test_more_views_than_a_batch_has_take_turns(slow, monkeypatch, short):
    monkeypatch.setattr("flowless.engines.live.watcher.VIEWS_AT_ONCE", 2)
    monkeypatch.setattr(Slow, "seconds", 0.03)
    found = scored_frames(slow.watch([short] * 5, pace="max", window_frames=4))
    assert len(found) == 200
    names = [item.source for item in found[50:100]]
    assert all(8 <= names.count(name) <= 12 for name in {item.source for item in found})


@pytest.mark.parametrize("from_thread", [False, True])
def test_closing_while_the_engine_runs(from_thread, slow, stream_files):
    watcher = slow.watch([stream_files["wide"]] * 2, pace="max")
    while not isinstance(next(watcher), Answer):
        pass
    took: list[float] = []

    def close() -> None:
        started = time.monotonic()
        watcher.close()
        took.append(time.monotonic() - started)

    if from_thread:
        closing = threading.Timer(0.3, close)
        closing.start()
        for _ in watcher:
            pass
        closing.join()
    close()
    assert max(took) < 1
    with pytest.raises(StopIteration):
        next(watcher)
    assert not source_threads()


def test_ctrl_c_ends_it(online, stream_files):
    watcher = online.watch([stream_files["wide"]])
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        for _ in watcher:
            pass
    assert not source_threads()


def test_a_signal_handler_may_close_it(online, stream_files):
    watcher = online.watch([stream_files["wide"]])
    before = signal.signal(signal.SIGTERM, lambda *_: watcher.close())
    try:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        list(watcher)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert watcher.sources[0].answered > 3


def test_pictures(online, short):
    with online.watch([f"cam={short}"], keep_pictures=True) as watcher:
        while not isinstance(next(watcher), Answer):
            pass
        picture = watcher.picture("cam")
        assert picture is not None
        assert picture.shape == (96, 128, 3)
        with pytest.raises(FlowlessError, match="no source 'other'; there are cam"):
            watcher.picture("other")
    assert watcher.picture("cam") is None, "nothing is kept after closing"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every is 0"),
        ({"pace": "fast"}, "pace is 'fast'; it must be own or max"),
        ({"stride": -1.0, "timeout_seconds": "3"}, "stride is -1.0.*timeout_seconds is '3'"),
        ({"mode": "online"}, "its segments have 3 frames"),
        ({"window_frames": 5000}, "window_frames is 5000"),
        ({"retries": -1}, "retries is -1"),
    ],
)
def test_mistakes(options, message, rolling, short):
    with pytest.raises(FlowlessError, match=message):
        rolling.watch([short], **options)
