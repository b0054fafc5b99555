"""The index file: saving, loading, and errors of invalid files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from flowless.errors import FlowlessError
from flowless.pipeline.dataset.index import DatasetIndex, Refused, VideoRecord
from flowless.pipeline.video.info import CompactInts, VideoInfo


@pytest.fixture
def small(tmp_path: Path) -> DatasetIndex:
    info = VideoInfo(frames=12, fps=25.0, width=8, height=6, pts=CompactInts(range(0, 480, 40)), key_frames=CompactInts([0, 6]))
    video = VideoRecord(id="wave/a.mp4", path="wave/a.mp4", label=1, frames=12, info=info, stamp=(10, 20))
    refused = (Refused(path="clap/b.mp4", reason="the file is empty"),)
    return DatasetIndex(root=tmp_path / "data", labels=("clap", "wave"), videos=(video,), refused=refused)


def test_save_and_load(small: DatasetIndex, tmp_path: Path) -> None:
    small.save(tmp_path / "elsewhere" / "index.jsonl")
    assert DatasetIndex.load(tmp_path / "elsewhere" / "index.jsonl") == small


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "the file is empty"), ("a video\n", "not a readable index"), ("{}\n", "not the header"), ("[]\n", "not the header")],
)
def test_files_that_are_not_an_index(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "index.jsonl").write_text(text)
    with pytest.raises(FlowlessError, match=rf"index\.jsonl.*{reason}"):
        DatasetIndex.load(tmp_path / "index.jsonl")


def test_a_line_that_is_not_a_record(small: DatasetIndex, tmp_path: Path) -> None:
    small.save(tmp_path / "index.jsonl")
    with (tmp_path / "index.jsonl").open("a") as stream:
        stream.write('["wave/a.mp4"]\n')
    with pytest.raises(FlowlessError, match=r"index\.jsonl.*\['wave/a\.mp4'\], not the record of a video"):
        DatasetIndex.load(tmp_path / "index.jsonl")


def test_name_is_the_file(small: DatasetIndex, tmp_path: Path) -> None:
    small.save(tmp_path / "index.jsonl")
    read = DatasetIndex.load(tmp_path / "index.jsonl")
    assert (small.name, read.name) == ("the index", str(tmp_path / "index.jsonl"))
    assert read == small


def test_label_out_of_range(small: DatasetIndex, tmp_path: Path) -> None:
    wrong = replace(small, videos=(replace(small.videos[0], label=2),))
    wrong.save(tmp_path / "index.jsonl")
    with pytest.raises(FlowlessError, match=r"wave/a\.mp4 has label 2.*2 labels"):
        DatasetIndex.load(tmp_path / "index.jsonl")


@pytest.mark.parametrize(
    "changes",
    [{"time_base": "1/0"}, {"pts": [2**70]}, {"frames": "x"}, {"pts": "c"}, {"pts": "c%0Z"}, {"key_frames": 3}, {"new": 1}],
    ids=str,
)
def test_invalid_video_info(small: DatasetIndex, tmp_path: Path, changes: dict[str, object]) -> None:
    small.save(tmp_path / "index.jsonl")
    header, line = (json.loads(text) for text in (tmp_path / "index.jsonl").read_text().splitlines())
    line["info"] |= changes
    (tmp_path / "index.jsonl").write_text(f"{json.dumps(header)}\n{json.dumps(line)}\n")
    with pytest.raises(FlowlessError, match=r"index\.jsonl: not a readable index"):
        DatasetIndex.load(tmp_path / "index.jsonl")
