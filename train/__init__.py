"""Models, losses, recipes, checkpoints, evaluation: the PyTorch stage.

`models` holds the recognisers, `pa` the Persistence of Appearance operator with its kernels, `recipes` what decides how a model is
trained, `loop` the training itself, `checkpoints` its files, `evaluation` accuracy, `commands` the subcommands. `recipes` and what
evaluates a bundle need no PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowless import make_callable

if TYPE_CHECKING:
    from flowless.train.checkpoints import load_checkpoint, load_official
    from flowless.train.models import build_model
    from flowless.train.recipes import find_recipe

_WHERE = {"build_model": "models", "find_recipe": "recipes", "load_checkpoint": "checkpoints", "load_official": "checkpoints"}
__all__ = ["build_model", "find_recipe", "load_checkpoint", "load_official"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: a recipe needs no PyTorch."""
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


make_callable(__name__)  # flowless.train(...)
