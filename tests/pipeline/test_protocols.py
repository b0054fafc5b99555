"""Test protocols: the fields of a ClipSpec that each sets, and that the others are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from flowless.errors import FlowlessError
from flowless.pipeline.clip.protocols import PROTOCOLS, SAME_SIZE, paper_views, protocol_name, protocol_spec
from flowless.pipeline.clip.spec import ClipSpec

SPEC = ClipSpec(segments=16, frames_per_segment=3, mean=(0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("name", "sampling", "crop", "side", "views", "crop_side", "average"),
    [
        ("one-view", "centre", "centre", 224, 1, None, None),
        ("centre", "centre", "centre", 224, 1, None, None),
        ("two-clip", "two-clip", "centre", 224, 2, None, None),
        ("dense", "dense", "centre", 224, 10, None, None),
        ("consecutive", "consecutive", "centre", 224, 1, None, None),
        ("three-crop", "centre", "three", 224, 3, None, None),
        ("three-crop-two-clip", "two-clip", "three", 224, 6, None, "softmax"),
        ("full-resolution", "two-clip", "centre", 256, 2, None, None),
        ("thirty-view", "dense", "three", 256, 30, None, None),
        ("three-view", "centre", "three", 256, 3, None, "softmax"),
        ("six-view", "two-clip", "three", 256, 6, None, "softmax"),
        ("thirty-draw", "ten-draw", "three", 224, 30, 256, "softmax"),
        ("three-consecutive", "consecutive", "three", 256, 3, None, "softmax"),
        ("thirty-consecutive", "ten-consecutive", "three", 256, 30, None, "softmax"),
    ],
)
@pytest.mark.parametrize(
    "before",
    [SPEC, replace(SPEC, sampling="dense", crop="three"), replace(SPEC, sampling="ten-draw", crop_side=250, average="softmax")],
    ids=["centre", "dense three", "draws"],
)
def test_protocol_spec(name, sampling, crop, side, views, crop_side, average, before):
    spec = protocol_spec(before, name)
    wanted = {"sampling": sampling, "crop": crop, "height": side, "width": side, "crop_side": crop_side}
    assert spec == replace(SPEC, average=average or before.average, **wanted), "other fields are the model's"
    assert spec.views == views


def test_all_protocols_are_tested():
    marks: Any = test_protocol_spec.pytestmark  # pyright: ignore[reportFunctionMemberAccess]
    assert {case[0] for mark in marks for case in mark.args[1] if isinstance(case, tuple)} == set(PROTOCOLS)


def test_full_resolution_uses_the_models_short_side():
    spec = protocol_spec(ClipSpec(height=96, width=112, short_side=128), "full-resolution")
    assert (spec.height, spec.width, spec.short_side) == (128, 128, 128)


def test_protocol_name():
    larger = {"full-resolution", "thirty-view", "three-view", "six-view", "three-consecutive", "thirty-consecutive"}
    assert set(SAME_SIZE) | larger | {"centre"} == set(PROTOCOLS)
    assert not set(SAME_SIZE) & larger
    for name in set(PROTOCOLS) - {"centre"}:
        assert protocol_name(protocol_spec(SPEC, name)) == name
    assert protocol_name(replace(SPEC, sampling="dense", crop="three")) == "three crop, dense"
    with pytest.raises(FlowlessError, match=r"views is 'ten-crop'; it must be one of one-view, .*thirty-view"):
        protocol_spec(SPEC, "ten-crop")


def test_thirty_draw_needs_a_square_frame():
    oblong = ClipSpec(height=96, width=112, short_side=128)
    with pytest.raises(FlowlessError, match="views is 'thirty-draw', which shrinks square crops; the model's frame is 96 x 112"):
        protocol_spec(oblong, "thirty-draw")
    assert protocol_name(protocol_spec(oblong, "three-crop")) == "three-crop", "names of other protocols are found"
    small = ClipSpec(height=48, width=48, short_side=48)
    assert protocol_spec(small, "thirty-draw").crop_side is None, "the crop has the input size"
    assert protocol_name(protocol_spec(small, "thirty-draw")) == "thirty-draw"


def test_paper_views():
    assert paper_views({"name": "stm-r50/jester", "test_views": "thirty-draw"}) == "thirty-draw"
    for recipe in ({}, {"name": "tsn-r50/jester", "test_views": None}, {"test_views": "ten-crop"}, {"fused": {}}):
        with pytest.raises(FlowlessError, match=r"views is 'paper', but .* names no test protocol.*one-view"):
            paper_views(recipe)


def test_average_and_crop_side_are_stored_and_validated():
    spec = replace(SPEC, average="softmax", crop_side=250)
    assert ClipSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    older = {name: value for name, value in SPEC.to_dict().items() if name not in {"average", "crop_side"}}
    assert ClipSpec.from_dict(older) == SPEC
    assert (SPEC.average, SPEC.crop_side) == ("logits", None)
    with pytest.raises(FlowlessError, match="missing field 'mean'"):
        ClipSpec.from_dict({name: value for name, value in older.items() if name != "mean"})
    with pytest.raises(FlowlessError, match="average is 'votes'; it must be one of logits, softmax"):
        replace(SPEC, average="votes")  # type: ignore[arg-type]
    for side in (0, -3, 2.5, "256"):
        with pytest.raises(FlowlessError, match=rf"crop_side is {side!r} of a frame of 224 x 224; it must be None, or"):
            replace(SPEC, crop_side=side)  # type: ignore[arg-type]
    with pytest.raises(FlowlessError, match="crop_side is 200 of a frame of 200 x 224; it must be None, or for a square frame"):
        replace(SPEC, height=200, crop_side=200)
    with pytest.raises(FlowlessError, match="short_side is 256; it must be at least the crop's larger side, 257"):
        replace(SPEC, crop_side=257)


def test_crop_is_stored_and_validated():
    three = replace(SPEC, crop="three")
    assert ClipSpec.from_dict(three.to_dict()) == three
    assert SPEC.to_dict()["crop"] == "centre", "the value in existing manifests and checkpoints"
    assert ClipSpec.from_dict(SPEC.to_dict()) == SPEC
    with pytest.raises(FlowlessError, match="crop is 'ten'; it must be one of centre, three"):
        ClipSpec.from_dict({**SPEC.to_dict(), "crop": "ten"})
