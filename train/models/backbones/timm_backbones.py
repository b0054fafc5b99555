"""Build timm's networks as frame encoders: narrower or shallower, with weights from timm or from a file, and inputs other than RGB."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from flowless.errors import FlowlessError, first_line
from flowless.train.models.backbones.weight_files import read_weights

#: Depth in a model's name -> timm's name.
DEPTHS = {"r18": "resnet18", "r34": "resnet34", "r50": "resnet50", "r101": "resnet101"}
#: timm's tags of the papers' pretrained weights: torchvision's first ImageNet weights, and ImageNet-21K (Dynamic Appearance, section 4).
RESNET_WEIGHTS, TRANSFORMER_WEIGHTS = "tv_in1k", "augreg_in21k"
TRANSFORMER = "vit_base_patch16_224"


def resnet(
    depth: str, *, width: float = 1.0, blocks: int = 0, pretrained: bool | str = False, pretrained_path: str | Path | None = None
) -> nn.Module:
    """Return a ResNet that maps frames `[K, 3, H, W]` to features `[K, backbone.num_features]`.

    Args:
        depth: r18, r34, r50 or r101.
        width: Factor on the stages' channels; 0.25 gives 16, 32, 64, 128. The first convolution always has 64: with 16, training on
            Moving Shapes took about twice the epochs until accuracy began to rise.
        blocks: Residual blocks per stage; 0 is the number of the depth.
        pretrained: Load ImageNet weights by timm (from its cache, or a download): True for those of the papers, or timm's tag.
        pretrained_path: Load ImageNet weights from this file (safetensors, or a PyTorch file of plain tensors) instead.
    """
    channels = tuple(max(8, round(width * count)) for count in (64, 128, 256, 512))
    if (pretrained or pretrained_path is not None) and width != 1.0:
        raise FlowlessError(f"width is {width}; pretrained weights exist for width 1 only. Train from scratch, or use width 1.")
    # timm's default initialises the last batch norm of every residual branch with 0. TSM's shift and STM's modules are inside that branch,
    # so the network would start blind to order. The papers' code initialises with 1, as torchvision does.
    options: dict[str, Any] = {"channels": channels, "zero_init_last": False}
    if blocks:
        options["layers"] = (blocks,) * len(channels)
    name = timm_name(DEPTHS[depth], pretrained, default_tag=RESNET_WEIGHTS)
    return from_timm(name, pretrained=bool(pretrained), pretrained_path=pretrained_path, **options)


def timm_name(architecture: str, pretrained: bool | str, *, default_tag: str) -> str:
    """Return timm's name of an architecture and its weights, such as resnet50.tv_in1k; without weights, only the architecture's.

    Raises:
        FlowlessError: timm has no such weights for the architecture.
    """
    if not pretrained:
        return architecture
    tag = pretrained if isinstance(pretrained, str) else default_tag
    if f"{architecture}.{tag}" not in (known := timm.list_pretrained(f"{architecture}.*")):
        tags = ", ".join(sorted(name.partition(".")[2] for name in known))
        raise FlowlessError(f"weights is {tag!r}; for {architecture} timm has {tags}.")
    return f"{architecture}.{tag}"


def normalisation(model: str, weights: str) -> tuple[tuple[float, float, float], tuple[float, float, float]] | None:
    """Return the mean and standard deviation (R, G, B, of pixels from 0 to 1) that a model's ImageNet weights were trained with.

    Args:
        model: Such as da-vit-b.
        weights: timm's tag; empty for the weights of the papers.

    Returns:
        Mean and standard deviation; None for a model whose weights timm does not have.
    """
    family, _, backbone = model.rpartition("-")
    if family == "da-vit":
        name = timm_name(TRANSFORMER, weights or True, default_tag=TRANSFORMER_WEIGHTS)
    elif backbone in DEPTHS:
        name = timm_name(DEPTHS[backbone], weights or True, default_tag=RESNET_WEIGHTS)
    else:
        return None
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    return config.mean, config.std  # type: ignore[return-value]


def from_timm(
    name: str, *, classifier: str = "fc.", pretrained: bool = False, pretrained_path: str | Path | None = None, **options: Any
) -> nn.Module:
    """Return one of timm's models without its classifier.

    Args:
        name: timm's name.
        classifier: Prefix of the names of the classifier's weights, which are skipped in a file.
        pretrained: Load weights by timm.
        pretrained_path: Load weights from this file instead.
        **options: Arguments of timm's model.
    """
    if pretrained_path is not None:
        model = timm.create_model(name, num_classes=0, **options)
        _load_file(model, Path(pretrained_path), name=name, classifier=classifier)
        return model
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise FlowlessError(
            f"ImageNet weights for {name} could not be fetched ({first_line(error)}). Where there is no network, "
            f"give a file with pretrained_path, or train from scratch with pretrained off."
        ) from error


def to_channels_last(model: nn.Module) -> nn.Module:
    """Convert a model's 2D convolutions to the memory layout channels_last, which decoded frames have, and which is faster.

    A model with 3D convolutions is returned unchanged: channels_last is defined for 4 dimensions only.
    """
    if any(value.dim() == 5 for value in model.parameters()):
        return model
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def widen(weight: Tensor, channels: int) -> Tensor:
    """Return a first convolution's kernel for `channels` inputs, each slice the mean over RGB of the kernel `[O, 3, k, k]`."""
    return weight.mean(dim=1, keepdim=True).repeat(1, channels, 1, 1)


def widen_first_conv(backbone: nn.Module, channels: int, *, from_pretrained: bool) -> None:
    """Replace a backbone's first convolution by one with `channels` inputs.

    With pretrained weights every slice is the mean over RGB of the pretrained kernel, not rescaled (PAN's official code); otherwise the
    kernel is initialised like any other.
    """
    old = cast(nn.Conv2d, backbone.get_submodule("conv1"))
    new = nn.Conv2d(channels, old.out_channels, 7, stride=2, padding=3, bias=False)
    with torch.no_grad():
        if from_pretrained:
            new.weight.copy_(widen(old.weight, channels))
        else:
            nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    backbone.conv1 = new


def _load_file(model: nn.Module, path: Path, *, name: str, classifier: str) -> None:
    weights = read_weights(path)
    weights = {key: value for key, value in weights.items() if not key.startswith(classifier)}
    missing, unexpected = model.load_state_dict(weights, strict=False) if _shapes_fit(model, weights) else ([""], [""])
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise FlowlessError(
            f"{path}: does not hold the weights of timm's {name} ({len(missing)} missing, {len(unexpected)} unknown, "
            f"or other shapes). Give a file saved from timm.create_model({name!r})."
        )


def _shapes_fit(model: nn.Module, weights: dict[str, Tensor]) -> bool:
    own = model.state_dict()
    return all(own[name].shape == value.shape for name, value in weights.items() if name in own)
