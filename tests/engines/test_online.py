"""Online recognition: a frame in, an answer out; over a whole film the same numbers as the offline computation on the same clips.

Every engine is tried in both forms: the offline graph, with the memory kept around it, and the online one, which moves it itself.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from video_files import all_frames

from flowless.cli import main
from flowless.engines.engine import Engine
from flowless.engines.loading import load
from flowless.engines.streaming.online import Online, predict_online
from flowless.errors import FlowlessError
from flowless.pipeline.clip.preprocess import resize_and_crop
from flowless.pipeline.clip.spec import ClipSpec

N = 4
SPEC = ClipSpec(segments=N, frames_per_segment=1, height=40, width=44, short_side=48)
LABELS = ("down", "left", "right", "up")


@pytest.fixture(params=["onnxruntime", "openvino", "onnxruntime online", "openvino online"])
def engine(request, film_bundles) -> Engine:
    target, _, form = request.param.partition(" ")
    found = load(film_bundles[form or "offline"], target)
    assert found.online == bool(form)
    return found


def windows(pictures: np.ndarray) -> np.ndarray:
    """Every moment's clip, uint8 `[frames, N, 1, H, W, 3]`, by indices: frame t - 3 to t, the first one for those before it."""
    places = np.maximum(np.arange(len(pictures))[:, None] + np.arange(1 - N, 1), 0)
    return pictures[places][:, :, None]


def test_online_is_offline_on_the_same_frames(engine, film_bundles, film_model, videos):
    import torch

    frames = list(all_frames(videos[1]))
    assert len(frames) == 24
    clips = windows(resize_and_crop(np.stack(frames), SPEC))
    online = Online(engine)
    scores = np.stack([online.push(frame) for frame in frames])
    apart = load(film_bundles["offline"], engine.target)
    np.testing.assert_allclose(scores, np.concatenate([apart(clip[None]) for clip in clips]), atol=1e-5)
    np.testing.assert_allclose(scores, engine(clips), atol=1e-5)
    with torch.inference_mode():
        offline = film_model(torch.from_numpy(clips)).numpy()
    np.testing.assert_allclose(scores, offline, atol=1e-4)
    np.testing.assert_allclose(online.average, offline.mean(0), atol=1e-4)
    assert online.frames == 24
    assert np.ptp(scores, axis=0).max() > 0.01, "the frames change, and so do the scores"


def test_a_real_film(film_bundles, clips):
    online, offline = (Online(load(film_bundles[form], "openvino")) for form in ("online", "offline"))
    for count, frame in enumerate(all_frames(clips / "short_32_frames.mp4"), start=1):
        np.testing.assert_allclose(online.push(frame), offline.push(frame), atol=1e-4)
        np.testing.assert_allclose(online.average, offline.average, atol=1e-4)
        assert online.frames == count
    assert online.frames == 32


def test_before_the_memory_is_full_the_first_frame_stands_in(engine, videos):
    first, second = list(all_frames(videos[0]))[:2]
    small = resize_and_crop(np.stack([first, second]), SPEC)
    online = Online(engine)
    for clip, frame in (([0, 0, 0, 0], first), ([0, 0, 0, 1], second)):
        np.testing.assert_allclose(online.push(frame), engine(small[clip][None, :, None])[0], atol=1e-5)
    still = [online.push(second) for _ in range(N)]
    np.testing.assert_allclose(still[-1], engine(small[[1, 1, 1, 1]][None, :, None])[0], atol=1e-5)


@pytest.mark.parametrize("average", ["logits", "softmax"])
def test_three_crops_are_averaged(average, engine, videos, monkeypatch):
    """And moments, too, as the spec says: STM averages predictions over all frames (section 4.6), and its predictions are softmax."""
    monkeypatch.setattr(engine, "spec", replace(SPEC, crop="three", average=average))
    frames = list(all_frames(videos[2]))[:6]
    online, apart = Online(engine), []
    scores = [online.push(frame) for frame in frames]
    for crop in resize_and_crop(np.stack(frames), engine.spec).reshape(3, 6, 40, 44, 3):
        apart.append(engine(windows(crop)))
    shares = [np.exp(each) / np.exp(each).sum(-1, keepdims=True) for each in np.stack(apart).astype(np.float64)]
    by_crop = np.mean(apart, axis=0) if average == "logits" else np.log(np.mean(shares, axis=0))
    np.testing.assert_allclose(scores, by_crop, atol=1e-5)
    by_moment = by_crop.mean(0) if average == "logits" else np.log(np.mean(shares, axis=(0, 1)))
    np.testing.assert_allclose(online.average, by_moment, atol=1e-5)
    assert np.ptp(np.mean(apart, axis=0).mean(0) - np.log(np.mean(shares, axis=(0, 1)))) > 1e-4, "the averages differ"


