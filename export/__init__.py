"""From a checkpoint to ONNX, to a precision, to an engine in a bundle."""
