"""flowless: fast video action recognition without optical flow, from video file to embedded engine.

`scan` indexes videos, `train` trains a recipe on them, `evaluate` measures accuracy, `export` makes a bundle of a checkpoint, `build`
adds an engine to it, `pack` cuts it down to one engine, `load` opens the engine that suits this machine. `flowless.train` and
`flowless.export` are packages too, which are called as these functions.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from flowless.errors import CheckFailed, FlowlessError

if TYPE_CHECKING:
    from flowless.engines import load
    from flowless.engines.bundle.pack import pack
    from flowless.export.build_engine import build
    from flowless.export.export_bundle import export_bundle as export
    from flowless.pipeline import scan
    from flowless.train.evaluation.evaluate import evaluate
    from flowless.train.train_recipe import train

__version__ = "0.1.0"
__all__ = ["CheckFailed", "FlowlessError", "__version__", "build", "evaluate", "export", "load", "pack", "scan", "train"]

#: Public name -> its module and its name there. Imported at first use, so that `import flowless` stays instant.
_FUNCTIONS = {
    "build": ("flowless.export.build_engine", "build"),
    "evaluate": ("flowless.train.evaluation.evaluate", "evaluate"),
    "export": ("flowless.export.export_bundle", "export_bundle"),
    "load": ("flowless.engines", "load"),
    "pack": ("flowless.engines.bundle.pack", "pack"),
    "scan": ("flowless.pipeline", "scan"),
    "train": ("flowless.train.train_recipe", "train"),
}


def __getattr__(name: str) -> Any:
    """Import a public function at first use."""
    if name not in _FUNCTIONS:
        raise AttributeError(f"module 'flowless' has no attribute {name!r}")
    module, function = _FUNCTIONS[name]
    return getattr(import_module(module), function)


class CallablePackage(ModuleType):
    """A subpackage that can be called: Python binds `flowless.train` to the package once anything in it was imported."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the public function of the package's name."""
        return __getattr__(self.__name__.rpartition(".")[2])(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the package by its name, as a function is: `pool.submit(flowless.export, ...)` works whichever of the two it is."""
        return import_module, (self.__name__,)


def make_callable(package: str) -> None:
    """Let a subpackage be called as the public function of its name; its `__init__` says so."""
    sys.modules[package].__class__ = CallablePackage
