"""Regression tests on files that users reported problems with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from video_files import all_frames, frames_of, info_of

from flowless.cli import main
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.video.reader import VideoReader

#: File -> number of frames that FFmpeg decodes.
FRAMES = {
    "sjis.avi": 30,
    "fate_svq3_watermark.mov": 10,
    "mir_clockwise_h.mp4": 32,
    "overlap_cc.ts": 100,
    "same.ts": 100,
    "lost1.ts": 49,
    "gaps_mjpeg.avi": 40,
    "dur.ogv": 30,
    "reschange.webm": 50,
    "av.mts": 100,
}


@pytest.fixture(scope="module")
def field(clips: Path) -> Path:
    folder = clips.parent / "field"
    if not folder.is_dir():
        pytest.skip("the folder `field` is not beside the clips")
    return folder


@pytest.fixture(scope="module")
def named(field: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files with unusual names."""
    out = tmp_path_factory.mktemp("names")
    subprocess.run([sys.executable, str(field / "make_names.py"), str(out)], check=True)
    return out


def scanned(capsys, *args: object) -> tuple[int, dict]:
    code = main(["scan", *map(str, args), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", FRAMES)
def test_all_ways_of_reading_agree(field: Path, name: str) -> None:
    path = field / name
    full = all_frames(path)
    proved, quick = info_of(path, decode=True), info_of(path)
    assert len(full) == FRAMES[name] == proved.frames == quick.frames
    for known in (None, proved, quick):
        for ordinals in ([len(full) - 1], list(range(0, len(full), 3))):
            for ordinal, frame in zip(ordinals, frames_of(path, ordinals, known=known), strict=True):
                assert np.array_equal(frame, full[ordinal])


def test_gaps_are_described(field: Path) -> None:
    described = {name: info_of(field / name).gaps for name in ("same.ts", "lost1.ts", "av.mts")}
    assert described["same.ts"] == "packets are missing after frame 49, or recordings were joined there"
    assert described["lost1.ts"] == "packets are missing after frame 23, or recordings were joined there"
    assert described["av.mts"] == ""


def test_seeking_in_a_camcorder_stream_reads_one_group_of_pictures(field: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, fed, inner = field / "av.mts", [], VideoReader._packets_from
    info = info_of(path)

    def counted(video: VideoReader, key: int):
        for packet in inner(video, key):
            fed.append(packet)
            yield packet

    monkeypatch.setattr(VideoReader, "_packets_from", counted)
    with VideoReader(path, known=info) as video:
        video.stack([99])
        assert video.info.seekable, "seeking was not disabled"
    assert len(fed) <= 25


def test_mirrored_clip(field: Path) -> None:
    ours, wanted = (np.stack(all_frames(field / name)).astype(int) for name in ("mir_clockwise_h.mp4", "orig_clockwise.mp4"))
    assert np.abs(ours - wanted).mean() < 6
    assert np.abs(ours[:, :, ::-1] - wanted).mean() > 12


def test_parts_in_seconds_of_an_avi_with_null_frames(field: Path, tmp_path: Path, capsys) -> None:
    code, _ = scanned(capsys, field / "parts.csv", "--format", "csv", "--out", tmp_path / "x.jsonl")
    assert code == 0
    assert [(video.first_frame, video.frames) for video in DatasetIndex.load(tmp_path / "x.jsonl").videos] == [(0, 20), (20, 20)]


def test_scan_reports_gaps(field: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    for name in ("same.ts", "av.mts"):
        (tmp_path / "set" / "a" / name).symlink_to(field / name)
    code, document = scanned(capsys, tmp_path / "set", "--out", tmp_path / "x.jsonl")
    assert (code, document["packets_missing"]) == (0, [{"path": "a/same.ts", "after": [50]}])
    assert main(["scan", str(tmp_path / "set"), "--out", str(tmp_path / "x.jsonl")]) == 0
    assert "a/same.ts: packets are missing after frame 49" in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("name", ["names_latin1", "names_u2028"])
def test_unusual_file_names(named: Path, tmp_path: Path, capsys, name: str) -> None:
    code, document = scanned(capsys, named / name, "--out", tmp_path / "x.jsonl")
    assert (code, document["videos"]) == (0, 2)
    assert len(DatasetIndex.load(tmp_path / "x.jsonl").videos) == 2


def test_colons_in_names(named: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(named / "names_colon")
    assert info_of(Path("12:30:00.mp4")).frames == 60
    code, document = scanned(capsys, ".", "--out", tmp_path / "x.jsonl")
    assert (code, document["videos"], document["labels"]) == (0, 2, ["pick:up", "run"])
    code, document = scanned(capsys, "t.csv", "--format", "csv", "--out", tmp_path / "y.jsonl")
    assert (code, document["videos"]) == (0, 2)


def test_scan_of_folders_of_pictures(named: Path, tmp_path: Path, capsys) -> None:
    code, document = scanned(capsys, named / "frames", "--out", tmp_path / "x.jsonl")
    assert (code, document["videos"], document["frames"]) == (0, 2, 24)


def test_rare_video_suffixes(named: Path, tmp_path: Path, capsys) -> None:
    code, document = scanned(capsys, named / "suffix", "--out", tmp_path / "x.jsonl")
    assert (code, document["labels"], document["ignored"]) == (0, ["jump", "run", "wave"], 0)


def test_labels_in_different_unicode_forms(named: Path, tmp_path: Path, capsys) -> None:
    assert scanned(capsys, named / "nfc" / "train", "--out", tmp_path / "t.jsonl")[0] == 0
    code, document = scanned(capsys, named / "nfc" / "val", "--labels", tmp_path / "t.jsonl", "--out", tmp_path / "v.jsonl")
    assert (code, document["videos"], document["refused"]) == (0, 2, [])
