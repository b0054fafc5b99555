"""Videos that DALI decodes for an engine, rehearsed on DALI's CPU device with IO binding: scores, order, fallbacks, overlap, threads."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flowless
from flowless import cuda_driver
from flowless.cli import main
from flowless.engines import decoded_scores
from flowless.engines.decoded_scores import decodes_on_gpu
from flowless.engines.engine import Engine, Prediction
from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import load_clip, resize_and_crop
from flowless.pipeline.clip.sampling import clip_indices
from flowless.pipeline.clip.spec import ClipSpec
from flowless.pipeline.dataset.scan import scan
from flowless.pipeline.video.encode import write_video
from flowless.pipeline.video.open_reader import open_reader, whole_video

pytest.importorskip("nvidia.dali")
pytest.importorskip("onnxruntime")

from flowless.pipeline.loading import decoded_batches
from flowless.pipeline.loading.dali_graph import TOLERANCE_EDGE, TOLERANCE_MAX, TOLERANCE_MEAN
from flowless.pipeline.loading.decoded_batches import decode_batches

#: Mean difference, and the difference that 99 % of the values do not exceed, of what DALI and FFmpeg make of the same YUV picture, in
#: grey levels. They interpolate the colours of neighbouring pixels differently: measured on four recorded videos 1.2 to 1.5, and 3 to 9;
#: single values at the edges of colours differ by up to 36.
CONVERSION_MEAN, CONVERSION_99 = 2.0, 12
VP9 = {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8", "g": "16"}}


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest, built: Path) -> Engine:
    return flowless.load(built, request.param)


@pytest.fixture(scope="module")
def vp9(once: Any, videos: list[Path]) -> list[Path]:
    """The three videos, as DALI decodes them on a CPU."""

    def make(path: Path, source: Path) -> None:
        with open_reader(source) as video:
            write_video(path, video, **VP9)

    return [once(f"{source.stem}.webm", partial(make, source=source)) for source in videos]


def by_dali(engine: Engine, paths: list[Path], **options: Any) -> list[Prediction]:
    """Predict as with `decode="gpu"`, on the CPU."""
    return list(engine._predict_decoded(paths, 3, **{"threads": 2, "device_id": None} | options))


def by_pyav(engine: Engine, paths: list[Path]) -> list[Prediction]:
    return list(engine.predict_many(paths, 3, decode="cpu"))


def scores_of(prediction: Prediction) -> np.ndarray:
    assert prediction.scores is not None, prediction.error
    return prediction.scores


def assert_close(found: Prediction, expected: Prediction, *, share: float = 0.02) -> None:
    """Compare scores; the tolerance is a share of what the classes' scores differ by, 0 for the same pixels."""
    reference = scores_of(expected)
    np.testing.assert_allclose(scores_of(found), reference, atol=1e-6 + share * float(np.ptp(reference)))


def test_scores_are_those_of_pyavs_videos(engine: Engine, vp9: list[Path]) -> None:
    paths = vp9 * 7  # more than one batch, the last one not full
    found, expected = by_dali(engine, paths), by_pyav(engine, paths)
    assert [item.video for item in found] == [str(path) for path in paths]
    assert {item.decoder for item in found} == {"dali"}
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)
        assert one.top[0].label == other.top[0].label
        assert set(one.seconds) == {"decode", "preprocess", "engine"}
        assert min(one.seconds["decode"], one.seconds["engine"]) > 0
    assert np.ptp([scores_of(item) for item in expected[:3]], axis=0).max() > 0.1, "the videos must differ by more than the decoders"


def test_many_views(built: Path, vp9: list[Path]) -> None:
    """Three crops of ten clips: thirty views of a video, in four calls of the engine."""
    loaded = flowless.load(built, "onnxruntime")
    spec = replace(loaded.spec, sampling="dense", crop="three", average="softmax")
    engine = Engine(loaded._backend, manifest=replace(loaded.manifest, spec=spec), target="onnxruntime", precision="fp32", why="")
    for one, other in zip(by_dali(engine, vp9), by_pyav(engine, vp9), strict=True):
        assert one.decoder == "dali"
        assert_close(one, other)


