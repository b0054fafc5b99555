"""The examples in C++ on real clips: what they print equals Python's results of the same engine."""

from __future__ import annotations

import itertools
import re
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from programs import run

import flowless
from flowless.engines.engine import Engine, likeliest
from flowless.engines.streaming.online import Online
from flowless.pipeline.clip.preprocess import resize_and_crop
from flowless.pipeline.clip.sampling import clip_indices
from flowless.pipeline.video.reader import VideoReader

if TYPE_CHECKING:
    import torch

    from flowless.export.graph.graph_forms import Form
    from flowless.train.models import Recognizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CLASSIFIED = (
    "arm_wrestling.mp4", "flipping_a_pancake.mkv", "gestures/eat.mkv", "nasa_13013.mp4", "rotated_90.mov", "bt709_full_range.mp4",
    "h264_10bits.mp4", "h265_video.mp4", "av1_video.mkv", "unordered.mov",
)  # fmt: skip
#: Short enough that a window of 64 frames is the whole video.
SHORT = (
    "short_32_frames.mp4", "gestures/eat.mkv", "gestures/hungry.mkv", "gestures/milk.mkv", "gestures/help.mkv", "gestures/learn.mkv",
    "gestures/bird.mkv", "h265_video.mp4", "rotated_90.mov", "h264_10bits.mp4", "unordered.mov",
)  # fmt: skip
#: A label that changes: time in seconds, probability, label.
_CHANGE = re.compile(r"(\S+) s  (\S+)  (.*)")


def export_balanced(path: Path, model: Recognizer, name: str, mean: torch.Tensor, form: Form) -> None:
    """Export a model whose prediction changes within a clip: the scores' average over the clip is taken from the last layer's bias."""
    import torch

    from flowless.export.build_engine import build
    from flowless.export.export_bundle import export_bundle
    from flowless.train.checkpoints import Checkpoint

    bias = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)][-1].bias
    before = bias.detach().clone()
    try:
        bias.data -= mean
        labels = ("down", "left", "right", "up")
        made = Checkpoint(model=model, name=name, spec=model.spec, labels=labels, recipe={}, versions={}, metrics={})
        export_bundle(made, path, form=form)
    finally:
        bias.data.copy_(before)  # other tests share the model
    build(path, target="openvino")


@pytest.fixture(scope="module")
def changing(once, film_model, clips: Path) -> Path:
    """An online bundle."""
    import torch

    def make(path: Path) -> None:
        spec = film_model.spec
        with VideoReader(clips / "arm_wrestling.mp4") as video:
            pictures = resize_and_crop(video.stack(range(0, 280, 7)), spec)
        stacks = torch.from_numpy(np.stack([pictures[start : start + spec.segments, None] for start in range(36)]))
        with torch.no_grad():
            mean = film_model(stacks).mean(0)
        export_balanced(path, film_model, "stm-r18", mean, "online")

    return once("changing", make)


@pytest.fixture(scope="module")
def changing_stream(once, streaming_models, clips: Path) -> Path:
    """A streaming bundle, whose segments have three frames."""
    import torch

    from flowless.export.graph.streaming_graph import StreamingForm

    def make(path: Path) -> None:
        name = "pan-lite-r18"
        model = streaming_models[name]
        form = StreamingForm(model, name=name).eval()
        state = [torch.zeros(1, *tensor.shape, dtype=getattr(torch, tensor.dtype)) for tensor in form.state]
        scores = []
        with VideoReader(clips / "arm_wrestling.mp4") as video, torch.no_grad():
            for frame in video:
                now, *state = form(torch.from_numpy(resize_and_crop(frame[None], model.spec)), *state)
                scores.append(now[0])
        export_balanced(path, model, name, torch.stack(scores).mean(0), "streaming")

    return once("changing-stream", make)


def changes(printed: str) -> list[tuple[str, str, str]]:
    return [_CHANGE.fullmatch(line).groups() for line in printed.splitlines()]  # pyright: ignore


def expected_changes(engine: Engine, scores: list[np.ndarray], rate: float) -> list[tuple[str, str, str]]:
    """The lines of watch_stream for the scores of each frame."""
    shown, last = [], ""
    for ordinal, row in enumerate(scores):
        (now,) = likeliest(row, engine.labels, 1)
        if now.label != last:
            shown.append((f"{ordinal / rate:.3f}", f"{now.score:.6f}", last := now.label))
    return shown


