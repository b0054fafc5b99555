"""Films and their reversals: the same pictures for who ignores order, by construction and as checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowless.bench.lib.reversal_films import SUFFIX, clips_of, film_length, inner_parts, labelled_videos, same_pictures, write_films
from flowless.bench.systems.reversal import CONTESTANTS, Settings, run_reversal
from flowless.errors import FlowlessError
from flowless.pipeline.clip.sampling import clip_indices, sample_rng
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.index import DatasetIndex
from flowless.pipeline.dataset.scan import scan
from flowless.pipeline.video.encode import write_video

SPEC = ClipSpec(segments=4, frames_per_segment=4, height=16, width=16, short_side=16)
SINGLE = ClipSpec(segments=4, frames_per_segment=1, height=16, width=16, short_side=16)


def make_videos(folder: Path, *, count: int = 2, frames: int = 33) -> Path:
    rng = np.random.default_rng(1)
    for number in range(count):
        noise = rng.integers(0, 256, size=(frames, 6, 8, 3), dtype=np.uint8)
        write_video(folder / f"gesture{number}.mp4", noise.repeat(8, axis=1).repeat(8, axis=2))
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    work = tmp_path_factory.mktemp("reversal")
    write_films(make_videos(work / "source"), work / "films", spec=SPEC)
    return scan(work / "films", out=work / "films.index", workers=1)


@given(frames=st.integers(1, 400), segments=st.sampled_from([1, 2, 4, 8]), stack=st.integers(1, 6))
def test_sampling_sees_a_film_alike_from_both_ends(frames: int, segments: int, stack: int) -> None:
    n = film_length(frames, segments=segments, stack=stack)
    assert n <= frames
    if not n:
        assert frames < segments + stack - 1
        return
    assert frames - n < 2 * segments
    centre = clip_indices(n, segments=segments, frames_per_segment=stack, rule="centre")[0]
    assert np.array_equal((n - 1 - centre)[::-1, ::-1], centre)
    # Jitter: every place a stack can begin in a segment's share forwards is one backwards too, so chance is alike.
    starts = {(k, int(first)) for seed in range(60) for k, first in enumerate(_train(n, segments, stack, seed))}
    share = (n - stack + 1) // segments
    assert all(k * share <= first < (k + 1) * share for k, first in starts)
    assert n - stack + 1 == share * segments


def _train(n: int, segments: int, stack: int, seed: int) -> np.ndarray:
    rng = sample_rng(seed, 0, "film")
    return clip_indices(n, segments=segments, frames_per_segment=stack, rule="train", rng=rng)[0, :, 0]


def test_films_are_classes_in_pairs(films: DatasetIndex) -> None:
    assert films.labels == ("gesture0", f"gesture0{SUFFIX}", "gesture1", f"gesture1{SUFFIX}")
    assert {record.frames for record in films.videos} == {film_length(33, segments=4, stack=4)} == {31}


def test_stacks_and_single_frames_are_the_same_pictures_in_opposite_order(films: DatasetIndex) -> None:
    assert same_pictures(films, SPEC)
    single = inner_parts(films, stack=4)
    assert same_pictures(single, SINGLE)
    clips, labels = clips_of(single, SINGLE)
    assert clips.shape == (4, *SINGLE.shape)
    assert labels.tolist() == [0, 1, 2, 3]
    assert not np.array_equal(clips[0], clips[1])  # the films do move


def test_a_cut_that_is_not_symmetric_is_noticed(films: DatasetIndex) -> None:
    lopsided = DatasetIndex(
        root=films.root, labels=films.labels, videos=tuple(_shorter(record) for record in films.videos), refused=films.refused
    )
    assert not same_pictures(lopsided, SINGLE)


def _shorter(record):
    from dataclasses import replace

    return replace(record, frames=record.frames - 2)


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(FlowlessError, match="no such folder"):
        labelled_videos(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FlowlessError, match="holds no video file"):
        labelled_videos(tmp_path / "empty")
    make_videos(tmp_path / "short", count=1, frames=5)
    with pytest.raises(FlowlessError, match="5 frames are too few for 4 stacks of 4"):
        write_films(tmp_path / "short", tmp_path / "films", spec=SPEC)


def test_a_bad_video_is_listed_and_the_others_go_on(tmp_path: Path) -> None:
    source = make_videos(tmp_path / "source", count=1)
    (source / "text.mp4").write_text("no video")
    written = write_films(source, tmp_path / "films", spec=SPEC)
    assert written.videos == 1
    assert len(written.skipped) == 1
    assert "text.mp4" in written.skipped[0]


@pytest.mark.slow
def test_the_whole_benchmark(tmp_path: Path) -> None:
    source = make_videos(tmp_path / "source", count=2, frames=40)
    settings = Settings(source=source, epochs=1, size=32, depth="r18", seed=0, controls=True)
    document = run_reversal(settings, work=tmp_path / "work")
    assert document["classes"] == 4
    assert [row["model"] for row in document["models"]] == [contestant.name for contestant in CONTESTANTS]
    by_name = {row["model"]: row for row in document["models"]}
    assert by_name["tsn"]["frames_per_segment"] == 1
    # A film and its reversal get the same scores up to rounding, so one of each pair is wrong, whatever was learnt.
    assert by_name["tsn"]["top1"] <= 0.5
    assert document["goals"][1]["met"]
