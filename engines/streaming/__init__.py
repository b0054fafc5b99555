"""Online recognition: one frame in, scores out."""
