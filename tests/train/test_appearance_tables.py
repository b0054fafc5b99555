"""The sizes of the Dynamic Appearance models against its paper: Tables 1, 2, 4, 6, 7 and 8.

The paper's FLOPs are multiply-accumulate operations (MAC), except for the transformer's. PWTP is counted as its convolution, the products
of Eq. 3 and the MLP's weights (`projection_macs`), which agrees with Table 8 to within 1 %. Counting half of Eq. 3's products and two
operations per value of batch norm agrees in every printed digit, except in configuration 1; the paper does not explain the half.
"""

from __future__ import annotations

import pytest
import torch

from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models import build_model
from flowless.train.models.flops import projection_macs, size_of
from flowless.train.models.layers.temporal_projection import MLP_SHAPES, MLPShape, PixelwiseTemporalProjection

CLASSES = 174


def spec(segments, frames, side):
    return ClipSpec(segments=segments, frames_per_segment=frames, height=side, width=side, short_side=side)


def parameters(module):
    return sum(value.numel() for value in module.parameters())


def pwtp_gmacs(segments, frames, side, **options):
    """Return the GMAC of PWTP for a clip."""
    return segments * projection_macs(PixelwiseTemporalProjection(frames, **options), height=side, width=side) / 1e9


# Configuration: beta, B, r; the paper's parameters (K) and FLOPs (M).
TABLE_8 = {
    1: (0.25, 1, 4, 16.9, 45.3),
    2: (0.25, 1, 1, 7.4, 38.0),
    3: (0.25, 2, 1, 7.9, 38.3),
    4: (0.25, 2, 4, 23.3, 50.2),
    5: (1.0, 1, 4, 35.5, 59.8),
    6: (0.25, 0, 4, 10.0, 40.0),
    7: (0.25, 1, 2, 9.7, 39.7),
}


@pytest.mark.parametrize(("config", "row"), TABLE_8.items())
def test_table_8(config, row):
    """One segment of T = 8 frames of 224 x 224, D = 1; the MLP's output layer counts, and biases and norms count as parameters."""
    beta, blocks, expansion, thousands, millions = row
    assert MLP_SHAPES[config] == MLPShape(bottleneck=beta, blocks=blocks, expansion=expansion)
    module = PixelwiseTemporalProjection(8, mlp=MLP_SHAPES[config])
    macs = projection_macs(module, height=224, width=224)
    assert macs / 1e6 == pytest.approx(millions, rel=0.01)
    half_pairs = 784 * 28 * 24 // 2
    norms = 784 * 2 * blocks * 28 * expansion
    if config == 1:
        # The paper's rows are inconsistent: a block with r = 4 is configuration 4 minus 1, 23.3 - 16.9 = 6.4 K, but also 1 minus 6,
        # 16.9 - 10.0 = 6.9 K. With 16.64 K for this row, 1.5 % less than printed, both agree. Its FLOPs are too high in the same way.
        assert parameters(module) == 16_644
        assert parameters(module) / 1e3 == pytest.approx(thousands, rel=0.016)
        assert (macs - half_pairs + norms) / 1e6 == pytest.approx(45.1, abs=0.05)
    else:
        assert round(parameters(module) / 1e3, 1) == thousands
        assert round((macs - half_pairs + norms) / 1e6, 1) == millions


@pytest.mark.parametrize("changes", [{"da_mlp": config} for config in range(1, 8)] + [{"da_kernel": 11, "da_stride": 4, "da_channels": 12}])
def test_options_reach_the_projection(changes):
    """A model with options of Table 8 or Table 4a has the projection's parameters and MACs of that row."""
    wanted = PixelwiseTemporalProjection(
        8,
        kernel=changes.get("da_kernel", 9),
        stride=changes.get("da_stride", 8),
        channels=changes.get("da_channels", 24),
        mlp=MLP_SHAPES[changes.get("da_mlp", 7)],
    )
    shape = spec(1, 8, 64)
    with torch.device("meta"):
        model = build_model("da-tsm-r18", classes=2, spec=shape, width=0.25, blocks=1, **changes)
    ours = model.get_submodule("projection")
    assert isinstance(ours, PixelwiseTemporalProjection)
    assert parameters(ours) == parameters(wanted)
    assert projection_macs(ours, height=64, width=64) == projection_macs(wanted, height=64, width=64)
    assert {name: model.config[name] for name in changes} == changes


