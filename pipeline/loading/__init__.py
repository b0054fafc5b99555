"""Batches for training and evaluation: the loader, DALI's graphs, augmentation, and the choice of decoders."""
