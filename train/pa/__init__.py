"""Persistence of Appearance (PA): the PyTorch op and module, its convolutions in plain PyTorch, and its Triton kernels."""
