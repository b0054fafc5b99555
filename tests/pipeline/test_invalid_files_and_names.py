"""Files that are not videos, exceed the limits, or have unusual names."""

from __future__ import annotations

import os
from pathlib import Path

import av
import barcode
import encrypted_files
import pytest
from video_files import info_of

from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import load_clip
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.dataset.scan import scan
from flowless.pipeline.video.container import Unreadable
from flowless.pipeline.video.encode import write_video
from flowless.pipeline.video.reader import VideoReader

SPEC = ClipSpec(segments=4, frames_per_segment=2, height=40, width=40, short_side=48)


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "camera.mp4")
    with pytest.raises(Unreadable, match=r"camera\.mp4: it is not a regular file"):
        VideoReader(tmp_path / "camera.mp4")


def test_a_playlist_is_refused(tmp_path, barcodes):
    film = barcodes(barcode.KINDS[0])
    (tmp_path / "film.mp4").symlink_to(film)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile film.mp4\n")
    with pytest.raises(Unreadable, match=r"list\.mp4: it is a list of other files"):
        VideoReader(tmp_path / "list.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".wmv", ".ts", ".m2ts"])
def test_encrypted_files_are_refused(tmp_path, suffix):
    codec = {".wmv": "mpeg4", ".webm": "libvpx"}.get(suffix, "libx264")
    plain = tmp_path / f"plain{suffix.replace('.wmv', '.asf').replace('.m2ts', '.ts')}"
    write_video(plain, map(barcode.draw, range(10)), codec=codec)
    assert info_of(plain).frames == 10
    path = tmp_path / f"drm{suffix}"
    path.write_bytes(encrypted_files.ENCRYPTED[suffix](plain.read_bytes()))
    with pytest.raises(Unreadable, match=rf"drm{suffix}: it is encrypted"):
        VideoReader(path)


@pytest.mark.parametrize("address", ["https://example.com/a.mp4", "rtsp://10.0.0.1/live", "s3://bucket/a.mp4"])
def test_a_url_is_refused(address):
    with pytest.raises(Unreadable, match="it is a URL, and videos are read from files"):
        load_clip(Path(address), SPEC)


NAMES = ["12:30:00.mp4", "a\u2028b.mp4", "tab\there.mp4", "[1] a%03d.mp4", "line\nbreak.mp4", "Cafe\u0301.mp4", os.fsdecode(b"caf\xe9.mp4")]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_unusual_file_names(tmp_path, barcodes, name, monkeypatch):
    folder = tmp_path / "pick:up"
    (folder / "class").mkdir(parents=True)
    (folder / "class" / name).write_bytes(barcodes(barcode.KINDS[0]).read_bytes())
    monkeypatch.chdir(folder / "class")
    assert info_of(Path(name)).frames == 100
    scan(folder, out=tmp_path / "index.jsonl", workers=1)
    index = DatasetIndex.load(tmp_path / "index.jsonl")
    (record,) = index.videos
    assert record.path == f"class/{name}"
    assert load_clip(index.path_of(record), SPEC).shape == (1, *SPEC.shape)


def test_labels_in_different_unicode_forms(tmp_path, barcodes):
    for split, label in (("train", "Caf\u00e9"), ("val", "Cafe\u0301")):
        (tmp_path / split / label).mkdir(parents=True)
        (tmp_path / split / label / "a.mp4").write_bytes(barcodes(barcode.KINDS[0]).read_bytes())
    train = scan(tmp_path / "train", out=tmp_path / "t.jsonl", workers=1)
    val = scan(tmp_path / "val", labels=tmp_path / "t.jsonl", out=tmp_path / "v.jsonl", workers=1)
    assert train.labels == val.labels == ("Caf\u00e9",)
    assert len(val.videos) == 1
    table = tmp_path / "val.csv"
    table.write_text("path,label\nval/Caf\u00e9/a.mp4,Cafe\u0301\n", encoding="utf-8")
    (video,) = scan(table, format="csv", labels=tmp_path / "t.jsonl", out=tmp_path / "c.jsonl", workers=1).videos
    assert video.frames == 100


def test_too_long_names(tmp_path, barcodes):
    name = "x" * 300 + ".mp4"
    with pytest.raises(Unreadable, match="there is no such file"):
        load_clip(tmp_path / name, SPEC)
    (tmp_path / "a.mp4").symlink_to(barcodes(barcode.KINDS[0]))
    table = tmp_path / "t.csv"
    table.write_text(f"path,label\n{name},a\na.mp4,a\n")
    index = scan(table, format="csv", out=tmp_path / "index.jsonl", workers=1)
    assert [video.path for video in index.videos] == ["a.mp4"]
    assert [item.reason for item in index.refused] == ["line 2: there is no such file"]


def test_limits(tmp_path, monkeypatch):
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=25, width=160, height=96, pix_fmt="yuv420p") for _ in range(3)]
        for number in range(5):
            for stream in streams:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(barcode.draw(number), format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    assert info_of(path).frames == 5
    for name, value, reason in (
        ("PIXELS", "15000", "15,360 pixels, more than 15,000. Raise the limit with FLOWLESS_MAX_PIXELS"),
        ("FRAMES", "4", "5 frames, more than 4"),
        ("STREAMS", "2", "3 streams, more than 2"),
        ("PIXELS", "many", "FLOWLESS_MAX_PIXELS is 'many'; it must be an integer of at least 1"),
    ):
        with monkeypatch.context() as patch, pytest.raises(FlowlessError, match=reason):
            patch.setenv(f"FLOWLESS_MAX_{name}", value)
            VideoReader(path)
