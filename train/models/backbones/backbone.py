"""timm's ResNets as frame encoders: narrower ones, a first convolution for more than RGB, weights from a file or from timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from flowless.errors import FlowlessError, first_line

#: Depth as the recipes name it -> timm's model.
DEPTHS = {"r18": "resnet18", "r34": "resnet34", "r50": "resnet50", "r101": "resnet101"}
#: ImageNet weights that the papers start from, by timm's tags: torchvision's first ones; ImageNet-21K (Dynamic Appearance, section 4).
RESNET_WEIGHTS, TRANSFORMER_WEIGHTS = "tv_in1k", "augreg_in21k"
TRANSFORMER = "vit_base_patch16_224"


def resnet(
    depth: str, *, width: float = 1.0, blocks: int = 0, pretrained: bool | str = False, pretrained_path: str | Path | None = None
) -> nn.Module:
    """Return a ResNet that maps frames `[K, 3, H, W]` to features `[K, backbone.num_features]`.

    Args:
        depth: r18, r34, r50 or r101.
        width: Factor on the stages' channels; 0.25 gives 16, 32, 64, 128. The first convolution keeps its 64: with 16 of
            them Moving Shapes took about twice the epochs to start being learnt.
        blocks: Residual blocks of each stage; 0 is as many as the depth has.
        pretrained: Load ImageNet weights the way timm does (its cache, or a download): the papers', or those of timm's tag.
        pretrained_path: Load ImageNet weights from this file (safetensors, or a PyTorch file of plain tensors) instead.
    """
    channels = tuple(max(8, round(width * count)) for count in (64, 128, 256, 512))
    if (pretrained or pretrained_path is not None) and width != 1.0:
        raise FlowlessError(f"width is {width}; pretrained weights exist for width 1 only. Train from scratch, or use width 1.")
    # timm would start the last batch norm of every residual branch at 0. TSM's shift, and STM, sit inside that branch: the network
    # would begin blind to order. The papers' code starts as torchvision does, at 1.
    options: dict[str, Any] = {"channels": channels, "zero_init_last": False}
    if blocks:
        options["layers"] = (blocks,) * len(channels)
    name = tagged(DEPTHS[depth], pretrained, usual=RESNET_WEIGHTS)
    return from_timm(name, pretrained=bool(pretrained), pretrained_path=pretrained_path, **options)


def tagged(architecture: str, pretrained: bool | str, *, usual: str) -> str:
    """Return timm's name of an architecture with its weights, such as resnet50.tv_in1k; without weights, of the architecture.

    Raises:
        FlowlessError: timm has no such weights of it.
    """
    if not pretrained:
        return architecture
    tag = pretrained if isinstance(pretrained, str) else usual
    if f"{architecture}.{tag}" not in (known := timm.list_pretrained(f"{architecture}.*")):
        tags = ", ".join(sorted(name.partition(".")[2] for name in known))
        raise FlowlessError(f"weights is {tag!r}; for {architecture} timm has {tags}.")
    return f"{architecture}.{tag}"


def normalisation(model: str, weights: str) -> tuple[tuple[float, float, float], tuple[float, float, float]] | None:
    """Return the mean and the deviation of pixels (R, G, B, in the range 0 to 1) that ImageNet weights were trained with.

    Args:
        model: Such as da-vit-b.
        weights: timm's tag; empty: the papers'.

    Returns:
        None for a model whose weights timm does not have.
    """
    family, _, backbone = model.rpartition("-")
    if family == "da-vit":
        name = tagged(TRANSFORMER, weights or True, usual=TRANSFORMER_WEIGHTS)
    elif backbone in DEPTHS:
        name = tagged(DEPTHS[backbone], weights or True, usual=RESNET_WEIGHTS)
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
        name: timm's name for it.
        classifier: How the names of the classifier's weights begin; a file may hold them.
        pretrained: Load weights the way timm does.
        pretrained_path: Load weights from this file instead.
        **options: What timm's model takes.
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


def pixels_together(model: nn.Module) -> nn.Module:
    """Lay 2D convolutions' weights out for pixels whose colours lie side by side, as they come from a video: the faster layout.

    A model with 3D convolutions stays as it is; PyTorch has no such layout for them.
    """
    if any(value.dim() == 5 for value in model.parameters()):
        return model
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def widen(weight: Tensor, channels: int) -> Tensor:
    """Make a first convolution's kernel for `channels` inputs: each slice the mean over RGB of `[O, 3, k, k]`."""
    return weight.mean(dim=1, keepdim=True).repeat(1, channels, 1, 1)


def widen_first_conv(backbone: nn.Module, channels: int, *, from_pretrained: bool) -> None:
    """Give a backbone a first convolution of `channels` inputs.

    From pretrained weights every slice is the mean over RGB of the pretrained kernel, not rescaled (official code); from
    scratch the kernel starts like any other.
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
            f"{path}: does not hold the weights of timm's {name} (missing {len(missing)}, unknown {len(unexpected)}, "
            f"or other shapes). Give a file saved from timm.create_model({name!r})."
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read named tensors from a safetensors or PyTorch file; nothing is ever unpickled but plain tensors."""
    weights = read_document(path)
    weights = weights.get("state_dict", weights) if isinstance(weights, dict) else weights
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise FlowlessError(f"{path}: holds no table of named tensors. Give a .safetensors file, or a .pth of tensors.")
    return weights


def read_document(path: Path) -> Any:
    """Read what a safetensors or PyTorch file holds, on the CPU; nothing is ever unpickled but tensors and plain values."""
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FlowlessError(f"{path}: no such file of weights.") from None
    except pickle.UnpicklingError as error:
        # PyTorch's own text would have the user switch the check off.
        raise FlowlessError(
            f"{path}: not a readable file of weights: no PyTorch file, or one that holds more than tensors and plain values, which is "
            f"never run. Give a .safetensors or .pth of tensors."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, SafetensorError) as error:
        raise FlowlessError(
            f"{path}: not a readable file of weights ({first_line(error)}). Give a .safetensors or .pth of tensors."
        ) from error


def _shapes_fit(model: nn.Module, weights: dict[str, Tensor]) -> bool:
    own = model.state_dict()
    return all(own[name].shape == value.shape for name, value in weights.items() if name in own)