def test_two_films_at_once_have_a_memory_each(engine, videos):
    films = [list(all_frames(video))[:6] for video in videos[:2]]
    alone = []
    for film in films:
        online = Online(engine)
        alone.append([online.push(frame) for frame in film])
    first, second = Online(engine), Online(engine)
    for place, (frame, other) in enumerate(zip(*films, strict=True)):
        np.testing.assert_array_equal(first.push(frame), alone[0][place])
        np.testing.assert_array_equal(second.push(other), alone[1][place])
    assert np.abs(np.subtract(*alone)).max() > 0.01


def test_mistakes_are_reported_and_leave_no_state(engine, built):
    with pytest.raises(FlowlessError, match="its segments have 3 frames"):
        Online(load(built))
    online = Online(engine)
    with pytest.raises(FlowlessError, match="no frame has been pushed"):
        _ = online.average
    frame = np.zeros((50, 60, 3), np.uint8)
    online.push(frame)
    for wrong, message in (
        (frame[None], r"\[1, 50, 60, 3\]"),
        (frame[..., :1], r"uint8 \[1, 50, 60, 1\]"),
        (frame / 255, "float64"),
        ("x", "str"),
    ):
        with pytest.raises(FlowlessError, match=message):
            online.push(wrong)  # type: ignore[arg-type]
    assert online.frames == 1
    for frames, memory, message in (((1, 40, 44, 3), (1, N, 40, 44, 3), "memory"), ((2, 40, 44, 3), (1, N - 1, 40, 44, 3), "memory")):
        with pytest.raises(FlowlessError, match=f"the {message} is uint8"):
            engine.step(np.zeros(frames, np.uint8), np.zeros(memory, np.uint8))
    for frame, message in (([[0]], "list"), (np.uint8(0), "uint8"), (np.zeros((), np.uint8), r"uint8 \[\]")):
        with pytest.raises(FlowlessError, match=f"the frame is {message}"):
            engine.step(frame, np.zeros((1, N - 1, 40, 44, 3), np.uint8))  # type: ignore[arg-type]
    with pytest.raises(FlowlessError, match="every is 0"):
        predict_online(engine, "film.mp4", every=0)


def test_a_film(engine, videos):
    seen = predict_online(engine, videos[0], top=2, every=3)
    assert [moment.frame for moment in seen.moments] == list(range(0, 24, 3))
    online = Online(engine)
    for frame in list(all_frames(videos[0]))[::3]:
        online.push(frame)
    np.testing.assert_array_equal(seen.scores, online.average)
    assert [answer.label for answer in seen.top] == [LABELS[index] for index in np.argsort(-online.average)[:2]]
    assert seen.moments[-1].so_far == seen.top[0]
    assert all(spent > 0 for spent in seen.seconds.values())


@pytest.mark.parametrize("form", ["offline", "online"])
def test_command(film_bundles, form, built, videos, tmp_path, capsys):
    online_bundle = film_bundles[form]
    bad = tmp_path / "bad.mp4"
    bad.write_text("text")
    arguments = ["predict", str(online_bundle), str(videos[0]), str(bad), "--online", "--target", "openvino"]
    assert main([*arguments, "--json"]) == 1
    good, broken = json.loads(capsys.readouterr().out)
    assert set(good) == {"video", "top", "target", "precision", "seconds", "decoder", "moments"}
    assert len(good["moments"]) == 24
    assert set(good["moments"][0]) == {"frame", "label", "score", "so_far", "seconds"}
    assert set(broken) == {"video", "error"}
    assert main(arguments) == 1
    assert "from frame" in capsys.readouterr().out
    assert main(["predict", str(built), str(videos[0]), "--online"]) == 1
    assert "segments have 3 frames" in " ".join(capsys.readouterr().err.split())
    assert main(["predict", str(online_bundle), str(videos[0]), "--every", "2"]) == 1
    assert "--online" in capsys.readouterr().err
