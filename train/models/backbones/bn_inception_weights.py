"""Load BN-Inception's published ImageNet weights: map their names, fold their biases, and convert them to our pixel normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from flowless.errors import FlowlessError, first_line
from flowless.pipeline.clip.spec import ClipSpec
from flowless.train.models.backbones.bn_inception import MODULES, BNInception, Unit
from flowless.train.models.backbones.timm_backbones import widen
from flowless.train.models.backbones.weight_files import read_weights

#: Mean of red, green and blue, 0 to 255, that is subtracted from pixels for the published weights (which take BGR, not divided).
_PUBLISHED_MEAN = (128.0, 117.0, 104.0)


def published_names() -> Iterator[str]:
    """Yield the published names of the network's convolutions, in the order of its layers; a batch norm's name has `_bn` appended."""
    yield from ("conv1_7x7_s2", "conv2_3x3_reduce", "conv2_3x3")
    for name, widths in MODULES.items():
        layers = ["1x1"] if widths.one else []
        layers += ["3x3_reduce", "3x3", "double_3x3_reduce", "double_3x3_1", "double_3x3_2"]
        layers += ["pool_proj"] if widths.pool else []
        yield from (f"inception_{name}_{layer}" for layer in layers)


def published_network(path: Path, *, spec: ClipSpec) -> BNInception:
    """Read the weights of bn_inception as the authors of Temporal Segment Networks published them, for Caffe or converted.

    The published convolutions have biases, which are folded into the batch norms' means. The published network takes BGR minus a mean,
    ours RGB normalised by the ClipSpec; the first convolution is converted so that its output is the same (except for a border of
    three pixels, where zero padding is another colour in either normalisation).

    Args:
        path: A file of named tensors.
        spec: The mean and standard deviation by which frames will be normalised.

    Raises:
        FlowlessError: The file is not readable, or holds another network.
    """
    weights = {name.removeprefix("module."): value.float() for name, value in read_weights(path).items()}
    network = BNInception()
    units = [module for module in network.modules() if isinstance(module, Unit)]
    try:
        for name, unit in zip(published_names(), units, strict=True):
            weight = weights[f"{name}.weight"]
            bias = weights.get(f"{name}.bias", torch.zeros(len(weight))).reshape(-1)
            if name.startswith("conv1"):
                weight, bias = _for_our_pixels(weight, bias, spec)
            norm = {part: weights[f"{name}_bn.{part}"].reshape(-1) for part in ("weight", "bias", "running_mean", "running_var")}
            norm["running_mean"] = norm["running_mean"] - bias
            unit.conv.load_state_dict({"weight": weight})
            unit.norm.load_state_dict(norm, strict=False)
    except (KeyError, RuntimeError, ValueError) as error:
        raise FlowlessError(
            f"{path}: does not hold the published weights of BN-Inception ({first_line(error)}). Give bn_inception's "
            f"ImageNet weights with names such as conv1_7x7_s2.weight and inception_3a_1x1_bn.running_mean."
        ) from error
    return network


def widened_conv1(network: BNInception, channels: int) -> dict[str, Tensor]:
    """Return conv1's state for `channels` inputs, each kernel slice the mean over RGB, as in TSN's cross-modality pre-training."""
    return {**network.conv1.state_dict(), "conv.weight": widen(network.conv1.conv.weight.detach(), channels)}


def _for_our_pixels(weight: Tensor, bias: Tensor, spec: ClipSpec) -> tuple[Tensor, Tensor]:
    weight = weight.flip(1)
    mean, std = 255 * torch.tensor(spec.mean), 255 * torch.tensor(spec.std)
    # With x our input: pixel - published mean = std x + (mean - published mean).
    offset = (weight.sum((2, 3)) * (mean - torch.tensor(_PUBLISHED_MEAN))).sum(1)
    return weight * std.view(1, 3, 1, 1), bias + offset
