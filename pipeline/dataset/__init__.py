"""Data sets: the formats that people keep them in, the scan, and the index."""
