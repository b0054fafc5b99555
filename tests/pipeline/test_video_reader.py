"""VideoReader: selected frames equal those of a full decode, for all codecs and containers."""

from __future__ import annotations

import errno
import gc
import itertools
import os
from pathlib import Path

import av
import barcode
import numpy as np
import pytest
from video_files import all_frames, frames_of, info_of

from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.video import reader, seeking
from flowless.pipeline.video.container import open_video
from flowless.pipeline.video.encode import write_video
from flowless.pipeline.video.info import CompactInts
from flowless.pipeline.video.reader import VideoReader
from flowless.pipeline.video.timeline import Timeline

by_kind = pytest.mark.parametrize("kind", barcode.KINDS, ids=lambda kind: kind.name + kind.suffix)
REAL = [
    "arm_wrestling.mp4",
    "av1_video.mkv",
    "bt709_full_range.mp4",
    "flipping_a_pancake.mkv",
    "h264_10bits.mp4",
    "h265_video.mp4",
    "nasa_13013.mp4",
    "rotated_90.mov",
    "short_32_frames.mp4",
    "unordered.mov",
]


def selections(frames: int) -> list[list[int]]:
    """Return lists of ordinals: single frames, clips, distant frames, unordered and repeated."""
    rng = np.random.default_rng(frames)
    clip = (np.arange(8)[:, None] * (frames // 8) + np.arange(4)).clip(0, frames - 1).ravel().tolist()
    mixed = [rng.integers(frames, size=size).tolist() for size in (1, 2, 5, 9)]
    return [[0], [frames - 1], [frames // 2, frames // 2, 0], clip, *mixed]


@by_kind
def test_selected_frames_match_the_full_decode(kind, barcodes):
    path = barcodes(kind)
    full = list(all_frames(path))
    assert [barcode.read(frame) for frame in full] == list(range(kind.frames))
    for info in (None, info_of(path)):
        for wanted in selections(kind.frames):
            got = frames_of(path, wanted, known=info)
            assert [barcode.read(frame) for frame in got] == wanted
            assert all(np.array_equal(frame, full[ordinal]) for frame, ordinal in zip(got, wanted, strict=True))


@pytest.mark.parametrize("name", REAL)
def test_selected_frames_of_real_clips(name, clips):
    check_against_full_decode(clips / name)


def test_selected_frames_of_gestures(clips):
    paths = sorted((clips / "gestures").glob("*.mkv"))
    assert paths
    for path in paths:
        check_against_full_decode(path)


def check_against_full_decode(path: Path) -> None:
    full = list(all_frames(path))
    info = info_of(path)
    assert info.frames == len(full)
    assert full[0].shape == (info.height, info.width, 3)
    for known in (None, info):
        for wanted in selections(len(full))[1:]:
            for frame, ordinal in zip(frames_of(path, wanted, known=known), wanted, strict=True):
                assert np.array_equal(frame, full[ordinal]), f"{path.name}: frame {ordinal}"


def test_threads_do_not_change_frames(barcodes):
    path = barcodes(barcode.KINDS[0])
    assert np.array_equal(frames_of(path, [3, 50, 99], threads=2), frames_of(path, [3, 50, 99]))


def test_a_clip_opens_its_file_once(barcodes, monkeypatch):
    """Small files are read once: the packets from which the timeline is read are kept for decoding."""
    opened = []
    monkeypatch.setattr(reader, "open_video", lambda path, **options: opened.append(path) or open_video(path, **options))
    path = barcodes(barcode.KINDS[0])
    load_clip(path, ClipSpec(height=48, width=48, short_side=56))
    assert opened == [str(path)]


def packets_fed(monkeypatch, path: Path, wanted: list[int], **options) -> tuple[int, int]:
    """Return the number of packets read to decode `wanted`, and how often sequential decoding was started."""
    fed, sequential_starts = [], []
    inner, decode_sequentially = VideoReader._packets_from, VideoReader._decode_sequentially

    def counted(*args, **kwargs):
        for packet in inner(*args, **kwargs):
            fed.append(packet.pts)
            yield packet

    def noted(*args, **kwargs):
        sequential_starts.append(1)
        return decode_sequentially(*args, **kwargs)

    with VideoReader(path, **options) as video:
        assert video.info.seekable  # decodes the first frame, for its size
        monkeypatch.setattr(VideoReader, "_packets_from", counted)
        monkeypatch.setattr(VideoReader, "_decode_sequentially", noted)
        video.stack(wanted)
    return len(fed), len(sequential_starts)


@pytest.mark.parametrize("known", [False, True], ids=["alone", "with info"])
def test_decoding_is_limited_to_the_needed_packets(known, barcodes, monkeypatch):
    kind = next(kind for kind in barcode.KINDS if kind.name == "long")
    path = barcodes(kind)
    info = info_of(path) if known else None
    # A key frame every 50 frames: frame 610 is 10 after one, and with 3 B-frames its packet is within 4 positions of it.
    fed, sequential_starts = packets_fed(monkeypatch, path, [610], known=info)
    assert fed <= 15
    assert sequential_starts == 0


def test_distant_frames_are_reached_by_seeking(barcodes, monkeypatch):
    path = barcodes(next(kind for kind in barcode.KINDS if kind.name == "long"))
    fed, sequential_starts = packets_fed(monkeypatch, path, [5, 305, 655])
    assert fed <= 3 * 10
    assert sequential_starts == 0


def test_nonreference_frames_are_skipped_only_where_safe(barcodes):
    safe = {}
    for kind in barcode.KINDS:
        video = open_video(barcodes(kind))
        with video.container:
            safe[kind.name] = seeking.can_skip_nonref(video)
    assert safe["h264_b_pyramid"]
    assert safe["hevc_open_gop"]
    # A frame that no frame of its temporal layer refers to may still be a reference for a higher layer.
    assert not safe["hevc_layers"]
    assert not any(safe[name] for name in ("av1", "mpeg4", "vp9_hidden_frames", "vp8_hidden_frames", "mjpeg"))


def test_a_wrong_timeline_is_detected(barcodes):
    """Frames are correct even with `known` time stamps of another file."""
    from dataclasses import replace

    path = barcodes(barcode.KINDS[0])
    info = info_of(path)
    shifted = replace(info, pts=CompactInts(pts + 1 for pts in info.pts))
    assert [barcode.read(frame) for frame in frames_of(path, [7, 60], known=shifted)] == [7, 60]


def test_frames_out_of_order_are_detected():
    line = Timeline(count=4, pts=np.arange(4), key_frames=np.array([0]), key_bytes=np.empty(0, np.int64))
    run = seeking.DecodeRun(0, [3])
    for stamps, came in (([0, 1, 2, 3], 4), ([0, 2, 3], 3), ([0, 2, 1, 3], 2), ([0, 0, 1], 1), ([0, 5], 1)):
        frames = [av.VideoFrame(16, 16) for _ in stamps]
        for frame, stamp in zip(frames, stamps, strict=True):
            frame.pts = stamp
        found = seeking.check_order(frames, line, run, gaps=True)
        assert [ordinal for ordinal, _ in itertools.islice(found, came)] == stamps[:came]
        with pytest.raises(StopIteration if came == len(stamps) else seeking.UnexpectedFrame):
            next(found)


def test_hidden_vp8_frames_are_not_counted(tmp_path, barcodes):
    """Old WebM files have separate packets of VP8 frames that are decoded but never displayed."""
    source = barcodes(next(kind for kind in barcode.KINDS if kind.name.startswith("vp8")))
    hidden = tmp_path / "hidden.webm"
    with av.open(str(source)) as before, av.open(str(hidden), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for number, packet in enumerate(packet for packet in before.demux(video=0) if packet.size):
            data = bytearray(bytes(packet))
            if number in (11, 42):
                data[0] &= ~0x10  # show_frame off
            copy = av.Packet(bytes(data))
            copy.pts, copy.dts, copy.time_base, copy.is_keyframe = packet.pts, packet.dts, packet.time_base, packet.is_keyframe
            copy.stream = stream
            after.mux(copy)
    shown = [number for number in range(100) if number not in (11, 42)]
    assert info_of(hidden).frames == len(shown)
    assert [barcode.read(frame) for frame in all_frames(hidden)] == shown
    assert [barcode.read(frame) for frame in frames_of(hidden, [10, 11, 41, 97])] == [10, 12, 43, 99]


def test_empty_selection(barcodes):
    assert frames_of(barcodes(barcode.KINDS[0]), []).shape == (0, barcode.HEIGHT, barcode.WIDTH, 3)


@pytest.mark.parametrize("name", ["h264_b_pyramid", "mpeg4"])
def test_ordinals_out_of_range(name, barcodes):
    path = barcodes(next(kind for kind in barcode.KINDS if kind.name == name))
    with pytest.raises(FlowlessError, match=r"frame 100 was requested, but the video has 100 frames"):
        frames_of(path, [3, 100])
    with pytest.raises(FlowlessError, match=r"frame -1 was requested"):
        frames_of(path, [-1])


def test_an_abandoned_iterator_does_not_affect_the_next(barcodes):
    with VideoReader(barcodes(barcode.KINDS[0])) as video:
        frames = video.frames([1, 50])
        assert next(frames)[0] == 1
        assert [barcode.read(frame) for frame in video.stack([70, 3])] == [70, 3]
        first = next(iter(video))
        assert barcode.read(first) == 0
        assert [barcode.read(frame) for frame in video] == list(range(100))


def test_damage_is_reported(clips):
    path = clips / "corrupted.mp4"
    with pytest.raises(FlowlessError, match=r"corrupted\.mp4: the stream is damaged near frame 28"):
        list(all_frames(path))
    with pytest.raises(FlowlessError, match=r"corrupted\.mp4: .*damaged"):
        frames_of(path, [0, 49])
    # Frames before the damage are correct.
    with VideoReader(path) as video:
        assert np.array_equal(frames_of(path, [3])[0], next(itertools.islice(video, 3, None)))


def test_frames_are_freed_without_the_garbage_collector(barcodes):
    """4K frames that wait for the garbage collector would take gigabytes."""

    def held() -> int:
        return sum(issubclass(type(thing), (av.VideoFrame, av.Packet, av.VideoCodecContext)) for thing in gc.get_objects())

    names = {"h264_rotated_90", "h264_10_bits", "mpeg4", "hevc_open_gop", "vp9_hidden_frames"}
    paths = [barcodes(kind) for kind in barcode.KINDS if kind.name in names]
    gc.collect()
    gc.disable()
    before = held()
    try:
        for path in paths:
            with VideoReader(path) as video:
                video.prove()
                video.stack([90, 3])
                next(iter(video))
            del video
            assert held() == before, path
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system has no scheduling policies")
def test_encoding_keeps_the_scheduling_policy(tmp_path: Path) -> None:
    """As root SVT-AV1 makes its caller real-time; two such processes on two cores leave nothing to others."""
    before = os.sched_getscheduler(0)
    write_video(tmp_path / "av1.mp4", np.zeros((8, 64, 64, 3), np.uint8), codec="libsvtav1")
    assert os.sched_getscheduler(0) == before


def test_encoding_where_the_system_reports_no_scheduling_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """musl's functions fail with ENOSYS."""

    def missing(_: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "sched_getscheduler", missing, raising=False)
    write_video(tmp_path / "film.mp4", np.zeros((2, 64, 64, 3), np.uint8))
    assert info_of(tmp_path / "film.mp4").frames == 2
