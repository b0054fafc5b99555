"""The streaming form of causal networks: frame by frame it gives what the whole causal network gives over all frames at once."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from video_files import all_frames

from flowless.errors import FlowlessError
from flowless.export.graph.streaming_graph import StreamingForm
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models import MotionRecognizer, Network, build_model
from flowless.train.models.flops import count
from flowless.train.models.layers.temporal_shift import ShiftedConv

N, H, W = 4, 40, 44
#: Largest difference of a score between streaming and the whole network.
TOLERANCE = 1e-4
#: Every family and depth, and what changes the state: frames per segment, encoding and depth of PA, heads, full depths.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "tsm-r18": ("tsm-r18", {}),
    "tsm-r18, two blocks": ("tsm-r18", {"blocks": 2}),
    "tsm-r34": ("tsm-r34", {"blocks": 0, "width": 0.125}),
    "tsm-r50": ("tsm-r50", {}),
    "tsm-r101": ("tsm-r101", {"blocks": 0, "width": 0.125}),
    "tsm-r18, three frames": ("tsm-r18", {"frames": 3}),
    "pan-rgb-r18": ("pan-rgb-r18", {}),
    "pan-rgb-r50, average": ("pan-rgb-r50", {"aggregation": "average"}),
    "pan-lite-r18": ("pan-lite-r18", {"frames": 3}),
    "pan-lite-r50": ("pan-lite-r50", {"frames": 4}),
    "pan-lite-r18, two frames": ("pan-lite-r18", {"frames": 2, "aggregation": "2"}),
    "pan-lite-r18, e2": ("pan-lite-r18", {"frames": 3, "pa_encoding": "e2"}),
    "pan-lite-r18, e2, deep": ("pan-lite-r18", {"frames": 3, "pa_encoding": "e2", "pa_depth": 2}),
    "pan-lite-r18, pixels": ("pan-lite-r18", {"frames": 3, "pa_depth": 0}),
    "pan-lite-r18, eps inside": ("pan-lite-r18", {"frames": 3, "eps_inside": True}),
}


class _PreviousChannels(nn.Module):
    """The causal shift over all T segments of a stream, by assignment to slices."""

    def forward(self, x: Tensor) -> Tensor:
        eighth = x.shape[1] // 8
        out = x.clone()
        out[0, :eighth] = 0
        out[1:, :eighth] = x[:-1, :eighth]
        return out


def offline_causal(model: Network, film: np.ndarray) -> np.ndarray:
    """Run the whole causal network over all T frames at once, in float64, without any state: scores `[T, classes]`.

    Each frame's stack is its m newest frames; before the first there are copies of it. Each score is the head's over the N newest features;
    before the first there are copies of it.
    """
    whole = copy.deepcopy(model).double().eval()
    for block in list(whole.modules()):
        if isinstance(first := getattr(block, "conv1", None), ShiftedConv):
            block.conv1 = nn.Sequential(_PreviousChannels(), first.net)
    frames, segments = model.spec.frames_per_segment, model.spec.segments
    pixels = torch.from_numpy(film).double().permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values, dtype=torch.double).view(3, 1, 1) for values in (model.spec.mean, model.spec.std))
    normal = (pixels - mean) / std
    with torch.inference_mode():
        images = normal
        if isinstance(whole, MotionRecognizer):
            stacks = normal[_newest(len(film), frames)]
            images = torch.cat([normal, whole.persistence(stacks, whole.persistence.motion(stacks))], dim=1)
        features = whole.backbone(images)
        return whole.head(features[_newest(len(film), segments)]).numpy()


def _newest(count: int, length: int) -> Tensor:
    """Return, for each of `count` places, those of the `length` newest: `[count, length]`, the first place repeated before it."""
    return (torch.arange(count)[:, None] + torch.arange(1 - length, 1)).clamp(min=0)


def make(kind: str, **changes: Any) -> Network:
    """Return a small causal model whose scores depend on everything that it sees."""
    from randomize_weights import randomize_weights

    name, options = MODELS[kind]
    options = {"width": 0.25, "blocks": 1, "causal": True, "frames": 1} | options | changes
    spec = ClipSpec(segments=N, frames_per_segment=options.pop("frames"), height=H, width=W, short_side=48)
    torch.manual_seed(3)
    model = build_model(name, classes=4, spec=spec, **options).eval()
    randomize_weights(model)
    assert isinstance(model, Network)
    return model


def start(form: StreamingForm, batch: int = 1) -> list[Tensor]:
    return [torch.zeros((batch, *item.shape), dtype=getattr(torch, item.dtype)) for item in form.state]


def stream(form: StreamingForm, film: np.ndarray) -> np.ndarray:
    """Feed the frames one by one: scores `[T, classes]`."""
    state, scores = start(form), []
    with torch.inference_mode():
        for frame in torch.from_numpy(film):
            now, *state = form(frame[None], *state)
            scores.append(now[0].numpy())
    return np.stack(scores)


def segment_by_segment(form: StreamingForm, clip: np.ndarray) -> np.ndarray:
    """Feed a clip's N segments `[N, m, H, W, 3]`, each with its own earlier frames: the last scores `[classes]`."""
    given, state, scores = torch.from_numpy(clip), start(form), torch.empty(0)
    frames_are_given = form.state[0].name == "frames"
    with torch.inference_mode():
        for place, segment in enumerate(given):
            state[-1] = torch.tensor([[float(place > 0), 1.0]])
            if frames_are_given:
                state[0] = segment[None, :-1]
            scores, *state = form(segment[None, -1], *state)
    return scores[0].numpy()


