"""VideoInfo of real and generated files, and the errors of files that are not videos."""

from __future__ import annotations

import pickle
import struct
from fractions import Fraction
from pathlib import Path

import av
import barcode
import numpy as np
import pytest
from av.stream import Disposition
from video_files import all_frames, frames_of, info_of

from flowless.errors import FlowlessError
from flowless.pipeline.video.container import Unreadable
from flowless.pipeline.video.encode import write_video
from flowless.pipeline.video.info import varies

KINDS = {kind.name + kind.suffix: kind for kind in barcode.KINDS}


@pytest.mark.parametrize(
    ("name", "frames", "fps", "size", "rotation", "codec", "varies", "keys"),
    [
        ("arm_wrestling.mp4", 280, 28.0, (340, 256), 0, "h264", False, (0, 187, 230, 268)),
        ("av1_video.mkv", 125, 25.0, (640, 360), 0, "av1", False, (0,)),
        ("h265_video.mp4", 10, 10.0, (128, 128), 0, "hevc", False, (0, 2, 4, 6, 8)),
        # Two video streams: FFmpeg selects the larger one.
        ("nasa_13013.mp4", 390, 30000 / 1001, (480, 270), 0, "h264", False, (0, 240)),
        ("rotated_90.mov", 3, 30.0, (320, 568), 90, "h264", False, (0,)),
        # Its time stamps are milliseconds, 33 and 34 apart by rounding.
        ("flipping_a_pancake.mkv", 310, 30.0, (426, 240), 0, "h264", False, (0, 150, 300)),
        # One interval is twice as long.
        ("short_32_frames.mp4", 32, 29.0625, (340, 256), 0, "h264", True, (0,)),
        ("unordered.mov", 4, 32.0, (50, 50), 0, "h264", False, (0,)),
    ],
)
@pytest.mark.parametrize("decode", [False, True])
def test_properties_of_real_files(name, frames, fps, size, rotation, codec, varies, keys, decode, clips):
    info = info_of(clips / name, decode=decode)
    assert info.frames == frames == len(info.pts)
    assert info.fps == pytest.approx(fps, rel=1e-3)
    assert (info.width, info.height) == size
    assert (info.rotation, info.codec, info.variable_rate, info.key_frames) == (rotation, codec, varies, keys)
    assert info.proved == decode


@pytest.mark.parametrize("name", sorted(KINDS))
def test_packets_and_decoding_agree(name, barcodes):
    quick, proved = info_of(barcodes(KINDS[name])), info_of(barcodes(KINDS[name]), decode=True)
    assert quick.frames == proved.frames == KINDS[name].frames
    assert (quick.pts, quick.key_frames) == (proved.pts, proved.key_frames)
    assert (quick.width, quick.height) == (barcode.WIDTH, barcode.HEIGHT)
    assert quick.rotation == KINDS[name].more.get("rotation", 0)
    assert quick.variable_rate == ("timestamps" in KINDS[name].more)


def test_avi_is_not_seekable(barcodes):
    info = info_of(barcodes(KINDS["mpeg4.avi"]))
    assert not info.seekable
    assert info.proved
    assert info.fps == 25


def test_frame_at(barcodes):
    for name in ("h264_b_pyramid.mp4", "mpeg4.avi"):
        info = info_of(barcodes(KINDS[name]))
        assert [info.frame_at(seconds) for seconds in (0.0, 0.04, 1.0, 3.96, 99.0)] == [0, 1, 25, 99, 100]
    varying = info_of(barcodes(KINDS["h264_variable_rate.mp4"]))
    times = KINDS["h264_variable_rate.mp4"].more["timestamps"]
    assert [varying.frame_at(times[number] / 1000) for number in (0, 7, 50, 99)] == [0, 7, 50, 99]
    assert varying.frame_at(times[9] / 1000 + 0.1) == 10


def test_variable_rate_ignores_rounding():
    assert not varies(tuple(round(number * 1000 / 30) for number in range(200)))
    assert not varies(tuple(round(number * 1000 / 29.97) for number in range(200)))
    assert not varies((0, 40))
    assert varies((0, 40, 80, 160, 200))


def whole(tmp_path: Path, suffix: str = ".mp4", **more) -> Path:
    path = tmp_path / f"whole{suffix}"
    write_video(path, (barcode.draw(number) for number in range(60)), options={"g": "20"}, **more)
    return path


def index_first(data: bytes) -> bytes:
    """Return an MP4 with its index (`moov`) moved before its data (`mdat`), as for streaming, with adjusted offsets."""
    boxes = {}
    place = 0
    while place < len(data):
        size, kind = struct.unpack(">I4s", data[place : place + 8])
        boxes[kind] = data[place : place + size]
        place += size
    moov = bytearray(boxes[b"moov"])
    table = moov.index(b"stco") + 8
    (entries,) = struct.unpack(">I", moov[table : table + 4])
    for entry in range(entries):
        position = table + 4 + 4 * entry
        (offset,) = struct.unpack(">I", moov[position : position + 4])
        moov[position : position + 4] = struct.pack(">I", offset + len(moov))
    return boxes[b"ftyp"] + bytes(moov) + boxes.get(b"free", b"") + boxes[b"mdat"]


