"""A bundle on disk: its manifest, and whether an engine of it fits this machine."""
