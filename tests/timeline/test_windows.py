"""Windows: which frames each has, scores equal to those of `predict`, and each frame decoded once, in flat memory."""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_files import all_frames, info_of

import flowless
from flowless.bench.lib.sample_videos import sample_videos
from flowless.engines.engine import Engine
from flowless.engines.timeline.options import TimelineOptions
from flowless.engines.timeline.video_timeline import Timeline, timeline
from flowless.engines.timeline.window_scores import score_windows
from flowless.engines.timeline.windows import Window, frames_of, plan_windows, window_views
from flowless.errors import FlowlessError
from flowless.pipeline.clip import preprocess
from flowless.pipeline.clip.preprocess import load_clip, load_views
from flowless.pipeline.clip.view_scores import ViewAverage
from flowless.pipeline.video.encode import write_video
from flowless.pipeline.video.info import CompactInts, VideoInfo
from flowless.pipeline.video.open_reader import open_reader
from flowless.pipeline.video.reader import FewerFrames, VideoReader


def info(frames: int, fps: float = 25.0) -> VideoInfo:
    tick = 1 / Fraction(fps)
    return VideoInfo(frames=frames, fps=fps, width=8, height=8, time_base=tick, pts=CompactInts(range(frames)))


def frames_between(path: Path, start: float, end: float, rate: float | None = None) -> tuple[int, int]:
    """Return first and last of the frames that are displayed from start to before end, by their time stamps alone."""
    with open_reader(path, rate=rate) as video:
        stamps = np.asarray(video.info.pts)
        times = [float((stamp - stamps[0]) * video.info.time_base) for stamp in stamps.tolist()]
        inside = [at for at, seconds in enumerate(times) if start <= seconds + 0.0005 < end]  # Matroska rounds to milliseconds
    return inside[0], inside[-1] + 1


def assert_as_predicted(engine: Engine, path: Path, made: Timeline, *, rate: float | None = None) -> None:
    """Compare every window with `Engine.predict`'s arithmetic on the part of the video, and with the time stamps."""
    for window, scores in zip(made.windows, made.scores, strict=True):
        if rate is None:
            part = load_clip(path, engine.spec, first_frame=window.first, num_frames=window.last - window.first)
        else:
            with open_reader(path, rate=rate) as video:
                part = load_views(video, engine.spec, first_frame=window.first, num_frames=window.last - window.first).cut()
        average = ViewAverage(engine.spec.average)
        for start in range(0, len(part), 8):
            average.add(engine(part[start : start + 8]))
        np.testing.assert_array_equal(average.scores, scores)
        assert (window.first, window.last) == frames_between(path, window.start, window.end, rate)


@pytest.fixture(scope="module")
def engine(built: Path) -> Engine:
    return flowless.load(built, "openvino")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds with B-frames and key frames far apart."""
    (path,) = sample_videos(tmp_path_factory.mktemp("windows"), count=1, sizes=((96, 80),), frames=100)
    return path


@pytest.fixture(scope="module")
def uneven(video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same frames, the first 60 at 50 a second, then 20 ms to 300 ms apart, with a gap of a second."""
    steps = [20] * 60 + [20, 70, 300, 40] * 9 + [1000] + [50] * 3
    path = tmp_path_factory.mktemp("uneven") / "uneven.mkv"
    write_video(path, all_frames(video), timestamps=np.cumsum([0, *steps[:99]]).tolist())
    assert info_of(path).variable_rate
    return path


def test_windows_slide_by_the_stride_and_the_last_ends_with_the_video() -> None:
    found = plan_windows("v", info(100), window=1.0, stride=0.4)
    assert [round(one.start, 3) for one in found] == [0.0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4, 2.8, 3.0]
    assert [(one.first, one.last) for one in found[:2]] == [(0, 25), (10, 35)]
    assert (found[-1].first, found[-1].last, found[-1].end) == (75, 100, 4.0)
    # A stride that meets the end adds no window.
    assert [one.start for one in plan_windows("v", info(100), window=2.0, stride=1.0)] == [0.0, 1.0, 2.0]


def test_many_strides_do_not_drift() -> None:
    found = plan_windows("v", info(90_000), window=2.0, stride=0.1)
    assert len(found) == 1 + (3600 - 2) * 10
    assert all(one.last - one.first == 50 for one in found)
    assert [one.first for one in found[:4]] == [0, 3, 5, 8], "the first frame at 0.1 s or later is the third"


def test_a_shorter_video_is_one_window() -> None:
    (found,) = plan_windows("v", info(30), window=2.0, stride=0.5)
    assert found == Window(start=0.0, end=1.2, first=0, last=30)
    (found,) = plan_windows("v", info(1), window=2.0, stride=0.5)
    assert (found.first, found.last) == (0, 1)


