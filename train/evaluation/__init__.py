"""Measure the accuracy of a checkpoint or of an engine bundle on an index. For a bundle no PyTorch is imported."""
