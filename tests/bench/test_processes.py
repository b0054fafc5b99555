"""`flowless bench processes`: both ways predict every video, and the rows say what ran."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowless.bench.lib.sample_videos import sample_videos
from flowless.bench.speed import processes
from flowless.errors import FlowlessError

SMALL = ["--model", "pan-lite-r18", "--width", "0.25", "--blocks", "1", "--size", "49", "--classes", "3", "--runs", "2", "--threads", "2"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sample_videos(tmp_path_factory.mktemp("videos"), count=2, sizes=((96, 64),), frames=40)


@pytest.mark.slow
def test_both_ways_are_measured(videos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "processes.json"
    processes.main([*SMALL, "--videos", *map(str, videos), "--out", str(out), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == document
    one, several = document["rows"]
    assert [(row["processes"], row["threads"]) for row in (one, several)] == [(1, 2), (2, 1)]
    assert one["times_one_engine"] == 1
    assert several["times_one_engine"] == pytest.approx(one["p50_ms"] / several["p50_ms"], abs=1e-3)
    assert several["videos_per_s"] == pytest.approx(1e3 * document["settings"]["videos_per_round"] / several["p50_ms"], rel=1e-3)
    assert several["peak_mb"] > 1.2 * one["peak_mb"] > 50, "the memory of both processes"


@pytest.mark.slow
def test_a_video_that_cannot_be_read_is_an_error(videos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(FlowlessError, match=r"text\.mp4"):
        processes.main([*SMALL, "--videos", str(videos[0]), str(tmp_path / "text.mp4"), "--out", str(tmp_path / "out.json")])
    assert not (tmp_path / "out.json").exists()


def test_a_bundle_has_its_network(tmp_path: Path) -> None:
    for args, message in ((["--size", "49"], "--bundle has its network; leave --size out"), ([], "no such folder")):
        with pytest.raises(FlowlessError, match=message):
            processes.main(["--bundle", str(tmp_path / "nowhere"), *args, "--out", str(tmp_path / "out.json")])


@pytest.mark.parametrize(("parts", "sizes"), [(1, [5]), (2, [3, 2]), (5, [1] * 5)])
def test_the_queue_is_cut_into_parts(parts: int, sizes: list[int]) -> None:
    cut = list(processes._cut(list("abcde"), parts))
    assert [len(part) for part in cut] == sizes
    assert [video for part in cut for video in part] == list("abcde")
