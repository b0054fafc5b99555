"""From a checkpoint to ONNX, to a precision, to an engine in a bundle."""

from flowless import make_callable

make_callable(__name__)  # flowless.export(...)
