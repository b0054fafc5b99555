"""Models, recipes, training, checkpoints and evaluation: the PyTorch stage.

`models` holds the recognisers, `pa` the Persistence of Appearance op with its Triton kernels, `recipes` the settings of a training by
name, `loop` the training itself, `checkpoints` its files, `evaluation` the accuracy of checkpoints and bundles, `commands` the
subcommands. `recipes` and the evaluation of bundles import no PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowless import make_callable

if TYPE_CHECKING:
    from flowless.train.checkpoints import load_checkpoint, load_official
    from flowless.train.models import build_model
    from flowless.train.recipes import find_recipe

_PACKAGES = {"build_model": "models", "find_recipe": "recipes", "load_checkpoint": "checkpoints", "load_official": "checkpoints"}
__all__ = ["build_model", "find_recipe", "load_checkpoint", "load_official"]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that recipes can be read without PyTorch."""
    if name in _PACKAGES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_PACKAGES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


make_callable(__name__)  # flowless.train(...)
