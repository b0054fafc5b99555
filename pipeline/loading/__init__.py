"""Batches for training and evaluation: DALI's graph, augmentation, and the decoders behind them."""
