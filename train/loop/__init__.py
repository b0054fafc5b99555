"""The training loop: batches, objectives, optimiser groups, epochs, and the run's folder."""