def test_truncated_files(tmp_path):
    data = whole(tmp_path).read_bytes()
    index_last = tmp_path / "index_last.mp4"
    index_last.write_bytes(data[: len(data) // 2])
    with pytest.raises(FlowlessError, match=r"index_last\.mp4: .*damaged or cut off"):
        info_of(index_last)

    reordered = index_first(data)
    (tmp_path / "whole_web.mp4").write_bytes(reordered)
    assert info_of(tmp_path / "whole_web.mp4", decode=True).frames == 60
    truncated = tmp_path / "index_first.mp4"
    truncated.write_bytes(reordered[: len(reordered) * 2 // 3])
    with pytest.raises(FlowlessError, match=r"index_first\.mp4: it is cut off after \d+ frames"):
        info_of(truncated)

    data = whole(tmp_path, ".mkv").read_bytes()
    matroska = tmp_path / "half.mkv"
    matroska.write_bytes(data[: len(data) // 2])
    with pytest.raises(FlowlessError, match=r"half\.mkv: it is cut off after \d+ frames"):
        info_of(matroska)


def test_damage_is_found_by_decoding(tmp_path, clips):
    assert info_of(clips / "corrupted.mp4").frames == 50  # the packets are all there
    with pytest.raises(FlowlessError, match=r"corrupted\.mp4: the stream is damaged near frame 28"):
        info_of(clips / "corrupted.mp4", decode=True)


@pytest.mark.parametrize("count", [12, 3000])
def test_damaged_bytes(count, tmp_path):
    """Decoders conceal small damage: a concealed frame must not be returned as a correct one."""
    whole_data = whole(tmp_path).read_bytes()
    good = list(all_frames(tmp_path / "whole.mp4"))
    damaged = tmp_path / "flipped.mp4"
    refused = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        data = bytearray(whole_data)
        start = data.index(b"mdat") + 1000 + int(rng.integers(6000))
        data[start : start + count] = rng.bytes(count)
        damaged.write_bytes(data)
        with pytest.raises(FlowlessError, match=r"flipped\.mp4: the stream is damaged near frame \d+") as caught:
            info_of(damaged, decode=True)
        frame = int(str(caught.value).split("near frame ")[1].split(".")[0])
        # A later frame of the same group of pictures may refer to the damaged one: it must be refused, or be correct.
        later = min(frame // 20 * 20 + 19, 59)
        try:
            got = frames_of(damaged, [later])[0]
        except FlowlessError as error:
            refused.append(str(error))
        else:
            assert np.array_equal(got, good[later])
    assert refused
    assert all("damaged" in text for text in refused)


def audio_only(path: Path, cover: bool = False) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000)
        picture = None
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if picture is not None:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
            container.mux(picture.encode(None))
    return path


def test_files_that_are_not_videos(tmp_path):
    empty, text = tmp_path / "empty.mp4", tmp_path / "text.mp4"
    empty.touch()
    text.write_text("not a video\n" * 50)
    cases = {
        tmp_path / "missing.mp4": "there is no such file",
        tmp_path: "it is a folder",
        empty: "the file is empty",
        text: "it is not a video that FFmpeg can read",
        audio_only(tmp_path / "sound.m4a"): "no video stream, only audio",
        audio_only(tmp_path / "cover.mp4", cover=True): "no video stream, only audio",
    }
    for path, reason in cases.items():
        with pytest.raises(FlowlessError, match=reason) as caught:
            info_of(path)
        assert str(caught.value).startswith(f"{path}: ")


def test_unreadable_can_be_pickled():
    error = pickle.loads(pickle.dumps(Unreadable("a.mp4", "the file is empty")))
    assert (error.path, error.reason) == ("a.mp4", "the file is empty")
    assert "a.mp4: the file is empty" in str(error)


def test_write_video_errors(tmp_path):
    path = tmp_path / "x.mp4"
    with pytest.raises(FlowlessError, match=r"x\.mp4: there are no frames"):
        write_video(path, [])
    with pytest.raises(FlowlessError, match=r"x\.mp4: libx264 cannot write"):
        write_video(path, [np.zeros((33, 35, 3), np.uint8)])
    with pytest.raises(FlowlessError, match=r"x\.mp4: frame 1 is \[32, 32, 3\]"):
        write_video(path, [np.zeros((64, 64, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)])
    with pytest.raises(FlowlessError, match=r"no_codec cannot write"):
        write_video(path, [np.zeros((64, 64, 3), np.uint8)], codec="no_codec")
    assert list(tmp_path.iterdir()) == []


def test_write_video_is_deterministic(tmp_path):
    first, second = whole(tmp_path).read_bytes(), whole(tmp_path).read_bytes()
    assert first == second


def test_a_long_last_frame_is_not_damage(tmp_path):
    times = [0, 40, 80, 120, 5000]
    for suffix in (".mp4", ".mkv"):
        path = tmp_path / f"slides{suffix}"
        write_video(path, (barcode.draw(number) for number in range(5)), timestamps=times)
        assert info_of(path).frames == 5
        write_video(path, [barcode.draw(0)], fps=Fraction(1, 10))  # one frame for ten seconds
        assert info_of(path).frames == 1


@pytest.mark.parametrize("suffix", ["avi", "mkv", "mp4", "mov"])
def test_a_title_that_is_not_utf8(tmp_path, suffix):
    path = tmp_path / f"clip.{suffix}"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLE"
        stream = container.add_stream("mpeg4", rate=25, width=32, height=32, pix_fmt="yuv420p")
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 40 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    written = path.read_bytes()
    assert b"TITLE" in written
    path.write_bytes(written.replace(b"TITLE", "テスト".encode("shift-jis")[:5]))
    assert info_of(path).frames == 5
