"""Accuracy of a checkpoint or of an engine bundle on an index. What scores a bundle needs no PyTorch."""
