"""Online recognition: one frame in, one answer out."""
