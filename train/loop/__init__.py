"""The training loop: loaders, objectives, the optimiser's parameter groups, the Lightning module, and the run's folder."""
