"""From a PyTorch model to an ONNX graph."""