def test_what_dali_cannot_decode_is_pyavs(engine: Engine, vp9: list[Path], videos: list[Path], tmp_path: Path) -> None:
    """A codec that DALI does not know, a missing file, one that is no video: each in its place, the others by DALI."""
    (tmp_path / "text.webm").write_text("no video")
    paths = [vp9[0], videos[0], tmp_path / "missing.mp4", vp9[1], tmp_path / "text.webm", videos[1]]
    found, expected = by_dali(engine, paths), by_pyav(engine, paths)
    assert [item.decoder if item.error is None else "" for item in found] == ["dali", "pyav", "", "dali", "", "pyav"]
    assert [item.error for item in found] == [item.error for item in expected]
    for place in (1, 5):  # the same code decodes them
        assert_close(found[place], expected[place], share=0)
        assert "h264: on the CPU, DALI decodes mjpeg, vp8, vp9" in found[place].fallback
        assert found[place].to_dict()["fallback"] == found[place].fallback
    assert all(not item.fallback for item in found if item.decoder == "dali")
    assert_close(found[3], expected[3])


def test_a_video_at_which_dali_fails_costs_its_batch_alone(
    engine: Engine, vp9: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DALI finds out in the graph, and does not report which video of the batch it is."""
    broken, data = tmp_path / "broken.webm", vp9[2].read_bytes()
    broken.write_bytes(data)
    read = decoded_batches.bytes_of
    monkeypatch.setattr(decoded_batches, "bytes_of", lambda path: read(path)[:99] if path == str(broken) else read(path))
    paths = [broken, *vp9, *vp9, *vp9]
    found, expected = by_dali(engine, paths), by_pyav(engine, paths)
    assert [item.decoder for item in found] == ["pyav"] * 8 + ["dali"] * 2
    assert {item.fallback.partition(" (")[0] for item in found[:8]} == {"DALI could not decode a video of its batch"}
    for one, other in zip(found[:8], expected[:8], strict=True):
        assert_close(one, other, share=0)
    assert_close(found[8], expected[8])


def test_a_large_file_is_pyavs(engine: Engine, vp9: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_batches, "_LARGEST", 1000)
    (found,) = by_dali(engine, vp9[:1])
    assert found.decoder == "pyav"
    assert "DALI takes the whole file into memory" in found.fallback


@pytest.fixture(scope="module")
def recorded(clips: Path, once: Any) -> list[Path]:
    """Recorded videos in a codec that DALI decodes on a CPU: the same frames for both decoders."""

    def make(path: Path, source: Path) -> None:
        with open_reader(source) as video:
            wanted = range(min(video.count, 48))
            write_video(path, (frame for _, frame in video.frames(wanted)), **VP9)

    sources = [clips / name for name in ("arm_wrestling.mp4", "flipping_a_pancake.mkv", "nasa_13013.mp4", "bt709_full_range.mp4")]
    return [once(f"recorded-{source.stem}.webm", partial(make, source=source)) for source in sources]


def frames_by_dali(path: Path, ordinals: np.ndarray) -> np.ndarray:
    """Return frames as DALI decodes them, neither resized nor cropped."""
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import pipeline_def

    loose: Any = fn

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)  # pyright: ignore
    def decoding() -> Any:
        encoded = loose.external_source(name="encoded", ndim=1, dtype=types.UINT8)  # pyright: ignore
        return loose.decoders.video(encoded, frames=ordinals.tolist(), device="cpu")

    return np.array(decoding().run(encoded=[np.fromfile(path, np.uint8)])[0].as_tensor())[0]


@pytest.mark.slow
@pytest.mark.parametrize("crop", ["centre", "three"])
def test_what_differs_on_recorded_videos(recorded: list[Path], crop: Any) -> None:
    """DALI's resize differs from Pillow's by a grey level; the rest is the decoders' conversion from YUV."""
    spec = ClipSpec(segments=4, frames_per_segment=2, crop=crop)
    (batch,) = decode_batches(map(whole_video, recorded), spec, batch_size=8, threads=2, device_id=None)
    found = np.from_dlpack(batch.clips).reshape(len(recorded), spec.views, *spec.shape).astype(int)
    worst = TOLERANCE_MAX if crop == "centre" else TOLERANCE_EDGE
    for path, views in zip(recorded, found, strict=True):
        with open_reader(path) as video:
            indices = clip_indices(video.count, segments=4, frames_per_segment=2, rule="centre")
        resized = resize_and_crop(frames_by_dali(path, indices.reshape(-1)), spec).reshape(views.shape)
        assert np.abs(views - resized).max() <= worst
        assert np.abs(views - resized).mean() <= TOLERANCE_MEAN
        difference = np.abs(views - load_clip(path, spec))
        assert 0 < difference.mean() <= CONVERSION_MEAN
        assert np.percentile(difference, 99) <= CONVERSION_99


@pytest.mark.slow
def test_scores_of_recorded_videos(engine: Engine, recorded: list[Path]) -> None:
    found, expected = by_dali(engine, recorded), by_pyav(engine, recorded)
    assert [item.decoder for item in found] == ["dali"] * len(recorded)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)
        assert one.top[0].label == other.top[0].label


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("flowless")]