def film_of(path: Path, frames: int) -> np.ndarray:
    """Return the first frames of a video, resized to the models' picture."""
    return np.stack([np.asarray(Image.fromarray(picture).resize((W, H))) for picture in all_frames(path)[:frames]])


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, H, W, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=list(MODELS))
def model(request) -> Network:
    return make(request.param)


def test_it_gives_what_the_whole_network_gives(model):
    """Invariant 3, on noise, for longer than the network's memory of one clip."""
    film = noise(2 * N + 3)
    wanted = offline_causal(model, film)
    assert wanted.std(axis=0).min() > 100 * TOLERANCE
    np.testing.assert_allclose(stream(StreamingForm(model, name="model"), film), wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["tsm-r18", "tsm-r50", "pan-lite-r18", "pan-rgb-r18"])
def test_it_does_on_videos(kind, videos):
    made = make(kind)
    for path in videos[:2]:
        film = film_of(path, 16)
        np.testing.assert_allclose(stream(StreamingForm(made, name="model"), film), offline_causal(made, film), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["tsm-r18", "pan-lite-r18"])
def test_it_does_on_real_videos(kind, clips):
    made, film = make(kind), film_of(clips / "arm_wrestling.mp4", 40)
    np.testing.assert_allclose(stream(StreamingForm(made, name="model"), film), offline_causal(made, film), atol=TOLERANCE, rtol=0)


def test_the_steps_of_a_clip_give_the_clips_scores(model):
    """Invariant 2; with single frames, from a state of zeros, invariant 1."""
    form = StreamingForm(model, name="model")
    clip = np.random.default_rng(1).integers(0, 256, model.spec.shape, dtype=np.uint8)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(clip)[None])[0].numpy()
    np.testing.assert_allclose(segment_by_segment(form, clip), wanted, atol=TOLERANCE, rtol=0)
    if model.spec.frames_per_segment == 1:
        np.testing.assert_allclose(stream(form, clip[:, 0])[-1], wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["tsm-r18, two blocks", "tsm-r50", "pan-lite-r18", "pan-rgb-r18"])
def test_every_part_of_the_state_matters(kind):
    """The scores change if any tensor of the state is lost in the middle of a stream."""
    form = StreamingForm(make(kind), name="model")
    film, state = torch.from_numpy(noise(N + 3)), start(form)
    with torch.inference_mode():
        for frame in film[:-1]:
            _, *state = form(frame[None], *state)
        wanted = form(film[-1:], *state)[0]
        for place, item in enumerate(form.state):
            lost = [torch.zeros_like(value) if place == other else value for other, value in enumerate(state)]
            change = (form(film[-1:], *lost)[0] - wanted).abs().max()
            assert change > 10 * TOLERANCE, item.name


def test_the_state_is_described():
    form = StreamingForm(make("pan-lite-r18"), name="pan-lite-r18")
    assert [(item.name, item.shape, item.dtype) for item in form.state] == [
        ("frames", (2, H, W, 3), "uint8"),
        ("shift_00", (8, 10, 11), "float32"),  # the stem halves the picture twice, and has 64 channels
        ("shift_01", (2, 10, 11), "float32"),
        ("shift_02", (4, 5, 6), "float32"),
        ("shift_03", (8, 3, 3), "float32"),
        ("features", (N - 1, 128), "float32"),
        ("started", (2,), "float32"),
    ]
    shifts = {kind: sum(item.name.startswith("shift_") for item in StreamingForm(make(kind), name=kind).state) for kind in MODELS}
    # ResNet-101 shifts in every second block only: 2 + 2 + 12 + 2 of its 33.
    assert (shifts["tsm-r34"], shifts["tsm-r101"], shifts["tsm-r18, two blocks"]) == (16, 18, 8)


@pytest.mark.parametrize("kind", ["tsm-r18", "pan-lite-r18"])
def test_frames_may_be_larger_than_in_training(kind):
    """As in a bundle of a protocol with larger frames (`flowless export --views full-resolution`)."""
    model = make(kind)
    spec = replace(model.spec, height=56, width=64, short_side=64)
    form, clip = StreamingForm(model, name="model", spec=spec), np.random.default_rng(0).integers(0, 256, spec.shape, dtype=np.uint8)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(clip[None]))[0].numpy()
    np.testing.assert_allclose(segment_by_segment(form, clip), wanted, atol=TOLERANCE, rtol=0)