def test_table_6_other_inputs():
    """The other inputs have TSM's parameters and MACs, except for the wider first convolution of RGB difference, as in the table."""
    shape = spec(8, 6, 224)
    tsm = size_of("tsm-r50", classes=CLASSES, spec=spec(8, 1, 224))
    assert size_of("da-tsm-r50", classes=CLASSES, spec=shape, da_input="rgb") == tsm
    assert size_of("da-tsm-r50", classes=CLASSES, spec=shape, da_input="dynamic-image") == tsm
    wide = size_of("da-tsm-r50", classes=CLASSES, spec=shape, da_input="rgb-difference")
    more = (3 * 5 - 3) * 64 * 49
    assert (wide.parameters - tsm.parameters, wide.macs - tsm.macs) == (more, more * 8 * 112**2)


def test_table_6_pwtp_alone():
    """8 segments of 6 frames (48 frames; appendix B) of 224 x 224: 0.23 G. The paper has 7.13 K parameters; 7,100 are counted."""
    module = PixelwiseTemporalProjection(6)
    assert parameters(module) == 7_100
    assert parameters(module) / 1e3 == pytest.approx(7.13, rel=0.01)
    assert round(pwtp_gmacs(8, 6, 224), 2) == 0.23


def test_table_2_pwtp_alone():
    """Kinetics, 30 views of 256 x 256: 16 x 8 adds 25 G to TSM and to X3D-M."""
    assert round(30 * pwtp_gmacs(16, 8, 256)) == 25


# The model, its clip, the paper's GMAC and millions of parameters.
TABLE_1 = [
    ("da-tsm-r50", (8, 4, 256), 43.1, 23.8),
    ("da-x3d-xs", (4, 8, 160), 0.8, 3.34),
    ("da-x3d-m", (16, 3, 256), 7.0, 3.34),
    ("da-vit-b", (8, 4, 224), 270, 86.3),
]


@pytest.mark.parametrize(("name", "shape", "paper", "millions"), TABLE_1)
def test_table_1_parameters(name, shape, paper, millions):
    assert size_of(name, classes=CLASSES, spec=spec(*shape)).parameters / 1e6 == pytest.approx(millions, rel=0.01)


def test_table_1_tsm():
    """Also Table 7: 42.9 G for RGB and 43.1 G for dynamic appearance, at 256 x 256."""
    rgb = size_of("tsm-r50", classes=CLASSES, spec=spec(8, 1, 256)).macs / 1e9
    ours = size_of("da-tsm-r50", classes=CLASSES, spec=spec(8, 4, 256)).macs / 1e9
    assert rgb == pytest.approx(42.9, rel=0.01)
    assert ours == pytest.approx(43.1, rel=0.01)
    assert ours - rgb == pytest.approx(43.1 - 42.9, abs=0.01)


