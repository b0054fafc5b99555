"""Conflicting and invalid entries of data sets, edited indexes, and output paths that cannot be written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import barcode
import numpy as np
import pytest
from PIL import Image
from video_files import all_frames, info_of

from flowless.errors import FlowlessError
from flowless.files import refuse_unwritable, whole_file
from flowless.pipeline.commands import scan as scan_command
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.dataset.scan import scan
from flowless.pipeline.dataset.scan_jobs import Job
from flowless.pipeline.dataset.scan_journal import Journal


@pytest.fixture
def video_path(tmp_path: Path, barcodes) -> Path:
    (tmp_path / "set").mkdir()
    return Path(shutil.copy(barcodes(barcode.KINDS[0]), tmp_path / "set" / "film.mp4"))


def scanned(video_path: Path, text: str | bytes) -> DatasetIndex:
    table = video_path.with_name("list.csv")
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return scan(table, format="csv", out=video_path.with_name("index.jsonl"), workers=1)


def test_one_file_with_two_labels(tmp_path, barcodes):
    source = barcodes(barcode.KINDS[0])
    for label in ("a", "b"):
        (tmp_path / "set" / label).mkdir(parents=True)
    shutil.copy(source, tmp_path / "set" / "a" / "film.mp4")
    (tmp_path / "set" / "b" / "again.mp4").symlink_to(tmp_path / "set" / "a" / "film.mp4")
    (tmp_path / "set" / "a" / "again.mp4").symlink_to(tmp_path / "set" / "a" / "film.mp4")
    index = scan(tmp_path / "set", out=tmp_path / "folder.jsonl", workers=1)
    assert [video.path for video in index.videos] == ["a/again.mp4", "a/film.mp4"]
    same = "it is the same file as a/again.mp4, which has another label, 'a'"
    assert [(item.path, item.reason) for item in index.refused] == [("b/again.mp4", same)]
    table = tmp_path / "set" / "list.csv"
    table.write_text("path,label,start,end\na/film.mp4,a,,\nb/../a/film.mp4,b,,\nb/again.mp4,b,,\na/film.mp4,b,0,1\na/film.mp4,c,1,2\n")
    index = scan(table, format="csv", out=tmp_path / "table.jsonl", workers=1)
    assert [video.id for video in index.videos] == ["a/film.mp4", "a/film.mp4#0-1", "a/film.mp4#1-2"]
    same = "it is the same file as a/film.mp4 of line 2, which has another label, 'a'"
    assert [item.reason for item in index.refused] == [
        "line 3: listed already in line 2 with another label, 'a'",
        f"line 4: {same}",
    ]


def test_the_same_frames_with_two_labels(video_path):
    index = scanned(
        video_path, "path,label,start,end\nfilm.mp4,a,,\nfilm.mp4,b,0,\nfilm.mp4,c,0,99\nfilm.mp4,a,1,2\nfilm.mp4,b,1.0000001,2\n"
    )
    assert [video.id for video in index.videos] == ["film.mp4", "film.mp4#1-2"]
    assert [item.reason for item in index.refused] == [
        "line 3: it is the same file as film.mp4 of line 2, which has another label, 'a'",
        "line 4: it is the same file as film.mp4 of line 2, which has another label, 'a'",
        "line 6: it has the same frames as film.mp4 of line 5, which has another label, 'a'",
    ]


def test_ids_are_unique(video_path):
    index = scanned(
        video_path, "path,label,start,end\nfilm.mp4,a,1.0000001,1.5\nfilm.mp4,a,1.0000002,1.5\n../set/film.mp4,a,,\nfilm.mp4,a,,\n"
    )
    assert [video.id for video in index.videos] == ["film.mp4#1.0000001-1.5", "film.mp4#1.0000002-1.5", "film.mp4"]
    assert [item.reason for item in index.refused] == ["line 5: listed already in line 4"]


def test_parent_folder_of_a_link(tmp_path, video_path):
    (tmp_path / "set" / "real" / "sub").mkdir(parents=True)
    (tmp_path / "set" / "link").symlink_to(tmp_path / "set" / "real" / "sub")
    shutil.copy(video_path, tmp_path / "set" / "real" / "film.mp4")
    barcode.KINDS[0].write(tmp_path, range(10))
    shutil.move(tmp_path / f"{barcode.KINDS[0].name}.mp4", video_path)
    behind = tmp_path / "set" / "link" / ".." / "film.mp4"
    assert info_of(behind).frames == len(all_frames(behind)) == 100
    index = scanned(video_path, "path,label\nlink/../film.mp4,a\nfilm.mp4,a\n")
    assert [(video.id, video.frames) for video in index.videos] == [("link/../film.mp4", 100), ("film.mp4", 10)]
    assert index.path_of(index.videos[0]).samefile(behind)


@pytest.mark.parametrize(
    "text", ['path,label\nfilm.mp4,"a\nx.mp4,b\n', "path,label,label\nfilm.mp4,a,b\n"], ids=["open quote", "twice a column"]
)
def test_invalid_tables(video_path, text):
    with pytest.raises(FlowlessError, match=r"a quote left open|its first line has the columns"):
        scanned(video_path, text)


def test_nul_in_a_table(video_path):
    index = scanned(video_path, b"path,label\na\0b.mp4,a\nfilm.mp4,a\n")
    assert [video.id for video in index.videos] == ["film.mp4"]
    assert [item.reason for item in index.refused] == ["line 2: its path holds a NUL"]


def test_a_pipe_is_not_a_table(tmp_path):
    os.mkfifo(tmp_path / "list.csv")
    with pytest.raises(FlowlessError, match="it is not a regular file"):
        scan(tmp_path / "list.csv", format="csv", out=tmp_path / "index.jsonl")


def test_a_class_without_valid_lines(video_path):
    table = video_path.with_name("list.csv")
    table.write_text("path,label,start,end\nfilm.mp4,a,,\nfilm.mp4,b,nan,\n")
    with pytest.raises(FlowlessError, match="no usable video of 'b'"):
        scan_command([str(table), "--format", "csv", "--out", str(video_path.with_name("i.jsonl"))])


def test_frame_at_in_an_avi(tmp_path):
    path = barcode.Kind("film", ".avi", "mpeg4", {"g": "12", "q": "3"}).write(tmp_path)
    info = info_of(path, decode=True)
    assert [info.frame_at(seconds) for seconds in (0.48, 0.5, 0.52, 3.96, 3.98)] == [12, 13, 13, 99, 100]
    for number in range(100):
        assert info.frame_at(number / 25) == number


def test_writing_to_devices_pipes_and_links(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for way in (refuse_unwritable, lambda path: whole_file(path).__enter__()):
        with pytest.raises(FlowlessError, match="not a regular file but a device or a pipe"):
            way(tmp_path / "pipe")
        with pytest.raises(FlowlessError, match="/dev/null: not a regular file"):
            way("/dev/null")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    with whole_file(tmp_path / "link.json") as draft:
        draft.write_text("new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"


def test_too_long_journal_name(video_path):
    video_path.with_name("list.csv").write_text("path,label\nfilm.mp4,a\n")
    with pytest.raises(FlowlessError, match="cannot write there"):
        scan(video_path.with_name("list.csv"), format="csv", out=video_path.with_name("x" * 245 + ".jsonl"))


@pytest.mark.parametrize(
    "change",
    [
        {"frames": "60"}, {"frames": None}, {"frames": 101}, {"first_frame": "a"}, {"first_frame": 5}, {"label": 0.0}, {"path": 5},
        {"info": {"pts": [0, 1, 2]}}, {"info": {"pts": []}}, {"info": {"key_bytes": [1]}}, {"info": {"key_frames": [0, 500]}},
    ],
    ids=str,
)  # fmt: skip
def test_edited_index(video_path, change):
    scanned(video_path, "path,label\nfilm.mp4,a\n")
    path = video_path.with_name("index.jsonl")
    header, line = path.read_text().splitlines()
    record = json.loads(line)
    record |= {key: record[key] | value if isinstance(value, dict) else value for key, value in change.items()}
    path.write_text(header + "\n" + json.dumps(record) + "\n")
    with pytest.raises(FlowlessError, match="not a readable index"):
        DatasetIndex.load(path)


def test_incomplete_index_and_repeated_label(video_path):
    scanned(video_path, "path,label,start,end\nfilm.mp4,a,0,1\nfilm.mp4,b,1,2\n")
    path = video_path.with_name("index.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:2]) + "\n")
    with pytest.raises(FlowlessError, match="it holds 1 of its 2 videos; it is cut off"):
        DatasetIndex.load(path)
    path.write_text("\n".join([lines[0].replace('"b"', '"a"'), *lines[1:]]) + "\n")
    with pytest.raises(FlowlessError, match="its labels are not distinct strings"):
        DatasetIndex.load(path)


def test_an_overwritten_picture_is_detected(tmp_path):
    folder = tmp_path / "set" / "a" / "film"
    folder.mkdir(parents=True)
    for number in range(8):
        Image.fromarray(barcode.draw(number)).save(folder / f"{number}.png")
    index = scan(tmp_path / "set", out=tmp_path / "index.jsonl", workers=1)
    (record,) = index.videos
    job = Job(path=str(folder), parts=((None, None),), decode=True)
    with Journal.open(tmp_path / "journal") as journal:
        from flowless.pipeline.dataset.scan_jobs import inspect_file

        journal.note(job, inspect_file(job))
    with Journal.open(tmp_path / "journal") as journal:
        assert journal.finding(job) is not None
    assert record.info_if_unchanged(folder)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "3.png")
    assert record.info_if_unchanged(folder) is None
    with Journal.open(tmp_path / "journal") as journal:
        assert journal.finding(job) is None