def test_a_caller_that_stops_leaves_no_thread(engine: Engine, vp9: list[Path]) -> None:
    predictions = engine._predict_decoded(vp9 * 40, 1, threads=2, device_id=None)
    assert next(predictions).error is None
    assert own_threads() != []
    predictions.close()
    assert own_threads() == []


_INTERRUPTED = """
import os, signal, sys, threading
import flowless
engine = flowless.load(sys.argv[1], "onnxruntime")
def press(number):
    if number == 9:
        os.kill(os.getpid(), signal.SIGINT)
try:
    for number, _ in enumerate(engine._predict_decoded(sys.argv[2:] * 40, 1, threads=2, device_id=None)):
        press(number)
except KeyboardInterrupt:
    print([thread.name for thread in threading.enumerate() if thread.name.startswith("flowless")])
"""


def test_ctrl_c_leaves_no_thread(built: Path, vp9: list[Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, str(built), *map(str, vp9)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


class _Slow:
    """An engine that ends a call only once the next batch is decoded, and counts the batches that exist."""

    device, target, gpu = "CPU", "onnxruntime", None

    def __init__(self, monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
        self.decoded, self.scored, self.batches, self.most = 0, 0, batches, 0
        self.alive: list[weakref.ref[Any]] = []
        self.more = threading.Condition()
        run = decoded_batches._Graph.run

        def counting(graph: Any, reading: Any) -> Any:
            batch = run(graph, reading)
            with self.more:
                self.alive.append(weakref.ref(batch))
                self.most = max(self.most, sum(other() is not None for other in self.alive))
                self.decoded += 1
                self.more.notify_all()
            return batch

        monkeypatch.setattr(decoded_batches._Graph, "run", counting)

    def __call__(self, clip: Any) -> np.ndarray:
        self.scored += 1
        with self.more:
            assert self.more.wait_for(lambda: self.decoded >= min(self.scored + 1, self.batches), timeout=20), (
                "nothing is decoded meanwhile"
            )
        return np.zeros((len(clip), 2), np.float32)


def test_two_batches_are_in_flight(vp9: list[Path], engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = _Slow(monkeypatch, batches=6)
    scored = decoded_scores.score_decoded(slow, map(str, vp9 * 4), engine.spec, views_at_once=2, threads=2, device_id=None)
    assert len(list(scored)) == 12
    assert (slow.scored, slow.most) == (6, 2)


def test_videos_are_taken_as_they_are_needed(engine: Engine, vp9: list[Path]) -> None:
    taken = []

    def endless() -> Iterator[str]:
        while True:
            taken.append(1)
            yield str(vp9[0])

    scored = decoded_scores.score_decoded(engine, endless(), engine.spec, views_at_once=1, threads=2, device_id=None)
    next(scored)
    scored.close()
    assert len(taken) <= 3


@pytest.mark.parametrize("rule", ["centre", "two-clip"])
def test_an_evaluation_counts_decoders(engine: Engine, vp9: list[Path], videos: list[Path], tmp_path: Path, rule: Any) -> None:
    from flowless.train.evaluation.options import EvaluationOptions
    from flowless.train.evaluation.score_videos import score_decoded_videos, score_videos

    for number, source in enumerate([*vp9, *videos[:1]]):
        (tmp_path / "data" / engine.labels[number]).mkdir(parents=True)
        shutil.copy(source, tmp_path / "data" / engine.labels[number])
    index = scan(tmp_path / "data", out=tmp_path / "index.jsonl")
    index = replace(index, videos=(*index.videos, replace(index.videos[0], id="part", first_frame=5, frames=12)))
    spec, options = replace(engine.spec, sampling=rule), EvaluationOptions(batch_size=4, threads=2)
    (index.path_of(index.videos[1])).write_bytes(b"no longer a video")
    found = score_decoded_videos(engine, index, spec, options=options, device_id=None)
    expected = score_videos(engine, index, spec, options=options)
    assert (found.ids, found.labels.tolist(), found.bad_videos) == (expected.ids, expected.labels.tolist(), expected.bad_videos)
    assert len(found.bad_videos) == 1
    assert (found.decoded_by, expected.decoded_by) == ({"dali": 3, "pyav": 1}, {"pyav": 4})
    assert list(found.fallbacks.values()) == [1]
    np.testing.assert_allclose(found.scores, expected.scores, atol=0.02 * float(np.ptp(expected.scores)))
    assert np.abs(found.scores[-1] - found.scores[0]).max() > 0, "a part is not the whole"


def test_auto_is_pyav_without_a_gpu(engine: Engine, videos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: None)
    (found,) = engine.predict_many(videos[:1])
    np.testing.assert_array_equal(found.scores, engine.predict(videos[0]).scores)
    assert (found.decoder, found.fallback) == ("pyav", "")


def test_what_decode_needs(engine: Engine, videos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from flowless.pipeline.loading import nvdec

    def refused(says: str) -> None:
        assert not decodes_on_gpu("auto", engine)
        assert not decodes_on_gpu("cpu", engine)
        with pytest.raises(FlowlessError, match=says):
            list(engine.predict_many(videos, decode="gpu"))

    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: None)
    refused("decode is 'gpu', but there is no NVIDIA GPU here. With 'auto' or 'cpu', PyAV decodes")
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: (8, 9))
    with monkeypatch.context() as patch:
        find = importlib.util.find_spec
        patch.setattr(importlib.util, "find_spec", lambda name: None if name == "nvidia.dali" else find(name))
        refused(r"DALI is not installed \(pip install 'flowless\[dali\]'\)")
        with pytest.raises(FlowlessError, match=r"pip install 'flowless\[dali\]'"):
            by_dali(engine, videos)
    monkeypatch.setattr(nvdec, "why_no_nvdec", lambda: "The driver's libnvcuvid.so.1 does not load.")
    refused("but The driver's libnvcuvid.so.1 does not load. With 'auto'")
    monkeypatch.setattr(nvdec, "why_no_nvdec", lambda: None)
    refused(f"{engine.target} runs on the CPU here; load an engine that runs on the GPU")
    monkeypatch.setattr(engine, "device", "GPU")
    assert decodes_on_gpu("auto", engine)
    assert decodes_on_gpu("gpu", engine)
    assert not decodes_on_gpu("cpu", engine)
    with pytest.raises(FlowlessError, match="decode is 'nvdec'; it must be one of auto, gpu, cpu"):
        list(engine.predict_many(videos, decode="nvdec"))  # pyright: ignore[reportArgumentType]


def test_the_commands(
    built: Path, videos: list[Path], vp9: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_driver, "compute_capability", lambda: None)
    for more, says in (([], "decode is 'gpu', but there is no NVIDIA GPU here."), (["--online"], "--decode gpu and --online")):
        assert main(["predict", str(built), str(videos[0]), "--decode", "gpu", *more]) == 1
        assert says in capsys.readouterr().err
    assert main(["predict", str(built), str(videos[0]), "--decode", "cpu", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)[0]["decoder"] == "pyav"
    assert "DALI" not in captured.err
    # As on a GPU, with DALI's CPU device.
    monkeypatch.setattr("flowless.engines.engine.decodes_on_gpu", lambda *_: True)
    run = Engine._predict_decoded
    monkeypatch.setattr(Engine, "_predict_decoded", lambda self, *args, **options: run(self, *args, **options | {"device_id": None}))
    assert main(["predict", str(built), str(vp9[0]), str(videos[0]), "--target", "onnxruntime", "--json"]) == 0
    captured = capsys.readouterr()
    assert [item["decoder"] for item in json.loads(captured.out)] == ["dali", "pyav"]
    assert "DALI decoded 1 videos, PyAV 1: h264: on the CPU, DALI decodes mjpeg, vp8, vp9 (1)." in " ".join(captured.err.split())