def test_the_next_state_has_the_types_and_shapes_of_the_state(model):
    form = StreamingForm(model, name="model")
    state = start(form, batch=3)
    with torch.inference_mode():
        scores, *following = form(torch.from_numpy(noise(3)), *state)
    assert scores.shape == (3, 4)
    assert [(value.shape, value.dtype) for value in following] == [(value.shape, value.dtype) for value in state]
    assert torch.equal(following[-1], torch.ones(3, 2))


@pytest.mark.parametrize("kind", ["tsm-r18", "pan-lite-r18"])
def test_streams_in_one_batch_do_not_mix(kind):
    """One stream starts while another is in its middle, in the same batch."""
    form = StreamingForm(make(kind), name="model")
    first, second = noise(N + 4, seed=1), noise(4, seed=2)
    wanted, late = stream(form, first), stream(form, second)
    state = start(form, batch=1)
    with torch.inference_mode():
        for frame in torch.from_numpy(first[:N]):
            _, *state = form(frame[None], *state)
        state = [torch.cat(pair) for pair in zip(state, start(form), strict=True)]
        for place in range(4):
            scores, *state = form(torch.from_numpy(np.stack([first[N + place], second[place]])), *state)
            np.testing.assert_allclose(scores, [wanted[N + place], late[place]], atol=TOLERANCE, rtol=0)


def test_scores_depend_on_earlier_frames_alone(model):
    form, film = StreamingForm(model, name="model"), noise(N + 4)
    scores, changed = stream(form, film), film.copy()
    changed[3] = 255 - changed[3]
    others = stream(form, changed)
    np.testing.assert_array_equal(others[:3], scores[:3])
    assert np.abs(others[3:] - scores[3:]).max(axis=1).min() > 10 * TOLERANCE


def test_the_model_is_unchanged(model):
    clip = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, *model.spec.shape), dtype=np.uint8))
    with torch.inference_mode():
        before, weights = model(clip), copy.deepcopy(model.state_dict())
        model.train()
        form = StreamingForm(model, name="model")
        assert model.training
        form.eval()
        stream(form, noise(2))
        with pytest.raises(RuntimeError):
            form(torch.zeros((1, H, W // 2, 3), dtype=torch.uint8), *start(form))  # the sizes differ from the state's
        assert torch.equal(model(clip), before)
    assert not [module for module in model.modules() if isinstance(module, ShiftedConv) and module.carried is not None]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["tsm-r18", "pan-lite-r18", "pan-lite-r18, e2, deep"])
def test_it_can_be_traced_with_a_free_batch(kind):
    form = StreamingForm(make(kind), name="model").eval()
    free = {0: torch.export.Dim("B", min=1, max=64)}
    state = start(form, batch=2)
    with torch.no_grad():
        shapes = {"frame": free, "state": tuple(free for _ in state)}
        program = torch.export.export(form, (torch.from_numpy(noise(2)), *state), dynamic_shapes=shapes).module()
        for batch in (1, 3):
            ours, theirs = start(form, batch), start(form, batch)
            for seed in range(3):
                frame = torch.from_numpy(noise(batch, seed))
                (scores, *ours), (traced, *theirs) = form(frame, *ours), program(frame, *theirs)
                torch.testing.assert_close(traced, scores, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("name", "frames"), [("tsm-r50", 1), ("pan-lite-r50", 4)])
def test_a_step_costs_at_most_a_sixth_of_a_clip(name, frames):
    spec = ClipSpec(segments=8, frames_per_segment=frames)
    with torch.device("meta"):
        made = build_model(name, classes=174, spec=spec, causal=True).eval()
        assert isinstance(made, Network)
        form = StreamingForm(made, name=name)
        inputs = [torch.zeros((1, *item.shape), dtype=getattr(torch, item.dtype)) for item in form.state]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            form(torch.zeros((1, 224, 224, 3), dtype=torch.uint8), *inputs)
    share = counter.get_total_flops() / 2 / count(made).macs
    assert 1 / 8.01 < share < 1 / 7.99  # it is an eighth, and the head


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tsm-r18", {}, r"tsm-r18: it is not causal.*Train it with --causal \(flowless train tsm-r18/"),
        ("pan-lite-r18", {"frames": 2}, r"pan-lite-r18: it is not causal"),
        ("stm-r18", {}, r"stm-r18: its family has no causal form.*train one of pan-lite, pan-rgb, tsm with --causal"),
        ("tsn-r18", {}, r"tsn-r18: its family has no causal form"),
        ("pan-pa-r18", {"frames": 2}, r"pan-pa-r18: its family has no causal form"),
        ("pan-full-r18", {"frames": 2}, r"pan-full-r18: its family has no causal form"),
        ("tsm-r18", {"segments": 1, "causal": True}, r"tsm-r18: it has one segment"),
    ],
)
def test_models_without_a_streaming_form_are_refused(name, options, message):
    options = {"frames": 1, "segments": N} | options
    spec = ClipSpec(segments=options.pop("segments"), frames_per_segment=options.pop("frames"), height=32, width=32, short_side=32)
    made = build_model(name, classes=4, spec=spec, width=0.125, blocks=1, **options)
    with pytest.raises(FlowlessError, match=message):
        StreamingForm(made, name=name)
