"""Loading a bundle and running it with numpy, PyAV, Pillow and one library of a target; without PyTorch, DALI or ONNX."""

from flowless.engines.engine import Engine, Label, Prediction
from flowless.engines.loading import load
from flowless.engines.streaming.online import Online

__all__ = ["Engine", "Label", "Online", "Prediction", "load"]