def backbone_gmacs(name, segments, side):
    """Return the GMAC of a model without PWTP; `count` leaves out Eq. 3, so it is added back."""
    shape = spec(segments, 2, side)
    pairs = segments * (side // 8) ** 2 * 24 / 1e9
    return size_of(name, classes=CLASSES, spec=shape).macs / 1e9 - pwtp_gmacs(segments, 2, side) + pairs


def test_x3d_as_its_own_paper_counts_it():
    """X3D paper, Tables 3 and 4: XS 0.60 G, M 4.73 G at 224; 3.79 M with 400 classes. Dynamic Appearance's Table 1 has 6.3 G at 256."""
    assert backbone_gmacs("da-x3d-xs", 4, 160) == pytest.approx(0.604, abs=1e-3)
    assert backbone_gmacs("da-x3d-m", 16, 224) == pytest.approx(4.73, abs=5e-3)
    # The X3D paper has 6.2 G at 256, which is the sum over the layers.
    assert backbone_gmacs("da-x3d-m", 16, 256) == pytest.approx(6.18, abs=5e-3)
    model = build_model("da-x3d-m", classes=400, spec=spec(16, 3, 224))
    assert (parameters(model) - parameters(model.get_submodule("projection"))) / 1e6 == pytest.approx(3.79, abs=0.005)


def first_convolution_gmacs(segments, frames, side):
    """Return the GMAC of X3D's first convolution (1 x 3 x 3, 3 to 24 channels, stride 2) over all T frames of every segment."""
    stem = build_model("da-x3d-xs", classes=CLASSES, spec=spec(4, 2, 32)).get_submodule("backbone.stem.0")
    return segments * frames * (side // 2) ** 2 * stem.get_parameter("weight").numel() / 1e9


# T, D, the paper's GMAC: X3D-XS with PWTP, 4 segments of 160 x 160.
TABLE_4B = [(4, 1, 0.71), (4, 2, 0.71), (8, 1, 0.82), (8, 3, 0.83), (16, 1, 1.12)]
# Kernel, stride, channels, the paper's GMAC, for T = 8, D = 1.
TABLE_4A = [(7, 1, 12, 2.60), (7, 1, 24, 4.06), (7, 4, 24, 0.95), (9, 8, 24, 0.82), (11, 8, 24, 0.86)]


@pytest.mark.parametrize(("frames", "subspace", "paper"), TABLE_4B)
def test_table_4b(frames, subspace, paper):
    """The paper's numbers with X3D are the sum of X3D, PWTP, and X3D's first convolution over every frame that PWTP sees.

    The method does not need the last (X3D sees one image per segment, which is in the first term), but its 648 weights at a quarter of the
    pixels, 16.6 M for each of T frames, are exactly the remainder in every row of Tables 4a, 4b and 1. (T - 1 frames are too few.) It is
    neither in Table 2 nor in Tables 6, 7 and 8, which have no X3D. Only D = 3 is printed 0.01 higher.
    """
    ours = backbone_gmacs("da-x3d-xs", 4, 160) + pwtp_gmacs(4, frames, 160, subspace=subspace) + first_convolution_gmacs(4, frames, 160)
    assert ours == pytest.approx(paper, abs=0.005 if subspace < 3 else 0.01)


@pytest.mark.parametrize(("kernel", "stride", "channels", "paper"), TABLE_4A)
def test_table_4a(kernel, stride, channels, paper):
    ours = backbone_gmacs("da-x3d-xs", 4, 160) + pwtp_gmacs(4, 8, 160, kernel=kernel, stride=stride, channels=channels)
    assert ours + first_convolution_gmacs(4, 8, 160) == pytest.approx(paper, rel=0.0065)


def test_table_1_x3d():
    """As in Table 4; no number was fitted to these rows."""
    assert round(backbone_gmacs("da-x3d-xs", 4, 160) + pwtp_gmacs(4, 8, 160) + first_convolution_gmacs(4, 8, 160), 1) == 0.8
    assert round(backbone_gmacs("da-x3d-m", 16, 256) + pwtp_gmacs(16, 3, 256) + first_convolution_gmacs(16, 3, 256), 1) == 7.0


def test_tables_1_and_2_transformer():
    """The paper's 269 G (808 for three views) is not a number of MACs, but twice the linear layers' MACs for 8 frames of 224 x 224.

    It includes a class token per frame, counts multiplications and additions separately, and leaves out the products inside attention,
    so it does not show whether frames attend to each other. In this code all patches do, without class token. (269 G are also the MACs of
    16 such frames. At 256 x 256 it would be 352 G; MACs with attention inside each frame only are 141 G.)
    """
    projections = 8 * projection_macs(PixelwiseTemporalProjection(4), height=224, width=224)
    macs = size_of("da-vit-b", classes=CLASSES, spec=spec(8, 4, 224)).macs - projections
    tokens, features, layers = 8 * 196, 768, 12
    attention = layers * 2 * tokens**2 * features
    linear = layers * 12 * features**2 * tokens + tokens * features**2
    assert macs == pytest.approx(attention + linear, rel=1e-4)
    class_tokens = layers * 12 * features**2 * 8
    assert 2 * (linear + class_tokens) / 1e9 == pytest.approx(269, rel=0.01)
    assert 3 * 2 * (linear + class_tokens) / 1e9 == pytest.approx(808, rel=0.01)
    # PWTP adds 1 G at 8 x 4 in the same table, and 1 G for three views of 8 x 8.
    assert 2 * (linear + class_tokens) / 1e9 + pwtp_gmacs(8, 4, 224) == pytest.approx(270, rel=0.01)
    assert round(3 * pwtp_gmacs(8, 8, 224)) == 1
