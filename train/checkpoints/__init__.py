"""Checkpoints: read and write those of flowless, fuse branches, transfer weights, and read those of the official PAN code."""

from flowless.train.checkpoints.checkpoint import Checkpoint, is_checkpoint, load_checkpoint, save_checkpoint, versions
from flowless.train.checkpoints.fuse_branches import fuse_checkpoints
from flowless.train.checkpoints.official import load_official

__all__ = ["Checkpoint", "fuse_checkpoints", "is_checkpoint", "load_checkpoint", "load_official", "save_checkpoint", "versions"]