@pytest.mark.parametrize(("name", "value"), [("window", 0.03), ("stride", 0.01)])
def test_what_is_shorter_than_a_frame_is_refused(name: str, value: float) -> None:
    with pytest.raises(FlowlessError, match=rf"v\.mp4: a {name} of {value:g} s is shorter than a frame, 0\.04 s at 25 frames .* --{name}"):
        plan_windows("v.mp4", info(100), **{"window": 1.0, "stride": 0.5, name: value})


def test_a_video_without_times_is_refused() -> None:
    with pytest.raises(FlowlessError, match="no timeline, since its frames have no time stamps"):
        plan_windows("v", replace(info(100), pts=CompactInts()), window=1.0, stride=0.5)
    with pytest.raises(FlowlessError, match=r"no frame rate\. Pass it with --rate"):
        plan_windows("v", replace(info(100), pts=CompactInts(), folder=True), window=1.0, stride=0.5)


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_every_windows_scores_are_those_of_its_part_alone(target: str, built: Path, video: Path) -> None:
    loaded = flowless.load(built, target)
    made = timeline(loaded, video, TimelineOptions(window=0.7, stride=0.15))
    assert len(made.windows) == 23
    assert_as_predicted(loaded, video, made)


def test_a_variable_frame_rate(engine: Engine, uneven: Path) -> None:
    made = timeline(engine, uneven, TimelineOptions(window=0.5, stride=0.3))
    counts = {window.last - window.first for window in made.windows}
    assert min(counts) < 5
    assert max(counts) > 20
    assert len(made.windows) < 1 + (made.seconds - 0.5) / 0.3, "no frame begins in a window of the gap"
    assert_as_predicted(engine, uneven, made)


@pytest.mark.parametrize(
    ("name", "window", "stride"),
    [("flipping_a_pancake.mkv", 1.3, 0.9), ("av1_video.mkv", 1.3, 0.5), ("short_32_frames.mp4", 0.4, 0.1)],  # the last varies in its rate
)
def test_real_clips(name: str, window: float, stride: float, engine: Engine, clips: Path) -> None:
    made = timeline(engine, clips / name, TimelineOptions(window=window, stride=stride))
    assert len(made.windows) > 7
    assert_as_predicted(engine, clips / name, made)


def test_a_folder_of_pictures(engine: Engine, video: Path, tmp_path: Path) -> None:
    for number, frame in enumerate(all_frames(video)[:40]):
        Image.fromarray(frame).save(tmp_path / f"{number:03d}.png")
    made = timeline(engine, tmp_path, TimelineOptions(window=1.0, stride=0.5, rate=10))
    assert (made.seconds, len(made.windows)) == (4.0, 7)
    assert_as_predicted(engine, tmp_path, made, rate=10)
    with pytest.raises(FlowlessError, match="--rate"):
        timeline(engine, tmp_path)


def test_views_are_averaged_as_in_predict(engine: Engine, video: Path) -> None:
    """Thirty views of a window: scored alone, eight at a time."""
    spec = replace(engine.spec, sampling="dense", crop="three", average="softmax")
    other = Engine(engine._backend, manifest=replace(engine.manifest, spec=spec), target="openvino", precision="fp32", why="")
    made = timeline(other, video, TimelineOptions(window=2.8, stride=1.0))
    assert len(made.windows) == 3
    assert_as_predicted(other, video, made)


def test_a_whole_video_is_predicted(engine: Engine, video: Path) -> None:
    made = timeline(engine, video, TimelineOptions(window=60, stride=1))
    np.testing.assert_array_equal(made.scores[0], engine.predict(video).scores)
    assert made.warnings == ("the video is shorter than a window, 60 s: it is one window of 4 s",)


def test_a_stride_longer_than_the_window_is_warned_of(engine: Engine, video: Path) -> None:
    made = timeline(engine, video, TimelineOptions(window=0.5, stride=1.5))
    assert "what lies between windows is not scored" in made.warnings[0]
    assert made.steps.shares[1].max() == 0


