"""Decoding: every way of asking gives the full decode's frames, whatever the codec and container."""

from __future__ import annotations

import gc
import itertools
from pathlib import Path

import av
import barcode
import numpy as np
import pytest
from video_files import all_frames, frames_of, info_of

from flowless.errors import FlowlessError
from flowless.pipeline.video import jumps
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


def questions(frames: int) -> list[list[int]]:
    """Return what is asked of a video: single frames, clips, jumps, any order, repeats."""
    rng = np.random.default_rng(frames)
    clip = (np.arange(8)[:, None] * (frames // 8) + np.arange(4)).clip(0, frames - 1).ravel().tolist()
    mixed = [rng.integers(frames, size=size).tolist() for size in (1, 2, 5, 9)]
    return [[0], [frames - 1], [frames // 2, frames // 2, 0], clip, *mixed]


@by_kind
def test_bar_codes_read_as_asked(kind, barcodes):
    path = barcodes(kind)
    full = list(all_frames(path))
    assert [barcode.read(frame) for frame in full] == list(range(kind.frames))
    for info in (None, info_of(path)):
        for asked in questions(kind.frames):
            got = frames_of(path, asked, known=info)
            assert [barcode.read(frame) for frame in got] == asked
            assert all(np.array_equal(frame, full[ordinal]) for frame, ordinal in zip(got, asked, strict=True))


@pytest.mark.parametrize("name", REAL)
def test_real_clips_equal_their_full_decode(name, clips):
    check_against_full_decode(clips / name)


def test_gestures_equal_their_full_decode(clips):
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
        for asked in questions(len(full))[1:]:
            for frame, ordinal in zip(frames_of(path, asked, known=known), asked, strict=True):
                assert np.array_equal(frame, full[ordinal]), f"{path.name}: frame {ordinal}"


def test_two_threads_give_the_same_frames(barcodes):
    path = barcodes(barcode.KINDS[0])
    assert np.array_equal(frames_of(path, [3, 50, 99], threads=2), frames_of(path, [3, 50, 99]))


def packets_fed(monkeypatch, path: Path, asked: list[int], **options) -> tuple[int, int]:
    """Return how many packets decoding takes off the file, and how often it had to begin again in order."""
    fed, in_order = [], []
    inner, sequential = VideoReader._packets_from, VideoReader._in_order

    def counted(*args, **kwargs):
        for packet in inner(*args, **kwargs):
            fed.append(packet.pts)
            yield packet

    def noted(*args, **kwargs):
        in_order.append(1)
        return sequential(*args, **kwargs)

    with VideoReader(path, **options) as video:
        assert video.info.jumps  # decodes one frame in order, for its size
        monkeypatch.setattr(VideoReader, "_packets_from", counted)
        monkeypatch.setattr(VideoReader, "_in_order", noted)
        video.stack(asked)
    return len(fed), len(in_order)


@pytest.mark.parametrize("known", [False, True], ids=["alone", "with info"])
def test_decoding_starts_at_the_key_frame_and_stops_at_the_last_wanted_packet(known, barcodes, monkeypatch):
    kind = next(kind for kind in barcode.KINDS if kind.name == "long")
    path = barcodes(kind)
    info = info_of(path) if known else None
    # Key frames every 50. Frame 610 is 10 after one; with 3 B-frames its packet lies within 4 of its place.
    fed, in_order = packets_fed(monkeypatch, path, [610], known=info)
    assert fed <= 15
    assert in_order == 0


def test_far_frames_are_reached_by_jumps(barcodes, monkeypatch):
    path = barcodes(next(kind for kind in barcode.KINDS if kind.name == "long"))
    fed, in_order = packets_fed(monkeypatch, path, [5, 305, 655])
    assert fed <= 3 * 10
    assert in_order == 0


def test_unreferenced_frames_are_left_out_only_where_that_is_safe(barcodes):
    safe = {}
    for kind in barcode.KINDS:
        with VideoReader(barcodes(kind)) as video:
            safe[kind.name] = jumps.drops_unreferenced(video._video)
    assert safe["h264_b_pyramid"]
    assert safe["hevc_open_gop"]
    # A frame that its own temporal layer does not need may still be needed by a higher layer.
    assert not safe["hevc_layers"]
    assert not any(safe[name] for name in ("av1", "mpeg4", "vp9_hidden_frames", "vp8_hidden_frames", "mjpeg"))


def test_a_time_line_that_lies_is_found_out(barcodes):
    """What decodes counts, not what was promised: an info whose time stamps are another file's still gives right frames."""
    from dataclasses import replace

    path = barcodes(barcode.KINDS[0])
    info = info_of(path)
    shifted = replace(info, pts=CompactInts(pts + 1 for pts in info.pts))
    assert [barcode.read(frame) for frame in frames_of(path, [7, 60], known=shifted)] == [7, 60]


def test_a_frame_out_of_turn_is_found_out():
    line = Timeline(count=4, pts=np.arange(4), key_frames=np.array([0]), key_bytes=np.empty(0, np.int64))
    run = jumps.Run(0, [3])
    for stamps, came in (([0, 1, 2, 3], 4), ([0, 2, 3], 3), ([0, 2, 1, 3], 2), ([0, 0, 1], 1), ([0, 5], 1)):
        frames = [av.VideoFrame(16, 16) for _ in stamps]
        for frame, stamp in zip(frames, stamps, strict=True):
            frame.pts = stamp
        found = jumps.check_order(frames, line, run, gaps=True)
        assert [ordinal for ordinal, _ in itertools.islice(found, came)] == stamps[:came]
        with pytest.raises(StopIteration if came == len(stamps) else jumps.UnexpectedFrame):
            next(found)


def test_hidden_vp8_frames_are_no_frames(tmp_path, barcodes):
    """Old WebM files hold VP8 frames that are decoded and never shown, in packets of their own."""
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


def test_no_frames_asked_for(barcodes):
    assert frames_of(barcodes(barcode.KINDS[0]), []).shape == (0, barcode.HEIGHT, barcode.WIDTH, 3)


@pytest.mark.parametrize("name", ["h264_b_pyramid", "mpeg4"])
def test_frames_that_are_not_there(name, barcodes):
    path = barcodes(next(kind for kind in barcode.KINDS if kind.name == name))
    with pytest.raises(FlowlessError, match=r"frame 100 was asked for, but the video has 100 frames"):
        frames_of(path, [3, 100])
    with pytest.raises(FlowlessError, match=r"frame -1 was asked for"):
        frames_of(path, [-1])


def test_frames_that_are_not_taken_hinder_no_others(barcodes):
    with VideoReader(barcodes(barcode.KINDS[0])) as video:
        frames = video.frames([1, 50])
        assert next(frames)[0] == 1
        assert [barcode.read(frame) for frame in video.stack([70, 3])] == [70, 3]
        first = next(iter(video))
        assert barcode.read(first) == 0
        assert [barcode.read(frame) for frame in video] == list(range(100))


def test_damage_is_an_error_that_names_the_file(clips):
    path = clips / "corrupted.mp4"
    with pytest.raises(FlowlessError, match=r"corrupted\.mp4: the stream is damaged near frame 28"):
        list(all_frames(path))
    with pytest.raises(FlowlessError, match=r"corrupted\.mp4: .*damaged"):
        frames_of(path, [0, 49])
    # What lies before the damage is as good as ever.
    with VideoReader(path) as video:
        assert np.array_equal(frames_of(path, [3])[0], next(itertools.islice(video, 3, None)))


def test_what_was_read_is_let_go_of_at_once(barcodes):
    """Frames of 4K that wait for the garbage collector are gigabytes."""

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
