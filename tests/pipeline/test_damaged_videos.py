"""Truncated, interlaced, wrongly stamped and inconsistent files: all ways of reading agree, and match FFmpeg."""

from __future__ import annotations

from pathlib import Path

import barcode
import pytest
import unusual_videos as unusual
from PIL import Image
from reading_checks import SPEC, check_all_readers
from video_files import all_frames, info_of

from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.video.container import Unreadable
from flowless.pipeline.video.encode import write_video
from flowless.pipeline.video.reader import VideoReader


def write_barcodes(path: Path, numbers: range, codec: str, **options: str) -> Path:
    write_video(path, map(barcode.draw, numbers), codec=codec, options=options)
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
def test_interlaced_video(tmp_path, codec, suffix):
    options = {
        "libx264": {"flags": "+ilme+ildct", "x264-params": "tff=1"},
        "libx265": {"x265-params": "interlace=tff:log-level=none"},
        "mpeg2video": {"flags": "+ilme+ildct"},
    }[codec]
    path = write_barcodes(tmp_path / f"film{suffix}", range(20), codec, **options)
    assert next(unusual.decoded(path)).interlaced_frame
    check_all_readers(path, unusual.autorotated(path, []))


@pytest.mark.parametrize("suffix", ["", ".mpg", ".ts"])
@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
def test_mpeg_with_changing_size(tmp_path, codec, suffix):
    bare = {"mpeg1video": ".m1v", "mpeg2video": ".m2v"}[codec]
    for number, step in enumerate((1, 2)):
        images = (barcode.draw(frame)[::step, ::step] for frame in range(30))
        write_video(tmp_path / f"{number}{bare}", images, codec=codec, options={"g": "12", "bf": "2", "q": "3"})
    path = unusual.joined(tmp_path / f"both{bare}", tmp_path / f"0{bare}", tmp_path / f"1{bare}")
    if suffix:
        path = unusual.without(path, tmp_path / f"film{suffix}", ())
    wanted = unusual.autorotated(path, [])
    sizes = [frame.shape for frame in wanted]
    assert len(set(sizes)) == 2
    assert len(wanted) < 60, "FFmpeg's decoder drops a frame where the size changes"
    full = all_frames(path)
    assert len(full) == len(wanted)
    check_all_readers(path, full)


@pytest.mark.parametrize("shift", ["a part is earlier", "some are earlier"])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9", "ffv1"])
def test_disordered_time_stamps(tmp_path, codec, shift):
    options = {"libx265": {"x265-params": "keyint=12:log-level=none"}, "libvpx-vp9": {"cpu-used": "8", "g": "12"}, "libx264": {"g": "12"}}
    whole = write_barcodes(tmp_path / "whole.mkv", range(40), codec, **options.get(codec, {}))
    path = tmp_path / "film.mkv"
    by = (lambda number: -610 if number > 14 else 0) if shift == "a part is earlier" else (lambda number: -60 if number % 5 > 3 else 0)
    unusual.restamped(whole, path, by)
    wanted = [barcode.read(frame.to_ndarray(format="rgb24")) for frame in unusual.decoded(path)]
    check_all_readers(path, wanted)


def verdicts(path: Path) -> set[str]:
    """Read a file in all ways; return the different results: the number of its frames, or the reason for refusal."""
    found = set()
    for way in (lambda: len(all_frames(path)), lambda: info_of(path).frames, lambda: info_of(path, decode=True).frames):
        try:
            found.add(str(way()))
        except Unreadable as error:
            found.add(error.reason)
    try:
        load_clip(path, SPEC)
        found.add(str(info_of(path).frames))
    except FlowlessError as error:
        found.add(getattr(error, "reason", str(error)))
    return found


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("suffix", [".ts", ".mpg", ".nut", ".mp4", ".mkv", ".avi", ".flv"])
def test_readers_agree_on_truncated_files(tmp_path, suffix, share):
    codec = "mpeg2video" if suffix == ".mpg" else "libx264"
    whole = write_barcodes(tmp_path / f"whole{suffix}", range(50), codec, g="12", bf="3" if codec == "libx264" else "2")
    data = whole.read_bytes()
    path = tmp_path / f"film{suffix}"
    path.write_bytes(data[: min(int(len(data) * share), len(data) - 1)])
    assert len(verdicts(path)) == 1, verdicts(path)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_truncated_gif(tmp_path, share):
    frames = [Image.fromarray(barcode.draw(number)) for number in range(12)]
    path = tmp_path / "film.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40)
    data = path.read_bytes()
    assert verdicts(path) == {"12"}
    path.write_bytes(data[:-1])
    assert verdicts(path) == {"12"}, "only the trailer is missing"
    path.write_bytes(data[: int(len(data) * share)])
    (verdict,) = verdicts(path)
    assert verdict == f"it is cut off after {int(12 * share)} frames"


def test_a_single_picture_is_refused(tmp_path):
    for suffix in (".jpg", ".png", ".bmp", ".webp"):
        Image.fromarray(barcode.draw(1)).save(tmp_path / f"still{suffix}")
    with pytest.raises(Unreadable, match=r"still\.jpg: it is a single picture, not a video"):
        VideoReader(tmp_path / "still.jpg")
