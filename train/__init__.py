"""Models, losses, recipes, checkpoints: the PyTorch stage."""
