"""Test protocols: what each asks of a model's ClipSpec, and that nothing else of it changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flowless.errors import FlowlessError
from flowless.pipeline.clip.protocols import PROTOCOLS, SAME_SIZE, protocol_name, protocol_spec
from flowless.pipeline.clip.spec import ClipSpec

SPEC = ClipSpec(segments=16, frames_per_segment=3, mean=(0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("name", "sampling", "crop", "side", "views"),
    [
        ("one-view", "centre", "centre", 224, 1),
        ("centre", "centre", "centre", 224, 1),
        ("two-clip", "two-clip", "centre", 224, 2),
        ("dense", "dense", "centre", 224, 10),
        ("three-crop", "centre", "three", 224, 3),
        ("full-resolution", "two-clip", "centre", 256, 2),
        ("thirty-view", "dense", "three", 256, 30),
    ],
)
@pytest.mark.parametrize("before", [SPEC, replace(SPEC, sampling="dense", crop="three")], ids=["centre", "dense three"])
def test_what_each_is(name, sampling, crop, side, views, before):
    spec = protocol_spec(before, name)
    assert spec == replace(SPEC, sampling=sampling, crop=crop, height=side, width=side)
    assert spec.views == views


def test_full_resolution_is_the_short_side_of_any_model():
    spec = protocol_spec(ClipSpec(height=96, width=112, short_side=128), "full-resolution")
    assert (spec.height, spec.width, spec.short_side) == (128, 128, 128)


def test_names():
    assert set(SAME_SIZE) | {"full-resolution", "thirty-view", "centre"} == set(PROTOCOLS)
    for name in set(PROTOCOLS) - {"centre"}:
        assert protocol_name(protocol_spec(SPEC, name)) == name
    assert protocol_name(replace(SPEC, sampling="dense", crop="three")) == "three crop, dense"
    with pytest.raises(FlowlessError, match=r"views is 'ten-crop'; it must be one of one-view, .*thirty-view"):
        protocol_spec(SPEC, "ten-crop")


def test_a_spec_travels_with_its_crop():
    three = replace(SPEC, crop="three")
    assert ClipSpec.from_dict(three.to_dict()) == three
    assert SPEC.to_dict()["crop"] == "centre", "as manifests and checkpoints have had it"
    assert ClipSpec.from_dict(SPEC.to_dict()) == SPEC
    with pytest.raises(FlowlessError, match="crop is 'ten'; it must be one of centre, three"):
        ClipSpec.from_dict({**SPEC.to_dict(), "crop": "ten"})