def test_each_frame_is_decoded_and_resized_once(engine: Engine, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, resized = Counter[int | None](), Counter[bytes]()
    run, resize = VideoReader._decode_run, preprocess.resize_frame

    def counted(self: VideoReader, *args: object, **how: object):
        for frame in run(self, *args, **how):  # pyright: ignore[reportArgumentType]
            decoded[frame.pts] += 1
            yield frame

    monkeypatch.setattr(VideoReader, "_decode_run", counted)
    monkeypatch.setattr(preprocess, "resize_frame", lambda frame, spec: resized.update([frame.tobytes()]) or resize(frame, spec))
    made = timeline(engine, video, TimelineOptions(window=1.0, stride=0.1))
    decoded.clear()
    resized.clear()
    made = timeline(engine, video, TimelineOptions(window=1.0, stride=0.1))
    wanted = {one for window in made.windows for one in frames_of(window, engine.spec).flat}
    assert sum(resized.values()) == len(wanted) > 90
    # (`info` decodes the first frame to know its size, and what follows the last key frame.)
    assert len(decoded) <= 100
    assert sum(decoded.values()) <= 100 + 100
    assert set(resized.values()) == {1}


def test_memory_does_not_grow_with_the_length(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive, most = 0, [0]
    resize = preprocess.resize_frame

    def counted(frame: np.ndarray, spec):
        nonlocal alive
        made = resize(frame, spec)
        alive += 1
        most[-1] = max(most[-1], alive)

        def gone() -> None:
            nonlocal alive
            alive -= 1

        weakref.finalize(made, gone)
        return made

    monkeypatch.setattr(preprocess, "resize_frame", counted)
    for frames in (300, 3000):
        path = tmp_path / f"{frames}.mp4"
        write_video(path, (np.full((64, 64, 3), at % 200, np.uint8) for at in range(frames)), options={"preset": "ultrafast"})
        most.append(0)
        made = timeline(engine, path, TimelineOptions(window=1.0, stride=0.2))
        assert len(made.windows) > frames / 5 - 6
        assert alive == 0
    assert most[2] <= most[1] + 5 < 200


def test_the_decoding_thread_ends_when_the_scores_are_not_wanted(engine: Engine, video: Path) -> None:
    """At the next frame, not at the end of the batch, which would be a second later."""
    seen: list[int] = []

    def slow(ordinal: int, _: np.ndarray) -> None:
        seen.append(ordinal)
        time.sleep(0.03)

    with open_reader(video) as opened:
        windows = plan_windows("v", opened.info, window=0.4, stride=0.2)
        with closing(score_windows(engine, opened, windows, see=slow)) as scored:
            next(scored)
            assert any(thread.name.startswith("flowless-decode") for thread in threading.enumerate())
            before = len(seen)
    assert len(seen) <= before + 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("flowless-decode")]


def test_windows_before_the_damage_are_kept(engine: Engine, clips: Path) -> None:
    made = timeline(engine, clips / "corrupted.mp4", TimelineOptions(window=1.0, stride=0.2))
    assert "damaged near frame 28" in made.error
    planned = plan_windows("v", info_of(clips / "corrupted.mp4"), window=1.0, stride=0.2)
    assert list(made.windows) == [window for window in planned if frames_of(window, engine.spec).max() < 28]
    assert len(made.windows) == len(made.scores) > 5
    assert made.seconds == 5.0
    assert_as_predicted(engine, clips / "corrupted.mp4", made)
    with pytest.raises(FlowlessError, match="damaged near frame 28"):
        timeline(engine, clips / "corrupted.mp4", TimelineOptions(window=4.0, stride=0.5))


@pytest.mark.parametrize(("count", "stride"), [(90, 0.5), (97, 0.246)])
def test_fewer_frames_than_packets(count: int, stride: float, engine: Engine, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last windows are those of the frames that decode, also where one beyond them was scored: that from 2.952 s to 3.952 s."""
    frames, prove = VideoReader.frames, VideoReader.prove

    def fewer(self: VideoReader, ordinals):
        for ordinal, frame in frames(self, ordinals):
            if ordinal >= count:
                raise FewerFrames(self.path, f"only {count} of 100 frames decode")
            yield ordinal, frame

    def proved(self: VideoReader) -> VideoInfo:
        found = prove(self)
        self._info = replace(found, frames=count, pts=CompactInts(found.pts[:count]))
        return self._info

    monkeypatch.setattr(VideoReader, "frames", fewer)
    monkeypatch.setattr(VideoReader, "prove", proved)
    made = timeline(engine, video, TimelineOptions(window=1.0, stride=stride))
    assert (made.error, made.frames) == ("", count)
    assert (made.windows[-1].first, made.windows[-1].last) == (count - 25, count)
    assert [window.start for window in made.windows[:-1]] == [at * stride for at in range(len(made.windows) - 1)]
    assert len(made.scores) == len(made.windows)
    monkeypatch.undo()
    assert_as_predicted(engine, video, made)


def test_views_come_as_soon_as_their_frames(engine: Engine, video: Path) -> None:
    with open_reader(video) as opened:
        windows = plan_windows("v", opened.info, window=0.5, stride=0.25)
        seen: list[int] = []
        for window, views in zip(windows, window_views(opened, engine.spec, windows, see=lambda at, _: seen.append(at)), strict=True):
            assert max(seen) < window.last
            assert len(views) == 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"window": 0}, "window is 0; it must be a number of seconds above 0"),
        ({"window": float("nan"), "stride": -1}, "window is nan.*stride is -1"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"merge": -0.1}, "merge is -0.1"),
        ({"nms": 0}, "nms is 0"),
        ({"rate": 0}, "rate is 0"),
        ({"background": "none"}, "background is 'none'; it must be a tuple"),
    ],
)
def test_wrong_options(fields: dict, says: str) -> None:
    with pytest.raises(FlowlessError, match=says):
        TimelineOptions(**fields)
