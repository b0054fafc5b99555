"""Data sets: source formats, the scan, and the index file."""
