"""Read tensors from safetensors and PyTorch files, without running any code in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowless.errors import FlowlessError, first_line


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a safetensors or PyTorch file, or of its `state_dict`; only tensors and plain values are unpickled."""
    weights = read_document(path)
    weights = weights.get("state_dict", weights) if isinstance(weights, dict) else weights
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise FlowlessError(f"{path}: has no dictionary of named tensors. Give a .safetensors file, or a .pth of tensors.")
    return weights


def read_document(path: Path) -> Any:
    """Read the contents of a safetensors or PyTorch file onto the CPU; only tensors and plain values are unpickled."""
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
        # PyTorch's message would advise the user to disable the check.
        raise FlowlessError(
            f"{path}: not a readable file of weights: it is not a PyTorch file, or holds pickled objects other than tensors and plain "
            f"values, which are never loaded. Give a .safetensors or .pth of tensors."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, SafetensorError) as error:
        raise FlowlessError(
            f"{path}: not a readable file of weights ({first_line(error)}). Give a .safetensors or .pth of tensors."
        ) from error
