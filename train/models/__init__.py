"""The recognisers, a file each, and what they share."""