@pytest.mark.parametrize("name", CLASSIFIED)
def test_a_file_is_classified_as_python_does(examples: Path, built: Path, clips: Path, name: str) -> None:
    expected = flowless.load(built, "openvino").predict(clips / name)
    printed = run(examples / "classify_file", built, clips / name).stdout.splitlines()
    assert printed == [f"{item.score:.6f}  {item.label}" for item in expected.top]


@pytest.mark.parametrize("name", ["corrupted.mp4", "README.md", "no-such.mp4"])
@pytest.mark.parametrize("program", ["classify_file", "watch_stream"])
def test_a_file_that_is_no_video_is_an_error(examples: Path, built: Path, clips: Path, program: str, name: str) -> None:
    done = subprocess.run([examples / program, built, clips / name], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{clips / name}: " in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("program", ["classify_file", "watch_stream", "sixteen_streams"])
def test_a_missing_bundle_and_missing_arguments_are_errors(examples: Path, clips: Path, program: str, tmp_path: Path) -> None:
    done = subprocess.run([examples / program, tmp_path, clips / "unordered.mov"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "manifest.json" in done.stderr
    assert subprocess.run([examples / program], capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize("form", ["changing", "changing_stream"])
def test_a_file_is_watched_frame_by_frame_as_python_does(examples: Path, form: str, clips: Path, request: pytest.FixtureRequest) -> None:
    bundle = request.getfixturevalue(form)
    engine, path = flowless.load(bundle), clips / "arm_wrestling.mp4"
    online = Online(engine)
    with VideoReader(path) as video:
        expected = expected_changes(engine, [online.push(frame) for frame in video], rate=28)
    assert len(expected) > 3
    assert changes(run(examples / "watch_stream", bundle, path).stdout) == expected


def test_a_window_of_frames_is_scored_as_a_video_of_them(examples: Path, changing: Path, clips: Path) -> None:
    engine, path, window = flowless.load(changing), clips / "arm_wrestling.mp4", 12
    spec = engine.spec
    with VideoReader(path) as video:
        pictures = np.concatenate([resize_and_crop(frame[None], spec) for frame in video])
    scores = []
    for end in range(1, len(pictures) + 1):
        seen = pictures[max(0, end - window) : end]
        indices = clip_indices(len(seen), segments=spec.segments, frames_per_segment=spec.frames_per_segment, rule=spec.sampling)
        scores.append(engine(seen[indices])[0])
    expected = expected_changes(engine, scores, rate=28)
    assert len(expected) > 3
    assert changes(run(examples / "watch_stream", changing, path, str(window)).stdout) == expected


@pytest.fixture
def transport_stream(clips: Path, tmp_path: Path) -> bytes:
    """A clip as cameras send it: an MPEG transport stream of the same packets."""
    import av

    path = tmp_path / "camera.ts"
    with av.open(str(clips / "arm_wrestling.mp4")) as source, av.open(str(path), "w") as sink:
        stream = sink.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                sink.mux(packet)
    return path.read_bytes()


def test_a_stream_that_ends_is_opened_again_until_ctrl_c(examples: Path, changing: Path, transport_stream: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        program = subprocess.Popen([examples / "watch_stream", changing, address, "12"], stdout=subprocess.PIPE, text=True)
        try:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(transport_stream)
            connection, _ = server.accept()
            with connection:  # a camera that sends nothing: Ctrl-C ends the waiting
                time.sleep(0.2)
                program.send_signal(signal.SIGINT)
                printed, _ = program.communicate(timeout=20)
        finally:
            program.kill()
    assert program.returncode == 0
    assert {label for _, _, label in changes(printed)} <= {"down", "left", "right", "up"}
    assert len(changes(printed)) > 1


def test_sixteen_streams_are_scored_together_as_python_scores_each(examples: Path, built: Path, clips: Path) -> None:
    engine = flowless.load(built, "openvino")
    names = list(itertools.islice(itertools.cycle(SHORT), 15))
    done = subprocess.run(
        [examples / "sixteen_streams", built, "/no/such/video.mp4", *(clips / name for name in names)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, "a source failed"
    assert "/no/such/video.mp4: " in done.stderr
    missing, *lines = done.stdout.splitlines()
    assert missing.endswith("nothing  0 frames, 0 scored")
    for name, line in zip(names, lines, strict=True):
        with VideoReader(clips / name) as video:
            frames = video.count
        (best,) = engine.predict(clips / name, top=1).top
        found = re.fullmatch(r"(\S+)  (\S+)  (.*)  (\d+) frames, (\d+) scored", line)
        assert found is not None, line
        assert found.groups()[:4] == (str(clips / name), f"{best.score:.6f}", best.label, str(frames))
        assert 1 <= int(found[5]) <= frames
