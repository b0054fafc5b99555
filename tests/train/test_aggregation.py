"""PAN's heads: VAP's expansion, VIP, single timescales and the average (Table IV)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from flowless.errors import FlowlessError
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.checkpoints import load_checkpoint, save_checkpoint
from flowless.train.checkpoints.transfer import transfer_weights
from flowless.train.loop.optimizer import parameter_groups
from flowless.train.models import build_model
from flowless.train.models.flops import size_of
from flowless.train.models.layers.heads import AverageHead, TimescalePooling, aggregation_head, init_heads
from flowless.train.models.options import AggregationOptions
from flowless.train.recipes import Recipe, find_recipe

SPEC = ClipSpec(segments=4, frames_per_segment=3, height=32, width=32, short_side=32)
LABELS = ("a", "b", "c", "d", "e")


def head_of(aggregation, *, segments=8, features=24, dropout=0.5):
    torch.manual_seed(1)
    options = AggregationOptions(aggregation=aggregation)
    head = aggregation_head(features, segments=segments, classes=5, dropout=dropout, options=options).double().eval()
    torch.nn.init.normal_(head.get_parameter("pred.bias"))
    return head


def make(name="pan-rgb-r18", *, spec=SPEC, **options: Any):
    torch.manual_seed(2)
    return build_model(name, classes=5, spec=spec, width=0.25, **options).eval()


@pytest.mark.parametrize(
    ("aggregation", "segments", "scales"),
    [
        ("vip", 8, (1, 2, 4)),
        ("vip", 2, (1,)),
        ("1", 8, (1,)),
        ("2", 8, (2,)),
        ("4", 8, (4,)),
        ("8", 16, (8,)),
        ("2", 6, (2,)),
        ("1", 3, (1,)),
    ],
)
def test_timescale_heads_equal_the_reference(reference, aggregation, segments, scales):
    head = head_of(aggregation, segments=segments)
    features = torch.randn(3, segments, 24, dtype=torch.double)
    weight, bias = (head.get_parameter(f"pred.{name}").detach().numpy() for name in ("weight", "bias"))
    assert weight.shape == (5, 24 * len(scales))
    wanted = reference.timescale_head(features.numpy(), weight, bias, scales)
    np.testing.assert_allclose(head(features).detach(), wanted, atol=1e-12)
    assert np.abs(wanted).max() > 0.1
    # The first vector of timescale s is the maximum over the segments 0, s, 2s, …
    first = features[:, :: scales[-1]].amax(1)
    np.testing.assert_array_equal(reference.pooled_at(features.numpy(), scales[-1])[:, 0], first)


def test_the_average_head_equals_the_reference(reference):
    head = head_of("average", segments=5)
    assert isinstance(head, AverageHead)
    features = torch.randn(3, 5, 24, dtype=torch.double)
    weight, bias = (head.get_parameter(f"pred.{name}").detach().numpy() for name in ("weight", "bias"))
    np.testing.assert_allclose(head(features).detach(), reference.average_head(features.numpy(), weight, bias), atol=1e-12)


@pytest.mark.parametrize("aggregation", ["vip", "2"])
def test_a_segment_alone_scores_as_a_clip_of_it(aggregation):
    head = head_of(aggregation)
    assert isinstance(head, TimescalePooling)
    features = torch.randn(2, 8, 24, dtype=torch.double)
    wanted = torch.stack([head(features[:, place : place + 1].expand(-1, 8, -1)) for place in range(8)], dim=1)
    torch.testing.assert_close(head.segment_scores(features), wanted)


@pytest.mark.parametrize("aggregation", ["vip", "4", "average", "vap"])
def test_dropout_is_before_the_last_layer(aggregation):
    head, features = head_of(aggregation, dropout=0.5).train(), torch.randn(2, 8, 24, dtype=torch.double)
    assert (head(features) - head(features)).abs().max() > 1e-3


@pytest.mark.parametrize("expansion", [1, 2, 4, 8])
def test_table_4_alpha_is_an_option(expansion):
    head = make(vap_expansion=expansion).head
    assert [tuple(value.shape) for value in head.TES.parameters()] == [(3 * expansion, 3), (3, 3 * expansion)]  # type: ignore[union-attr]
    # Table IV's ResNet-50 of 8 frames: 23.508 M without a classifier, 101 classes of UCF101, two layers of 7 x 7 alpha weights.
    size = size_of("pan-rgb-r50", classes=101, spec=ClipSpec(frames_per_segment=1), vap_expansion=expansion)
    assert size.parameters == 23_508_032 + 101 * 2049 + 98 * expansion


@pytest.mark.parametrize(("aggregation", "weights"), [("average", 101 * 2049), ("4", 101 * 2049), ("vip", 101 * (3 * 2048 + 1))])
def test_table_4_sizes_of_the_others(aggregation, weights):
    size = size_of("pan-rgb-r50", classes=101, spec=ClipSpec(frames_per_segment=1), aggregation=aggregation)
    assert size.parameters == 23_508_032 + weights


@pytest.mark.parametrize("aggregation", ["vip", "average", "1", "2"])
@pytest.mark.parametrize("name", ["pan-rgb-r18", "pan-full-r18"])
def test_every_branch_has_the_head(name, aggregation):
    model = make(name, aggregation=aggregation)
    kinds = {type(head) for head in model.heads}
    assert kinds == {AverageHead if aggregation == "average" else TimescalePooling}
    with torch.inference_mode():
        scores = model(torch.randint(0, 256, (2, *SPEC.shape), dtype=torch.uint8))
    assert scores.shape == (2, 5)
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("aggregation", ["vip", "average", "2"])
def test_heads_are_initialised_and_grouped_as_vap(aggregation):
    model = make(aggregation=aggregation)
    init_heads(model.heads, std=0.001)
    assert model.get_parameter("head.pred.weight").std().item() == pytest.approx(0.001, rel=0.15)
    groups = {group["name"]: len(group["params"]) for group in parameter_groups(model)}
    assert (groups["lr5_weight"], groups["lr10_bias"]) == (1, 1)


@pytest.mark.parametrize(
    ("options", "segments", "message"),
    [
        ({"aggregation": "4"}, 4, "aggregation is 4, and segments is 4; a timescale must divide the segments and be below them: 1, 2"),
        ({"aggregation": "8"}, 4, "aggregation is 8, and segments is 4"),
        ({"aggregation": "4"}, 6, "aggregation is 4, and segments is 6; .*: 1, 2"),
        ({"aggregation": "1"}, 1, "there is no such timescale, take average"),
        ({"aggregation": "vip"}, 6, "VIP: segments is 6"),
        ({"aggregation": "16"}, 32, "aggregation is '16'; it must be one of vap, vip, average, 1, 2, 4, 8"),
        (
            {"aggregation": "vip", "vap_expansion": 2},
            4,
            "vap_expansion is 2, but a head with aggregation vip learns no weights of timescales",
        ),
        ({"vap_expansion": 17}, 4, "vap_expansion is 17; it must be a whole number from 1 to 16"),
    ],
)
def test_invalid_heads_are_refused(options, segments, message):
    with pytest.raises(FlowlessError, match=message):
        make(spec=replace(SPEC, segments=segments), **options)


def test_all_problems_of_a_recipe_at_once():
    with pytest.raises(FlowlessError, match=r"vap_expansion is 8, but .*; eps_inside is the official code's rule"):
        find_recipe("pan-lite-r50/tiny", aggregation="average", vap_expansion=8, eps_inside=True, pa_depth=2)
    recipe = find_recipe("pan-full-r50/tiny", aggregation="vip")
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def save(path, model, *, labels=LABELS):
    return save_checkpoint(path, model, model_name="pan-rgb-r18", recipe={}, spec=SPEC, labels=labels, metrics={})


def test_checkpoints_with_and_without_the_options(tmp_path):
    cases: tuple[dict[str, Any], ...] = ({"aggregation": "vip"}, {"aggregation": "2"}, {"vap_expansion": 2})
    for options in cases:
        loaded = load_checkpoint(save(tmp_path / "new.safetensors", make(**options))).model
        assert {name: loaded.config[name] for name in options} == options
    model = make()
    model.config = {name: value for name, value in model.config.items() if name not in {"aggregation", "vap_expansion"}}
    assert load_checkpoint(save(tmp_path / "old.safetensors", model)).model.config["aggregation"] == "vap"


def test_weights_transfer_to_another_head(tmp_path):
    path = save(tmp_path / "vap.safetensors", make())
    start = transfer_weights(make(aggregation="vip"), load_checkpoint(path), path=path, labels=LABELS)
    assert start.other_shape == ("head.pred.weight",)
    assert start.unused == ("head.TES.0.weight", "head.TES.2.weight")
    assert "head.pred.bias" in start.taken
    assert transfer_weights(make(aggregation="2"), load_checkpoint(path), path=path, labels=LABELS).other_shape == ()
