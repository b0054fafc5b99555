"""Engines through the C interface: scores, pictures and frame numbers equal those of Python, bit for bit."""

from __future__ import annotations

import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from c_interface import CEngine, Library, StatusError

import flowless
from flowless.engines.bundle.manifest import read_manifest
from flowless.pipeline.clip.preprocess import load_clip, resize_and_crop
from flowless.pipeline.clip.sampling import clip_indices
from flowless.pipeline.clip.view_scores import average_views
from flowless.pipeline.video.open_reader import open_reader


@pytest.fixture(scope="module")
def clips_folder() -> Path:
    if not (folder := os.environ.get("FLOWLESS_CLIPS")):
        pytest.skip("FLOWLESS_CLIPS is not set")
    return Path(folder)


def with_spec(bundle: Path, out: Path, **fields: object) -> Path:
    """Copy a bundle and change how its evaluation samples and crops, which changes no graph."""
    shutil.copytree(bundle, out)
    manifest = read_manifest(out)
    replace(manifest, spec=replace(manifest.spec, **fields)).write()  # type: ignore[arg-type]
    return out


def views_by_c(engine: CEngine, path: Path) -> np.ndarray:
    """Return the views of a video, decoded by Python, sampled and prepared through the C interface."""
    with open_reader(path) as video:
        indices = engine.indices(video.count)
        wanted = np.unique(indices)
        pictures = {number: engine.prepare(np.ascontiguousarray(frame)) for number, frame in video.frames(wanted.tolist())}
    crops = [np.stack([pictures[number][crop] for number in indices.flat]) for crop in range(engine.info.crops)]
    return np.concatenate([crop.reshape(*indices.shape, *crop.shape[1:]) for crop in crops])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"crop": "three", "sampling": "two-clip"},
        {"crop": "three", "sampling": "dense", "average": "softmax"},
        {"sampling": "ten-consecutive"},
    ],
    ids=str,
)
def test_a_video_has_the_scores_that_python_gives(
    c_library: Library, built: Path, clips_folder: Path, tmp_path: Path, fields: dict
) -> None:
    bundle = built
    if fields:
        bundle = with_spec(built, tmp_path / "bundle", **fields)
    mine, theirs = CEngine(c_library, bundle, target="openvino"), flowless.load(bundle, "openvino")
    for name in ("arm_wrestling.mp4", "short_32_frames.mp4", "rotated_90.mov", "h265_video.mp4"):
        path = clips_folder / name
        clip = views_by_c(mine, path)
        assert np.array_equal(clip, load_clip(path, theirs.spec)), name
        views = mine.run(clip)
        assert np.array_equal(views, theirs(clip)), name
        predicted = theirs.predict(path).scores
        assert predicted is not None
        np.testing.assert_allclose(mine.average(views), predicted, rtol=0, atol=1e-6)
        assert np.array_equal(mine.average(views), average_views(views, theirs.spec.average)), name


def test_it_describes_what_python_loads(c_library: Library, built: Path) -> None:
    mine, theirs = CEngine(c_library, built), flowless.load(built)
    info = mine.info
    assert (info.segments, info.frames, info.height, info.width, 3) == theirs.spec.shape
    assert info.clip_bytes == np.prod(theirs.spec.shape)
    assert [info.model.decode(), info.target.decode(), info.precision.decode(), info.device.decode()] == [
        theirs.model,
        theirs.target,
        theirs.precision,
        theirs.device,
    ]
    assert tuple(mine.labels) == theirs.labels
    assert info.why.decode().startswith(f"{theirs.target} {theirs.precision}: ")


def test_frame_numbers_are_those_of_python(c_library: Library, built: Path, tmp_path: Path) -> None:
    for rule in ("centre", "two-clip", "dense", "one-dense", "consecutive", "ten-consecutive"):
        engine = CEngine(c_library, with_spec(built, tmp_path / rule, sampling=rule), target="openvino")
        segments, frames = engine.info.segments, engine.info.frames
        for count in (1, 2, 7, 31, 64, 65, 300):
            expected = clip_indices(count, segments=segments, frames_per_segment=frames, rule=rule)  # type: ignore[arg-type]
            assert np.array_equal(engine.indices(count), expected), (rule, count)


def test_rows_may_lie_apart(c_library: Library, built: Path) -> None:
    engine = CEngine(c_library, built, target="openvino")
    wide = np.random.default_rng(0).integers(0, 256, (90, 200, 3), dtype=np.uint8)
    part = wide[:, 20:140]
    assert np.array_equal(engine.prepare(part), resize_and_crop(np.ascontiguousarray(part)[None], read_manifest(built).spec))


def test_threads_prepare_and_run_side_by_side(c_library: Library, built: Path) -> None:
    engine, rng = CEngine(c_library, built, target="openvino"), np.random.default_rng(1)
    spec = read_manifest(built).spec
    frames = [rng.integers(0, 256, (60 + 7 * number, 80, 3), dtype=np.uint8) for number in range(6)]
    clips = [rng.integers(0, 256, (1, *spec.shape), dtype=np.uint8) for _ in frames]
    pictures, scores = [resize_and_crop(frame[None], spec) for frame in frames], [engine.run(clip) for clip in clips]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(10):
            if not np.array_equal(engine.prepare(frames[number]), pictures[number]) or not np.array_equal(
                engine.run(clips[number]), scores[number]
            ):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(frames))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_engine_may_be_closed_while_it_runs(c_library: Library, built: Path) -> None:
    engine = CEngine(c_library, built, target="openvino")
    clips = np.zeros((200, *read_manifest(built).spec.shape), np.uint8)
    results: list[np.ndarray] = []
    running = threading.Thread(target=lambda: results.append(engine.run(clips)))
    running.start()
    time.sleep(0.05)
    assert running.is_alive()
    engine.close()
    running.join()
    assert len(results) == 1
    assert np.isfinite(results[0]).all()
    with pytest.raises(StatusError, match="the engine is closed"):
        engine.run(clips)


def test_an_online_bundle_scores_whole_clips(c_library: Library, film_bundles: dict[str, Path]) -> None:
    mine, theirs = CEngine(c_library, film_bundles["online"], target="openvino"), flowless.load(film_bundles["online"], "openvino")
    assert mine.info.online == 1
    clips = np.random.default_rng(2).integers(0, 256, (3, *theirs.spec.shape), dtype=np.uint8)
    assert np.array_equal(mine.run(clips), theirs(clips))
