"""The recognisers: networks by name, their options (`options`, without PyTorch), and the results in their papers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowless.train.models.build import FAMILIES, build_model
    from flowless.train.models.disentangling import DisentanglingRecognizer
    from flowless.train.models.dynamic_appearance import AppearanceRecognizer
    from flowless.train.models.options import MODELS
    from flowless.train.models.recognizer import FusedRecognizer, MotionOnlyRecognizer, MotionRecognizer, Network, Recognizer

_MODULES = {
    "FAMILIES": "build",
    "build_model": "build",
    "MODELS": "options",
    "AppearanceRecognizer": "dynamic_appearance",
    "DisentanglingRecognizer": "disentangling",
    **dict.fromkeys(("FusedRecognizer", "MotionOnlyRecognizer", "MotionRecognizer", "Network", "Recognizer"), "recognizer"),
}
__all__ = [
    "FAMILIES",
    "MODELS",
    "AppearanceRecognizer",
    "DisentanglingRecognizer",
    "FusedRecognizer",
    "MotionOnlyRecognizer",
    "MotionRecognizer",
    "Network",
    "Recognizer",
    "build_model",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `options` can be imported without PyTorch."""
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
